"""A table of the laboratory: trains and evaluates the cells (an arm and a seed each) that are missing.

    python benchmarks/tables.py recipes/tables/small/*.yaml --data ../shared/data
    python benchmarks/tables.py recipes/tables/full/*.yaml --data ../shared/data --jobs 6 --only train

A table is a YAML file: seeds, the config that all arms share, and what each arm changes in it (see recipes/tables). A
cell is the folder RUNS/TABLE/ARM-seedN with the run, its bundle and evaluation.json; what is there is not done again,
and a run that was cut off goes on. Cells are ordered by seed, so that the first ones already answer the question.
evaluate_cells.py beside this file evaluates them and writes results/table_TABLE.json.
"""

import argparse
import functools
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate_cells
import torch
import yaml
from record import device_name

from steerable.errors import ConfigError, one_of
from steerable.training import TrainConfig

WHOLE = (
    "equivariance",
    "prediction",
    "base_chain",
    "chain",
)  # settings that an arm replaces, and does not add to


@dataclass(frozen=True)
class Cell:
    """One arm and seed of a table."""

    table: str
    arm: str
    seed: int
    config: TrainConfig
    folder: Path

    @property
    def trained(self) -> bool:
        return (self.folder / "bundle" / "config.json").exists()

    def train(self) -> None:
        from steerable.training import train

        def told(row: Mapping[str, Any]) -> None:
            if "epoch" in row:
                shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
                print(self.folder.name, row["epoch"], shown, file=sys.stderr, flush=True)

        asked = {key: self.config.to_dict()[key] for key in ("data", "base", "batch_size")}
        images = images_of(yaml.safe_dump(asked))
        train(
            self.config,
            out=self.folder,
            resume=(self.folder / "config.yaml").exists(),
            listener=told,
            images=images,
        )
        (self.folder / "device").write_text(device_name() + "\n")


@functools.cache
def images_of(settings: str) -> Any:
    """Training and test images by the settings that bear on them, decoded once for all cells of a process."""
    from steerable.training.setup import load_splits

    return load_splits(TrainConfig.from_dict(yaml.safe_load(settings)))


def read_table(
    path: Path, runs: Path, data: str | None, changes: Mapping[str, Any] | None = None
) -> list[Cell]:
    """The cells of a table, seeds outermost; ``changes`` to the shared config come last, as those of the tests do.

    Raises:
        ConfigError: an arm or the config names an unknown setting.
    """
    table = yaml.safe_load(path.read_text())
    for key in table:
        if key not in ("seeds", "config", "arms"):
            raise ConfigError(f"{path} has {key!r}; {one_of(key, ('seeds', 'config', 'arms'))}")
    name = f"{path.parent.name}_{path.stem}"
    cells = []
    for seed in table["seeds"]:
        for arm, own in table["arms"].items():
            settings = merged(merged(table["config"], own or {}), changes or {})
            config = TrainConfig.from_dict(settings | {"seed": seed})
            config.data.root = data
            config.check()
            cells.append(Cell(name, arm, seed, config, runs / name / f"{arm}-seed{seed}"))
    return cells


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """base with the settings of own; mappings within are merged too, but for those of WHOLE."""
    out = dict(base)
    for key, value in own.items():
        nested = key not in WHOLE and isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if nested else value
    return out


def work(cell: Cell, threads: int | None) -> tuple[Cell, float]:
    """Train a cell in this process."""
    if threads:
        torch.set_num_threads(threads)
    began = time.perf_counter()
    cell.train()
    return cell, time.perf_counter() - began


def train_all(cells: list[Cell], jobs: int, threads: int | None) -> Iterator[tuple[Cell, float | Exception]]:
    """Train the cells, ``jobs`` of them side by side, each worker one after another; yields each that is done."""
    if jobs == 1:
        for cell in cells:
            yield work(cell, threads)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(work, cell, threads): cell for cell in cells}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], error if isinstance(error, Exception) else future.result()[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--data", default=None, help="folder with local copies of data sets")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/cache"), help="embeddings and corrupted images"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="only these of the table's")
    parser.add_argument("--arms", nargs="+", default=None, help="only these of the table's")
    parser.add_argument(
        "--jobs", type=int, default=1, help="cells side by side: for a GPU with many processors"
    )
    parser.add_argument("--threads", type=int, default=None, help="of each cell")
    parser.add_argument("--only", choices=["train", "evaluate"], default=None)
    parser.add_argument("--set", default="{}", help="YAML: changes to the shared config, such as {epochs: 1}")
    args = parser.parse_args()
    changes = yaml.safe_load(args.set)
    cells = [cell for path in args.tables for cell in read_table(path, args.runs, args.data, changes)]
    cells = [
        cell for cell in cells
        if (not args.seeds or cell.seed in args.seeds) and (not args.arms or cell.arm in args.arms)
    ]  # fmt: skip
    cells.sort(key=lambda cell: cell.seed)
    if args.only != "evaluate":
        missing = [cell for cell in cells if not cell.trained]
        for done, (cell, result) in enumerate(train_all(missing, args.jobs, args.threads), 1):
            what = f"{result:.0f} s" if isinstance(result, float) else f"failed: {result}"
            print(f"{done}/{len(missing)} {cell.table} {cell.folder.name}: {what}", flush=True)
    if args.only != "train":
        for folder in dict.fromkeys(cell.folder.parent for cell in cells):
            words = [str(folder), "--cache", str(args.cache), *(["--data", args.data] if args.data else [])]
            evaluate_cells.main(words)


if __name__ == "__main__":
    main()
