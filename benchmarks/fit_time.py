"""How long `steerable fit` takes on this machine, as one command from photographs to a bundle.

    python benchmarks/fit_time.py --name mobilenetv2_100 --data ../shared/data --threads 2

10,000 pairs: the 1,000 photographs of imagenet1k-sample at 224 pixels, plain and in 10 views each. The command is run
with an empty cache, and again for each further rung, whose passes are then in the cache. Writes
results/fit_time_NAME.json; "map_seconds" is the fit's own share, without the encoding and the reading of the images.
"cpu_seconds" are those of all threads, and "load" is the machine's: where others work beside, half of the first is
what two free cores would take at least.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import cpu_name, figure, record

RUNGS = {
    "layers and discriminant": ["--layers", "all", "--adapter", "discriminant"],
    "layers": ["--layers", "all"],
    "layers, discriminant and contrast": [
        "--layers",
        "all",
        "--adapter",
        "discriminant",
        "--refine",
        "contrastive",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="mobilenetv2_100", help="folder under DATA/weights")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="images at most, for a trial")
    parser.add_argument(
        "--cache", type=Path, help="where passes are kept; by default a folder that is deleted"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in measured(args, Path(folder)):
            rows.append(row)
            print(row, flush=True)
            write(args, rows)


def measured(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    for name, options in RUNGS.items():
        out = folder / name
        words = command(args, options, out, args.cache or folder / "cache")
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            words,
            env=os.environ | {"OMP_NUM_THREADS": str(args.threads)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(done.stderr)
        facts = json.loads((out / "config.json").read_text())["steerable"]["record"]
        yield {
            "rung": name, "options": " ".join(options), "command_seconds": round(seconds, 1),
            "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
            "load": round(os.getloadavg()[1], 1),
            "encoding_seconds": facts["seconds_encoding"],
            "map_seconds": round(facts["seconds"] - facts["seconds_encoding"], 1),
            "passes_new": facts["passes_new"], "pairs": facts["pairs"], "held_out_error": facts["held_out_error"],
        }  # fmt: skip


def command(args: argparse.Namespace, options: list[str], out: Path, cache: Path) -> list[str]:
    place = (args.data / "weights" / args.name).resolve()
    limit = ["--limit", str(args.limit)] if args.limit else []
    return [
        sys.executable, "-m", "steerable", "fit", "--encoder", f"timm/local-dir:{place}",
        "--images", str(args.data / "imagenet1k-sample"), "--views", str(args.views), "--cache", str(cache),
        "--out", str(out), "--memory", "6", *limit, *options,
    ]  # fmt: skip


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    record(
        f"fit_time_{args.name}",
        claim=f"frozen {args.name}: one command from photographs to a bundle, {first['pairs']:,} pairs at 224 pixels, "
        f"{args.threads} threads; the first row encodes, the others find its passes in the cache",
        command=f"python benchmarks/fit_time.py --name {args.name} --data DATA --threads {args.threads}",
        rows=rows,
        figures={
            "command with the encoding": figure([first["command_seconds"]], "s"),
            "map's own share, layers and discriminant": figure([first["map_seconds"]], "s"),
        },
        device=cpu_name(),
    )


if __name__ == "__main__":
    main()
