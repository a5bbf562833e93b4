"""How steering a frozen encoder improves with pairs: 3,000 to 100,000, many images in few views against few in many.

    python benchmarks/learning_curve.py --name mobilenetv2_100 --photos 900 --small 2000 --views 12 --measured 64

Everything is encoded once, with the most images and views; smaller settings read the first of them. Each is fitted
as on the ladder: a basis map on the final embedding, the discriminant on all layers with the window of crops, and
contrastive refinement of that. Writes learning_curve_NAME.json. 110,000 passes take two processor cores hours at 224
pixels; --size 128 makes it a third.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

from frozen import SHOWN, Columns, Frozen, add_arguments
from record import RESULTS, figure, record
from torch import nn

from steerable.encoders import Neck
from steerable.fitting import fit_embeddings
from steerable.maps import SteeringMap
from steerable.model import features_for
from steerable.posthoc.adapter import adapted

PAIRS = (3_000, 10_000, 30_000, 100_000)
SPREAD = (1, 3, 6, 12)  # views of each image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--memory", type=float, default=6.0, help="GiB that one fit may take")
    parser.add_argument("--pairs", type=int, nargs="*", default=PAIRS)
    args = parser.parse_args()
    frozen = Frozen(args)
    frozen.encode(probes=False)
    rows = []
    for images, views in settings(args.pairs, len(frozen.images), args.views):
        if frozen.elapsed > args.seconds:
            frozen.tell(f"time is up before {images} images x {views} views")
            break
        rows += list(measured(frozen, images, views))
        write(frozen, rows)


def settings(pairs: tuple[int, ...], most: int, views: int) -> Iterator[tuple[int, int]]:
    """(images, views) of each number of pairs, where there are so many images and views; the largest come first."""
    for wanted in sorted(pairs, reverse=True):
        for each in SPREAD:
            images = -(-wanted // each)
            if images <= most and each <= views:
                yield images, each


def measured(frozen: Frozen, images: int, views: int) -> Iterator[dict[str, Any]]:
    for rung, made in (("maps: basis", on_final), ("adapter on layers: discriminant, window", on_layers)):
        if made is on_layers and views < 2:
            continue  # an adapter needs two views of an image
        embed, fit = made(frozen, images, views)
        for refine in (None, "contrastive") if made is on_layers else (None,):
            began = time.perf_counter()
            steering = fit(refine)
            seconds = round(time.perf_counter() - began, 1)
            for kind in frozen.tests:
                row: dict[str, Any] = {"rung": rung + (", contrastive" if refine else ""), "images": kind}
                row |= {
                    "pairs": images * views,
                    "fitted images": images,
                    "views": views,
                    "map_seconds": seconds,
                }
                for drawn in ("joint", "crop", "color"):
                    figures = frozen.figures(kind, drawn, embed, steering)
                    row |= {f"{drawn}_{key}": figures[key] for key in SHOWN if key != "invariance_level"}
                shown = {
                    key: round(row[key], 3)
                    for key in ("joint_relative_error", "joint_mrr", "crop_mrr", "color_mrr")
                }
                frozen.tell(f"{row['rung']}, {images} x {views}, {kind}: {shown}")
                yield row


Fit = Callable[[str | None], SteeringMap]


def on_final(frozen: Frozen, images: int, views: int) -> tuple[nn.Module, Fit]:
    embed = Columns(frozen.spaces["final"].columns)
    return embed, lambda refine: fitted(frozen, embed, images, views, "linear", refine)


def on_layers(frozen: Frozen, images: int, views: int) -> tuple[nn.Module, Fit]:
    space = frozen.spaces["layers"]
    columns = Columns(space.columns)
    raw = columns(frozen.plain[:images])
    standard = Neck.standardizing(raw, space.layers)
    pairs = frozen.pairs(nn.Sequential(columns, standard), images, views)
    settings = {"map": "basis", "projection": "auto", "features": features_for(frozen.chain, "linear+window")}
    neck = adapted(
        standard, pairs, standard(raw), space.layers["final"], "discriminant", views=views, settings=settings,
        memory=10 * frozen.args.memory,
    )  # fmt: skip
    embed = nn.Sequential(columns, neck)
    return embed, lambda refine: fitted(frozen, embed, images, views, "linear+window", refine)


def fitted(
    frozen: Frozen, embed: nn.Module, images: int, views: int, features: str, refine: str | None
) -> SteeringMap:
    return fit_embeddings(
        frozen.pairs(embed, images, views), map="basis", features=features_for(frozen.chain, features), refine=refine,
        projection="auto", memory=frozen.args.memory, strict=False,
    ).requires_grad_(False)  # fmt: skip


def write(frozen: Frozen, rows: list[dict[str, Any]]) -> None:
    args = frozen.args
    given = f"--photos {args.photos} --small {args.small} --views {args.views} --measured {args.measured}"
    claim = (
        f"frozen {args.name} with more pairs: {frozen.price()}; {args.measured} held-out images of each kind; "
        f"chain {frozen.ranges()}"
    )
    most = max(row["pairs"] for row in rows)
    figures = {
        f"{key}, {row['images']}, {row['rung']}, {row['fitted images']} x {row['views']}": figure([row[f"joint_{key}"]])
        for row in rows if row["pairs"] == most for key in ("relative_error", "mrr")
    }  # fmt: skip
    path = (args.out or RESULTS) / f"learning_curve_{args.name}.json"
    command = f"python benchmarks/learning_curve.py --name {args.name} {given}"
    record(path.stem, claim=claim, command=command, rows=rows, figures=figures, seeds=[0], path=path)


if __name__ == "__main__":
    main()
