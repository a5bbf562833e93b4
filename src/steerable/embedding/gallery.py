"""Images into an index (read, encode, add), and an image's question to it (encode, steer, search)."""

import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from steerable.data import ImageSet, Skipped, decode
from steerable.data.decoding import Raw, decode_array
from steerable.data.images import as_float
from steerable.data.sources import Source, folder_of
from steerable.embedding.rows import Entry, Pixels, batches, decode_entry, digest, open_rows, stacked
from steerable.errors import ConfigError, DataError
from steerable.model import SteerableEncoder
from steerable.retrieval import Index

log = logging.getLogger("steerable")

Progress = Callable[[int, int, str], None]
THUMBNAIL = 96  # pixels: pictures are shown at that size at most
SHOWN = 10  # skipped images that are logged one by one


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

    model: its encoder's embeddings are stored; the map and chain do not matter until the search.
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
    rows = open_rows(source, split, root, stored, limit)
    before, known, skipped, done = len(index), index.ids(), [], 0
    for entries in batches(rows):
        fresh = _fresh(entries, known, stored, skipped)
        if fresh:
            e = model.encode(as_float(stacked([pixels for pixels, _ in fresh])))
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


def _fresh(
    entries: Sequence[Entry], known: set[str], size: int | None, skipped: list[Skipped]
) -> list[tuple[Pixels, dict[str, Any]]]:
    """Pixels and columns of the images that are not known, each once; what cannot be decoded goes to ``skipped``."""
    new: dict[str, Entry] = {}
    for entry in entries:
        name = f"bad {len(new)}" if isinstance(entry.raw, DataError) else digest(entry.raw)
        if name not in known:
            new.setdefault(name, entry)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(lambda item: decode_entry(item[1].raw, size), new.items()))
    fresh = []
    for (name, entry), result in zip(new.items(), decoded, strict=True):
        if isinstance(result, DataError):
            skipped.append(Skipped(entry.columns["path"], str(result)))
            continue
        pixels, (width, height) = result
        # small encoders see too little to be looked at
        small = isinstance(entry.raw, bytes) and size is not None and size < THUMBNAIL
        picture = decode_array(entry.raw, size=THUMBNAIL) if small else pixels  # pyright: ignore[reportArgumentType]
        about = {"id": name, "width": width, "height": height, "thumbnail": thumbnail(picture)}
        fresh.append((pixels, {**entry.columns, **about}))
    return fresh


def _report(skipped: Sequence[Skipped]) -> None:
    for path, reason in skipped[:SHOWN]:
        log.warning("skipped %s: %s", path, reason)
    if len(skipped) > SHOWN:
        log.warning("skipped %d more", len(skipped) - SHOWN)
