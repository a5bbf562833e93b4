"""Steered scores against single-pass detectors on a frozen ImageNet encoder: MobileNetV2 with a map fitted afterwards.

    python benchmarks/ood_imagenet.py --data ../shared/data --cache CACHE

Known images are Caltech-101's, at 128 pixels; detectors and a linear head are fitted on its training split. All
layers are joined behind a discriminant adapter, and the map of the simclr chain is the one of
benchmarks/tta_imagenet.py's images, which hold some of Caltech-101's training split and none of its test split.
Corruptions at severities 1, 3 and 5 of the known images, and three foreign sets. Writes results/ood_imagenet.json.
"""

import argparse
from pathlib import Path

from ood import PAIR, STEERED, cells
from record import figure, record
from tta_imagenet import FITTED_VIEWS, MEMORY, Photographs, told

from steerable.evaluate import CORRUPTION_NAMES, evaluate_ood
from steerable.posthoc import fit

KNOWN, FOREIGN = "caltech101", ("textures", "flowers", "aerial")
SEVERITIES = (1, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--train", type=int, default=1200, help="images that detectors are fitted on")
    parser.add_argument("--known", type=int, default=150, help="of the test split; 3 in 10 of them calibrate")
    args = parser.parse_args()
    photographs = Photographs(args.data, args.cache)
    model = fit(
        photographs.encoder, photographs.for_maps(), photographs.chain, adapter="discriminant", views=FITTED_VIEWS,
        memory=MEMORY, cache=args.cache, progress=told(),
    )  # fmt: skip
    model.head = None  # ImageNet's classes are not Caltech's

    def images(name: str, split: str, limit: int):
        return photographs.images(f"transfer/{name}", split, limit)

    found = cells(
        evaluate_ood(
            model,
            images(KNOWN, "test", args.known),
            {name: images(name, "test", args.known) for name in FOREIGN},
            train=images(KNOWN, "train", args.train),
            corruptions=CORRUPTION_NAMES,
            severities=SEVERITIES,
            encoded=0,
            cache=args.cache,
            progress=told(),
        )
    )
    auroc = {name: 100 * row["corruptions"] for name, row in found.items()}
    single = max((name for name, row in found.items() if row["kind"] == "single pass"), key=auroc.__getitem__)
    shown = {
        "MSP": "msp",
        f"best single pass ({single})": single,
        STEERED: STEERED,
        "steered contrast": "steered contrast",
    }
    record(
        "ood_imagenet",
        claim=f"AUROC of steered scores against single-pass detectors on the same embeddings, frozen MobileNetV2, all "
        f"layers, discriminant adapter, width {model.dim}: {KNOWN} known, {round(0.7 * args.known)} images, 15 "
        f"corruptions x severities {', '.join(map(str, SEVERITIES))} pooled; far: {', '.join(FOREIGN)}; the best "
        "single pass is so after the fact",
        command="python benchmarks/ood_imagenet.py --data DATA --cache CACHE",
        seeds=[0],
        rows=[{"score": name, **row} for name, row in found.items()],
        figures={f"corruptions, {title}": figure([auroc[name]], "%") for title, name in shown.items()}
        | {
            f"gain of {STEERED} over {single}": figure([auroc[STEERED] - auroc[single]], "points"),
            f"gain of {STEERED} over {PAIR}": figure([auroc[STEERED] - auroc[PAIR]], "points"),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
