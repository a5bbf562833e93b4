"""Parquet shards that need not fit into memory: shuffled, dealt out, resumable, decoded by workers.

Hugging Face ``datasets`` streams each shard. What a batch holds depends on seed, epoch, and the numbers of processes
and workers only: a run that goes on in the middle of an epoch passes over the rows behind it without decoding them, and
gets the batches that it would have had.
"""

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from datasets import load_dataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from steerable.data.columns import image_files
from steerable.data.decoding import decode_array
from steerable.data.images import ImageSet, Skipped
from steerable.data.shards import ShardSet, not_read
from steerable.errors import DataError

log = logging.getLogger("steerable")
Row = tuple[bytes | str, int]  # an image's file, or its path, and its label
CHUNK = 64  # rows that are read at a time
PREFETCH = 4  # batches that lie ready for each worker
MANY = 8  # shards for each share that make shares about equal


class StreamedBatch(NamedTuple):
    """images (b, 3, h, w) uint8, labels (b,); what could not be read since the last one; seconds by stage."""

    images: Tensor
    labels: Tensor
    skipped: list[Skipped]
    reading: float
    decoding: float


def first_images(shards: ShardSet, n: int) -> ImageSet:
    """The first n images of the shards, in memory: what is validated and fitted on beside a stream."""
    batch = next(iter(_Reader(shards, 0, min(n, shards.rows))))
    names = tuple(f"{shards.name}#{i}" for i in range(len(batch.images)))
    return ImageSet(batch.images, batch.labels, shards.classes, names, name=shards.name)


@dataclass
class Stages:
    """Seconds of an epoch by stage, those of workers added up, and its images."""

    images: int = 0
    reading: float = 0.0
    decoding: float = 0.0
    waiting: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def line(self, workers: int) -> str:
        """Images per second that each stage could do by itself, for the log."""
        spent, hands = time.perf_counter() - self.began, max(1, workers)
        speeds = {
            f"reading ({hands} workers)": self.reading / hands,
            f"decoding ({hands} workers)": self.decoding / hands,
            "transform and step": spent - self.waiting,
        }
        parts = [f"{name} {self.images / max(seconds, 1e-9):,.0f}" for name, seconds in speeds.items()]
        return (
            f"images/s by stage: {', '.join(parts)}; waited for data {self.waiting / spent:.0%} of the time"
        )


class Stream:
    """Batches of one process, from the shards, by epoch.

    batch: images of this process per step. shuffle: rows among which each worker draws the next one. rank, size: the
    process and their number. ``skipped`` grows by what could not be read.
    """

    def __init__(
        self, shards: ShardSet, *, batch: int, shuffle: int, workers: int, rank: int = 0, size: int = 1
    ):
        self.shards, self.batch, self.shuffle, self.workers = shards, batch, shuffle, workers
        self.rank, self.size = rank, size
        self.skipped: dict[str, Skipped] = {item.path: item for item in shards.skipped}
        self.stages = Stages()
        self.reader = _Reader(shards, shuffle, batch, rank, size)
        self.steps_per_epoch = self.reader.steps
        # workers outlive an epoch, since to start one costs seconds
        ways = {
            "prefetch_factor": PREFETCH,
            "multiprocessing_context": "forkserver",
            "persistent_workers": True,
        }
        self.loader = DataLoader(
            self.reader, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available(),
            **(ways if workers else {}),  # pyright: ignore[reportArgumentType]
        )  # fmt: skip

    def batches(self, seed: int, first: int) -> Iterator[StreamedBatch]:
        """An epoch's batches from the one numbered ``first`` on.

        Raises:
            DataError: no shard can be read any more, or a worker was killed.
        """
        self.reader.start[:] = torch.tensor([seed, first])
        loader = iter(self.loader)
        self.stages = Stages()
        for _ in range(first, self.steps_per_epoch):
            began = time.perf_counter()
            try:
                batch: StreamedBatch = next(loader)
            except (RuntimeError, OSError, EOFError) as error:
                # the last two: it was gone while it handed over a batch
                if isinstance(error, RuntimeError) and "worker" not in str(error):
                    raise
                raise DataError(
                    f"a worker that decodes images is gone ({' '.join(str(error).split())[:140]}); expected it to "
                    "live, and the system may be short of memory: lower data.workers or data.shuffle, then --resume"
                ) from error
            self._account(batch, time.perf_counter() - began)
            yield batch
        log.info("%s", self.stages.line(self.workers))

    def _account(self, batch: StreamedBatch, waited: float) -> None:
        for item in batch.skipped:
            if item.path not in self.skipped:
                log.warning("skipped %s: %s", *item)
            self.skipped[item.path] = item
        stages = self.stages
        stages.images += len(batch.images)
        stages.reading += batch.reading
        stages.decoding += batch.decoding
        stages.waiting += waited


class _Reader(IterableDataset):
    """Runs in each worker: its share of the rows, shuffled, in its share of the epoch's batches."""

    def __init__(self, shards: ShardSet, shuffle: int, batch: int, rank: int = 0, size: int = 1):
        self.shards, self.shuffle, self.batch, self.rank, self.size = shards, shuffle, batch, rank, size
        self.steps = shards.rows // max(1, batch * size)
        # an epoch's seed and the batches behind, in memory that workers share: they look when it begins
        self.start = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.skipped: list[Skipped] = []

    def __iter__(self) -> Iterator[StreamedBatch]:
        self.seed, behind = self.start.tolist()
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # batches come from the workers in turn, and the turn that comes next is that of the first one now
        worker = (worker + behind) % workers
        share = self.rank * workers + worker
        rows = self._shuffled(self._rows(share, self.size * workers), share)
        behind = len(range(worker, behind, workers))
        for _ in range(behind * self.batch):
            next(rows)
        # no more than the epoch's: the next one would wait for what nobody takes
        for _ in range(worker, self.steps, workers)[behind:]:
            began = time.perf_counter()
            drawn = [next(rows) for _ in range(self.batch)]
            read = time.perf_counter()
            images, labels = self._decode(drawn)
            skipped, self.skipped = self.skipped, []
            yield StreamedBatch(images, labels, skipped, read - began, time.perf_counter() - read)

    def _rows(self, share: int, shares: int) -> Iterator[tuple[str, Row]]:
        """Name and content of one share's rows, pass after pass, since shares are not of one length."""
        # few shards are read by several shares, which take turns in the rows: then shares are about equal
        n = len(self.shards.paths)
        turns = next(t for t in range(1, shares + 1) if n * t % shares == 0 or n * t >= MANY * shares)
        units = [(path, turn) for path in self.shards.paths for turn in range(turns)]
        draw = random.Random(self.seed)
        if self.shuffle:
            draw.shuffle(units)
        own = units[share::shares]
        while True:
            found = 0
            for path, turn in own:
                for i, row in enumerate(self._shard(path)):
                    if i % turns == turn:
                        found += 1
                        yield f"{path}#{i}", row
            if not found:
                what = f"no shard of {self.shards.name} can be read {self.skipped[-1:]}"
                raise DataError(f"{what}; expected one: check the files")

    def _shard(self, path: str) -> Iterator[Row]:
        column, label = self.shards.column, self.shards.label
        names = [column] if label is None else [column, label]
        try:
            files = {"train": [path]}
            rows = load_dataset("parquet", data_files=files, split="train", streaming=True, columns=names)
            # arrow tables, column by column, since building each row costs eight times as much; and by iter, since
            # by itself datasets would deal the one shard out to the workers once more
            for part in cast("Iterator[pa.Table]", rows.with_format("arrow").iter(CHUNK)):
                labels = [0] * len(part) if label is None else part[label].to_pylist()
                yield from zip(image_files(part[column].combine_chunks()), labels, strict=True)
        except Exception as error:  # a shard that has gone or is damaged, from here on
            self.skipped.append(not_read(path, error))

    def _shuffled(self, rows: Iterator[tuple[str, Row]], share: int) -> Iterator[tuple[str, Row]]:
        if not self.shuffle:
            yield from rows
        draw, pool = random.Random(f"{self.seed} {share}"), []
        for row in rows:
            if len(pool) < self.shuffle:
                pool.append(row)
                continue
            at = draw.randrange(len(pool))
            pool[at], row = row, pool[at]
            yield row

    def _decode(self, drawn: list[tuple[str, Row]]) -> tuple[Tensor, Tensor]:
        """In place of what cannot be decoded the one before it comes twice: then no later batch moves."""
        images: list[np.ndarray] = []
        labels: list[int] = []
        for name, (file, label) in drawn:
            try:
                images.append(decode_array(file, size=self.shards.size))
                labels.append(label)
            except DataError as error:
                self.skipped.append(Skipped(name, str(error)))
                if images:
                    images.append(images[-1])
                    labels.append(labels[-1])
        if not images or len({image.shape for image in images}) > 1:
            shapes = sorted({image.shape[:2] for image in images})
            raise DataError(
                f"{self.shards.name} gave a batch of sizes {shapes}; expected images of one size that can be decoded: "
                "give data.size"
            )
        while len(images) < len(drawn):  # the first ones were lost
            images.append(images[-1])
            labels.append(labels[-1])
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
