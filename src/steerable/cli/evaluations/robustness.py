"""``steerable eval robustness``."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from steerable.cli.evaluations.presenting import Sheet, load_models, present
from steerable.cli.evaluations.reading import TEST, TRAIN, read_images, severity_levels

SUMMARY = {
    "model": ("model", "{}"),
    "method": ("views", "{}"),
    "clean_accuracy": ("clean", "{:.1%}"),
    "accuracy": ("corrupted", "{:.1%}"),
    "corruption_error": ("error", "{:.1%}"),
    "gain": ("gain", "{:+.2%}"),
    "mce": ("mCE", "{:.1f}"),
}


def robustness(
    *models: Annotated[str, "MODEL"],
    images: Annotated[str, "SRC"],
    train: Annotated[str | None, "SRC"] = None,
    corruptions: Annotated[str | None, "A,B,..."] = None,
    severities: str = "1,2,3,4,5",
    views: str = "chain:32",
    strength: float = 0.5,
    data: Annotated[Path | None, "PATH"] = None,
    limit: int = 1000,
    train_limit: int = 5000,
    size: int | None = None,
    seed: int = 0,
    cache: Annotated[Path | None, "DIR"] = None,
    json: bool = False,
    out: Annotated[Path | None, "DIR"] = None,
) -> None:
    """Accuracy on corrupted images: 15 corruptions at 5 severities, without and with steered views.

    Steered views are merged by the mean of their probabilities, and stand beside the folded head, the mean of their
    logits, which costs nothing. Corrupted images are made here, not the published files; they are the same in every run
    and kept. mCE, normalized by AlexNet's errors, is given for ImageNet's 1,000 classes at 224 pixels alone;
    "error" is not normalized.

    Args:
        models: a run directory, a bundle's folder, or a bundle on the Hub
        images: labeled images: an image folder, a parquet glob, or a Hub data set's name
        train: labeled images to train a linear probe on, the head of models that have none
        corruptions: names joined by commas [all 15]
        severities: of the corruptions, joined by commas
        views: steered views: hflip, multiscale, ..., or chain:N for N draws of the model's chain
        strength: factor on the draws
        data: local data: a folder that holds copies of the sources, or is what to use in place of --images
        limit: images corrupted at most
        train_limit: training images read at most
        size: side in pixels that images are cut to [the encoder's]
        seed: of corruptions and views
        cache: folder for corrupted images and embeddings [$STEERABLE_CACHE or ~/.cache/steerable]
        json: print the figures as JSON instead of a table
        out: folder for robustness.json and a picture

    Examples:
        steerable eval robustness runs/control runs/steerable --images uoft-cs/cifar10 --data ../shared/data
        steerable eval robustness my-bundle --images my_images --train my_images:train --severities 1,3,5 --out results
    """
    from steerable.data.cache import cache_root
    from steerable.evaluate.corruptions import CORRUPTION_NAMES
    from steerable.evaluate.robustness import evaluate_robustness
    from steerable.progress import PassProgress

    names = CORRUPTION_NAMES if corruptions is None else [word.strip() for word in corruptions.split(",")]
    results = {}
    with PassProgress() as progress:
        for name, model in load_models(models).items():
            side = size if size is not None else model.encoder.image_size
            results[name] = evaluate_robustness(
                model,
                read_images(images, data, TEST, side, limit),
                train=None if train is None else read_images(train, data, TRAIN, side, train_limit),
                corruptions=names,
                severities=severity_levels(severities),
                views=views,
                strength=strength,
                seed=seed,
                cache=cache or cache_root(),
                progress=progress,
            )
    show(results, json=json, out=out)


def show(results: Mapping[str, Any], *, json: bool = False, out: Path | None = None) -> None:
    """Print what was measured, by model, and leave it in ``out``."""
    present(
        "robustness",
        results,
        _sheets(results),
        draw=lambda figure: _draw(figure, results),
        json=json,
        out=out,
    )


def _sheets(results: Mapping[str, Any]) -> list[Sheet]:
    settings = next(iter(results.values()))["settings"]
    summary = [{"model": name, **row} for name, result in results.items() for row in result["summary"]]
    table: dict[str, dict[str, Any]] = {}
    columns = {"corruption": ("corruption", "{}")}
    for name, result in results.items():
        for row in result["corruptions"]:
            if row["method"] != "folded":
                key = f"{name}, {row['method']}"
                columns[key] = (key, "{:.1%}")
                table.setdefault(row["corruption"], {"corruption": row["corruption"]})[key] = row["accuracy"]
    return [
        Sheet(f"robustness, {settings['n']:,} images of {settings['images']}", SUMMARY, summary),
        Sheet("accuracy, mean over severities", columns, list(table.values())),
    ]


def _draw(figure: Any, results: Mapping[str, Any]) -> None:
    """Accuracy by severity, mean over the corruptions; severity 0 is clean."""
    axis = figure.subplots()
    for place, (name, result) in enumerate(results.items()):
        for method, style in (("plain", "o-"), ("steered", "s--")):
            rows = [row for row in result["rows"] if row["method"] == method]
            levels = sorted({row["severity"] for row in rows})
            means = [
                100 * mean(row["accuracy"] for row in rows if row["severity"] == level) for level in levels
            ]
            axis.plot(levels, means, style, ms=4, color=f"C{place}", label=f"{name}, {method}")
    axis.set(xlabel="severity, mean over corruptions; 0 is clean", ylabel="accuracy, %")
    axis.legend(fontsize=7)
