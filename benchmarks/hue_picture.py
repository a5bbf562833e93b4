"""Draw docs/pictures/hue.png: our hue, a rotation in YIQ, beside the usual shift in HSV.

    python benchmarks/hue_picture.py [--out docs/pictures/hue.png]

Under each picture: how far the luma of its pixels moved (mean of the absolute change, in percent of full
white), and how far hue(t) then hue(-t) ends from the original. Ours is linear in color and keeps
luma, but leaves the gamut on strong colors and is clipped; HSV stays in the gamut and moves luma.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from skimage.data import coffee
from torch import Tensor
from torchvision.transforms.v2.functional import adjust_hue

from steerable.transforms import Hue

TURNS = (-0.3, -0.1, -0.05, 0.0, 0.05, 0.1, 0.3)
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def ours(image: Tensor, turns: float) -> Tensor:
    return Hue().apply(image[None], torch.tensor([[turns]]))[0]


def percent(change: Tensor) -> float:
    return 100 * float(change.abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw hue in YIQ beside hue in HSV.")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/hue.png"))
    options = parser.parse_args()
    image = torch.from_numpy(coffee()[:400:2, 100:500:2].copy()).permute(2, 0, 1).float() / 255
    sides = (("rotation in YIQ\n(steerable)", ours), ("shift in HSV\n(torchvision)", adjust_hue))
    figure, axes = plt.subplots(2, len(TURNS), figsize=(1.6 * len(TURNS), 4.4), layout="constrained")
    for row, (name, turn) in zip(axes, sides, strict=True):
        for axis, turns in zip(row, TURNS, strict=True):
            out = turn(image, turns)
            luma = percent((LUMA * (out - image)).sum(dim=0))
            back = percent(turn(out, -turns) - image)
            axis.imshow(out.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set(xticks=[], yticks=[], xlabel=f"luma {luma:.1f} %\nthere and back {back:.1f} %")
        row[0].set_ylabel(name, fontsize=12)
    for axis, turns in zip(axes[0], TURNS, strict=True):
        axis.set_title(f"{turns:+g} turn" if turns else "original")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=75)


if __name__ == "__main__":
    main()
