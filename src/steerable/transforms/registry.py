"""Names of transforms and of ready-made chains."""

from typing import Any

from steerable.transforms.base import Transform
from steerable.transforms.filters import Blur
from steerable.transforms.geometric import Crop, HFlip, Rotate, VFlip
from steerable.transforms.photometric import Brightness, Contrast, Grayscale, Hue, Saturation

TRANSFORMS: dict[str, type[Transform]] = {
    cls.name: cls
    for cls in (Rotate, Crop, HFlip, VFlip, Brightness, Contrast, Saturation, Hue, Grayscale, Blur)
}
"""Every transform by name; each works as ``cls()``. Classes added here work in recipes and bundles."""

_JITTER: list[dict[str, Any]] = [
    {"name": "brightness", "stops": 0.7},
    {"name": "contrast", "stops": 0.7},
    {"name": "saturation", "stops": 0.7},
    {"name": "hue", "turns": 0.1},
]
_SIMCLR: list[dict[str, Any]] = [
    {"name": "crop", "zoom": [0.0, 1.8], "aspect": 0.42},
    {"name": "hflip", "p": 0.5},
    *_JITTER,
]

PRESETS: dict[str, list[dict[str, Any]]] = {
    "simclr": _SIMCLR,
    "simclr-full": [*_SIMCLR, {"name": "grayscale", "p": 0.2}, {"name": "blur", "sigma": 0.01, "p": 0.5}],
    "geometric": [
        {"name": "rotate", "degrees": 30.0},
        {"name": "crop", "zoom": [0.0, 1.8], "aspect": 0.42},
        {"name": "hflip", "p": 0.5},
    ],
    "photometric": _JITTER,
}
