"""Who does the work of an embedding job: this process, or actors on a Ray cluster. Both give the same rows."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from steerable.data import ImageSet
from steerable.data.images import as_float
from steerable.data.sources import Source
from steerable.embedding.rows import BATCH, Entry, Pixels, Rows, decode_entry, digest, open_rows, stacked
from steerable.errors import DataError, MissingExtra
from steerable.model import SteerableEncoder


class Block(NamedTuple):
    """Images in the source's order, those that could not be decoded among them; one entry per image."""

    ids: list[int]
    """places in the source"""
    paths: list[str | None]
    labels: list[str | None]
    hashes: list[str | None]
    reasons: list[str | None]
    """why an image could not be decoded"""
    embeddings: np.ndarray
    """(n, d) float32; zeros where there is none"""

    def part(self, rows: slice) -> "Block":
        return Block(
            self.ids[rows], self.paths[rows], self.labels[rows], self.hashes[rows], self.reasons[rows],
            self.embeddings[rows],
        )  # fmt: skip


class Origin(NamedTuple):
    """Where images come from; see `open_rows`."""

    source: Source | ImageSet
    split: str | None
    root: Source | None
    size: int | None
    limit: int | None

    def open(self) -> Rows:
        return open_rows(*self)


def local(
    model: SteerableEncoder, rows: Rows, order: Sequence[int], size: int | None, known: Callable[[str], bool]
) -> Iterator[Block]:
    """Blocks of ``order``; while one is encoded the next is read and decoded. What is known is not encoded again."""
    starts = range(0, len(order), BATCH)
    with (
        ThreadPoolExecutor(1) as ahead,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        waiting = None
        for start in starts:
            places = list(order[start : start + BATCH])
            coming = ahead.submit(_prepare, rows.fetch, places, size, known, pool)
            if waiting is not None:
                yield _encode(model, *waiting.result())
            waiting = coming
        if waiting is not None:
            yield _encode(model, *waiting.result())


def _prepare(
    fetch: Callable[[list[int]], list[Entry]],
    places: list[int],
    size: int | None,
    known: Callable[[str], bool],
    pool: ThreadPoolExecutor,
) -> tuple[Block, dict[int, Pixels]]:
    """The block without its embeddings, and the pixels of what must be encoded, by place in the block."""
    entries = fetch(places)
    raws = [entry.raw for entry in entries]
    hashes = list(pool.map(lambda raw: None if isinstance(raw, DataError) else digest(raw), raws))
    seen: set[str | None] = set()
    wanted = []
    for i, name in enumerate(hashes):
        if name is None or not (name in seen or known(name)):
            wanted.append(i)
        seen.add(name)
    results = dict(zip(wanted, pool.map(lambda i: decode_entry(raws[i], size), wanted), strict=True))
    reasons = [str(r) if isinstance(r := results.get(i), DataError) else None for i in range(len(entries))]
    paths, labels = ([entry.columns[key] for entry in entries] for key in ("path", "label"))
    pixels = {i: r[0] for i, r in results.items() if not isinstance(r, DataError)}
    return Block(places, paths, labels, hashes, reasons, np.zeros((0, 0), np.float32)), pixels


def _encode(model: SteerableEncoder, block: Block, pixels: Mapping[int, Pixels]) -> Block:
    embeddings = np.zeros((len(block.ids), model.encoder.dim), np.float32)
    if pixels:
        embeddings[list(pixels)] = model.encode(as_float(stacked(list(pixels.values())))).cpu().numpy()
    return block._replace(embeddings=embeddings)


class _Actor:
    """Opens the source and keeps the model, on whichever machine Ray puts it."""

    def __init__(self, model: SteerableEncoder, origin: Origin):
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.origin, self.rows = model.to(device), origin, origin.open()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        places = batch["place"].tolist()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            parts = _prepare(self.rows.fetch, places, self.origin.size, lambda _: False, pool)
        block = _encode(self.model, *parts)
        columns = {name: np.array(getattr(block, name), dtype=object) for name in Block._fields[1:-1]}
        return {"place": batch["place"], **columns, "embedding": block.embeddings}


def on_ray(
    model: SteerableEncoder, origin: Origin, order: Sequence[int], actors: int | None
) -> Iterator[Block]:
    """Blocks of ``order`` from actors on the Ray cluster that this machine belongs to, or on this machine alone.

    Every machine must reach the source under the same name. actors: at most that many; by default one per GPU, or per
    two processors where there are none.

    Raises:
        MissingExtra: no Ray.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra("ray", "ray") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    most = actors or gpus or max(1, int(resources.get("CPU", 2)) // 2)
    rows = ray.data.from_numpy(np.asarray(order, np.int64)).rename_columns({"data": "place"})
    done = rows.map_batches(
        _Actor,
        fn_constructor_args=(model.cpu(), origin),
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=most),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    for batch in done.iter_batches(batch_size=BATCH, batch_format="numpy"):
        paths, labels, hashes, reasons = (list(batch[name]) for name in Block._fields[1:-1])
        embeddings = np.asarray(batch["embedding"], np.float32)
        yield Block(batch["place"].tolist(), paths, labels, hashes, reasons, embeddings)
