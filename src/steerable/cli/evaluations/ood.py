"""``steerable eval ood``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from steerable.cli.evaluations.presenting import Sheet, load_models, present
from steerable.cli.evaluations.reading import TEST, TRAIN, read_images, severity_levels

COLUMNS = {
    "score": ("score", "{}"),
    "kind": ("kind", "{}"),
    "passes": ("passes", "{}"),
    "milliseconds": ("ms/image", "{:.3g}"),
    "near": ("near", "{:.1%}"),
    "far": ("far", "{:.1%}"),
    "corruptions": ("corruptions", "{:.1%}"),
}
FIGURES = {
    "score": ("score", "{}"),
    "auroc": ("AUROC", "{:.1%}"),
    "aupr_in": ("AUPR in", "{:.1%}"),
    "aupr_out": ("AUPR out", "{:.1%}"),
    "fpr95_ood_positive": ("FPR95 OOD+", "{:.1%}"),
    "fpr95_id_positive": ("FPR95 ID+", "{:.1%}"),
    "flagged": ("flagged", "{:.1%}"),
}


def ood(
    *models: Annotated[str, "MODEL"],
    id: Annotated[str, "SRC"],
    ood: Annotated[list[str], "SRC"] = [],  # noqa: B006, read and never written
    near: Annotated[list[str], "SRC"] = [],  # noqa: B006
    corruptions: bool = False,
    severities: str = "1,2,3,4,5",
    train: Annotated[str | None, "SRC"] = None,
    data: Annotated[Path | None, "PATH"] = None,
    views: int = 32,
    encoded: int = 8,
    limit: int = 1000,
    train_limit: int = 5000,
    size: int | None = None,
    seed: int = 0,
    cache: Annotated[Path | None, "DIR"] = None,
    json: bool = False,
    out: Annotated[Path | None, "DIR"] = None,
) -> None:
    """Tell foreign images from known ones: steered scores beside single-pass detectors and re-encoded views.

    Detectors are fitted on training images; a share of the known images calibrates thresholds and is not measured.
    FPR95 stands in both conventions: OOD+ counts known images flagged where 95 % of the foreign ones are, ID+
    foreign images passed where 95 % of the known ones are. "flagged" is at the calibrated threshold.

    Args:
        models: a run directory, a bundle's folder, or a bundle on the Hub
        id: known images, labeled: an image folder, a parquet glob, or a Hub data set's name
        ood: foreign images, far ones: one source or several
        near: foreign images that resemble the known ones
        corruptions: also score the known images after each of the 15 corruptions of ImageNet-C
        severities: of the corruptions, joined by commas
        train: labeled images that detectors are fitted on [the train split of --id]
        data: local data: a folder that holds copies of the sources, or is what to use in place of --id
        views: steered views
        encoded: truly encoded views for the ceiling and the residual; 0 leaves them out, and saves most of the time
        limit: images read at most of each set
        train_limit: training images read at most
        size: side in pixels that images are cut to [the encoder's, else that of the known images]
        seed: of views, corruptions and the split
        cache: folder for corrupted images and embeddings [$STEERABLE_CACHE or ~/.cache/steerable]
        json: print the figures as JSON instead of tables
        out: folder for ood.json and a picture

    Examples:
        steerable eval ood runs/cifar10 --id uoft-cs/cifar10 --ood my_textures --near my_cifar100 --corruptions
        steerable eval ood my-bundle --id my_images --corruptions --severities 1,3,5 --encoded 0 --out pages
    """
    from steerable.data.cache import cache_root
    from steerable.evaluate.corruptions import CORRUPTION_NAMES
    from steerable.evaluate.ood import evaluate_ood
    from steerable.progress import PassProgress

    levels = severity_levels(severities)
    results: dict[str, Any] = {}
    with PassProgress() as progress:
        for name, model in load_models(models).items():
            side = size if size is not None else model.encoder.image_size
            known = read_images(id, data, TEST, side, limit)
            side = side or known.images.shape[-1]
            foreign = {source: read_images(source, data, TEST, side, limit) for source in [*near, *ood]}
            results[name] = evaluate_ood(
                model,
                known,
                foreign,
                train=read_images(train or id, data, TRAIN, side, train_limit),
                near=near,
                corruptions=CORRUPTION_NAMES if corruptions else (),
                severities=levels,
                views=views,
                encoded=encoded,
                seed=seed,
                cache=cache or cache_root(),
                progress=progress,
            )
    show(results, json=json, out=out)


def show(results: Mapping[str, Any], *, json: bool = False, out: Path | None = None) -> None:
    """Print what was measured, by model, and leave it in ``out``."""
    sheets = [sheet for name, result in results.items() for sheet in _sheets(name, result)]
    present("ood", results, sheets, draw=lambda figure: _draw(figure, results), json=json, out=out)


def _sheets(name: str, result: dict[str, Any]) -> list[Sheet]:
    settings = result["settings"]
    title = f"{name}: AUROC, {settings['n_known']:,} images of {settings['known']} against foreign ones"
    sheets = [Sheet(title, COLUMNS, result["scores"])]
    for group, note in (("near", ""), ("far", ""), ("corruptions", ", all pooled")):
        for title in dict.fromkeys(row["set"] for row in result["rows"] if row["group"] == group):
            if group != "corruptions" or title == "all":
                rows = _rows(result, group, title)
                sheets.append(
                    Sheet(
                        f"{name}: {group}, {title}" if not note else f"{name}: {group}{note}", FIGURES, rows
                    )
                )
    return sheets


def _rows(result: dict[str, Any], group: str, title: str) -> list[dict[str, Any]]:
    """Rows of one set, corruptions pooled over severities."""
    return [
        row for row in result["rows"] if (row["group"], row["set"], row["severity"]) == (group, title, None)
    ]


def _draw(figure: Any, results: Mapping[str, Any]) -> None:
    """Per model: AUROC of the best score of each kind, and of MSP, by severity; without corruptions, per set."""
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for ax, (name, result) in zip(axes, results.items(), strict=True):
        for score, kind in _shown(result).items():
            rows = [row for row in result["rows"] if row["score"] == score]
            levels = sorted({row["severity"] for row in rows if row["severity"]})
            if levels:
                rows = [next(row for row in rows if row["severity"] == level) for level in levels]
            ticks = levels or [row["set"] for row in rows]
            ax.plot(
                range(len(ticks)), [100 * row["auroc"] for row in rows], "o-", ms=4, label=f"{score} ({kind})"
            )
            ax.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        ax.set(title=name, xlabel="severity of 15 corruptions, pooled" if levels else "")
    axes[0].set_ylabel("AUROC, %")
    axes[0].legend(fontsize=7)


def _shown(result: dict[str, Any]) -> dict[str, str]:
    """MSP and the best score of each kind, by corruptions, else by the far sets, else by the near ones."""
    key = next(key for key in ("corruptions", "far", "near") if result["scores"][0][key] is not None)
    best = {"msp": "single pass"}
    for kind in dict.fromkeys(row["kind"] for row in result["scores"]):
        best[
            max((row for row in result["scores"] if row["kind"] == kind), key=lambda row: row[key])["score"]
        ] = kind
    return best
