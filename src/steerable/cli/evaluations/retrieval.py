"""``steerable eval retrieval``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

SHORT = {"unsteered": "plain", "steered": "steered", "reencoded": "ceiling"}


def retrieval(
    *models: Annotated[str, "MODEL"],
    images: Annotated[str, "SRC"],
    split: str | None = None,
    data: Annotated[Path | None, "PATH"] = None,
    gallery: int = 10_000,
    queries: int = 500,
    strengths: int = 2,
    size: int | None = None,
    seed: int = 0,
    json: bool = False,
    out: Annotated[Path | None, "DIR"] = None,
) -> None:
    """Find transformed images hidden in a gallery with steered queries.

    The hidden image takes the place of the plain one. The query went through JPEG, so that it is never the very image
    that is hidden; the ceiling encodes it again after the transform. For colors it is also counted whether the
    neighbors have the color that was asked for.

    Args:
        models: a run directory, a bundle's folder, or a bundle on the Hub
        images: photos, an image folder, a parquet glob, or a Hub data set's name
        split: split of the images [test where there is one]
        data: local data: a folder that holds a copy of SRC, or is what to use in its place
        gallery: images in the gallery at most
        queries: those of them that are asked for, at most
        strengths: levels of each coordinate on each side of zero
        size: side in pixels that images are cut to [the encoder's]
        seed: of the choice of queries and thetas
        json: print the figures as JSON instead of tables
        out: folder for retrieval.json and a picture

    Examples:
        steerable eval retrieval runs/demo-seed0 --images photos
        steerable eval retrieval my-bundle --images my_images --gallery 2000 --out results
    """
    from steerable.cli.evaluations.presenting import load_models
    from steerable.data import load_images, localized, splits
    from steerable.evaluate.retrieval import evaluate_retrieval
    from steerable.progress import PassProgress

    loaded = load_models(models)
    source, root = localized(images, data)
    if split is None and "test" in splits(source, root=root):
        split = "test"
    result: dict[str, Any] = {}
    with PassProgress() as progress:
        for name, model in loaded.items():
            side = size if size is not None else model.encoder.image_size
            found = load_images(source, root=root, split=split, size=side, limit=gallery)
            result[name] = evaluate_retrieval(
                model, found, queries=queries, strengths=strengths, seed=seed, progress=progress
            )
    show(result, json=json, out=out)


def show(results: Mapping[str, Any], *, json: bool = False, out: Path | None = None) -> None:
    """Print what was measured, by model, and leave it in ``out``."""
    from steerable.cli.evaluations.presenting import present

    sheets = [sheet for name, figures in results.items() for sheet in _sheets(name, figures)]
    present("retrieval", results, sheets, draw=lambda figure: _draw(figure, results), json=json, out=out)


def _sheets(name: str, figures: dict[str, Any]) -> list[Any]:
    from steerable.cli.evaluations.presenting import Sheet

    where = f"{name}: {figures['queries']} queries, gallery of {figures['gallery']:,} ({figures['source']})"
    hit = {
        f"{kind}_{key}": (f"{short} {label}", "{:.1%}" if key != "mrr" else "{:.3f}")
        for key, label in (("hit1", "Hit@1"), ("hit5", "Hit@5"), ("mrr", "MRR"))
        for kind, short in SHORT.items()
    }
    gain = {"gain_hit1": ("gain Hit@1", "{:+.1%}"), "se_hit1": ("+-", "{:.1%}")}
    hidden = [row for row in figures["hidden"] if row["value"] is None]
    sheets = [Sheet(f"{where}, hidden items", {"param": ("", "{}"), **hit, **gain}, hidden)]
    if figures["attributes"]:
        looks = {
            "param": ("", "{}"),
            "value": ("value", "{:+g}"),
            "chance": ("chance", "{:.1%}"),
            **{
                f"{kind}_match": (f"{kind} match", "{:.1%}") for kind in ("unsteered", "steered", "reencoded")
            },
            **{f"{kind}_move": (f"{SHORT[kind]} move", "{:.2f}") for kind in ("steered", "reencoded")},
        }
        title = f"{name}: color of the {figures['k']} nearest, against the one asked for"
        sheets.append(Sheet(title, looks, figures["attributes"]))
    return sheets


def _draw(figure: Any, result: Mapping[str, Any]) -> None:
    axes = figure.subplots(len(result), 1, squeeze=False)[:, 0]
    for axis, (name, figures) in zip(axes, result.items(), strict=True):
        rows = [row for row in figures["hidden"] if row["value"] is None]
        for place, kind in enumerate(SHORT):
            spots = [i + (place - 1) * 0.27 for i in range(len(rows))]
            axis.bar(spots, [row[f"{kind}_hit1"] for row in rows], 0.25, label=kind)
        axis.set_xticks(range(len(rows)), [row["param"] for row in rows], rotation=30, ha="right", fontsize=7)
        axis.set(title=f"{name}: hidden item found first", ylabel="Hit@1", ylim=(0, 1))
        axis.legend(fontsize=7)
