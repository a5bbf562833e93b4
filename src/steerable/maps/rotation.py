"""A map that obeys every law by construction: rotations in learned planes, by angles linear in theta."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from steerable.errors import ConfigError
from steerable.maps.base import SteeringMap
from steerable.maps.features import Features
from steerable.theta import Laws


class RotationMap(SteeringMap):
    """e' = e + Q (R(theta) - I) Q^T e, Q orthogonal and R turning d // 2 planes by angles linear in theta.

    Odd d leaves one direction fixed. Every law holds along every coordinate, lengths are kept, and where all
    coordinates move at once the turns commute. A coordinate with period P gets whole turns per period, else
    M(theta + P) = M(theta) would not hold: its frequencies are rounded (gradients pass the rounding
    unchanged).

    Weights: `frequency` (p, d // 2), radians per scale, or turns per period; `frame`, whose weight (d, d)
    is Q, kept orthogonal by a Cayley transform. Both are random at first.

    Raises:
        ConfigError: features other than "linear" (laws would be lost), or dim below 2.
    """

    name = "rotation"

    def __init__(
        self,
        dim: int,
        n_params: int,
        *,
        features: str | Features = "linear",
        laws: Sequence[Laws] | None = None,
    ):
        super().__init__(dim, n_params, features=features, laws=laws)
        if not self.features.is_linear:
            raise ConfigError(
                f"features of a rotation map are {self.features.expansion!r}; expected 'linear', else its "
                "laws are lost: use it so, or take the basis map"
            )
        if dim < 2:
            raise ConfigError(
                f"dim of a rotation map is {dim}; expected at least 2: a line has no plane to turn"
            )
        self.frame = orthogonal(nn.Linear(dim, dim, bias=False), orthogonal_map="cayley")
        self.frequency = nn.Parameter(torch.empty(n_params, dim // 2))
        with torch.no_grad():
            for row, period in zip(self.frequency, self.features.period_values, strict=True):
                # Turns of -1, 0 and 1 alike where there is a period: rounding would hold small ones at zero.
                row.normal_(std=0.1) if period is None else row.uniform_(-1.5, 1.5)

    def matrix(self, theta: Tensor) -> Float[Tensor, "*batch d d"]:
        """I + Q (R(theta) - I) Q^T (*, d, d)."""
        eye = torch.eye(self.dim, dtype=self.frequency.dtype, device=self.frequency.device)
        cosine, sine = self._turns(theta, eye.dtype)
        first, second = self._planes(eye)
        even = torch.einsum("...m,im,jm->...ij", cosine, first, first)
        even = even + torch.einsum("...m,im,jm->...ij", cosine, second, second)
        odd = torch.einsum("...m,im,jm->...ij", sine, second, first)
        return eye + even + odd - odd.transpose(-1, -2)

    def _steer(self, e: Float[Tensor, "*e d"], theta: Float[Tensor, "*t p"]) -> Float[Tensor, "*batch d"]:
        cosine, sine = self._turns(theta, e.dtype)
        first, second = self._planes(e)
        x, y = e @ first, e @ second
        return e + (cosine * x - sine * y) @ first.T + (sine * x + cosine * y) @ second.T

    def _turns(self, theta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos(angle) - 1 and sin(angle), each (*, m), for the m planes; both exactly zero at theta = 0."""
        rows = []
        values = zip(self.frequency, self.features.scale_values, self.features.period_values, strict=True)
        for row, scale, period in values:
            whole = row + (row.round() - row).detach()
            rows.append(row if period is None else (2 * math.pi * scale / period) * whole)
        angle = self.features(theta).to(dtype) @ torch.stack(rows).to(dtype)
        return -2 * torch.sin(angle / 2).square(), angle.sin()

    def _planes(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Orthonormal bases (d, m), (d, m): plane i is spanned by column i of both."""
        m = self.dim // 2
        q = cast(Tensor, self.frame.weight).to(like.dtype)
        return q[:, :m], q[:, m : 2 * m]

    def _family_laws(self) -> tuple[Laws, ...]:
        return (Laws.ALL,) * self.n_params
