"""Image transforms with explicit parameters, and chains of them."""

from steerable.transforms.base import Transform
from steerable.transforms.chain import Chain, build
from steerable.transforms.filters import Blur, Filter
from steerable.transforms.geometric import Crop, Geometric, HFlip, Rotate, VFlip
from steerable.transforms.photometric import (
    Brightness,
    Contrast,
    Grayscale,
    Hue,
    Photometric,
    Saturation,
    color_map,
)
from steerable.transforms.registry import PRESETS, TRANSFORMS

__all__ = [
    "PRESETS",
    "TRANSFORMS",
    "Blur",
    "Brightness",
    "Chain",
    "Contrast",
    "Crop",
    "Filter",
    "Geometric",
    "Grayscale",
    "HFlip",
    "Hue",
    "Photometric",
    "Rotate",
    "Saturation",
    "Transform",
    "VFlip",
    "build",
    "color_map",
]
