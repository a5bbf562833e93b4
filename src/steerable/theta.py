"""Theta: the parameters of a transform as one float tensor (..., p) in additive coordinates.

Zero is the identity. Along one coordinate, the others at zero, plus composes and minus inverts, and a
coordinate with a period wraps. Across coordinates plus is not composition in general.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerable.errors import ThetaError, one_of


class Laws(enum.Flag):
    """What holds by construction along a coordinate, up to clipping and interpolation.

    With T(a) the transform (or map) at value a of one coordinate, the others at zero:
    IDENTITY is T(0) = 1, COMPOSE is T(b) T(a) = T(a + b), INVERSE is T(-a) T(a) = 1.
    """

    NONE = 0
    IDENTITY = enum.auto()
    COMPOSE = enum.auto()
    INVERSE = enum.auto()
    ALL = IDENTITY | COMPOSE | INVERSE


@dataclass(frozen=True)
class Param:
    """One coordinate of theta; it names flags, report rows and sliders.

    ``low`` and ``high`` bound what is sampled, in ``unit``s; values outside are legal. ``period`` is the length
    after which the coordinate repeats, or None. ``step`` is the grain of a slider; where ``stepped``, only whole steps
    above low are drawn. A coordinate whose step fills its range (``is_switch``) takes the values low and high only.
    """

    name: str
    unit: str
    low: float
    high: float
    period: float | None = None
    step: float = 0.01
    stepped: bool = False

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ThetaError(
                f"range of {self.name} is [{self.low}, {self.high}]; expected finite numbers, low first: "
                "swap or correct them"
            )

    @property
    def is_switch(self) -> bool:
        """True for on/off coordinates such as a flip."""
        return self.low == 0 and self.high == 1 and self.step == 1

    @property
    def levels(self) -> int | None:
        """How many values are drawn: 2 for a switch, None for a continuous coordinate."""
        return round((self.high - self.low) / self.step) + 1 if self.stepped or self.is_switch else None

    @property
    def scale(self) -> float:
        """Largest absolute value in the range (1 where the range is a point at zero)."""
        return max(abs(self.low), abs(self.high)) or 1.0


def wrap(theta: Tensor, params: Sequence[Param]) -> Tensor:
    """Bring the coordinates that have a period P into (-P/2, P/2]; (..., p) in and out."""
    columns = [_wrap_column(theta[..., i], param.period) for i, param in enumerate(params)]
    return torch.stack(columns, dim=-1) if columns else theta


def _wrap_column(column: Tensor, period: float | None) -> Tensor:
    if period is None:
        return column
    return period / 2 - torch.remainder(period / 2 - column, period)


def check_theta(theta: Tensor, params: Sequence[Param], *, n: int | None = None) -> Tensor:
    """Return theta as a floating tensor, or raise.

    theta: (..., p), or exactly (n, p) where ``n`` is given.

    Raises:
        ThetaError: wrong shape, not a real tensor, or values that are not finite.
    """
    names = ", ".join(param.name for param in params)
    if not isinstance(theta, Tensor) or theta.is_complex() or theta.dtype == torch.bool:
        kind = theta.dtype if isinstance(theta, Tensor) else type(theta).__name__
        raise ThetaError(
            f"theta is {kind}; expected a real tensor with columns ({names}): use torch.tensor or .theta(...)"
        )
    wanted = f"({n}, {len(params)})" if n is not None else f"(..., {len(params)})"
    if (
        theta.ndim == 0
        or theta.shape[-1] != len(params)
        or (n is not None and tuple(theta.shape) != (n, len(params)))
    ):
        raise ThetaError(
            f"theta has shape {tuple(theta.shape)}; expected {wanted} with columns ({names}): "
            "build it with .sample(n, generator=...) or .theta(name=value)"
        )
    finite = torch.isfinite(theta)
    if not bool(finite.all()):
        bad = [param.name for i, param in enumerate(params) if not bool(finite[..., i].all())]
        raise ThetaError(
            f"theta is not finite in {', '.join(bad)}; expected finite numbers: drop or correct those rows"
        )
    return theta if theta.is_floating_point() else theta.float()


def named_theta(params: Sequence[Param], values: Mapping[str, float]) -> Tensor:
    """Theta (p,) with the named coordinates set and the others zero.

    Raises:
        ThetaError: a name that is not among the parameters (the nearest is suggested), or a value that is not finite.
    """
    names = [param.name for param in params]
    theta = torch.zeros(len(names))
    for name, value in values.items():
        if name not in names:
            raise ThetaError(f"{name} is not a parameter of this chain; {one_of(name, names)}")
        theta[names.index(name)] = float(value)
    return check_theta(theta, params)
