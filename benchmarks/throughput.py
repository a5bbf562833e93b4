"""Training throughput of a recipe against its control: what the map and the equivariance terms cost per step.

    python benchmarks/throughput.py recipes/cifar10_supervised.yaml --data ../shared/data

Blocks of steps alternate between the two in one process, after a warm-up of both; medians over blocks.
Writes results/throughput.json.
"""

import argparse
import itertools
import time
from statistics import median

import torch
from compare import ARMS, read
from record import figure, record

from steerable.training.loop import Run
from steerable.training.setup import load_splits


def block(run: Run, steps: int) -> float:
    """Images per second over that many steps; an image counts once, though two views of it are encoded."""
    index = list(itertools.islice(run.batches(), steps))
    began = time.perf_counter()
    for batch in index:
        run.train_step(batch)
    return sum(map(len, index)) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", default=None)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    words = ["--data", args.data] if args.data else []
    runs = {}
    for arm in ("control", "steerable"):
        config = read(args.recipe, [*words, *ARMS[arm], "--data.test_limit", "100"])
        runs[arm] = Run(config, *load_splits(config), None)
        runs[arm].learner.train()
        block(runs[arm], args.steps)
    speeds: dict[str, list[float]] = {arm: [] for arm in runs}
    for turn in range(args.rounds):
        # every other round the other way around, so that a drift of the machine favors neither
        for arm in sorted(runs, reverse=bool(turn % 2)):
            speeds[arm].append(block(runs[arm], args.steps))
    ratios = [s / c for s, c in zip(speeds["steerable"], speeds["control"], strict=True)]
    path = record(
        "throughput",
        claim="training throughput, steerable over control, same recipe: at least 0.95",
        command=f"python benchmarks/throughput.py {args.recipe} --data DATA",
        rows=[
            {"arm": arm, "images_per_second": median(values), "blocks": len(values)}
            for arm, values in speeds.items()
        ],
        figures={
            "ratio of medians": {
                "mean": median(speeds["steerable"]) / median(speeds["control"]),
                "spread": None,
                "unit": "",
            },
            "ratio by block": figure(ratios),
        },
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
