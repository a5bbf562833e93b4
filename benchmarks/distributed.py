"""A recipe on one process and on several, by torchrun on this machine: images per second, and what differs.

    python benchmarks/distributed.py recipes/cifar10_supervised.yaml --data ../shared/data --processes 1 2

On few cores there is no speed-up to expect: what is to be seen is that several processes are one. Writes
results/distributed.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import figure, record
from safetensors.torch import load_file


def run(words: list[str], processes: int, out: Path) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", "steerable", "train", *words, "--out", str(out)]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def weights(out: Path) -> torch.Tensor:
    files = sorted((out / "bundle").glob("*.safetensors"))
    found = [file_weights for file in files for file_weights in load_file(file).items()]
    return torch.cat(
        [w.flatten().double() for name, w in found if w.is_floating_point() and "running" not in name]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", default=None)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    limits = ["--data.train_limit", str(args.images), "--data.test_limit", "500", "--epochs", "1"]
    words = ["--config", args.recipe, *limits, "--precision", "32-true", "--refit", "false"]
    words += ["--data", args.data] if args.data else []
    with tempfile.TemporaryDirectory() as place:
        outs = {n: Path(place) / str(n) for n in args.processes}
        rows = [{"processes": n, **run(words, n, out)} for n, out in outs.items()]
        first, last = (weights(outs[n]) for n in (args.processes[0], args.processes[-1]))
    loss = abs(rows[0]["loss"] - rows[-1]["loss"]) / rows[0]["loss"]
    path = record(
        "distributed",
        claim="several processes train as one does",
        command=f"python benchmarks/distributed.py {args.recipe} --data DATA",
        rows=rows,
        figures={
            "loss of an epoch, relative difference": figure([loss]),
            "weights after an epoch, relative difference": figure(
                [float((first - last).norm() / first.norm())]
            ),
        },
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
