"""A recipe against its controls, several seeds: trains, audits, and writes results/NAME.json.

    python benchmarks/compare.py recipes/cifar10_supervised.yaml --data ../shared/data --seeds 1 2 3

Every run is kept under runs/compare/NAME, resumed where it was cut off, and skipped where it has finished. The JSON is
written again after each run, so that what is measured is never lost.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from record import figure, record

from steerable.auditing import audit
from steerable.cli.parser import Parser
from steerable.cli.train import train as train_command
from steerable.data import ImageSet, load_images
from steerable.encoders import load_encoder
from steerable.evaluate import C_GRID, probe
from steerable.model import SteerableEncoder
from steerable.posthoc import fit
from steerable.training import TrainConfig, train

ARMS = {
    "control": ["--steering", "none"],
    "uniformity": ["--steering", "none", "--uniformity", "0.05"],
    "steerable": [],
}
FROZEN = (
    "frozen"  # no training: the recipe's encoder as it is, with a map fitted afterwards (`steerable.fit`)
)
WITHOUT_MAP = ("control", "uniformity")
JOINT = ("relative_error", "relative_error_cosine", "invariance_level", "r2", "mrr", "hit_at_1", "hit_at_5")
PROBED = 5000  # training images of the linear probe


def read(recipe: str, words: Sequence[str]) -> TrainConfig:
    """The recipe with overrides, as `steerable train` reads it."""
    return Parser(train_command).read(["--config", recipe, *words])[1]["config"]


def trained(config: TrainConfig, folder: Path) -> SteerableEncoder:
    """The model of a run, trained now, resumed, or read where it has finished."""
    if not (folder / "bundle" / "config.json").exists():
        train(config, out=folder, resume=folder.exists(), listener=lambda row: log(folder.name, row))
    return SteerableEncoder.from_pretrained(folder / "bundle").eval()


def fitted(config: TrainConfig, images: ImageSet) -> SteerableEncoder:
    """The recipe's encoder, its weights untouched, with the recipe's family of maps."""
    encoder = load_encoder(**dataclasses.asdict(config.encoder))
    return fit(
        encoder,
        images,
        config.chain,
        map=config.steering,
        features=config.features,
        views=4,
        seed=config.seed,
    )


def log(name: str, row: Mapping[str, Any]) -> None:
    if "epoch" in row:
        shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
        print(name, row["epoch"], shown, file=sys.stderr, flush=True)


def encode(model: SteerableEncoder, images: ImageSet) -> torch.Tensor:
    return torch.cat([model.encode(batch) for batch in images.batches(500)])


def measure(
    model: SteerableEncoder, train_set: ImageSet, test_set: ImageSet, seed: int, n_images: int
) -> list[dict[str, Any]]:
    """Rows of one model: joint and per parameter, for its own map, a ridge map fitted afterwards, and the identity."""
    e = encode(model, test_set)
    few = train_set.subset(range(min(PROBED, len(train_set))))
    accuracy = {
        "probe_accuracy": probe(encode(model, few), few.labels, e, test_set.labels, grid=C_GRID[::5]).accuracy
    }
    if model.head is not None and model.classes == test_set.classes:
        with torch.no_grad():
            accuracy["test_accuracy"] = (model.head(e).argmax(1) == test_set.labels).double().mean().item()
    # the audit's own seed is one for all, so that all models meet the same images and thetas
    report = audit(
        model,
        test_set.subset(range(min(2000, len(test_set)))),
        n_images=n_images,
        n_pool=n_images // 4,
        strengths=1,
    )
    rows = []
    for row in report.rows:
        if row.value is None:
            figures = {name: row.figures.get(name) for name in (*JOINT, "decoding_r2")}
            extra = accuracy if row.param == "joint" else {}
            rows.append({"seed": seed, "map": row.steering, "param": row.param, **extra, **figures})
    return rows


def joint(rows: Sequence[Mapping[str, Any]], arm: str, name: str) -> list[float]:
    """One figure per seed: by the model's own map, by the ridge map for the controls, which have none."""
    lead = "ridge" if arm in WITHOUT_MAP else "map"
    found = [row for row in rows if (row["arm"], row["map"], row["param"]) == (arm, lead, "joint")]
    return [row[name] for row in sorted(found, key=lambda row: row["seed"])]


def summary(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The figures of the README: each arm's mean and spread, and the gain in accuracy, paired by seed."""
    figures = {}
    accuracy = "test_accuracy" if any("test_accuracy" in row for row in rows) else "probe_accuracy"
    units = {accuracy: "%", "relative_error": "", "mrr": "", "hit_at_1": ""}
    for name, unit in units.items():
        for arm in arms:
            if values := joint(rows, arm, name):
                label = f"{name.replace(chr(95), chr(32))}, {arm}"
                figures[label] = figure([100 * value if unit else value for value in values], unit)
    a, b = joint(rows, "steerable", accuracy), joint(rows, "control", accuracy)
    if a and len(a) == len(b):
        gains = [100 * (x - y) for x, y in zip(a, b, strict=True)]
        figures["accuracy gain over the control, paired"] = figure(gains, "points")
    return figures


def averaged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows averaged over seeds."""
    keys = list(dict.fromkeys((row["arm"], row["map"], row["param"]) for row in rows))
    out = []
    for key in keys:
        same = [row for row in rows if (row["arm"], row["map"], row["param"]) == key]
        names = [name for name in same[0] if name not in ("arm", "map", "param", "seed")]
        values = {name: [row[name] for row in same if row.get(name) is not None] for name in names}
        means = {name: mean(found) if found else None for name, found in values.items()}
        out.append({"arm": key[0], "map": key[1], "param": key[2], "seeds": len(same), **means})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", default=None, help="folder with local copies of data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, FROZEN], default=["control", "steerable"])
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--measured", type=int, default=400, help="test images that are measured")
    parser.add_argument("--only-train", action="store_true", help="train what is missing and measure nothing")
    args = parser.parse_args()
    name = Path(args.recipe).stem
    words = ["--data", args.data] if args.data else []
    config = read(args.recipe, words)
    data = config.data
    sets = [
        load_images(data.source, split=s, size=data.size, root=data.root, limit=n)
        for s, n in (("train", data.train_limit), ("test", None))
    ]
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for arm in args.arms:
            settings = read(args.recipe, [*words, *ARMS.get(arm, []), "--seed", str(seed)])
            folder = args.runs / name / f"{arm}-seed{seed}"
            model = fitted(settings, sets[0]) if arm == FROZEN else trained(settings, folder)
            if args.only_train:
                continue
            rows.extend({"arm": arm, **row} for row in measure(model, *sets, seed, args.measured))
            choice = f"--seeds {' '.join(map(str, args.seeds))} --arms {' '.join(args.arms)}"
            record(
                name,
                claim=f"{name}: {' against '.join(reversed(args.arms))}, ranks among 50 views of one image; the "
                "control's figures by a ridge map fitted afterwards, at equal encoder passes",
                command=f"python benchmarks/compare.py {args.recipe} --data DATA {choice}",
                seeds=args.seeds,
                rows=averaged(rows),
                figures=summary(rows, args.arms),
            )


if __name__ == "__main__":
    main()
