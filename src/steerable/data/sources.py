"""Where images come from: ``photos``, an image folder, parquet files, or a data set on the Hub."""

import glob
import os
import re
from pathlib import Path

from steerable.data.decoding import check_size
from steerable.data.images import ImageSet, random_order
from steerable.data.locations import local_copy
from steerable.data.photographs import COUNTS, photos
from steerable.errors import DataError

PHOTOS = "photos"
Source = str | os.PathLike[str]
_SUFFIX = re.compile(r"(?P<name>.+):(?P<split>\w+(\[[^\]]*\])?)")


def load_images(
    source: Source,
    *,
    split: str | None = None,
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    root: Source | None = None,
) -> ImageSet:
    """Read and decode images into memory.

    Args:
        source: "photos"; an image folder (class subfolders, or images side by side without labels, either
            possibly inside ``train/`` and ``test/``); a parquet file, glob, or a folder with
            ``train-*.parquet``; or a Hub data set's name such as "uoft-cs/cifar10". ``:split`` may follow,
            and then counts instead of ``split``.
        split: a name or a slice such as "train[:1000]" or "test[50%:]"; where not given, "train" if the
            source has it, else its only split.
        size: side in pixels; the short side is resized and the center cropped. None keeps the images as they
            are, which must then be of one size (photos are cut at 32).
        limit: a random subset of that many images, in the source's order; all if it has fewer.
        seed: of that subset: equal seeds choose equal images.
        root: folder with local copies of Hub data sets, by the last part of their names, directly or one
            folder deeper; else the environment's STEERABLE_DATA. Where there is no copy the Hub is asked.

    Returns:
        The images that could be decoded; the others are listed in ``skipped`` and logged as warnings.

    Raises:
        DataError: no such source or split, no image that can be decoded, images of several sizes without
            ``size``, more images than memory, size below 8, limit below 1.
    """
    check_size(size)
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; expected at least 1 image: raise limit, or leave it out for all")
    name, suffix = parse_source(source)
    wanted = suffix or split
    if name == PHOTOS:
        return _photos(wanted or "train", 32 if size is None else size, limit, seed)
    # here and not above: they import datasets, which takes over a second that photos does without
    from steerable.data import reading, tables

    return reading.read(tables.open_table(name, wanted, root=root), size=size, limit=limit, seed=seed)


def splits(source: Source, *, root: Source | None = None) -> tuple[str, ...]:
    """Names of the splits that ``source`` has; see ``load_images`` for the arguments.

    Raises:
        DataError: no such source.
    """
    name, _ = parse_source(source)
    if name == PHOTOS:
        return tuple(COUNTS)
    from steerable.data import tables

    return tables.split_names(name, root=root)


def parse_source(source: Source) -> tuple[str, str | None]:
    """Part "name:split" into its halves; a path that exists is never parted."""
    text = os.fspath(source)
    match = _SUFFIX.fullmatch(text)
    if match is None or Path(text).exists():
        return text, None
    return match["name"], match["split"]


def localized(source: Source, root: Source | None) -> tuple[Source, Source | None]:
    """What to pass to ``load_images`` when the user says that the data are at ``root`` (--data).

    A Hub data set that has a copy in ``root`` is read from there; else ``root`` stands in for the source.

    Raises:
        DataError: ``root`` does not exist.
    """
    if root is None:
        return source, None
    name, split = parse_source(source)
    folder = os.fspath(Path(root).expanduser())
    on_hub = name != PHOTOS and not Path(name).exists()
    if on_hub and Path(folder).is_dir() and local_copy(name, root):
        return source, root
    if not (Path(folder).exists() or glob.has_magic(folder)):
        raise DataError(
            f"data {folder} does not exist; expected a folder with images or parquet files: check --data"
        )
    return (f"{folder}:{split}" if split else folder), None


def _photos(split: str, size: int, limit: int | None, seed: int) -> ImageSet:
    name, bracket, _ = split.partition("[")
    chosen = photos(name, size=size)
    if bracket:
        from steerable.data.tables import slice_bounds

        chosen = chosen.subset(range(*slice_bounds(split, len(chosen))))
    if limit is not None and limit < len(chosen):
        chosen = chosen.subset(random_order(len(chosen), seed)[:limit].sort().values)
    return chosen


def folder_of(source: Source, root: Source | None = None) -> dict[str, str]:
    """{"images": the folder in which a source's pictures lie}, or {} where they lie in no folder of this machine."""
    place = Path(root or parse_source(source)[0]).expanduser()
    return {"images": str(place.resolve())} if place.is_dir() else {}
