"""Test-time augmentation on trained CIFAR-10 encoders: steered views against none, folded heads and true augmentation.

    python benchmarks/tta.py RUNS --data ../shared/data --cache CACHE --seeds 1 2 3

RUNS is a folder of runs named ARM-seedN. Test images as they are and after four corruptions at severity 3; methods and
columns as in benchmarks/tta_imagenet.py. Passes are cached. Writes results/tta.json after every seed.
"""

import argparse
from pathlib import Path
from typing import Any

from record import figure, record
from torch import nn
from tta_imagenet import CORRUPTIONS, DRAWS, GENTLE, SEVERITY, Bench, Passes, Space, shown, table

from steerable.data import load_images
from steerable.model import SteerableEncoder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder with ARM-seedN/bundle")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--arm", default="steerable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--measured", type=int, default=1000, help="test images, each clean and corrupted")
    parser.add_argument("--encoded", type=int, default=500, help="of them, truly encoded with 7 draws")
    args = parser.parse_args()
    test = load_images("uoft-cs/cifar10", split="test", limit=args.measured, root=args.data)
    rows: list[dict[str, Any]] = []
    by_seed: dict[str, list[float]] = {}
    for seed in args.seeds:
        model = SteerableEncoder.from_pretrained(args.runs / f"{args.arm}-seed{seed}" / "bundle").eval()
        assert model.head is not None
        passes = Passes(model.encode, model.chain, args.cache, model.encoder.fingerprint()[:24])
        bench = Bench(passes, test, CORRUPTIONS, args.encoded)
        space = Space("own", nn.Identity(), model.steering, model.head.requires_grad_(False))
        own = list(bench.rows(space))
        rows += own
        for row in table(own):
            if row["images"] in ("clean", "corrupted, all"):
                key = f"{row['images']}: {row['method']} {row['views']}".strip()
                by_seed.setdefault(key, []).append(row["gain, points"])
        write(rows, by_seed, args, args.seeds[: args.seeds.index(seed) + 1])


def write(
    rows: list[dict[str, Any]], by_seed: dict[str, list[float]], args: argparse.Namespace, seeds: list[int]
) -> None:
    wanted = (
        "weighted few",
        "folded 1000 x 1.0",
        f"re-encoded {DRAWS} x {GENTLE}",
        f"steered {DRAWS} x {GENTLE}",
    )
    plain = [row for row in rows if row["method"] == "plain"]
    groups = {
        "clean": [row for row in plain if row["images"] == "clean"],
        "corrupted, all": [row for row in plain if row["images"] != "clean"],
    }
    record(
        "tta",
        claim=f"accuracy of steered test-time augmentation, CIFAR-10: {args.measured:,} images, clean and after "
        f"{', '.join(CORRUPTIONS)} at severity {SEVERITY}; paired gains, rows pool the seeds; views are COUNT x "
        "STRENGTH of the chain's ranges; chosen and weighted views are measured on images that did not choose them",
        command="python benchmarks/tta.py RUNS --data DATA --cache CACHE --seeds " + " ".join(map(str, seeds)),
        seeds=seeds,
        rows=table(rows),
        figures={f"accuracy, {name}: plain": figure([shown(own)["accuracy"]], "%") for name, own in groups.items()}
        | {f"gain, {key}": figure(gains, "points") for key, gains in by_seed.items() if key.split(": ")[1] in wanted},
    )  # fmt: skip


if __name__ == "__main__":
    main()
