"""A one-parameter group of matrices along every ray of theta, without orthogonality."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.maps.base import SteeringMap, within_width
from steerable.maps.features import Features
from steerable.theta import Laws

_TERMS = 12  # Taylor terms per step of norm at most one: the remainder is below 1 / 13! = 2e-10
_MAX_STEPS = 64


class ExponentialMap(SteeringMap):
    """e' = exp(sum_k phi_k(theta) A_k) e with A_k = U_k V_k^T of low rank; the offset is zero.

    With linear features, M(-theta) M(theta) = I, and maps along one ray compose: M(a theta) M(b theta) =
    M((a + b) theta); so all laws hold along coordinates without a period.

    Weights: `left` U (k, d, r), zero at first, so that the map starts as the identity; `right` V (k, d,
    r), random.

    Args:
        rank: r, between 1 and d; by default 8, or d where that is smaller.

    Raises:
        ConfigError: rank outside 1..d.
    """

    name = "exponential"

    def __init__(
        self,
        dim: int,
        n_params: int,
        *,
        features: str | Features = "linear",
        laws: Sequence[Laws] | None = None,
        rank: int | None = None,
    ):
        super().__init__(dim, n_params, features=features, laws=laws)
        self.rank = within_width("rank", rank, 8, dim)
        k = self.features.n_features
        self.left = nn.Parameter(torch.zeros(k, dim, self.rank))
        self.right = nn.Parameter(torch.randn(k, dim, self.rank) / dim**0.5)

    def config(self) -> dict[str, Any]:
        """As in SteeringMap, and rank."""
        return super().config() | {"rank": self.rank}

    def matrix(self, theta: Tensor) -> Float[Tensor, "*batch d d"]:
        """exp(sum_k phi_k U_k V_k^T) (*, d, d)."""
        phi = self.features(theta).to(self.left.dtype)
        return torch.linalg.matrix_exp(torch.einsum("...k,kir,kjr->...ij", phi, self.left, self.right))

    def _steer(self, e: Float[Tensor, "*e d"], theta: Float[Tensor, "*t p"]) -> Float[Tensor, "*batch d"]:
        # With U, V (d, s) the stacked factors, s = k r, and D = diag(phi, each repeated r times):
        # exp(U D V^T) e = e + U D w, where w solves w' = V^T e + X w from w(0) = 0 to time 1, X = V^T U D.
        # So the series runs on s numbers per view, not on d, and at phi = 0 nothing is added.
        left = self.left.to(e.dtype).transpose(0, 1).flatten(1)
        right = self.right.to(e.dtype).transpose(0, 1).flatten(1)
        phi = self.features(theta).to(e.dtype).repeat_interleave(self.rank, dim=-1)
        inner = right.T @ left
        start = e @ right
        steps = _n_steps(inner, phi)
        w = torch.zeros_like(start * phi)
        for _ in range(steps):
            w = w + _step(start + (phi * w) @ inner.T, inner, phi, steps)
        return e + (phi * w) @ left.T

    def _family_laws(self) -> tuple[Laws, ...]:
        return self._linear_laws()


def _n_steps(inner: Float[Tensor, "s s"], phi: Float[Tensor, "*t s"]) -> int:
    """Steps after which one step's matrix X / steps has maximum norm at most one."""
    if torch.compiler.is_compiling():
        return 4  # a traced loop cannot depend on values; 12 terms then hold to float32 up to norm 8
    norm = float((phi.detach().abs() @ inner.detach().abs().T).amax()) if phi.numel() else 0.0
    return min(max(1, math.ceil(norm)), _MAX_STEPS) if math.isfinite(norm) else 1


def _step(
    slope: Float[Tensor, "*batch s"], inner: Float[Tensor, "s s"], phi: Float[Tensor, "*t s"], steps: int
) -> Float[Tensor, "*batch s"]:
    """h f(h X) slope with h = 1 / steps, X = inner diag(phi), f(x) = (exp(x) - 1) / x by Taylor's series."""
    term = slope / steps
    total = term
    for n in range(2, _TERMS + 1):
        term = (phi * term) @ inner.T / (steps * n)
        total = total + term
    return total
