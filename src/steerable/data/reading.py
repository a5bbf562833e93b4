"""From a table of undecoded rows to an ImageSet."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from jaxtyping import UInt8
from torch import Tensor

from steerable.data.columns import find_image_column, read_labels
from steerable.data.decoding import decode_array
from steerable.data.images import ImageSet, Skipped, random_order
from steerable.data.tables import Table
from steerable.errors import DataError

log = logging.getLogger("steerable")

Cell = dict[str, Any] | None

CHUNK = 1024  # rows whose bytes are in memory at one time
GROUP = 16  # images that a thread decodes in a row
TINY = 4096  # encoded bytes below which threads lose more to the interpreter's lock than they win
SHOWN = 10  # skipped images that are logged one by one


def read(table: Table, *, size: int | None, limit: int | None, seed: int) -> ImageSet:
    """Decode the rows of ``table``; see ``load_images``."""
    image_column = find_image_column(table.rows.features, table.name)
    labels, classes = read_labels(table.rows, image_column, table.name)
    rows = table.rows.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    n, taken = len(rows), 0
    reader = _Reader(table, rows, image_column, size, want=n if limit is None else min(limit, n))
    order = torch.arange(n) if limit is None else random_order(n, seed)
    # more than one turn only with a limit: further rows then stand in for broken ones
    while len(reader.kept) < reader.want and taken < n:
        step = reader.want - len(reader.kept)
        reader.take(order[taken : taken + step].sort().values.tolist())
        taken += step
    return reader.finish(labels, classes)


class _Reader:
    """Decodes rows in a pool of threads and keeps account of what failed."""

    def __init__(self, table: Table, rows: Dataset, column: str, size: int | None, *, want: int):
        self.table, self.rows, self.column, self.size, self.want = table, rows, column, size, want
        self.kept: dict[int, tuple[np.ndarray, str]] = {}
        self.skipped: dict[int, Skipped] = {}

    def take(self, indices: list[int]) -> None:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(indices), CHUNK):
                chunk = indices[start : start + CHUNK]
                cells = self.rows[chunk][self.column]
                for i, cell, result in zip(chunk, cells, self._decode_all(cells, pool), strict=True):
                    self._account(i, _name(cell, self.table, i), result)

    def _account(self, index: int, name: str, result: np.ndarray | DataError) -> None:
        if isinstance(result, DataError):
            self.skipped[index] = Skipped(name, str(result))
        else:
            self._check_shape(result, name)
            self.kept[index] = (result, name)

    def _decode_all(self, cells: list[Cell], pool: ThreadPoolExecutor) -> Iterator[np.ndarray | DataError]:
        if all(cell and cell.get("bytes") and len(cell["bytes"]) < TINY for cell in cells):
            return map(self._decode, cells)
        groups = (cells[i : i + GROUP] for i in range(0, len(cells), GROUP))
        return chain.from_iterable(pool.map(lambda group: [self._decode(cell) for cell in group], groups))

    def _decode(self, cell: Cell) -> np.ndarray | DataError:
        raw = (cell or {}).get("bytes") or (cell or {}).get("path")
        if not raw:
            return DataError("the row holds no image; expected its bytes or path: fill it in")
        try:
            return decode_array(raw, size=self.size)
        except DataError as error:
            return error

    def _check_shape(self, image: np.ndarray, name: str) -> None:
        if not self.kept:
            check_memory(self.want, image.nbytes, self.table.name)
            return
        first, first_name = next(iter(self.kept.values()))
        if image.shape != first.shape:
            raise DataError(
                f"{self.table.name} has images of several sizes ({_size(first)} in {first_name}, "
                f"{_size(image)} in {name}); expected one: give size (--size), their side in pixels"
            )

    def finish(self, labels: np.ndarray | None, classes: tuple[str, ...]) -> ImageSet:
        skipped = tuple(self.skipped[i] for i in sorted(self.skipped))
        self._report(skipped)
        if not self.kept:
            why = f": {skipped[0].reason}" if skipped else ""
            raise DataError(
                f"{self.table.name} has no image that can be decoded, {len(skipped)} were skipped; "
                f"expected at least one: check the files{why}"
            )
        rows = sorted(self.kept)
        y = torch.zeros(len(rows), dtype=torch.int64) if labels is None else torch.from_numpy(labels[rows])
        paths = tuple(self.kept[i][1] for i in rows)
        return ImageSet(self._stack(rows), y, classes, paths, skipped, self.table.name)

    def _stack(self, rows: list[int]) -> UInt8[Tensor, "n 3 h w"]:
        height, width, _ = self.kept[rows[0]][0].shape
        images = torch.empty((len(rows), 3, height, width), dtype=torch.uint8)
        for slot, i in zip(images, rows, strict=True):
            # popped, so that they are never all in memory twice
            slot.copy_(torch.from_numpy(self.kept.pop(i)[0]).permute(2, 0, 1))
        return images

    def _report(self, skipped: tuple[Skipped, ...]) -> None:
        if not skipped:
            return
        total = len(skipped) + len(self.kept)
        log.warning("%s: skipped %d of %d images", self.table.name, len(skipped), total)
        for path, reason in skipped[:SHOWN]:
            log.warning("skipped %s: %s", path, reason)
        if len(skipped) > SHOWN:
            log.warning("skipped %d more: ImageSet.skipped lists them", len(skipped) - SHOWN)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _name(cell: Cell, table: Table, index: int) -> str:
    # a path beside bytes is what the file was called when the table was made: nothing on this machine
    path = cell.get("path") if cell and not cell.get("bytes") else None
    return path if path and not table.shards else table.row_name(index)


def check_memory(n: int, size: int, name: str) -> None:
    """Raises DataError if ``n`` images of ``size`` bytes exceed this machine's memory."""
    names = getattr(os, "sysconf_names", {})  # absent on some systems, which then do without the check
    if "SC_PHYS_PAGES" not in names:
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n * size > memory:
        raise DataError(
            f"{name} has {n:,} images of {size:,} bytes; expected less than this machine's memory, "
            f"{memory / 1e9:.0f} GB: give a limit or a smaller size"
        )
