"""Steered search on trained CIFAR-10 encoders: transformed images hidden among 10,000, and neighbors by color.

    python benchmarks/retrieval.py runs/compare/cifar10_supervised --data ../shared/data --cache CACHE

The steerable encoder with its trained map; and the steerable and the control encoder with maps fitted afterwards for
the same chain and rotation, which neither was trained with. Flowers, reduced to 32 pixels, ask for other colors.
Writes results/retrieval.json after every model.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from record import record

from steerable.data import ImageSet, load_images
from steerable.evaluate import evaluate_retrieval
from steerable.model import SteerableEncoder
from steerable.posthoc import fit
from steerable.progress import PassProgress
from steerable.transforms import Chain, Rotate

ASKED = ("hue", "saturation", "zoom", "rotate", "all together")
KINDS = ("unsteered", "steered", "reencoded")
FITTED, DEGREES = 2000, 30.0


def models(runs: Path, seed: int, images: ImageSet, cache: Path) -> Iterator[tuple[str, SteerableEncoder]]:
    """The trained map first; then both encoders, refitted with rotation."""
    for arm in ("steerable", "control"):
        model = SteerableEncoder.from_pretrained(runs / f"{arm}-seed{seed}" / "bundle").eval()
        if arm == "steerable":
            yield "steerable, trained map", model
        chain = Chain([*model.chain.members, Rotate(DEGREES)])
        yield (
            f"{arm}, fitted map",
            fit(
                model.encoder, images, chain, features="linear+squares", projection=None, views=2, cache=cache
            ),
        )


def hidden_rows(name: str, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per coordinate, over its values."""
    for row in found["hidden"]:
        if row["param"] in ASKED and row["value"] is None:
            hits = {f"{kind} Hit@{n}": row[f"{kind}_hit{n}"] for n in (1, 5) for kind in KINDS}
            yield {"model": name, "asked": row["param"], "images": f"{found['gallery']:,} cifar10"} | hits | {
                "gain Hit@1": row["gain_hit1"], "standard error": row["se_hit1"],
            }  # fmt: skip


def color_rows(name: str, found: Mapping[str, Any], images: str) -> Iterator[dict[str, Any]]:
    """Share of the 10 nearest whose own color is nearer to the wanted one."""
    for row in found["attributes"]:
        if row["param"] in ("hue", "saturation"):
            match = {f"{kind} match": row[f"{kind}_match"] for kind in KINDS}
            asked = f"{row['param']} {row['value']:+.1f} {row['unit']}"
            yield {"model": name, "asked": asked, "images": images} | match | {
                "match of all": row["chance"], "steered move": row["steered_move"],
                "reencoded move": row["reencoded_move"],
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of compare.py with control-seedN and steerable-seedN")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--queries", type=int, default=150)
    args = parser.parse_args()
    train = load_images("uoft-cs/cifar10", split="train", limit=FITTED, root=args.data)
    gallery = load_images("uoft-cs/cifar10", split="test", root=args.data)
    flowers = load_images(str(args.data / "transfer" / "flowers"), split="test", size=32)
    options: dict[str, Any] = {"queries": args.queries, "strengths": 1}
    hidden: list[dict[str, Any]] = []
    colors: list[dict[str, Any]] = []
    for name, model in models(args.runs, args.seed, train, args.cache):
        with PassProgress() as progress:
            found = evaluate_retrieval(model, gallery, **options, progress=progress)
            in_flowers = evaluate_retrieval(model, flowers, **options, progress=progress)
        hidden.extend(hidden_rows(name, found))
        colors.extend(color_rows(name, found, f"{len(gallery):,} cifar10"))
        colors.extend(color_rows(name, in_flowers, f"{len(flowers):,} flowers"))
        lead = [row for row in hidden if row["model"] == "steerable, trained map"]
        record(
            "retrieval",
            claim=f"transformed images hidden in a gallery of {len(gallery):,} are found by steered queries: Hit@1 of "
            f"{args.queries} queries at both ends of each coordinate, unsteered / steered / re-encoded in the rows; "
            "match: share of 10 neighbors nearer to the wanted color",
            command="python benchmarks/retrieval.py RUNS --data DATA --cache CACHE",
            seeds=[args.seed],
            rows=[*hidden, *colors],
            figures={
                f"Hit@1, {row['asked']}: {kind}": {
                    "mean": 100 * row[f"{kind} Hit@1"], "spread": None, "unit": "%"
                }
                for row in lead if row["asked"] in ("hue", "all together") for kind in KINDS
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
