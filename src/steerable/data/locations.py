"""The layouts of image data on this machine, and their splits."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from steerable.data.decoding import EXTENSIONS
from steerable.errors import DataError

ROOT_VARIABLE = "STEERABLE_DATA"
SPLITS = ("training", "train", "testing", "test", "validation", "valid", "val", "dev")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SPLIT_PREFIX = re.compile(rf"({'|'.join(SPLITS)})(?![A-Za-z])")


@dataclass(frozen=True)
class Files:
    """Local files by split, for one of ``datasets``'s builders.

    Attributes:
        builder: "parquet", with paths in ``by_split``, or "imagefolder", with folders.
        flat: the images lie side by side, and have no labels.
    """

    builder: str
    by_split: dict[str, list[Path]]
    flat: bool = False


def find_files(name: str, root: str | os.PathLike[str] | None) -> Files | None:
    """The files of a local source, or None where ``name`` can only mean a data set on the Hub.

    Raises:
        DataError: a path that does not exist, or without images.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _in_folder(path)
    if path.is_file() or glob.has_magic(name):
        return _matching(path)
    if not _HUB_NAME.fullmatch(name):
        raise DataError(
            f"{name or repr(name)} does not exist; expected photos, an image folder, parquet files or a Hub "
            "data set: check the path"
        )
    copy = local_copy(name, root)
    return _in_folder(copy) if copy else None


def local_copy(name: str, root: str | os.PathLike[str] | None) -> Path | None:
    """The folder of a Hub data set's copy in ``root``, else in STEERABLE_DATA; None where there is none.

    Raises:
        DataError: that folder for copies does not exist.
    """
    folder = root if root is not None else os.environ.get(ROOT_VARIABLE)
    if not folder:
        return None
    base, last = Path(folder).expanduser(), name.rsplit("/", 1)[-1]
    if not base.is_dir():
        raise DataError(
            f"the folder for local copies, {folder}, does not exist; expected the folder that holds {last}: "
            f"correct root (--data) or {ROOT_VARIABLE}"
        )
    candidates = [base / last, *sorted(base.glob(f"*/{last}")), *([base] if base.name == last else [])]
    return next((path for path in candidates if path.is_dir()), None)


def _in_folder(folder: Path) -> Files:
    shards = sorted(folder.glob("*.parquet"))
    if shards:
        return Files("parquet", _by_split(shards))
    inner = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    parts = inner or {"train": folder}
    found = {split: images for split, part in parts.items() if (images := _images_below(part))}
    if found:
        flat = any(image.parent == parts[split] for split, images in found.items() for image in images)
        return Files("imagefolder", {split: [parts[split].resolve()] for split in found}, flat)
    return Files("parquet", _by_split(_shards_below(folder)))


def _images_below(folder: Path) -> list[Path]:
    walk = os.walk(folder)
    return [Path(at, file) for at, _, files in walk for file in files if file.lower().endswith(EXTENSIONS)]


def _shards_below(folder: Path) -> list[Path]:
    """Parquet one folder deeper, as the Hub lays it out: data/train-*, plain_text/train-*, train/0000."""
    shards = sorted(folder.glob("*/*.parquet"))
    parents = sorted({shard.parent.name for shard in shards} - set(SPLITS))
    if not shards:
        raise DataError(
            f"{folder} holds no images and no parquet files; expected files ending in .parquet or one of "
            f"{' '.join(EXTENSIONS)}: check the path"
        )
    if len(parents) > 1:
        raise DataError(
            f"{folder} holds several data sets ({', '.join(parents)}); expected one: "
            f"name it, as {folder / parents[0]}"
        )
    return shards


def _matching(pattern: Path) -> Files:
    paths = [Path(path) for path in sorted(glob.glob(str(pattern), recursive=True))]
    shards = [path for path in paths if path.suffix == ".parquet" and path.is_file()]
    if not shards:
        raise DataError(
            f"{pattern} matches no parquet file; expected at least one: check it, or name a folder"
        )
    return Files("parquet", _by_split(shards))


def _by_split(shards: list[Path]) -> dict[str, list[Path]]:
    """Shards by the split that their name begins with, or that their folder is called."""
    known = [_split_of(shard) for shard in shards]
    groups: dict[str, list[Path]] = {}
    for shard, split in zip(shards, known, strict=True):
        # beside train-*.parquet a file of another name is a split of its own; alone it is the training data
        groups.setdefault(split or (shard.stem if any(known) else "train"), []).append(shard.resolve())
    return groups


def _split_of(shard: Path) -> str | None:
    match = _SPLIT_PREFIX.match(shard.name)
    if match:
        return match[1]
    return shard.parent.name if shard.parent.name in SPLITS else None
