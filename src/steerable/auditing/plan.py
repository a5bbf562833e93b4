"""What an audit looks at: which images, which thetas, how many encoder passes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from steerable.errors import ConfigError, DataError
from steerable.theta import Param

JOINT_VIEWS = 4  # thetas per image of the joint figures: decoding theta needs more pairs than images
RIDGE_PAIRS, RIDGE_VIEWS = 8000, 20  # at most, in all and per image
HALF_SIDE = 0.5


@dataclass(frozen=True)
class Plan:
    """Rows of the images that are "measured" and that fit the "ridge" map, disjoint.

    pool, alone: how many of the measured are ranked among views, of all coordinates and of one.
    """

    measured: Int64[Tensor, " n"]
    ridge: Int64[Tensor, " m"]
    pool: int
    alone: int
    views: int
    strengths: int

    @property
    def ridge_views(self) -> int:
        """Thetas per image that the ridge map is fitted to."""
        return min(RIDGE_VIEWS, max(1, RIDGE_PAIRS // len(self.ridge)))

    @property
    def counts(self) -> dict[str, int]:
        return {
            "measured": len(self.measured),
            "pool": self.pool,
            "alone": self.alone,
            "ridge": len(self.ridge),
        }

    def passes(self, params: Sequence[Param]) -> int:
        """Encoder passes per model."""
        n = len(self.measured)
        total = n * (1 + JOINT_VIEWS) + self.pool * self.views + len(self.ridge) * (1 + self.ridge_views)
        for param in params:
            ranked = 0 if param.is_switch else self.alone * self.views
            total += n + ranked + self.pool * len(levels(param, self.strengths))
        return total


def make_plan(
    count: int, *, views: int, n_images: int, n_pool: int, strengths: int, generator: torch.Generator
) -> Plan:
    """Choose among ``count`` images: at most half are measured, others are for the ridge map.

    Raises:
        DataError: fewer than four images.
        ConfigError: views below 2, or another number below 1 (n_images: 2).
    """
    for name, value, least in (
        ("views", views, 2),
        ("n_images", n_images, 2),
        ("n_pool", n_pool, 1),
        ("strengths", strengths, 1),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}; expected at least {least}: raise it")
    if count < 4:
        raise DataError(
            f"there are {count} images; expected 4 at least, half of them for the ridge map: give more"
        )
    order = torch.randperm(count, generator=generator)
    n = min(n_images, count // 2)
    others = order[n : n + 4 * n_images]
    pool = min(n_pool, n)
    return Plan(order[:n], others, pool, max(1, pool // 2), views, strengths)


def range_alone(param: Param) -> tuple[float, float]:
    """The range in which a coordinate is measured while the others are zero.

    A shift is capped at half a side: a crop draws larger ones only together with a zoom, and alone they would
    show little but the reflected border.
    """
    if param.unit == "side":
        return max(param.low, -HALF_SIDE), min(param.high, HALF_SIDE)
    return param.low, param.high


def levels(param: Param, strengths: int) -> list[float]:
    """Values of a coordinate, in equal steps from zero to both ends of its range; a switch has one."""
    if param.is_switch:
        return [param.high]
    return [end * (i + 1) / strengths for end in range_alone(param) if end for i in range(strengths)]


def drawn_alone(param: Param, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Uniform draws from the range; a switch is always on."""
    low, high = range_alone(param)
    draw = torch.rand(n, generator=generator)
    return torch.full((n,), param.high) if param.is_switch else low + (high - low) * draw


def spaced(param: Param, views: int) -> Float[Tensor, " v"]:
    """Middles of equal cells of the range: the pool of views of one coordinate."""
    low, high = range_alone(param)
    return low + (high - low) * (torch.arange(views) + 0.5) / views


def only(column: Float[Tensor, "*n"], place: int, n_params: int) -> Float[Tensor, "*n p"]:
    """Thetas with that column at ``place`` and zero elsewhere."""
    theta = torch.zeros(*column.shape, n_params)
    theta[..., place] = column
    return theta
