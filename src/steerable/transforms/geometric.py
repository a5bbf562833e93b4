"""Transforms that move content: each is a function from theta to a 3x3 homogeneous matrix."""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import ConfigError
from steerable.theta import Laws, Param, check_theta, wrap
from steerable.transforms.base import Range, Transform, as_probability, as_range, uniform
from steerable.transforms.pixels import Plan


class Geometric(Transform):
    """A transform that is a homography of the plane: a subclass gives ``matrix``."""

    @abstractmethod
    def matrix(self, theta: Float[Tensor, "b p"], ratio: float = 1.0) -> Float[Tensor, "b 3 3"]:
        """Content-forward matrices in centered coordinates: x to the right, y down, [-1, 1] spans the image.

        ratio: width over height of the image in pixels.
        """

    def plan(self, theta: Float[Tensor, "b p"], ratio: float) -> Plan:
        return Plan(matrix=self.matrix(theta, ratio))


class Rotate(Geometric):
    """Rotation about the image's center, in degrees, counter-clockwise positive; ``step`` draws whole steps only.

    ``Rotate((0, 270), step=90)`` draws quarter turns.
    """

    name = "rotate"
    laws = Laws.ALL

    def __init__(self, degrees: Range = 30.0, step: float | None = None):
        self.degrees = as_range(degrees, "degrees")
        if step is not None and not 0 < step <= self.degrees[1] - self.degrees[0]:
            raise ConfigError(
                f"step is {step!r}; expected degrees within the range {self.degrees}: e.g. (0, 270) with step=90"
            )
        self.step = step
        grain = 1.0 if step is None else float(step)
        self.params = (
            Param("rotate", "degree", *self.degrees, period=360.0, step=grain, stepped=step is not None),
        )

    def matrix(self, theta: Float[Tensor, "b 1"], ratio: float = 1.0) -> Float[Tensor, "b 3 3"]:
        angle = torch.deg2rad(theta[:, 0])
        cos, sin = angle.cos(), angle.sin()
        # Pixels are square, these coordinates are not: sines carry the image's proportions.
        return _matrix(cos, sin / ratio, -sin * ratio, cos)


class Crop(Geometric):
    """Random resized crop: zoom, aspect, shift_x, shift_y, acting as x -> scale x + shift on each axis.

    The horizontal scale is 2**(zoom + aspect / 2), the vertical one 2**(zoom - aspect / 2), zoom and aspect
    in octaves; a shift is a share of the image's side, in the output frame, right and down positive. Draws
    are joint: zoom is uniform, aspect and shifts are uniform as far as the window stays inside the frame
    (zoomed out: as far as the frame stays inside the window).
    """

    name = "crop"
    laws = Laws.ALL

    def __init__(self, zoom: Range = (0.0, 1.8), aspect: float = 0.42):
        self.zoom = as_range(zoom, "zoom")
        if not isinstance(aspect, int | float) or not 0 <= aspect < math.inf:
            raise ConfigError(f"aspect is {aspect!r}; expected octaves, zero or more: e.g. aspect=0.42")
        self.aspect = float(aspect)
        reach = max(_reach(zoom, self.aspect) for zoom in self.zoom)
        self.params = (
            Param("zoom", "octave", *self.zoom),
            Param("aspect", "octave", -self.aspect, self.aspect),
            Param("shift_x", "side", -reach, reach),
            Param("shift_y", "side", -reach, reach),
        )

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n 4"]:
        draw = uniform(n, 4, generator)
        low, high = self.zoom
        zoom = low + (high - low) * draw[:, 0]
        aspect = (2 * draw[:, 1] - 1) * (2 * zoom.abs()).clamp(max=self.aspect)
        spare = _scales(zoom, aspect).sub(1).abs() / 2
        shift = (2 * draw[:, 2:] - 1) * spare
        return torch.cat([zoom[:, None], aspect[:, None], shift], dim=1)

    def matrix(self, theta: Float[Tensor, "b 4"], ratio: float = 1.0) -> Float[Tensor, "b 3 3"]:
        scale = _scales(theta[:, 0], theta[:, 1])
        zero = torch.zeros_like(theta[:, 0])
        # The side is 2 long in these coordinates.
        return _matrix(scale[:, 0], zero, zero, scale[:, 1], 2 * theta[:, 2], 2 * theta[:, 3])

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Theta of ``first``, then ``second``, (..., 4): the second one scales the first one's shift."""
        first, second = check_theta(first, self.params), check_theta(second, self.params)
        shift = _scales(second[..., 0], second[..., 1]) * first[..., 2:] + second[..., 2:]
        return torch.cat([first[..., :2] + second[..., :2], shift], dim=-1)

    def inverse(self, theta: Tensor) -> Tensor:
        """Theta that undoes ``theta``, (..., 4); what left the frame does not come back."""
        theta = check_theta(theta, self.params)
        shift = theta[..., 2:] / _scales(theta[..., 0], theta[..., 1])
        return -torch.cat([theta[..., :2], shift], dim=-1)


def _scales(zoom: Float[Tensor, "*b"], aspect: Float[Tensor, "*b"]) -> Float[Tensor, "*b 2"]:
    return torch.stack([zoom + aspect / 2, zoom - aspect / 2], dim=-1).exp2()


def _reach(zoom: float, aspect: float) -> float:
    """Largest shift that a zoom allows, over all aspects that go with it."""
    wide = abs(zoom) + min(aspect, 2 * abs(zoom)) / 2
    return (2**wide - 1) / 2 if zoom >= 0 else (1 - 2**-wide) / 2


class _Flip(Geometric):
    laws = Laws.ALL
    commuting = "flip"

    def __init__(self, p: float = 0.5):
        self.p = as_probability(p)
        self.params = (Param(self.name, "switch", 0.0, 1.0, period=2.0, step=1.0),)

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        return (uniform(n, 1, generator) < self.p).float()

    def _sign(self, theta: Float[Tensor, "b 1"]) -> Float[Tensor, " b"]:
        on = wrap(theta, self.params)[:, 0].abs() > 0.5
        return 1 - 2 * on.to(theta.dtype)


class HFlip(_Flip):
    """Left and right change places where theta rounds to an odd number; ``p`` is the share drawn as 1."""

    name = "hflip"

    def matrix(self, theta: Float[Tensor, "b 1"], ratio: float = 1.0) -> Float[Tensor, "b 3 3"]:
        sign = self._sign(theta)
        zero = torch.zeros_like(sign)
        return _matrix(sign, zero, zero, torch.ones_like(sign))


class VFlip(_Flip):
    """Top and bottom change places where theta rounds to an odd number; ``p`` is the share drawn as 1."""

    name = "vflip"

    def matrix(self, theta: Float[Tensor, "b 1"], ratio: float = 1.0) -> Float[Tensor, "b 3 3"]:
        sign = self._sign(theta)
        zero = torch.zeros_like(sign)
        return _matrix(torch.ones_like(sign), zero, zero, sign)


def _matrix(
    xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor, x: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    """(b, 3, 3) from the entries [[xx, xy, x], [yx, yy, y], [0, 0, 1]], (b,) each."""
    zero, one = torch.zeros_like(xx), torch.ones_like(xx)
    x, y = zero if x is None else x, zero if y is None else y
    return torch.stack([xx, xy, x, yx, yy, y, zero, zero, one], dim=1).view(-1, 3, 3)
