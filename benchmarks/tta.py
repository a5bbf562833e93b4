"""Test-time augmentation on trained CIFAR-10 encoders: steered views against none, folded heads and true augmentation.

    python benchmarks/tta.py runs/compare/cifar10_supervised --data ../shared/data --cache CACHE --seeds 1 2 3

Test images as they are, and after three corruptions at severity 3 (one mean). Views are drawn from a quarter of the
chain's ranges and from all of them; they are truly encoded for as many images as --budget seconds allow, per set of
views. Writes results/tta.json after every seed.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from record import figure, record

from steerable.data import ImageSet, load_images
from steerable.evaluate import corrupt, evaluate_tta
from steerable.model import SteerableEncoder
from steerable.progress import PassProgress

CORRUPTIONS, SEVERITY = ("gaussian_noise", "contrast", "brightness"), 3
STRENGTHS = (0.25, 1.0)  # true augmentation for the first alone
COUNTS = (10, 100, 1000)
FOLDED = str(COUNTS[-1])  # the one set of views whose folded head is shown
MERGED = ("", "mean of probabilities", "mean of logits")
Key = tuple[str, str, str]  # images ("clean", "corrupted"), method, views


def measured(model: SteerableEncoder, images: ImageSet, budget: float, seed: int) -> list[dict[str, Any]]:
    """Rows of one model and image set, both strengths."""
    rows: list[dict[str, Any]] = []
    for strength in STRENGTHS:
        first = strength == STRENGTHS[0]
        with PassProgress() as progress:
            found = evaluate_tta(
                model, images, counts=COUNTS, strength=strength, budget=budget if first else 0.0, seed=seed,
                progress=progress,
            )  # fmt: skip
        for row in found["rows"]:
            drawn = row["set"].isdecimal() and row["method"] in ("steered", "folded", "re-encoded")
            wanted = row["merge"] in MERGED and (row["method"] != "folded" or row["set"] == FOLDED)
            if wanted and (first or drawn):
                chosen = row["method"] in ("chosen", "weighted")
                views = "few" if chosen else f"{row['set']} x {strength}" if drawn else row["set"]
                rows.append(row | {"views": views})
    return rows


def pooled(found: Mapping[Key, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Means over seeds and corruptions, errors as of independent parts; the share of a true gain that is clear."""
    rows = []
    for (images, method, views), same in found.items():
        error = sum(row["gain_se"] ** 2 for row in same) ** 0.5 / len(same)
        out = {"images": images, "method": method, "views": views, "runs": len(same)}
        out["measured"] = sum(row["n"] for row in same)
        out |= {name: mean(row[name] for row in same) for name in ("accuracy", "ece", "log_likelihood")}
        out["gain, points"] = 100 * mean(row["gain"] for row in same)
        out["its standard error"] = 100 * error
        out["cost"] = mean(row["ratio"] for row in same)
        if method in ("re-encoded", "ttach"):
            out["steered gain on these"] = 100 * mean(row["steered_gain"] for row in same)
            clear = out["gain, points"] > 2 * out["its standard error"]
            share = out["steered gain on these"] / out["gain, points"] if clear else None
            out["share of the true gain"] = share
        rows.append(out)
    return rows


def summary(rows: Iterable[Mapping[str, Any]], by_seed: Mapping[Key, Sequence[float]]) -> dict[str, Any]:
    """Plain accuracy, and the steered draws with the highest mean gain, per kind of images."""
    rows = list(rows)
    figures = {}
    for images in dict.fromkeys(row["images"] for row in rows):
        plain = next(row for row in rows if (row["images"], row["method"]) == (images, "plain"))
        figures[f"accuracy, {images}: plain"] = {"mean": 100 * plain["accuracy"], "spread": None, "unit": "%"}
        steered = [row for row in rows if (row["images"], row["method"]) == (images, "steered")]
        best = max(steered, key=lambda row: row["gain, points"])
        title = f"gain, {images}: best steered ({best['views']})"
        figures[title] = figure(by_seed[images, "steered", best["views"]], "points")
        if true := [row for row in rows if row["images"] == images and row["method"] == "re-encoded"]:
            best = max(true, key=lambda row: row["gain, points"])
            figures[f"gain, {images}: best re-encoded ({best['views']})"] = {
                "mean": best["gain, points"],
                "spread": None,
                "unit": f"points, standard error {best['its standard error']:.2g}",
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of compare.py with steerable-seedN")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--clean", type=int, default=2000)
    parser.add_argument("--corrupted", type=int, default=1000)
    parser.add_argument("--budget", type=float, default=6.0, help="seconds of true augmentation, each set")
    args = parser.parse_args()
    test = load_images("uoft-cs/cifar10", split="test", limit=args.clean, root=args.data)
    fewer = test.subset(range(min(args.corrupted, len(test))))
    sets = [("clean", test)]
    sets += [("corrupted", corrupt(fewer, name, SEVERITY, cache=args.cache)) for name in CORRUPTIONS]
    found: dict[Key, list[dict[str, Any]]] = {}
    by_seed: dict[Key, list[float]] = {}
    for seed in args.seeds:
        model = SteerableEncoder.from_pretrained(args.runs / f"steerable-seed{seed}" / "bundle").eval()
        own: dict[Key, list[float]] = {}
        for images, one in sets:
            for row in measured(model, one, args.budget, seed):
                key = (images, row["method"], row["views"])
                found.setdefault(key, []).append(row)
                own.setdefault(key, []).append(100 * row["gain"])
        for key, gains in own.items():
            by_seed.setdefault(key, []).append(mean(gains))
        rows = pooled(found)
        record(
            "tta",
            claim=f"accuracy of steered test-time augmentation, CIFAR-10: {args.clean:,} clean images, and "
            f"{len(fewer):,} after each of {', '.join(CORRUPTIONS)} at severity {SEVERITY}; gains paired, best chosen "
            "afterwards; views are COUNT x STRENGTH, or a named set",
            command="python benchmarks/tta.py RUNS --data DATA --cache CACHE --seeds "
            + " ".join(map(str, args.seeds)),
            seeds=args.seeds[: args.seeds.index(seed) + 1],
            rows=rows,
            figures=summary(rows, by_seed),
        )


if __name__ == "__main__":
    main()
