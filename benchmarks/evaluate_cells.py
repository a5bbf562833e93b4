"""All evaluations of every trained cell of the tables, one after another; what is measured already is skipped.

    python benchmarks/evaluate_cells.py runs/tables/small_cifar10_supervised --data ../shared/data --cache CACHE
    python benchmarks/evaluate_cells.py runs/tables --data ../shared/data --cache CACHE --only transfer robustness

A cell is a folder RUNS/.../TABLE/ARM-seedN with config.yaml and bundle/. It gets evaluation.json (name -> result),
written after each evaluation, so that a run that was cut off goes on, and results/table_TABLE.json is written after
each cell: means and spreads over seeds by arm, and gains paired by seed over the better of the arms without
equivariance, figure by figure. A model without a map gets a ridge map fitted afterwards, so that steered figures mean
something; transfer and single-pass scores do not depend on it.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from record import RESULTS, commit, device_name, figure, record

from steerable.data import ImageSet, load_images, splits
from steerable.data.cache import write_whole
from steerable.evaluate import evaluation_suite, headlines, load_parts
from steerable.evaluate.probing import strengths
from steerable.maps import IdentityMap
from steerable.model import SteerableEncoder
from steerable.posthoc import fit

CONTROLS = ("control", "uniformity")
FITTED = 1000  # training images of the map of a model that has none
DEFAULTS = {"near": ["cifar100"], "foreign": ["textures", "signs"]}
LAST_EPOCH = ("test_accuracy", "relative_error", "invariance_level")
LOWER = (
    "relative error",
    "relative_error, as trained",
    "invariance_level, as trained",
)  # figures of which less is better; of the others more is


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


def arm_of(cell: Path) -> str:
    return cell.name.rpartition("-seed")[0] or cell.name


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


def figures_of(cell: Path) -> dict[str, float]:
    """A cell's figures that are defined: of its last epoch, the headlines, and each transfer set's linear probe."""
    found, metrics = read_found(cell / "evaluation.json"), cell / "metrics.jsonl"
    last = json.loads(metrics.read_text().splitlines()[-1]) if metrics.exists() else {}
    trained = {f"{name}, as trained": last.get(name) for name in LAST_EPOCH}
    rows = found.get("transfer", {}).get("rows", [])
    sets = {f"linear, {row['set']}": row["score"] for row in rows if row["probe"] == "linear"}
    return {name: value for name, value in (trained | headlines(found) | sets).items() if value is not None}


def table(measured: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Iterator[dict[str, Any]]:
    """Rows of a table from arm -> seed -> figures: mean, spread, and paired gain over the better control."""
    for arm, seeds in measured.items():
        names = dict.fromkeys(name for figures in seeds.values() for name in figures)
        stated = {name: figure([f[name] for f in seeds.values() if name in f]) for name in names}
        yield {"arm": arm, "value": "mean", "seeds": len(seeds)} | {n: f["mean"] for n, f in stated.items()}
        yield {"arm": arm, "value": "spread", "seeds": len(seeds)} | {
            n: f["spread"] for n, f in stated.items()
        }
        if arm not in CONTROLS:
            gained = {name: found for name in names if (found := gains(measured, arm, name))}
            paired = {name: figure(found) for name, found in gained.items()}
            shared = max(map(len, gained.values()), default=0)
            yield {"arm": arm, "value": "gain", "seeds": shared} | {n: f["mean"] for n, f in paired.items()}
            yield {"arm": arm, "value": "gain's spread", "seeds": shared} | {
                n: f["spread"] for n, f in paired.items()
            }


def gains(measured: Mapping[str, Mapping[int, Mapping[str, float]]], arm: str, name: str) -> list[float]:
    """Differences to the better control (by its mean over the seeds that both have) at the same seeds."""
    found = []
    for control in (control for control in CONTROLS if control in measured):
        other = measured[control]
        found.append(
            [
                figures[name] - other[seed][name]
                for seed, figures in measured[arm].items()
                if name in figures and name in other.get(seed, {})
            ]
        )
    better = max if name in LOWER else min  # over the better control an arm gains least
    return better(filter(None, found), key=mean, default=[])


def write_table(folder: Path, args: argparse.Namespace) -> None:
    """results/table_TABLE.json from what the cells of a table hold so far."""
    measured: dict[str, dict[int, dict[str, float]]] = {}
    kept = {path.parent for name in ("metrics.jsonl", "evaluation.json") for path in folder.glob(f"*/{name}")}
    for cell in sorted(kept, key=lambda cell: (seed_of(cell), cell.name)):
        if found := figures_of(cell):
            measured.setdefault(arm_of(cell), {})[seed_of(cell)] = found
    figures = {}
    for arm in (arm for arm in measured if arm not in CONTROLS):
        for name in ("transfer, linear", "corrupted accuracy", "relative error"):
            if found := gains(measured, arm, name):
                scale, unit = (1, "") if name in LOWER else (100, "points")
                figures[f"{name}, {arm}: gain"] = figure([scale * gain for gain in found], unit)
    record(
        f"table_{folder.name}",
        claim=f"{folder.name}: every figure of every arm; gains are paired by seed, over the better of the arms "
        "without equivariance (control, uniformity), figure by figure; best scores and views are chosen after the fact",
        command=f"python benchmarks/evaluate_cells.py RUNS/{folder.name} --data DATA --cache CACHE "
        f"--grid {args.grid} --limit {args.limit}",
        seeds=sorted({seed for seeds in measured.values() for seed in seeds}),
        rows=table(measured),
        figures=figures,
        device=f"{device_name()}; trained on {', '.join(trained_on(kept)) or 'the same'}",
        path=args.results / f"table_{folder.name}.json",
    )


def trained_on(folders: Iterable[Path]) -> list[str]:
    """The devices that the training runs of these cells wrote down."""
    return sorted({path.read_text().strip() for folder in folders if (path := folder / "device").exists()})


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
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    args = parse(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    for cell in cells(args.runs):
        evaluate(cell, args)
        write_table(cell.parent, args)


if __name__ == "__main__":
    main()
