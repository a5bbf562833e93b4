"""Maps that are linear in their weights, so that ridge regression fits them in closed form."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.maps.base import SteeringMap, within_width
from steerable.maps.features import Features
from steerable.theta import Laws


class ShiftMap(SteeringMap):
    """e' = e + B phi(theta): the cheapest family, and the "concatenate theta" form of the literature.

    Weights: `bias` (k, d), the rows of B transposed; zero at first, so that the map starts as the identity.
    With linear features it composes and inverts along every coordinate without a period.
    """

    name = "shift"
    linear_in_phi = True

    def __init__(
        self,
        dim: int,
        n_params: int,
        *,
        features: str | Features = "linear",
        laws: Sequence[Laws] | None = None,
    ):
        super().__init__(dim, n_params, features=features, laws=laws)
        self.bias = nn.Parameter(torch.zeros(self.features.n_features, dim))

    def matrix(self, theta: Tensor) -> Float[Tensor, "*batch d d"]:
        """The identity (*, d, d)."""
        theta = self.features.check(theta)
        eye = torch.eye(self.dim, dtype=self.bias.dtype, device=theta.device)
        return eye.expand(*theta.shape[:-1], self.dim, self.dim)

    def offset(self, theta: Tensor) -> Float[Tensor, "*batch d"]:
        """B phi(theta) (*, d)."""
        return self.features(theta).to(self.bias.dtype) @ self.bias

    def moves(self, e: Float[Tensor, "*e d"]) -> Float[Tensor, "*e k d"]:
        """b_k (*, k, d) for every k, the same for every e."""
        return self.bias.to(e.dtype).expand(*e.shape[:-1], -1, -1)

    def _steer(self, e: Float[Tensor, "*e d"], theta: Float[Tensor, "*t p"]) -> Float[Tensor, "*batch d"]:
        return e + self.features(theta).to(e.dtype) @ self.bias.to(e.dtype)

    def _family_laws(self) -> tuple[Laws, ...]:
        return self._linear_laws()


class BasisMap(SteeringMap):
    """e' = e + sum_k phi_k(theta) (A_k e + b_k): the default family.

    Weights: `weight` (k, d, d), the A_k, and `bias` (k, d), the b_k; zero at first, so that the map starts as
    the identity (their gradients are not zero there).

    Args:
        inner: r, between 1 and d. The A_k then read r directions of e alone: A_k = W_k P with one shared
            `projection` P (r, d), random at first, and `weight` W (k, d, r). None reads all of e.

    Raises:
        ConfigError: inner outside 1..d.
    """

    name = "basis"
    linear_in_phi = True

    def __init__(
        self,
        dim: int,
        n_params: int,
        *,
        features: str | Features = "linear",
        laws: Sequence[Laws] | None = None,
        inner: int | None = None,
    ):
        super().__init__(dim, n_params, features=features, laws=laws)
        self.inner = None if inner is None else within_width("inner", inner, inner, dim)
        if self.inner is not None:
            self.projection = nn.Parameter(torch.randn(self.inner, dim) / dim**0.5)
        self.weight = nn.Parameter(torch.zeros(self.features.n_features, dim, self.inner or dim))
        self.bias = nn.Parameter(torch.zeros(self.features.n_features, dim))

    def config(self) -> dict[str, Any]:
        """As in SteeringMap, and inner where it is set."""
        return super().config() | ({} if self.inner is None else {"inner": self.inner})

    def matrix(self, theta: Tensor) -> Float[Tensor, "*batch d d"]:
        """I + sum_k phi_k A_k (*, d, d)."""
        phi = self.features(theta).to(self.weight.dtype)
        move = torch.tensordot(phi, self.weight, 1)
        move = move if self.inner is None else move @ self.projection
        return torch.eye(self.dim, dtype=phi.dtype, device=phi.device) + move

    def offset(self, theta: Tensor) -> Float[Tensor, "*batch d"]:
        """sum_k phi_k b_k (*, d)."""
        return self.features(theta).to(self.bias.dtype) @ self.bias

    def moves(self, e: Float[Tensor, "*e d"]) -> Float[Tensor, "*e k d"]:
        """A_k e + b_k (*, k, d) for every k: what one unit of each phi_k adds to e."""
        weight, bias = self.weight.to(e.dtype), self.bias.to(e.dtype)
        return nn.functional.linear(self._read(e), weight.flatten(0, 1), bias.flatten()).unflatten(
            -1, bias.shape
        )

    def _read(self, e: Float[Tensor, "*e d"]) -> Float[Tensor, "*e r"]:
        return e if self.inner is None else e @ self.projection.to(e.dtype).T

    def _steer(self, e: Float[Tensor, "*e d"], theta: Float[Tensor, "*t p"]) -> Float[Tensor, "*batch d"]:
        phi = self.features(theta).to(e.dtype)
        if phi[..., 0].numel() == 1:  # one theta for all: one (d, d) matrix serves every embedding
            phi, read = phi.flatten(), self._read(e)
            if e[..., 0].numel() == 1 and not (phi.requires_grad or torch.compiler.is_compiling()):
                # one query: its cost is reading the weights, so those of coordinates at zero are left unread
                for i in phi.nonzero().flatten().tolist():
                    weight, bias = self.weight[i].to(e.dtype), self.bias[i].to(e.dtype)
                    e = e + phi[i] * nn.functional.linear(read, weight, bias)
                return e.expand(*torch.broadcast_shapes(e.shape[:-1], theta.shape[:-1]), self.dim)
            move = nn.functional.linear(
                read, torch.tensordot(phi, self.weight.to(e.dtype), 1), phi @ self.bias.to(e.dtype)
            )
            return (e + move).reshape(*torch.broadcast_shapes(e.shape[:-1], theta.shape[:-1]), self.dim)
        # The basis meets each embedding once; a further view costs k multiply-adds per number.
        return e + torch.einsum("...k,...kd->...d", phi, self.moves(e))


class LowRankMap(SteeringMap):
    """e' = e + U sum_k phi_k(theta) (V_k e + c_k): BasisMap with A_k = U V_k and b_k = U c_k.

    All motion lies in the r columns of the shared U. Weights: `basis` U (d, r), random at first; `weight`
    V (k, r, d) and `bias` c (k, r), zero at first, so that the map starts as the identity.

    Args:
        rank: r, between 1 and d; by default 32, or d where that is smaller.

    Raises:
        ConfigError: rank outside 1..d.
    """

    name = "low_rank"
    linear_in_phi = True

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
        self.rank = within_width("rank", rank, 32, dim)
        k = self.features.n_features
        self.basis = nn.Parameter(torch.randn(dim, self.rank) / dim**0.5)
        self.weight = nn.Parameter(torch.zeros(k, self.rank, dim))
        self.bias = nn.Parameter(torch.zeros(k, self.rank))

    def config(self) -> dict[str, Any]:
        """As in SteeringMap, and rank."""
        return super().config() | {"rank": self.rank}

    def matrix(self, theta: Tensor) -> Float[Tensor, "*batch d d"]:
        """I + U sum_k phi_k V_k (*, d, d)."""
        phi = self.features(theta).to(self.weight.dtype)
        eye = torch.eye(self.dim, dtype=phi.dtype, device=phi.device)
        return eye + torch.einsum("...k,ir,krj->...ij", phi, self.basis, self.weight)

    def offset(self, theta: Tensor) -> Float[Tensor, "*batch d"]:
        """U sum_k phi_k c_k (*, d)."""
        return self.features(theta).to(self.bias.dtype) @ self.bias @ self.basis.T

    def moves(self, e: Float[Tensor, "*e d"]) -> Float[Tensor, "*e k d"]:
        """U (V_k e + c_k) (*, k, d) for every k."""
        return self._coordinates(e) @ self.basis.to(e.dtype).T

    def _coordinates(self, e: Float[Tensor, "*e d"]) -> Float[Tensor, "*e k r"]:
        weight, bias = self.weight.to(e.dtype), self.bias.to(e.dtype)
        return nn.functional.linear(e, weight.flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape)

    def _steer(self, e: Float[Tensor, "*e d"], theta: Float[Tensor, "*t p"]) -> Float[Tensor, "*batch d"]:
        phi, moves = self.features(theta).to(e.dtype), self._coordinates(e)
        return e + torch.einsum("...k,...kr->...r", phi, moves) @ self.basis.to(e.dtype).T
