"""Images to encode, read in batches so that memory stays flat: undecoded, with what is known of each."""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from steerable.data import ImageSet, load_images
from steerable.data.decoding import decode_array
from steerable.data.images import random_order
from steerable.data.sources import PHOTOS, Source, parse_source
from steerable.errors import DataError

Pixels = UInt8[np.ndarray, "h w 3"]
BATCH = 128  # images that are encoded at a time
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Entry(NamedTuple):
    """An image before decoding (a file's bytes, or pixels where there is no file), and what is known of it."""

    raw: bytes | Pixels | DataError
    columns: dict[str, Any]


class Rows(NamedTuple):
    """Places of the images to take, and the way to read some of them."""

    order: list[int]
    fetch: Callable[[list[int]], list[Entry]]


def open_rows(
    source: Source | ImageSet, split: str | None, root: Source | None, size: int | None, limit: int | None
) -> Rows:
    """Places and reader of a source's images, as `load_images` takes it, or of images in memory.

    limit: a random subset of that many, in the source's order. size: of photos alone; others are decoded later.

    Raises:
        DataError: no such source, or limit below 1.
    """
    if not isinstance(source, ImageSet) and parse_source(source)[0] != PHOTOS:
        return _table_rows(source, split, root, limit)
    images = source if isinstance(source, ImageSet) else load_images(source, split=split, size=size)

    def fetch(places: list[int]) -> list[Entry]:
        return [
            Entry(
                images.images[i].permute(1, 2, 0).contiguous().numpy(),
                {"path": images.paths[i], "label": label},
            )
            for i in places
            for label in [images.classes[int(images.labels[i])] if images.labeled else None]
        ]

    return Rows(_order(len(images), limit), fetch)


def _table_rows(source: Source, split: str | None, root: Source | None, limit: int | None) -> Rows:
    # here and not above: they import datasets, which takes over a second that photos does without
    from datasets import Image as ImageFeature
    from datasets import Value

    from steerable.data import columns, tables

    name, suffix = parse_source(source)
    table = tables.open_table(name, suffix or split, root=root)
    rows = table.rows
    column = columns.find_image_column(rows.features, table.name)
    labels, classes = columns.read_labels(rows, column, table.name)
    taken = {"id", "path", "label", "width", "height", "thumbnail", "vector", "score", column}
    extra = [key for key, kind in rows.features.items() if isinstance(kind, Value) and key not in taken]
    extra = [key for key in extra if "binary" not in rows.features[key].dtype]
    rows = rows.select_columns([column, *extra]).cast_column(column, ImageFeature(decode=False))

    def fetch(places: list[int]) -> list[Entry]:
        part = rows[places]
        return [
            Entry(
                _raw(cell),
                {
                    "path": _path(cell) if not table.shards and _path(cell) else table.row_name(i),
                    "label": None if labels is None else classes[labels[i]],
                    **{key: part[key][at] for key in extra},
                },
            )
            for at, (i, cell) in enumerate(zip(places, part[column], strict=True))
        ]

    return Rows(_order(len(rows), limit), fetch)


def _order(n: int, limit: int | None) -> list[int]:
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; expected at least 1 image: raise limit, or leave it out for all")
    return list(range(n)) if limit is None else random_order(n, 0)[:limit].sort().values.tolist()


def _path(cell: Mapping[str, Any] | None) -> str | None:
    # a path beside bytes is what the file was called when the table was made: nothing on this machine
    return cell.get("path") if cell and not cell.get("bytes") else None


def _raw(cell: Mapping[str, Any] | None) -> bytes | DataError:
    if cell and cell.get("bytes"):
        return cell["bytes"]
    path = _path(cell)
    if not path:
        return DataError("the row holds no image; expected its bytes or path: fill it in")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return DataError(f"{path} cannot be read ({error.strerror}); expected a file: check it")


def batches(rows: Rows) -> Iterator[list[Entry]]:
    """All images, BATCH at a time."""
    for start in range(0, len(rows.order), BATCH):
        yield rows.fetch(rows.order[start : start + BATCH])


def digest(raw: bytes | Pixels) -> str:
    """sha256, in hex, of a file, or of shape and pixels."""
    if isinstance(raw, bytes):
        return hashlib.sha256(raw).hexdigest()
    return hashlib.sha256(repr(raw.shape).encode() + raw.tobytes()).hexdigest()


def decode_entry(
    raw: bytes | Pixels | DataError, size: int | None
) -> tuple[Pixels, tuple[int, int]] | DataError:
    """The pixels, and the width and height that the image has in its file, upright."""
    if isinstance(raw, DataError):
        return raw
    if not isinstance(raw, bytes):
        return raw, (raw.shape[1], raw.shape[0])
    try:
        pixels = decode_array(raw, size=size)  # first: it refuses what is better not opened
    except DataError as error:
        return error
    with Image.open(io.BytesIO(raw)) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112) in _TURNED
    return pixels, (height, width) if turned else (width, height)


def stacked(images: Sequence[Pixels]) -> Tensor:
    """(b, 3, h, w) bytes; a DataError where sizes differ."""
    shapes = sorted({pixels.shape for pixels in images})
    if len(shapes) > 1:
        some = " and ".join(f"{w}x{h}" for h, w, _ in shapes[:2])
        raise DataError(
            f"the images have several sizes ({some}); expected one: give size (--size), their side in pixels"
        )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
