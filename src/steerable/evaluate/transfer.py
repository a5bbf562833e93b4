"""Transfer: what a linear probe and nearest neighbors read from frozen embeddings of other data sets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from steerable.data import ImageSet, load_images, splits
from steerable.data.images import random_order
from steerable.data.locations import SPLITS
from steerable.data.sources import Source, parse_source
from steerable.errors import ConfigError, DataError
from steerable.evaluate.encoding import Encodings
from steerable.evaluate.probing import C_GRID, accuracies, linear_head
from steerable.metrics import knn_classes
from steerable.model import SteerableEncoder

Progress = Callable[[int, int, str], None]
Parts = Mapping[str, ImageSet]
"""Images by "train", "test" and, where there are any, "validation"."""

PER_CLASS = ("pets", "flowers", "caltech", "aircraft")
"""Data sets with one of these words in their names count by the mean over classes; all others by top-1."""
NEIGHBORS, TEMPERATURE = 20, 0.07
HELD_OUT = 0.2  # share that is measured where a source has no split for it


def evaluate_transfer(
    model: SteerableEncoder | nn.Module,
    sets: Mapping[str, Parts | Callable[[], Parts]],
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    cache: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Linear probe and kNN on a model's embeddings of each data set; JSON types.

    model: a SteerableEncoder, an `Encoder`, or a module from images to (b, d). sets: name -> labeled images by split
    (`Parts`), or a function that loads them, which is called when their turn comes. grid: values of C, chosen on the
    validation images, or on 10 % of train where there are none; the probe is then fitted to both. seed: of these 10 %.
    cache: a folder for embeddings. progress: called with (sets done, sets, name).

    "rows" has two per set: probe ("linear", "knn"), metric, which is "accuracy" or, by the convention of the set,
    "per_class", and score, its value; accuracy and per_class, both in [0, 1]; c; classes, n_train, n_test.
    "means" has the mean score over sets of each probe.

    Raises:
        ConfigError: no sets. DataError: a set without train or test images, or without labels.
        ShapeError: fewer than two classes.
    """
    if not sets:
        raise ConfigError("there are no data sets; expected one at least: name some (--sets)")
    encode, rows = Encodings(model, cache), []
    for done, (name, given) in enumerate(sets.items()):
        if progress:
            progress(done, len(sets), name)
        parts = given() if callable(given) else given
        _check(name, parts)
        rows.extend(_rows(encode, name, parts, grid, seed))
    return {
        "rows": rows,
        "means": {
            probe: mean(row["score"] for row in rows if row["probe"] == probe) for probe in ("linear", "knn")
        },
        "settings": {"grid": list(grid), "k": NEIGHBORS, "temperature": TEMPERATURE, "seed": seed},
        "passes": encode.encoded,
    }


def load_parts(
    source: Source, *, root: Source | None = None, size: int | None = None, limit: int | None = None
) -> Parts:
    """A source's images by "train", "test" and "validation"; see `load_images` for the arguments.

    Other names of these splits are understood. Without a test split the validation images are the test; without either
    a fifth of the images, the same in every run. limit: of each split.

    Raises:
        DataError: as `load_images`; or a split is named.
    """
    if parse_source(source)[1] is not None:
        raise DataError(
            f"{source} names a split; expected a data set, whose splits are found by their names: leave it out"
        )
    has = splits(source, root=root)
    found = {_split(name): name for name in reversed(has)}
    parts = {
        part: load_images(source, root=root, split=name, size=size, limit=limit)
        for part, name in found.items()
        if part
    }
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if "test" not in parts and "train" in parts:
        whole = parts["train"]
        order = random_order(len(whole), 0)
        cut = max(1, round(HELD_OUT * len(whole)))
        parts = {"train": whole.subset(order[cut:]), "test": whole.subset(order[:cut])}
    return parts


def _split(name: str) -> str | None:
    """ "train", "test" or "validation" for what a source calls so."""
    if name not in SPLITS:
        return None
    return next(
        (part for part, start in {"train": "train", "test": "test"}.items() if name.startswith(start)),
        "validation",
    )


def _check(name: str, parts: Parts) -> None:
    missing = [part for part in ("train", "test") if part not in parts]
    if missing:
        raise DataError(
            f"{name} has no {' and no '.join(missing)} images, only {', '.join(parts) or 'none'}; expected both: "
            "give the images to train on and those to test on"
        )
    for part, images in parts.items():
        if not images.labeled or images.classes != parts["train"].classes:
            raise DataError(
                f"{name}: the {part} images have {len(images.classes)} classes, other ones than train's "
                f"{len(parts['train'].classes)} or none; expected labels of the same classes: give a labeled set"
            )


def _rows(
    encode: Encodings, name: str, parts: Parts, grid: Sequence[float], seed: int
) -> Iterator[dict[str, Any]]:
    fitted = [parts[part] for part in ("train", "validation") if part in parts]
    device = encode.encoder.mean.device
    e = torch.cat([encode(images) for images in fitted]).to(device)
    y = torch.cat([images.labels for images in fitted])
    test, y_test = encode(parts["test"]).to(device), parts["test"].labels
    held_out = torch.arange(len(fitted[0]), len(e)) if "validation" in parts else None
    head, c = linear_head(e, y, grid=grid, seed=seed, held_out=held_out)
    with torch.no_grad():
        linear = head.to(device)(test).argmax(1)
    predicted: dict[str, tuple[Tensor, float | None]] = {
        "linear": (linear, c),
        "knn": (knn_classes(e, y.to(device), test, k=NEIGHBORS, temperature=TEMPERATURE), None),
    }
    metric = "per_class" if any(word in name.lower() for word in PER_CLASS) else "accuracy"
    sizes = {"classes": len(parts["train"].classes), "n_train": len(e), "n_test": len(test)}
    for probe, (classes, strength) in predicted.items():
        figures = dict(zip(("accuracy", "per_class"), accuracies(classes, y_test), strict=True))
        yield {
            "set": name, "probe": probe, "metric": metric, "score": figures[metric], **figures, "c": strength, **sizes
        }  # fmt: skip
