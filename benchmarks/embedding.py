"""Embedding many small images in shards: killed five times against never, and memory against the number of images.

    python benchmarks/embedding.py --images 100000

Parquet shards of random PNGs of 16 pixels, a tiny encoder: what is measured is the job, not the network. Writes
results/embedding.json.
"""

import argparse
import io
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from record import figure, record
from torch import nn

from steerable.embedding import embed_images
from steerable.encoders import Encoder
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Chain


def write(folder: Path, n: int, shards: int) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part in range(shards):
        cells = []
        for _ in range(n // shards):
            stream = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                stream, "PNG", compress_level=0
            )
            cells.append({"bytes": stream.getvalue(), "path": None})
        pq.write_table(pa.table({"image": cells}), folder / f"train-{part:03d}.parquet")


def model() -> SteerableEncoder:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    encoder = Encoder(nn.Sequential(*layers))
    chain = Chain.preset("geometric")
    return SteerableEncoder(encoder, chain, steering_for(chain, encoder.dim, "identity")).eval()


def job(source: Path, out: Path, limit: int | None, memory: Path | None) -> None:
    embed_images(model(), source, out, limit=limit)
    if memory is not None:
        memory.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def start(*args: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=job, args=args)
    process.start()
    return process


def rows_of(out: Path) -> dict[str, list]:
    return pq.ParquetDataset(sorted(out.glob("*.parquet"))).read().to_pydict()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source, out, memory = Path(place) / "images", Path(place) / "out", {}
        write(source, args.images, 10)
        began = time.perf_counter()
        for n in (args.images // 10, args.images):
            note = Path(place) / f"memory-{n}"
            start(source, out / str(n), None if n == args.images else n, note).join()
            memory[n] = float(note.read_text())
        unbroken = time.perf_counter() - began
        draw, kills = random.Random(0), 0
        while kills < args.kills:
            process = start(source, out / "killed", None, None)
            whole = len(list((out / "killed").glob("*.parquet")))
            wanted = min(whole + draw.randint(1, 4), args.images // 4096)
            while process.is_alive() and len(list((out / "killed").glob("*.parquet"))) < wanted:
                time.sleep(0.02)
            time.sleep(draw.random())
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            kills += 1
        start(source, out / "killed", None, None).join()
        equal = rows_of(out / "killed") == rows_of(out / str(args.images))
        count = len(rows_of(out / "killed")["id"])
    path = record(
        "embedding",
        claim="100,000 images in shards, killed five times: exactly the rows of an unbroken run; memory stays flat",
        command="python benchmarks/embedding.py",
        rows=[{"images": n, "peak_memory_mib": mib} for n, mib in memory.items()],
        figures={
            "rows": figure([count]),
            "rows equal after kills (1 is yes)": figure([float(equal)]),
            "kills": figure([kills]),
            "peak memory, all images over a tenth": figure([memory[args.images] / memory[args.images // 10]]),
            "images per second, both unbroken runs": figure([1.1 * args.images / unbroken], "images/s"),
        },
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
