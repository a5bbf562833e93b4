"""The images that are searched: an index, and the pictures behind its rows."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from steerable.app.bounds import Bounds
from steerable.app.conditions import checked_condition, quoted
from steerable.data import ImageSet
from steerable.data.images import as_float
from steerable.embedding import thumbnail
from steerable.errors import DataError
from steerable.model import SteerableEncoder
from steerable.retrieval import Index

SAMPLED = 1000  # rows from which labels and choices are taken
LARGEST = 32 * 2**20  # bytes of a picture file
Row = dict[str, Any]


class Gallery:
    """An index and its pictures: from memory, from files below one folder, or else the thumbnails.

    index: with rows. images: pictures of the rows by id, where they are in memory. root: the folder out of which
    pictures may be opened; a row's path that leads anywhere else, links included, is not followed.

    Raises:
        DataError: the index has no rows.
    """

    def __init__(
        self,
        index: Index,
        *,
        images: Mapping[str, Tensor] | None = None,
        root: Path | None = None,
        bounds: Bounds | None = None,
    ):
        if not len(index):
            raise DataError(
                f"the index at {index.name} has no rows; expected some to search: run steerable index"
            )
        self.index, self.images, self.bounds = index, images or {}, bounds or Bounds()
        self.root = root.resolve() if root is not None else None
        ids = sorted(index.ids(), key=lambda name: hashlib.sha256(name.encode()).digest())
        self.rows = len(ids)
        self._any = torch.ones(
            int(index.facts["dim"])
        )  # a query for look-ups by id, which order is nothing to
        found = {row["id"]: row for row in self._by_id(ids[:SAMPLED])}
        self.sample: list[Row] = [found[name] for name in ids[:SAMPLED] if name in found]
        self.columns = [name for name in self.sample[0] if name not in ("thumbnail", "score")]
        counts = Counter(row["label"] for row in self.sample if row.get("label"))
        self.labels = [label for label, _ in counts.most_common(200)]

    def search(self, e: Tensor, k: int, where: str | None = None) -> list[Row]:
        """As `Index.search`, with a condition that is checked first."""
        return self.index.search(
            e, k, where=checked_condition(where, self.columns, longest=self.bounds.where)
        )

    def row(self, name: str) -> Row:
        """The row with that id.

        Raises:
            DataError: there is none.
        """
        found = self._by_id([name]) if len(name) <= 200 else []
        if not found:
            raise DataError(
                f"no image has the id {name[:80]!r}; expected one of the gallery's: take it from a search"
            )
        return found[0]

    def mixed(self, n: int) -> list[Row]:
        """Up to n rows to choose from, of as many labels as there are."""
        seen: Counter[str | None] = Counter()
        turns = []
        for place, row in enumerate(self.sample):
            seen[row.get("label")] += 1
            turns.append((seen[row.get("label")], place, row))
        return [row for _, _, row in sorted(turns, key=lambda turn: turn[:2])[:n]]

    def picture(self, row: Row) -> bytes:
        """A file with the row's picture, as good as can be had."""
        if row["id"] in self.images:
            stream = io.BytesIO()
            pixels = self.images[row["id"]].permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
            return stream.getvalue()
        return self._file(row.get("path")) or row["thumbnail"]

    def _file(self, path: str | None) -> bytes | None:
        if self.root is None or not path:
            return None
        try:
            file = Path(path).resolve(strict=True)
            inside = file.is_relative_to(self.root) and file.is_file() and file.stat().st_size <= LARGEST
            return file.read_bytes() if inside else None
        except (OSError, ValueError):  # gone, unreadable, or no path at all
            return None

    def _by_id(self, ids: Sequence[str]) -> list[Row]:
        if not ids:
            return []
        where = f"id IN ({', '.join(map(quoted, ids))})"
        return self.index.search(self._any, len(ids), where=where)


def memory_gallery(
    model: SteerableEncoder,
    images: ImageSet,
    size: int,
    *,
    bounds: Bounds | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Gallery:
    """An index in memory of images that are cut to ``size`` for the encoder, and shown as they are."""
    index = Index.open(None, model=model, notes={"size": size})
    pictures: dict[str, Tensor] = {}
    for start in range(0, len(images), 256):
        places = range(start, min(start + 256, len(images)))
        part = [images.images[i] for i in places]
        arrays = [pixels.permute(1, 2, 0).contiguous().numpy() for pixels in part]
        ids = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        cut = np.stack([np.asarray(_cut(Image.fromarray(array), size)) for array in arrays])
        batch = torch.from_numpy(cut).permute(0, 3, 1, 2)
        index.add(
            model.encode(as_float(batch)),
            id=ids,
            path=[images.paths[i] for i in places],
            label=[images.classes[int(images.labels[i])] if images.labeled else None for i in places],
            width=[array.shape[1] for array in arrays],
            height=[array.shape[0] for array in arrays],
            thumbnail=[thumbnail(array) for array in arrays],
        )
        pictures.update(zip(ids, part, strict=True))
        if progress is not None:
            progress(places.stop, len(images), "gallery")
    return Gallery(index, images=pictures, bounds=bounds)


def _cut(picture: Image.Image, size: int) -> Image.Image:
    # as decode does it, so that the gallery's own pictures are found at cosine 1
    return (
        picture
        if picture.size == (size, size)
        else ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    )
