"""Images into an index (read, encode, add), and an image's question to it (encode, steer, search)."""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from steerable.data import ImageSet, Skipped, decode, load_images
from steerable.data.decoding import Raw, decode_array
from steerable.data.images import as_float, random_order
from steerable.data.sources import PHOTOS, Source, folder_of, parse_source
from steerable.errors import ConfigError, DataError
from steerable.model import SteerableEncoder
from steerable.retrieval import Index

log = logging.getLogger("steerable")

Progress = Callable[[int, int, str], None]
Pixels = UInt8[np.ndarray, "h w 3"]
BATCH = 128  # images that are encoded and added at a time: what a kill may cost
THUMBNAIL = 96  # pixels: pictures are shown at that size at most
SHOWN = 10  # skipped images that are logged one by one
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Indexed:
    """What a job did. added, known: images that were new, and that the index had (or had twice). total: its rows.

    recall: recall@10 of approximate against exact search, None where the search is exact.
    """

    added: int
    known: int
    skipped: tuple[Skipped, ...]
    total: int
    recall: float | None


class _Entry(NamedTuple):
    """An image before decoding (a file's bytes, or pixels where there is no file), and what is known of it."""

    raw: bytes | Pixels | DataError
    columns: dict[str, Any]


class _Rows(NamedTuple):
    """Places of the images to take, and the way to read some of them."""

    order: list[int]
    fetch: Callable[[list[int]], list[_Entry]]


def index_images(
    model: SteerableEncoder,
    source: Source | ImageSet,
    uri: Source | None,
    *,
    split: str | None = None,
    size: int | None = None,
    limit: int | None = None,
    root: Source | None = None,
    place: str | None = None,
    ann_from: int = 100_000,
    progress: Progress | None = None,
) -> Indexed:
    """Encode images and add those that the index lacks; killed at any moment, it goes on where it was.

    An image is known by the sha256 of its file, or of its pixels where it has no file of its own. Columns: id,
    path, label (the class's name), width, height, a thumbnail, and the other scalar columns of a table.

    model: its encoder's embeddings are stored; map and chain do not matter until the search.
    source, split, root: as in `load_images`, but read in batches, so that memory stays flat; or an ImageSet.
    uri: as in `Index.open`. size: side in pixels that images are cut to, by default the encoder's.
    limit: a random subset of that many images. place: where the model lives, which the index notes.
    ann_from: rows from which the search is indexed approximately. progress: called with (done, total, what).

    Raises:
        DataError: no such source, images of several sizes without ``size``, a damaged index.
        BundleError: the index holds embeddings of another encoder.
        ConfigError: the index holds images of another size.
    """
    side = size if size is not None else model.encoder.image_size
    folder = {} if isinstance(source, ImageSet) else folder_of(source, root)
    index = Index.open(uri, model=model, notes={"size": side, "model": place, **folder})
    stored = index.facts.get("size", side)
    if size is not None and stored != size:
        raise ConfigError(
            f"size is {size} and the index at {index.name} has {stored}; expected the same: leave size out, "
            "or begin another index"
        )
    rows = _rows(source, split, root, stored, limit)
    before, known, skipped, done = len(index), index.ids(), [], 0
    for entries in _batches(rows):
        fresh = _fresh(entries, known, stored, skipped)
        if fresh:
            e = model.encode(as_float(_stacked(fresh)))
            names = fresh[0][1].keys()
            index.add(e, **{name: [columns[name] for _, columns in fresh] for name in names})
            known.update(columns["id"] for _, columns in fresh)
        done += len(entries)
        if progress is not None:
            progress(done, len(rows.order), "images")
    _report(skipped)
    added = len(index) - before
    recall = index.compact(ann_from=ann_from)
    return Indexed(added, done - added - len(skipped), tuple(skipped), len(index), recall)


def search_image(
    index: Index,
    model: SteerableEncoder,
    image: Raw,
    theta: Mapping[str, float],
    *,
    k: int = 12,
    where: str | None = None,
) -> list[dict[str, Any]]:
    """What `Index.search` finds for an image (a path, or a file's bytes), steered by the coordinates in ``theta``.

    A coordinate outside the range that the map was made for is named in a warning of the log.

    Raises:
        DataError: an image that `steerable.data.decode` refuses, a condition that cannot be read.
        ThetaError: a coordinate that the model's chain lacks.
    """
    wanted = model.theta(**theta)
    for name in model.outside(wanted):
        param = next(param for param in model.params if param.name == name)
        log.warning(
            "%s = %g is outside %g to %g %ss, where the map was fitted: the answer is a guess",
            name, theta[name], param.low, param.high, param.unit,
        )  # fmt: skip
    size = index.facts.get("size", model.encoder.image_size)
    e = model.encode(as_float(decode(image, size=size))[None])
    return index.search(model.steer(e, wanted), k, where=where)


def thumbnail(pixels: Pixels) -> bytes:
    """A small JPEG of an image."""
    picture, stream = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(stream, format="JPEG", quality=85)
    return stream.getvalue()


def _rows(
    source: Source | ImageSet, split: str | None, root: Source | None, size: int | None, limit: int | None
) -> _Rows:
    if not isinstance(source, ImageSet) and parse_source(source)[0] != PHOTOS:
        return _table_rows(source, split, root, limit)
    images = source if isinstance(source, ImageSet) else load_images(source, split=split, size=size)

    def fetch(places: list[int]) -> list[_Entry]:
        return [
            _Entry(
                images.images[i].permute(1, 2, 0).contiguous().numpy(),
                {"path": images.paths[i], "label": label},
            )
            for i in places
            for label in [images.classes[int(images.labels[i])] if images.labeled else None]
        ]

    return _Rows(_order(len(images), limit), fetch)


def _table_rows(source: Source, split: str | None, root: Source | None, limit: int | None) -> _Rows:
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

    def fetch(places: list[int]) -> list[_Entry]:
        part = rows[places]
        return [
            _Entry(
                _raw(cell),
                {
                    "path": _path(cell) if not table.shards and _path(cell) else table.row_name(i),
                    "label": None if labels is None else classes[labels[i]],
                    **{key: part[key][at] for key in extra},
                },
            )
            for at, (i, cell) in enumerate(zip(places, part[column], strict=True))
        ]

    return _Rows(_order(len(rows), limit), fetch)


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


def _batches(rows: _Rows) -> Iterator[list[_Entry]]:
    for start in range(0, len(rows.order), BATCH):
        yield rows.fetch(rows.order[start : start + BATCH])


def _fresh(
    entries: Sequence[_Entry], known: set[str], size: int | None, skipped: list[Skipped]
) -> list[tuple[Pixels, dict[str, Any]]]:
    """Pixels and columns of the images that are not known, each once; what cannot be decoded goes to ``skipped``."""
    new: dict[str, _Entry] = {}
    for entry in entries:
        name = f"bad {len(new)}" if isinstance(entry.raw, DataError) else _digest(entry.raw)
        if name not in known:
            new.setdefault(name, entry)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(lambda item: _decoded(item[1].raw, size), new.items()))
    fresh = []
    for (name, entry), result in zip(new.items(), decoded, strict=True):
        if isinstance(result, DataError):
            skipped.append(Skipped(entry.columns["path"], str(result)))
            continue
        pixels, (width, height) = result
        about = {"id": name, "width": width, "height": height, "thumbnail": thumbnail(pixels)}
        fresh.append((pixels, {**entry.columns, **about}))
    return fresh


def _digest(raw: bytes | Pixels) -> str:
    if isinstance(raw, bytes):
        return hashlib.sha256(raw).hexdigest()
    return hashlib.sha256(repr(raw.shape).encode() + raw.tobytes()).hexdigest()


def _decoded(raw: bytes | Pixels | DataError, size: int | None) -> tuple[Pixels, tuple[int, int]] | DataError:
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


def _stacked(fresh: Sequence[tuple[Pixels, Any]]) -> Tensor:
    shapes = sorted({pixels.shape for pixels, _ in fresh})
    if len(shapes) > 1:
        some = " and ".join(f"{w}x{h}" for h, w, _ in shapes[:2])
        raise DataError(
            f"the images have several sizes ({some}); expected one: give size (--size), their side in pixels"
        )
    return torch.from_numpy(np.stack([pixels for pixels, _ in fresh])).permute(0, 3, 1, 2)


def _report(skipped: Sequence[Skipped]) -> None:
    for path, reason in skipped[:SHOWN]:
        log.warning("skipped %s: %s", path, reason)
    if len(skipped) > SHOWN:
        log.warning("skipped %d more", len(skipped) - SHOWN)
