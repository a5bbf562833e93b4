"""``steerable eval probes``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from steerable.cli.evaluations.presenting import Sheet, load_models, present

COLUMNS = {
    "probe": ("", "{}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "per_class": ("per class", "{:.2%}"),
    "c": ("C", "{:.0e}"),
    "passes": ("passes/image", "{}"),
    "seconds": ("fit, s", "{:.1f}"),
}


def probes(
    *models: Annotated[str, "MODEL"],
    images: Annotated[str, "SRC"],
    train: Annotated[str, "SRC"],
    views: int = 4,
    thetas: int = 1000,
    data: Annotated[Path | None, "PATH"] = None,
    split: str | None = None,
    limit: int | None = None,
    train_limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
    json: bool = False,
    out: Annotated[Path | None, "DIR"] = None,
) -> None:
    """Linear probes trained on steered embeddings: augmentation without images.

    Beside the plain probe, the same with the minibatch solver that the others use, one that sees the embeddings
    steered by a new theta at each step, and one that sees truly augmented images, encoded. All are tested on plain
    embeddings.

    Args:
        models: a run directory, a bundle's folder, or a bundle on the Hub
        images: labeled images to test on: an image folder, a parquet glob, a Hub data set's name, or photos
        train: labeled images of the same classes to train on
        views: truly augmented versions of each training image
        thetas: draws of the model's chain that steered steps choose from
        data: local data: a folder that holds copies of SRC, or is what to use in its place
        split: split of the images to test on [test where there is one]
        limit: images to test on at most
        train_limit: images to train on at most
        size: side in pixels that images are cut to [the encoder's]
        seed: of the validation part, the thetas and the steps
        json: print the figures as JSON instead of a table
        out: folder for probes.json and a picture

    Examples:
        steerable eval probes my-bundle --train my_images:train --images my_images:test
        steerable eval probes runs/cifar10 --train uoft-cs/cifar10:train --images uoft-cs/cifar10 --train-limit 2000
    """
    from steerable.data import load_images, localized, splits
    from steerable.evaluate import evaluate_probes
    from steerable.progress import PassProgress

    loaded = load_models(models)
    source, root = localized(images, data)
    if split is None and "test" in splits(source, root=root):
        split = "test"
    known, known_root = localized(train, data)
    result: dict[str, Any] = {}
    with PassProgress() as progress:
        for name, model in loaded.items():
            side = size if size is not None else model.encoder.image_size
            result[name] = evaluate_probes(
                model,
                load_images(known, root=known_root, size=side, limit=train_limit),
                load_images(source, root=root, split=split, size=side, limit=limit),
                views=views,
                thetas=thetas,
                seed=seed,
                progress=progress,
            )
    sheets = [
        Sheet(f"{name}: {r['n_train']:,} of {r['train']}, tested on {r['n_test']:,} of {r['test']}", COLUMNS, r["rows"])
        for name, r in result.items()
    ]  # fmt: skip
    present("probes", result, sheets, draw=lambda figure: _draw(figure, result), json=json, out=out)


def _draw(figure: Any, result: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy of every probe."""
    axes = figure.subplots(1, len(result), squeeze=False, sharey=True)[0]
    for axis, (name, found) in zip(axes, result.items(), strict=True):
        rows = found["rows"]
        axis.bar(
            [row["probe"].replace(", ", "\n") for row in rows], [100 * row["accuracy"] for row in rows], 0.6
        )
        low = min(row["accuracy"] for row in rows)
        axis.set(title=name, ylim=(max(0, 100 * low - 5), None))
    axes[0].set_ylabel("accuracy, % (the axis may not begin at zero)")
