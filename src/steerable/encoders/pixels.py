"""Pixels: what may enter an encoder, and how it is brought to the encoder's size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from steerable.errors import ShapeError
from steerable.transforms.base import check_images

RANGE_SLACK = 1e-3  # how far pixel values may leave [0, 1]: rounding of half precision and of resizing


def check_pixels(images: Tensor) -> None:
    """Raise ShapeError unless images are (b, 3, h, w), floating, finite and within [0, 1]."""
    if isinstance(images, Tensor) and images.ndim == 3:
        raise ShapeError(
            f"images have shape {tuple(images.shape)}; expected (b, 3, h, w): add the batch axis with "
            "images[None]"
        )
    check_images(images)
    if images.numel() == 0:
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low - low == 0 and high - high == 0):  # NaN and infinity fail this, without a second pass
        bad = ~torch.isfinite(images)
        raise ShapeError(
            f"{int(bad.sum())} pixel values in {int(bad.flatten(1).any(1).sum())} of {len(images)} images "
            "are NaN or infinite; expected finite values in [0, 1]: drop those images"
        )
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        hint = (
            "divide by 255"
            if low >= 0 and high <= 255
            else "give images before mean and std: the encoder normalizes"
        )
        raise ShapeError(f"pixel values range from {low:.4g} to {high:.4g}; expected [0, 1]: {hint}")


def resize_crop(images: Tensor, size: int, mode: str) -> Tensor:
    """Resize the short side to ``size`` with antialiasing, and crop the center: (b, 3, size, size)."""
    h, w = images.shape[-2:]
    short = min(h, w)
    target = (round(h * size / short), round(w * size / short))
    images = F.interpolate(images, target, mode=mode, antialias=True, align_corners=False)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return images[..., top : top + size, left : left + size].clamp(0, 1)
