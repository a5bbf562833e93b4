"""Linear probes trained on steered embeddings, against plain ones and ones on truly augmented images.

    python benchmarks/probes.py RUNS --data ../shared/data --seeds 1 2 3

RUNS is a folder of runs named ARM-seedN; CIFAR-10 images. Writes results/probes.json after every seed.
"""

import argparse
from pathlib import Path
from typing import Any

from record import figure, record

from steerable.data import load_images
from steerable.evaluate import evaluate_probes
from steerable.model import SteerableEncoder
from steerable.progress import PassProgress


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder with ARM-seedN/bundle")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--arm", default="steerable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--train", type=int, default=1500, help="images to train on")
    parser.add_argument("--test", type=int, default=2000, help="images to test on")
    parser.add_argument("--views", type=int, default=2)
    args = parser.parse_args()
    train, test = (
        load_images("uoft-cs/cifar10", split=split, limit=limit, root=args.data)
        for split, limit in (("train", args.train), ("test", args.test))
    )
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        model = SteerableEncoder.from_pretrained(args.runs / f"{args.arm}-seed{seed}" / "bundle").eval()
        with PassProgress() as progress:
            found = evaluate_probes(model, train, test, views=args.views, seed=seed, progress=progress)
        rows += [{"seed": seed, **row} for row in found["rows"]]
        by_probe: dict[str, list[float]] = {}
        for row in rows:
            by_probe.setdefault(row["probe"], []).append(100 * row["accuracy"])
        control = by_probe["plain, minibatch"]
        gains = {
            name: [a - b for a, b in zip(by_probe[name], control, strict=True)]
            for name in ("steered", "augmented")
        }
        record(
            "probes",
            claim=f"linear probes on {args.runs.name}, {args.arm}: {args.train:,} training images, {args.test:,} test "
            f"images; gains over the plain probe of the same solver, paired by seed; augmented sees {args.views} "
            "encoded views of each image, steered none",
            command=f"python benchmarks/probes.py RUNS --data DATA --seeds {' '.join(map(str, args.seeds))}",
            seeds=args.seeds[: args.seeds.index(seed) + 1],
            rows=rows,
            figures={f"accuracy, {name}": figure(values, "%") for name, values in by_probe.items()}
            | {f"gain, {name}": figure(values, "points") for name, values in gains.items()},
        )


if __name__ == "__main__":
    main()
