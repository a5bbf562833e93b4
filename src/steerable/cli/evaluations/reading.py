"""Sources that the words of a command name, read for the evaluations."""

import functools
import glob
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from steerable.errors import ConfigError, one_of

if TYPE_CHECKING:
    from steerable.data import ImageSet
    from steerable.encoders import Encoder
    from steerable.evaluate.transfer import Parts
    from steerable.model import SteerableEncoder

TEST = ("test", "validation")
TRAIN = ("train",)
TRANSFER = "transfer"  # the folder of DATA that holds the sets of `steerable eval transfer`


def side_of(model: "SteerableEncoder | Encoder", size: int | None) -> int | None:
    """The side that images are cut to: the one asked for, else the encoder's."""
    from steerable.encoders import Encoder

    return size if size is not None else (model if isinstance(model, Encoder) else model.encoder).image_size


def read_images(
    source: str, data: Path | None, splits_wanted: tuple[str, ...], side: int | None, limit: int | None
) -> "ImageSet":
    """The first of the splits that the source has; all of it where it has none of them, or names one itself."""
    from steerable.data import load_images, localized, splits

    place, root = localized(source, data)
    has = splits(place, root=root) if ":" not in source else ()
    split = next((name for name in splits_wanted if name in has), None)
    return load_images(place, root=root, split=split, size=side, limit=limit)


def train_images(
    train: str | None, images: str, data: Path | None, side: int | None, limit: int | None
) -> "ImageSet | None":
    """What ``train`` names, else the train split of ``images``; None where that has none."""
    from steerable.data import localized, splits
    from steerable.data.sources import parse_source

    name = parse_source(images)[0]
    place, root = localized(name, data)
    if train is None and TRAIN[0] not in splits(place, root=root):
        return None
    return read_images(train or str(name), data, TRAIN, side, limit)


def severity_levels(severities: str) -> list[int]:
    """Whole numbers from 1 to 5.

    Raises:
        ConfigError: anything else.
    """
    levels = [part.strip() for part in severities.split(",") if part.strip()]
    if not levels or any(level not in "12345" for level in levels):
        raise ConfigError(
            f"--severities is {severities!r}; expected numbers from 1 to 5 joined by commas, such as 1,3,5: "
            "correct it"
        )
    return [int(level) for level in levels]


def transfer_sets(
    sets: str | None, data: Path | None, side: int | None, limit: int | None, *, needed: bool = True
) -> "dict[str, Callable[[], Parts]]":
    """Short name -> loader of each set: those that are named, by default all in DATA/transfer.

    Raises:
        ConfigError: none, or a name that stands for nothing on this machine though ``data`` was given.
    """
    folder = None if data is None else data.expanduser() / TRANSFER
    known = (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder and folder.is_dir() else []
    )
    sources = [part.strip() for part in (sets or ",".join(known)).split(",") if part.strip()]
    if not sources and needed:
        raise ConfigError(
            "no data sets are named; expected names, folders, parquet globs or Hub names: give --sets, or with "
            f"--data a folder that has some in {TRANSFER}/"
        )
    names = [_short(source) for source in sources]
    labels = names if len(set(names)) == len(names) else sources
    return {
        label: functools.partial(_parts, *_place(source, data, known), side, limit)
        for label, source in zip(labels, sources, strict=True)
    }


@functools.cache
def _parts(source: str, root: Path | None, side: int | None, limit: int | None) -> "Parts":
    """Kept, since every model reads the same sets."""
    from steerable.evaluate.transfer import load_parts

    return load_parts(source, root=root, size=side, limit=limit)


def _place(source: str, data: Path | None, known: list[str]) -> tuple[str, Path | None]:
    from steerable.data.locations import local_copy

    if Path(source).expanduser().exists() or glob.has_magic(source) or data is None:
        return source, None
    if local_copy(source, data):
        return source, data
    if "/" in source:
        return source, None
    raise ConfigError(f"data set {source!r} is not in {data}; {one_of(source, known)}")


def _short(source: str) -> str:
    """The last part of a path or Hub name that is no pattern and no file."""
    parts = [
        part for part in Path(source).parts if not glob.has_magic(part) and Path(part).suffix != ".parquet"
    ]
    return parts[-1] if parts else source
