"""Bulk embedding: images into parquet shards, each written whole or not at all, and a manifest that says which are."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steerable.data import ImageSet, Skipped
from steerable.data.cache import alone_in, write_whole
from steerable.data.sources import Source
from steerable.embedding.engines import Block, Origin, local, on_ray
from steerable.errors import ConfigError
from steerable.model import SteerableEncoder

Progress = Callable[[int, int, str], None]
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Embedded:
    """What a folder of shards holds. rows: with an embedding each. duplicates: images whose content is there already.

    skipped: images that could not be decoded. shards: files. fresh: images that this call worked on.
    """

    rows: int
    duplicates: int
    skipped: tuple[Skipped, ...]
    shards: int
    fresh: int


def embed_images(
    model: SteerableEncoder,
    source: Source | ImageSet,
    out: Source,
    *,
    split: str | None = None,
    size: int | None = None,
    limit: int | None = None,
    root: Source | None = None,
    shard: int = 4096,
    engine: str = "local",
    actors: int | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Encode images into ``out``/part-NNNNN.parquet; killed at any moment, it goes on after the last whole shard.

    Columns: id (the image's place in the source), path, label (the class's name), sha256 (of the file, or of the
    pixels where there is none), embedding (d float32, as the encoder gives it). Of equal contents the first counts.
    manifest.json names the shards, the encoder's fingerprint and what was skipped; rows are the same for both engines.

    source, split, root: as in `load_images`, but read in batches, so that memory stays flat; or an ImageSet.
    size: side in pixels that images are cut to, by default the encoder's. limit: a random subset of that many images.
    shard: images per shard. engine: this process, or ``ray``, on whatever cluster Ray finds, with at most ``actors``
    copies of the model. progress: called with (done, total, what).

    Raises:
        DataError: no such source, or images of several sizes without ``size``.
        ConfigError: ``out`` holds embeddings of another job, or another process is at work in it.
        MissingExtra: engine ray without the extra.
    """
    side = size if size is not None else model.encoder.image_size
    if shard < 1 or engine not in ("local", "ray"):
        raise ConfigError(
            f"shard is {shard} and engine {engine!r}; expected at least 1, and local or ray: correct them"
        )
    origin = Origin(source, split, root, side, limit)
    rows = origin.open()
    name = source.fingerprint if isinstance(source, ImageSet) else str(source)
    job = {
        "encoder": model.encoder.fingerprint(),
        "source": name,
        "split": split,
        "size": side,
        "limit": limit,
    }
    job |= {"images": len(rows.order), "shard": shard, "dim": model.encoder.dim}
    with alone_in(Path(out), "job"):
        folder = _open(Path(out), job)
        start = folder.done
        todo = rows.order[start:]
        if engine == "ray" and todo:
            blocks = on_ray(model, origin, todo, actors)
        else:
            blocks = local(model, rows, todo, side, folder.knows)
        for block in _cut(blocks, shard):
            folder.add(block)
            if progress is not None:
                progress(folder.done, len(rows.order), "images")
        return folder.summary(len(rows.order) - start)


def _cut(blocks: Iterator[Block], shard: int) -> Iterator[Block]:
    """The same images in blocks of a shard each."""
    parts: list[Block] = []
    for block in blocks:
        parts.append(block)
        while (have := sum(len(part.ids) for part in parts)) >= shard:
            last = parts.pop()
            cut = len(last.ids) - (have - shard)
            yield _join([*parts, last.part(slice(cut))])
            parts = [last.part(slice(cut, None))]
    if any(part.ids for part in parts):
        yield _join(parts)


def _join(parts: list[Block]) -> Block:
    ids, paths, labels, hashes, reasons = (
        [x for part in parts for x in getattr(part, name)] for name in Block._fields[:-1]
    )
    return Block(ids, paths, labels, hashes, reasons, np.concatenate([part.embeddings for part in parts]))


def _open(path: Path, job: dict[str, Any]) -> "_Folder":
    """The folder of this job, begun or not."""
    for left in (*path.glob(".part-*.parquet.*"), *path.glob(f".{MANIFEST}.*")):
        left.unlink()  # of a job that was killed while it wrote
    manifest = path / MANIFEST
    before = json.loads(manifest.read_text()) if manifest.exists() else {"job": job, "shards": []}
    differing = [key for key in job if before["job"].get(key) != job[key]]
    if differing:
        key = differing[0]
        raise ConfigError(
            f"{key} is {job[key]!r} and {path} holds a job with {before['job'].get(key)!r}; expected the same: "
            "repeat its settings, or choose another --out"
        )
    return _Folder(path, job, before["shards"])


class _Folder:
    """The shards that are whole, and the content that they hold."""

    def __init__(self, path: Path, job: dict[str, Any], listed: list[dict[str, Any]]):
        self.path, self.job = path, job
        self.shards: list[dict[str, Any]] = []
        self.known: set[bytes] = set()
        for shard in listed:  # up to the first that is not as it was written
            file = path / shard["name"]
            if not (file.exists() and file.stat().st_size == shard["bytes"]):
                break
            self.shards.append(shard)
            self.known.update(
                map(bytes.fromhex, pq.read_table(file, columns=["sha256"])["sha256"].to_pylist())
            )

    @property
    def done(self) -> int:
        """Images behind us."""
        return sum(shard["images"] for shard in self.shards)

    def knows(self, name: str) -> bool:
        return bytes.fromhex(name) in self.known

    def add(self, block: Block) -> None:
        """Write a shard of the images whose content is new, then the manifest with it."""
        keep, fresh = [], set()
        for i, name in enumerate(block.hashes):
            if name is not None and block.reasons[i] is None and not self.knows(name) and name not in fresh:
                keep.append(i)
                fresh.add(name)
        name = f"part-{len(self.shards):05d}.parquet"
        self._write(name, block, keep)
        skipped = [[block.paths[i], reason] for i, reason in enumerate(block.reasons) if reason is not None]
        self.shards.append(
            {
                "name": name,
                "images": len(block.ids),
                "rows": len(keep),
                "duplicates": len(block.ids) - len(keep) - len(skipped),
                "skipped": skipped,
                "bytes": (self.path / name).stat().st_size,
            }
        )
        self.known.update(map(bytes.fromhex, fresh))
        manifest = json.dumps({"job": self.job, "shards": self.shards}, indent=1)
        write_whole(self.path / MANIFEST, lambda partial: partial.write_text(manifest))

    def _write(self, name: str, block: Block, keep: list[int]) -> None:
        embeddings = pa.array(block.embeddings[keep].reshape(-1), pa.float32())
        columns = {
            "id": pa.array([block.ids[i] for i in keep], pa.int64()),
            "path": pa.array([block.paths[i] for i in keep], pa.string()),
            "label": pa.array([block.labels[i] for i in keep], pa.string()),
            "sha256": pa.array([block.hashes[i] for i in keep], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(embeddings, self.job["dim"]),
        }
        write_whole(self.path / name, lambda partial: pq.write_table(pa.table(columns), partial))

    def summary(self, fresh: int) -> Embedded:
        skipped = tuple(Skipped(*item) for shard in self.shards for item in shard["skipped"])
        rows, duplicates = (sum(shard[key] for shard in self.shards) for key in ("rows", "duplicates"))
        return Embedded(rows, duplicates, skipped, len(self.shards), fresh)
