"""Transforms that change colors: each is an affine map on a pixel's color and the image's mean color.

A color map is linear in (color, mean color, 1) and the mean itself moves along, so that a 7x7 matrix
carries a map, and a product of matrices carries a sequence, contrast included, before any pixel is touched:

    [color]     [ A  B    c ] [color]
    [mean ] ->  [ 0  A+B  c ] [mean ]
    [1    ]     [ 0  0    1 ] [1    ]
"""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.theta import Laws, Param
from steerable.transforms.base import Range, Transform, as_probability, as_range, uniform
from steerable.transforms.pixels import Plan

_LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
_GRAY = torch.ones(3, 1, dtype=torch.float64) @ (_LUMA / _LUMA.sum())[None]
"""The projection onto gray: every channel becomes the luma of ITU-R BT.601."""


class Photometric(Transform):
    """A transform of colors, the same at every pixel of an image: a subclass gives ``affine``."""

    @abstractmethod
    def affine(self, theta: Float[Tensor, "b p"]) -> Float[Tensor, "b 7 7"]:
        """Matrices on (color, mean color, 1), as the module describes them; ``color_map`` builds them."""

    def plan(self, theta: Float[Tensor, "b p"], ratio: float) -> Plan:
        return Plan(color=self.affine(theta))


def color_map(
    color: Float[Tensor, "b 3 3"],
    mean: Float[Tensor, "b 3 3"] | None = None,
    constant: Float[Tensor, "b 3"] | None = None,
) -> Float[Tensor, "b 7 7"]:
    """The 7x7 matrices of color -> color_matrix color + mean_matrix mean_color + constant."""
    out = color.new_zeros(len(color), 7, 7)
    out[:, :3, :3] = color
    out[:, 3:6, 3:6] = color
    if mean is not None:
        out[:, :3, 3:6] = mean
        out[:, 3:6, 3:6] += mean
    if constant is not None:
        out[:, :3, 6] = constant
        out[:, 3:6, 6] = constant
    out[:, 6, 6] = 1
    return out


class _Color(Photometric):
    """The four of color jitter: they keep the luma axis or scale it, and commute before clipping."""

    laws = Laws.ALL
    commuting = "color"


class Brightness(_Color):
    """color -> 2**theta color; theta in stops."""

    name = "brightness"

    def __init__(self, stops: Range = 0.7):
        self.stops = as_range(stops, "stops")
        self.params = (Param("brightness", "stop", *self.stops),)

    def affine(self, theta: Float[Tensor, "b 1"]) -> Float[Tensor, "b 7 7"]:
        return color_map(_constant(torch.eye(3), theta) * theta.exp2()[:, :, None])


class Contrast(_Color):
    """color -> f color + (1 - f) mean luma of the image, f = 2**theta; theta in stops."""

    name = "contrast"

    def __init__(self, stops: Range = 0.7):
        self.stops = as_range(stops, "stops")
        self.params = (Param("contrast", "stop", *self.stops),)

    def affine(self, theta: Float[Tensor, "b 1"]) -> Float[Tensor, "b 7 7"]:
        factor = theta.exp2()[:, :, None]
        return color_map(_constant(torch.eye(3), theta) * factor, _constant(_GRAY, theta) * (1 - factor))


class Saturation(_Color):
    """color -> f color + (1 - f) luma of the pixel, f = 2**theta; theta in stops."""

    name = "saturation"

    def __init__(self, stops: Range = 0.7):
        self.stops = as_range(stops, "stops")
        self.params = (Param("saturation", "stop", *self.stops),)

    def affine(self, theta: Float[Tensor, "b 1"]) -> Float[Tensor, "b 7 7"]:
        identity, gray = _constant(torch.eye(3), theta), _constant(_GRAY, theta)
        return color_map(identity + (theta.exp2()[:, :, None] - 1) * (identity - gray))


def _hue_generator() -> Float[Tensor, "3 3"]:
    """Derivative of the hue rotation: a quarter turn of the chroma plane of YIQ (FCC 1953 weights)."""
    yiq = torch.tensor(
        [[0, 0, 0], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64
    )
    yiq[0] = _GRAY[0]
    # Chroma of gray is zero: rows I and Q must sum to zero beyond their printed digits.
    yiq[1:] -= yiq[1:].mean(dim=1, keepdim=True)
    quarter = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    return torch.linalg.inv(yiq) @ quarter @ yiq


_QUARTER = _hue_generator()


class Hue(_Color):
    """Rotation of the chroma plane (I, Q) of YIQ about the luma axis; theta in turns, red to green positive.

    Unlike the hue shift in HSV (whose sense it shares) it is linear in the color and keeps the luma of every
    pixel, until strong colors clip: docs/pictures/hue.png shows both.
    """

    name = "hue"

    def __init__(self, turns: Range = 0.1):
        self.turns = as_range(turns, "turns")
        self.params = (Param("hue", "turn", *self.turns, period=1.0, step=0.005),)

    def affine(self, theta: Float[Tensor, "b 1"]) -> Float[Tensor, "b 7 7"]:
        angle = 2 * math.pi * theta[:, :, None]
        identity, gray, quarter = (_constant(part, theta) for part in (torch.eye(3), _GRAY, _QUARTER))
        return color_map(identity + (angle.cos() - 1) * (identity - gray) + angle.sin() * quarter)


class Grayscale(Photometric):
    """Every channel becomes the luma where theta > 0.5; ``p`` is the share drawn as 1.

    Colors are lost, so there is no inverse; and as on and off (-1) do not add up to a change of
    nothing, plus does not compose: the identity is all it declares.
    """

    name = "grayscale"
    laws = Laws.IDENTITY

    def __init__(self, p: float = 0.2):
        self.p = as_probability(p)
        self.params = (Param("grayscale", "switch", 0.0, 1.0, step=1.0),)

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        return (uniform(n, 1, generator) < self.p).float()

    def affine(self, theta: Float[Tensor, "b 1"]) -> Float[Tensor, "b 7 7"]:
        on = (theta > 0.5)[:, :, None]
        return color_map(torch.where(on, _constant(_GRAY, theta), _constant(torch.eye(3), theta)))


def _constant(matrix: Tensor, theta: Tensor) -> Tensor:
    """A 3x3 constant, once per row of theta, in theta's type and on its device."""
    return matrix.to(theta.device, theta.dtype).expand(len(theta), 3, 3)
