"""The parquet files of a data set that is streamed: where they are, and what their footers say."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Features
from fsspec.core import url_to_fs
from pyarrow import parquet

from steerable.data.columns import find_image_column
from steerable.data.images import Skipped
from steerable.data.locations import find_files
from steerable.data.sources import PHOTOS
from steerable.data.tables import hub_shards
from steerable.errors import DataError


@dataclass(frozen=True)
class ShardSet:
    """The parquet files of one split. column, label: names of the image column and of the labels', if any.

    rows: in all files whose footer can be read; the others are in ``skipped``.
    """

    name: str
    paths: tuple[str, ...]
    column: str
    label: str | None
    classes: tuple[str, ...]
    rows: int
    size: int | None
    skipped: tuple[Skipped, ...] = ()


def open_shards(name: str, split: str, *, root: Any = None, size: int | None = None) -> ShardSet:
    """The shards of a source's split: parquet files here, or of a data set on the Hub, which are not copied.

    Raises:
        DataError: the source is not parquet files, or none of them can be read.
    """
    by_split = _by_split(name, root)
    if not by_split.get(split):
        raise DataError(
            f"{name} has no parquet files of the split {split}; expected {split}-*.parquet, to stream from: write such "
            "shards (datasets.Dataset.to_parquet), or leave data.stream out"
        )
    good, skipped, rows, features, labels = [], [], 0, None, []
    for path in by_split[split]:
        try:
            with _opened(path) as file:
                features = features or Features.from_arrow_schema(file.schema_arrow)
                label = _label(features)
                if label is not None and not isinstance(features[label], ClassLabel):
                    labels.append(int(np.max(file.read([label])[label].to_numpy())))
                rows += file.metadata.num_rows
            good.append(path)
        except Exception as error:  # pyarrow's and the system's errors share no base class
            skipped.append(not_read(path, error))
    if features is None or not rows:
        what = f"none of {len(by_split[split])} shards of {name}"
        reason = skipped[0].reason if skipped else "they have no rows"
        raise DataError(f"{what} can be read ({reason}); expected one: check the files")
    label = _label(features)
    kind = features[label] if label is not None else None
    classes = kind.names if isinstance(kind, ClassLabel) else map(str, range(max(labels, default=-1) + 1))
    column = find_image_column(features, name)
    return ShardSet(name, tuple(good), column, label, tuple(classes), rows, size, tuple(skipped))


def _by_split(name: str, root: Any) -> dict[str, list[str]]:
    if name == PHOTOS:
        return {}
    files = find_files(name, root)
    if files is None:
        return hub_shards(name)
    if files.builder != "parquet":
        return {}
    return {split: [str(path) for path in paths] for split, paths in files.by_split.items()}


def _opened(path: str) -> parquet.ParquetFile:
    """A shard, on this machine or, as hf://..., wherever fsspec finds it."""
    if "://" not in path:
        return parquet.ParquetFile(path)
    system, place = url_to_fs(path)
    return parquet.ParquetFile(place, filesystem=system)


def _label(features: Features) -> str | None:
    found = [key for key, kind in features.items() if isinstance(kind, ClassLabel)]
    plain = "label" in features and "int" in str(getattr(features["label"], "dtype", ""))
    return "label" if plain or "label" in found else (found[0] if found else None)


def not_read(path: str, error: Exception) -> Skipped:
    """What is skipped, and why, in a line."""
    return Skipped(path, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
