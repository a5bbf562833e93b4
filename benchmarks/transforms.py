"""Speed of the simclr chain on the CPU, against two peers that do the same job.

    python benchmarks/transforms.py [--threads 1] [--rounds 7] [--out results/transforms.json]

Claim: at least three times as fast as kornia's functional operations applied in sequence, at 256 x 32 px
and at 64 x 224 px. All sides get the same thetas and the same float images. Rounds alternate between the
sides; figures are medians after a warm-up; ratios are within one run.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import kornia
import torch
from kornia.geometry.transform import crop_by_boxes, hflip
from record import cpu_name, figure, record
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from steerable.transforms import Chain

CASES = ((256, 32), (64, 224))
COLUMNS = ("zoom", "aspect", "shift_x", "shift_y", "hflip", "brightness", "contrast", "saturation", "hue")


def windows(theta: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Centers and sizes (b, 2) in pixels of the crop windows that theta asks for."""
    zoom, aspect, shift = theta[:, :1], theta[:, 1:2], theta[:, 2:4]
    scale = torch.cat([zoom + aspect / 2, zoom - aspect / 2], dim=1).exp2()
    return side * (0.5 - shift / scale), side / scale


def kornia_in_sequence(images: Tensor, theta: Tensor) -> Tensor:
    """One kornia operation per member, batched, each with per-sample parameters."""
    side = images.shape[-1]
    center, size = windows(theta, side)
    corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    source = center[:, None] - 0.5 + corners * (size[:, None] - 1)
    target = ((corners + 0.5) * (side - 1)).expand(len(images), 4, 2)
    images = crop_by_boxes(images, source, target, align_corners=True)
    images = torch.where(theta[:, 4, None, None, None] > 0.5, hflip(images), images)
    images = kornia.enhance.adjust_brightness_accumulative(images, theta[:, 5].exp2())
    images = kornia.enhance.adjust_contrast_with_mean_subtraction(images, theta[:, 6].exp2())
    images = kornia.enhance.adjust_saturation_with_gray_subtraction(images, theta[:, 7].exp2())
    return kornia.enhance.adjust_hue(images, 2 * math.pi * theta[:, 8])


def torchvision_per_image(images: Tensor, theta: Tensor) -> Tensor:
    """torchvision's functional operations, image by image, as its own parameters are per call."""
    side = images.shape[-1]
    center, size = windows(theta, side)
    boxes = torch.cat([center - size / 2, size], dim=1).round().int().tolist()
    out = []
    for image, (left, top, width, height), row in zip(images, boxes, theta.tolist(), strict=True):
        box = (max(top, 0), max(left, 0), max(height, 1), max(width, 1))
        image = tv.resized_crop(image, *box, size=[side, side], antialias=False)
        image = tv.horizontal_flip(image) if row[4] > 0.5 else image
        image = tv.adjust_brightness(image, 2 ** row[5])
        image = tv.adjust_contrast(image, 2 ** row[6])
        image = tv.adjust_saturation(image, 2 ** row[7])
        out.append(tv.adjust_hue(image, row[8]))
    return torch.stack(out)


def measure(batch: int, side: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each side on one case."""
    generator = torch.Generator().manual_seed(0)
    chain = Chain.preset("simclr")
    if tuple(param.name for param in chain.params) != COLUMNS:
        raise SystemExit(f"the simclr preset now has other columns than {COLUMNS}: adapt the two peers")
    images = torch.rand(batch, 3, side, side, generator=generator)
    theta = chain.sample(batch, generator=generator)
    sides: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "steerable": chain.apply,
        "kornia": kornia_in_sequence,
        "torchvision": torchvision_per_image,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, run in sides.items():
            start = time.perf_counter()
            run(images, theta)
            if turn >= 2:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def report(rounds: int) -> list[dict[str, float]]:
    """Medians in milliseconds and ratios, one row per case."""
    rows = []
    for batch, side in CASES:
        ms = measure(batch, side, rounds)
        times = {f"x {name}": ms[name] / ms["steerable"] for name in ("kornia", "torchvision")}
        rows.append(
            {"batch": batch, "side": side, **{f"{name} ms": value for name, value in ms.items()}, **times}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the simclr chain against two peers, on the CPU.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="default: results/transforms.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = report(options.rounds)
    for row in rows:
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    figures = {
        f"times as fast as {name}, {row['batch']} images of {row['side']} px": figure([row[f"x {name}"]])
        for row in rows
        for name in ("kornia", "torchvision")
    }
    path = record(
        "transforms",
        claim="Speed of the simclr chain on the CPU against kornia's functional operations in sequence and "
        f"torchvision v2 per image; medians of {options.rounds} warm rounds, sides taking turns",
        command=f"python benchmarks/transforms.py --threads {options.threads} --rounds {options.rounds}",
        rows=rows,
        figures=figures,
        device=cpu_name(),
        path=options.out,
    )
    print(path)


if __name__ == "__main__":
    main()
