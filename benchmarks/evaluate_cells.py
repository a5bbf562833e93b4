"""All evaluations of every trained cell of the tables, one after another; what is measured already is skipped.

    python benchmarks/evaluate_cells.py runs/tables/small_cifar10_supervised --data ../shared/data --cache CACHE
    python benchmarks/evaluate_cells.py runs/tables --data ../shared/data --cache CACHE --only transfer robustness

A cell is a folder RUNS/.../TABLE/ARM-seedN with config.yaml and bundle/. It gets evaluation.json (name -> result),
written after each evaluation, so that a run that was cut off goes on; `tables.py --only evaluate` sums them up. A model
without a map gets a ridge map fitted afterwards, so that steered figures mean something; transfer and single-pass
scores do not depend on it.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from record import commit, device_name

from steerable.data import ImageSet, load_images, splits
from steerable.data.cache import write_whole
from steerable.evaluate import evaluation_suite, load_parts
from steerable.evaluate.probing import strengths
from steerable.maps import IdentityMap
from steerable.model import SteerableEncoder
from steerable.posthoc import fit

FITTED = 1000  # training images of the map of a model that has none
DEFAULTS = {"near": ["cifar100"], "foreign": ["textures", "signs"]}


@functools.cache
def read(source: str, root: str | None, split: str, size: int | None, limit: int | None) -> ImageSet:
    """Decoded once for all cells; another split's images where there is none of that name."""
    has = splits(source, root=root)
    return load_images(source, root=root, split=split if split in has else None, size=size, limit=limit)


@functools.cache
def parts(source: str, root: str | None, size: int | None) -> Mapping[str, ImageSet]:
    return load_parts(source, root=root, size=size)


def cells(runs: Path) -> list[Path]:
    """Folders with a trained bundle, by seed, so that the first ones compare all arms."""
    found = [path.parent.parent for path in runs.glob("**/bundle/config.json")]
    return sorted(found, key=lambda cell: (seed_of(cell), str(cell)))


def seed_of(cell: Path) -> int:
    number = cell.name.rpartition("-seed")[2]
    return int(number) if number.isdecimal() else 0


def with_map(model: SteerableEncoder, train: ImageSet, cache: Path) -> SteerableEncoder:
    """The model, or where its map is the identity, one with a ridge map of the trained ones' family."""
    if not isinstance(model.steering, IdentityMap):
        return model
    options = {"features": "linear+squares", "views": 2, "projection": None, "cache": cache}
    fitted = fit(model.encoder, train.subset(range(min(FITTED, len(train)))), model.chain, **options)
    return SteerableEncoder(
        model.encoder, model.chain, fitted.steering.to(model.device), head=model.head, classes=model.classes
    ).eval()


def suite_of(cell: Path, args: argparse.Namespace) -> Callable[[str], dict[str, Any]]:
    """What runs an evaluation of the cell by its name; KeyError for one that it cannot have."""
    model = SteerableEncoder.from_pretrained(cell / "bundle", device=args.device).eval()
    data = yaml.safe_load((cell / "config.yaml").read_text())["data"]
    source, size = args.images or data["source"], model.encoder.image_size or data.get("size")
    test = read(source, args.data, "test", size, args.limit)
    train = read(source, args.data, "train", size, args.train_limit)
    side = size or test.images.shape[-1]
    folder = Path(args.data) / "transfer" if args.data else None
    names = args.sets or sorted(path.name for path in folder.iterdir()) if folder and folder.is_dir() else []
    kept = {
        group: [name for name in given if name in names]
        for group, given in (("near", args.near), ("foreign", args.foreign))
    }
    settings = {
        "train": train,
        "sets": {name: functools.partial(parts, name, args.data, side) for name in names},
        "foreign": {
            name: read(name, args.data, "test", side, args.limit) for group in kept.values() for name in group
        },
        "near": kept["near"],
        "grid": strengths(args.grid),
        "budget": args.budget,
        "cache": args.cache,
        "seed": 0,  # one for all cells, so that they meet the same images, corruptions and thetas
    }

    @functools.cache
    def steered() -> dict[str, Any]:
        return evaluation_suite(with_map(model, train, args.cache), test, **settings)

    plain = evaluation_suite(model, test, **settings)
    return lambda name: (plain if name in ("transfer", "steerability") else steered())[name]()


def evaluate(cell: Path, args: argparse.Namespace) -> None:
    """Measure what evaluation.json of the cell lacks, and write it after each evaluation."""
    path = cell / "evaluation.json"
    found = read_found(path)
    missing = [name for name in args.only if name not in found or name in args.redo]
    run = suite_of(cell, args) if missing else None
    for name in missing:
        began = time.perf_counter()
        try:
            result = run(name)
        except Exception as error:  # one that fails must not keep the other cells from being measured
            print(f"{cell.name} {name} failed: {error}", file=sys.stderr, flush=True)
            continue
        seconds = time.perf_counter() - began
        keep(path, name, result, seconds)
        print(f"{cell.parent.name} {cell.name} {name}: {seconds:.0f} s", flush=True)


def read_found(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, name: str, result: Mapping[str, Any], seconds: float) -> None:
    """Add a result to the file as it is now: another machine's results may have come in the meantime."""
    found = read_found(path) | {name: result}
    how = {"seconds": seconds, "commit": commit(), "device": device_name()}
    found["measured"] = found.get("measured", {}) | {name: how}
    write_whole(path, lambda partial: partial.write_text(json.dumps(found, allow_nan=False)))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("transfer", "robustness", "steerability", "tta", "ood", "retrieval")
    parser.add_argument("runs", type=Path, help="a table's folder, or one above several")
    parser.add_argument("--data", default=None, help="folder with local copies of data sets")
    parser.add_argument("--cache", type=Path, required=True, help="embeddings and corrupted images")
    parser.add_argument("--images", default=None, help="data set that is corrupted [the one of the training]")
    parser.add_argument("--sets", nargs="+", default=None, help="of the transfer [all in DATA/transfer]")
    parser.add_argument("--near", nargs="*", default=DEFAULTS["near"])
    parser.add_argument("--foreign", nargs="*", default=DEFAULTS["foreign"])
    parser.add_argument("--only", nargs="+", choices=names, default=list(names))
    parser.add_argument("--redo", nargs="+", choices=names, default=[], help="measure these again")
    parser.add_argument("--grid", type=int, default=9)
    parser.add_argument("--limit", type=int, default=1000, help="test images")
    parser.add_argument("--train-limit", type=int, default=5000)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for each set of augmented views")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    args = parse(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    for cell in cells(args.runs):
        evaluate(cell, args)


if __name__ == "__main__":
    main()
