"""``steerable eval tta``."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerable.cli.evaluations.presenting import Sheet, load_models, present
from steerable.errors import ConfigError

if TYPE_CHECKING:
    from steerable.data import ImageSet
    from steerable.model import SteerableEncoder

COLUMNS = {
    "method": ("", "{}"),
    "set": ("views", "{}"),
    "merge": ("merge", "{}"),
    "n": ("images", "{:,}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "shown_gain": ("gain", "{}"),
    "ece": ("ECE", "{:.3f}"),
    "log_likelihood": ("log-lik.", "{:.3f}"),
    "ms": ("ms/image", "{:.3g}"),
    "ratio": ("cost", "{:.3g}"),
    "recovered": ("recovered", "{:.0%}"),
}


def tta(
    *models: Annotated[str, "MODEL"],
    images: Annotated[str, "SRC"],
    views: str = "1,10,100,1000",
    draws: str = "chain",
    strength: float = 1.0,
    train: Annotated[str | None, "SRC"] = None,
    corruption: str | None = None,
    budget: float = 60.0,
    data: Annotated[Path | None, "PATH"] = None,
    split: str | None = None,
    limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
    json: bool = False,
    out: Annotated[Path | None, "DIR"] = None,
) -> None:
    """Test-time augmentation: accuracy, calibration and cost of steered views.

    Steered views are merged by mean and maximum of probabilities, and stand beside no views, the folded head
    (the mean of logits), views chosen on half of the images, and true augmentation: the same views as images,
    encoded one by one, by this library and by ttach where it has them. Gains are paired with the plain answers
    on the same images.

    Args:
        models: a run directory, a bundle's folder, or a bundle on the Hub
        images: labeled images: an image folder, a parquet glob, a Hub data set's name, or photos
        views: numbers of views, joined by commas
        draws: where they come from: chain for the ranges of the model's chain, or a preset such as simclr
        strength: factor on the draws: 0.5 keeps the views within half of the ranges
        train: images to train a linear probe on, the head of models that have none
        corruption: corrupt the images first, as in gaussian_noise:3 (name:severity)
        budget: seconds for each set of truly augmented views; it bounds their images
        data: local data: a folder that holds copies of SRC, or is what to use in its place
        split: split of the images [test where there is one]
        limit: images read at most
        size: side in pixels that images are cut to [the encoder's]
        seed: of the views, and of the halves on which some are chosen

    Examples:
        steerable eval tta runs/cifar10 --images uoft-cs/cifar10 --limit 2000 --out pages
        steerable eval tta my-bundle --images my_images:test --train my_images:train --corruption fog:3
    """
    from steerable.evaluate import evaluate_tta
    from steerable.progress import PassProgress

    settings = {
        "counts": _counts(views),
        "draws": draws,
        "strength": strength,
        "budget": budget,
        "seed": seed,
    }
    damage = _corruption(corruption)
    results = {}
    for label, model in load_models(models).items():
        side = model.encoder.image_size if size is None else size
        with PassProgress() as progress:
            head = None if train is None else _head(model, train, data, side, progress)
            image_set = _images(images, data, split, limit, side, damage, seed)
            results[label] = evaluate_tta(model, image_set, head=head, **settings, progress=progress)
    show(results, json=json, out=out)


def show(results: Mapping[str, Any], *, json: bool = False, out: Path | None = None) -> None:
    """Print what was measured, by model, and leave it in ``out``."""
    sheets = [
        Sheet(
            f"{label} on {figures['images']}, {figures['n']:,} images",
            COLUMNS,
            list(map(_shown, figures["rows"])),
        )
        for label, figures in results.items()
    ]
    notes = [note for figures in results.values() for note in figures["notes"]]
    present(
        "tta", results, sheets, notes=notes, draw=lambda figure: _draw(figure, results), json=json, out=out
    )


def _counts(words: str) -> list[int]:
    counts = [int(word) for word in words.split(",") if word.strip().isdecimal()]
    if len(counts) != len(words.split(",")) or min(counts) < 1:
        raise ConfigError(f"--views is {words!r}; expected whole numbers joined by commas: 1,10,100")
    return counts


def _corruption(words: str | None) -> tuple[str | None, int]:
    name, _, severity = (words or "").partition(":")
    if words and not severity.isdecimal():
        raise ConfigError(f"--corruption is {words!r}; expected name:severity, such as gaussian_noise:3")
    return (name, int(severity)) if words else (None, 0)


def _images(
    source: str, data: Path | None, split: str | None, limit: int | None, size: int | None,
    damage: tuple[str | None, int], seed: int,
) -> "ImageSet":  # fmt: skip
    from steerable.data import load_images, localized, splits
    from steerable.evaluate.corruptions import corrupt

    name, root = localized(source, data)
    if split is None and "test" in splits(name, root=root):
        split = "test"
    images = load_images(name, root=root, split=split, size=size, limit=limit)
    return images if damage[0] is None else corrupt(images, damage[0], damage[1], seed=seed)


def _head(model: "SteerableEncoder", source: str, data: Path | None, size: int | None, progress: Any) -> Any:
    """A linear probe on the model's embeddings of the images."""
    from steerable.data import load_images, localized
    from steerable.data.cache import cache_root
    from steerable.evaluate.encoding import Encodings
    from steerable.evaluate.heads import classifier

    name, root = localized(source, data)
    images = load_images(name, root=root, size=size)
    progress(0, len(images), "images to train a probe on")
    return classifier(Encodings(model, cache_root()), None, images)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    gain = None if row["method"] == "plain" else f"{100 * row['gain']:+.2f} ± {100 * row['gain_se']:.2f}"
    return {
        **row,
        "shown_gain": gain,
        "merge": row["merge"].replace("of probabilities", "p").replace("of ", ""),
    }


def _draw(figure: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy against cost: plain accuracy plus the paired gain, so that methods on fewer images share the axis."""
    from matplotlib.ticker import LogFormatter

    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for ax, (label, figures) in zip(axes, results.items(), strict=True):
        plain = figures["rows"][0]["accuracy"]
        for line, rows in _lines(figures["rows"]).items():
            rows = sorted(rows, key=itemgetter("ratio"))
            xs, ys = [row["ratio"] for row in rows], [100 * (plain + row["gain"]) for row in rows]
            sizes = [100 * row["gain_se"] for row in rows]
            ax.errorbar(xs, ys, sizes, marker="o", ms=4, lw=1, alpha=0.8, label=line)
        ax.axhline(100 * plain, color="0.6", lw=0.8, zorder=0)
        ax.set(xscale="log", title=label, xlabel="cost, in plain passes")
        ax.xaxis.set_major_formatter(LogFormatter())  # 1.2, and not 1.2 x 10^0
        ax.xaxis.set_minor_formatter(LogFormatter())
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(fontsize=7, title="no views: the gray line", title_fontsize=7)


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        true = row["method"] in ("re-encoded", "ttach")
        if (row["set"].isdecimal() or true) and row["method"] != "plain":
            merge = f", {row['merge']}" if row["method"] == "steered" else ""
            lines.setdefault(row["method"] + merge, []).append(row)
    return lines
