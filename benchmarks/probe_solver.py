"""The linear probe's own solver against scikit-learn's, by the same protocol on the same embeddings.

    python benchmarks/probe_solver.py BUNDLE --data ../shared/data --sets textures trash grocery flowers signs

Both try 9 values of C on the same 10 % of train and are fitted again to all of it, at most 300 steps a fit. Seconds are
processor seconds of one thread, the median of --rounds. Writes results/probe_solver.json.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from record import figure, record
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from steerable.data import load_images
from steerable.evaluate import Encodings, linear_head, strengths
from steerable.evaluate.minibatch import split_off
from steerable.model import SteerableEncoder

GRID, STEPS = strengths(9), 300


def own(x: Tensor, y: Tensor) -> tuple[Callable[[Tensor], Tensor], float]:
    head, c = linear_head(x, y, grid=GRID)
    return lambda e: head(e).argmax(1), c


def scikit_learns(x: Tensor, y: Tensor) -> tuple[Callable[[Tensor], Tensor], float]:
    def fitted(e: Tensor, labels: Tensor, c: float):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=STEPS))
        return model.fit(e.numpy(), labels.numpy())

    fit, val = split_off(y, len(x), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        c = max(GRID, key=lambda c: fitted(x[fit], y[fit], c).score(x[val].numpy(), y[val].numpy()))
        model = fitted(x, y, c)
    return lambda e: torch.from_numpy(model.predict(e.numpy())), c


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sets", nargs="+", default=["textures", "trash", "grocery", "flowers", "signs"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cache", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    encode = Encodings(SteerableEncoder.from_pretrained(args.bundle), args.cache)
    rows, ratios, gaps = [], [], []
    for name in args.sets:
        train, test = (
            load_images(name, root=args.data, split=split, size=args.size) for split in ("train", "test")
        )
        x, e = encode(train), encode(test)
        found = {}
        for kind, solve in (("own", own), ("scikit-learn", scikit_learns)):
            seconds = []
            for _ in range(args.rounds):
                began = time.process_time()
                predict, c = solve(x, train.labels)
                seconds.append(time.process_time() - began)
            accuracy = (predict(e) == test.labels).double().mean().item()
            found[kind] = (median(seconds), accuracy)
            shape = {"set": name, "n": len(x), "d": x.shape[1], "classes": len(train.classes)}
            rows.append({**shape, "solver": kind, "seconds": median(seconds), "accuracy": accuracy, "c": c})
            print(rows[-1], flush=True)
        ratios.append(found["scikit-learn"][0] / found["own"][0])
        gaps.append(100 * (found["own"][1] - found["scikit-learn"][1]))
    record(
        "probe_solver",
        claim="the linear probe's L-BFGS, each C from the solution for the one below, against scikit-learn's: "
        f"{', '.join(args.sets)}; spread is over the sets",
        command=f"python benchmarks/probe_solver.py BUNDLE --data DATA --sets {' '.join(args.sets)}",
        rows=rows,
        figures={
            "times as fast": figure(ratios, "x"),
            "accuracy, own minus scikit-learn's": figure(gaps, "points"),
        },
    )


if __name__ == "__main__":
    main()
