"""SteeringMap: an affine map on embeddings that depends on theta, with M(0) = I and b(0) = 0 exactly."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.errors import ConfigError, LawError, ShapeError, ThetaError
from steerable.maps.features import Features, as_features, unknown_name
from steerable.theta import Laws


class SteeringMap(nn.Module, ABC):
    """e' = M(theta) e + b(theta), on embeddings as the encoder returned them (not normalized).

    A family defines `matrix`, usually `offset`, and `_steer`, a fast form of the same formula that never
    builds a (d, d) matrix per embedding.

    Args:
        dim: width d of the embedding.
        n_params: number p of theta's coordinates.
        features: an expansion ("linear", "linear+squares", ...) or `Features` with scales and periods.
        laws: one `Laws` per coordinate, an upper bound on what the map declares there (what the transform
            has); None declares all that the family guarantees.

    Raises:
        ConfigError: sizes below one, unknown features, or laws of another length.
    """

    name: ClassVar[str]
    linear_in_phi: ClassVar[bool] = False
    """True where steered e = e + sum_k phi_k(theta) moves(e)_k, so that sums over thetas are sums of phi."""
    fit_record: Mapping[str, Any] | None = None
    """What `fit_embeddings` chose and reached, on a map that it fitted; not saved with the weights."""

    def __init__(
        self,
        dim: int,
        n_params: int,
        *,
        features: str | Features = "linear",
        laws: Sequence[Laws] | None = None,
    ):
        super().__init__()
        if dim < 1:
            raise ConfigError(f"dim is {dim}; expected at least 1: give the width of the embedding")
        self.dim = dim
        self.n_params = n_params
        self.features = as_features(features, n_params)
        if laws is not None and len(laws) != n_params:
            raise ConfigError(
                f"laws has {len(laws)} entries; expected {n_params}, one per coordinate: correct laws="
            )
        self._limit = None if laws is None else tuple(laws)

    @property
    def param_laws(self) -> tuple[Laws, ...]:
        """What is declared for each coordinate: the family's guarantee, within the constructor's `laws`."""
        own = self._family_laws()
        return own if self._limit is None else tuple(a & b for a, b in zip(own, self._limit, strict=True))

    @property
    def laws(self) -> Laws:
        """What is declared for every coordinate."""
        return reduce(and_, self.param_laws, Laws.ALL)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON types; `steerable.maps.build` takes them (no weights)."""
        limit = self._limit and [[law.name.lower() for law in laws if law.name] for laws in self._limit]
        return {
            "name": self.name,
            "dim": self.dim,
            "n_params": self.n_params,
            "features": self.features.config(),
            "laws": limit,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SteeringMap":
        """A map of this family from `config` ("name" may be left out), with fresh weights.

        Raises:
            ConfigError: unknown key (the nearest one is suggested), missing key, or values out of range.
        """
        settings = {key: value for key, value in config.items() if key != "name"}
        allowed = list(inspect.signature(cls).parameters)
        for key in settings:
            if key not in allowed:
                raise unknown_name(f"setting of map {cls.name}", key, allowed)
        for key in ("dim", "n_params"):
            if not isinstance(settings.get(key), int):
                raise ConfigError(
                    f"{key} of map {cls.name} is {settings.get(key)!r}; expected a whole number: set it"
                )
        if isinstance(settings.get("features"), Mapping):
            settings["features"] = Features.from_config(settings["features"], settings["n_params"])
        if settings.get("laws") is not None:
            settings["laws"] = [_parse_laws(names) for names in settings["laws"]]
        return cls(**settings)

    @abstractmethod
    def matrix(self, theta: Tensor) -> Float[Tensor, "*batch d d"]:
        """M(theta) (*, d, d) for theta (*, p); exactly the identity at zero."""

    def offset(self, theta: Tensor) -> Float[Tensor, "*batch d"]:
        """b(theta) (*, d) for theta (*, p); exactly zero at zero."""
        theta = self.features.check(theta)
        return theta.new_zeros(*theta.shape[:-1], self.dim)

    def moves(self, e: Tensor) -> Float[Tensor, "*batch k d"]:
        """A_k e + b_k (*, k, d) for every k: what one unit of each phi_k adds to e (*, d). No checks of e.

        Raises:
            LawError: the family is not `linear_in_phi`.
        """
        raise LawError(
            f"map {self.name} is not linear in phi and has no moves; expected one of the linear families "
            "(shift, basis, low_rank): fit one of these, or steer with forward or orbit"
        )

    def forward(self, e: Tensor, theta: Tensor) -> Float[Tensor, "*batch d"]:
        """Steered embeddings, in e's type; computed in float32 at least, whatever autocast says.

        Leading axes broadcast: e (b, d) with theta (b, p) or (p,) gives (b, d); e (b, 1, d) with theta (v, p)
        gives the orbit (b, v, d).

        Raises:
            ShapeError: e is not a floating tensor (..., d), or its leading axes do not broadcast with
            theta's.
            ThetaError: theta is not a finite real tensor (..., p).
        """
        self._check_embedding(e)
        theta = self.features.check(theta)
        _broadcast_or_raise(e, theta)
        with torch.autocast(e.device.type, enabled=False):
            out = self._steer(e.to(torch.promote_types(e.dtype, torch.float32)), theta)
        return out.to(e.dtype)

    def inverse(self, e: Tensor, theta: Tensor) -> Float[Tensor, "*batch d"]:
        """The x that forward(x, theta) sends to e: solves M(theta) x = e - b(theta), axes as in forward.

        Raises:
            ShapeError, ThetaError: as in forward; ThetaError also where M(theta) is singular.
        """
        self._check_embedding(e)
        theta = self.features.check(theta)
        _broadcast_or_raise(e, theta)
        with torch.autocast(e.device.type, enabled=False):
            matrix, offset = self.matrix(theta), self.offset(theta)
            kind = torch.promote_types(e.dtype, matrix.dtype)
            out = _solve(matrix.to(kind), e.to(kind) - offset.to(kind))
        return out.to(e.dtype)

    def orbit(self, e: Tensor, thetas: Tensor) -> Float[Tensor, "b v d"]:
        """All steered versions (b, v, d) of embeddings (b, d) at thetas (v, p).

        Raises:
            ShapeError: e is not a floating tensor (b, d).
            ThetaError: thetas is not a finite real tensor (v, p).
        """
        self._check_embedding(e)
        if e.ndim != 2:
            raise ShapeError(
                f"embeddings have shape {tuple(e.shape)}; expected (b, {self.dim}): add or drop axes"
            )
        if self.features.check(thetas).ndim != 2:
            raise ThetaError(
                f"thetas has shape {tuple(thetas.shape)}; expected (v, {self.n_params}): one row per view"
            )
        return self.forward(e.unsqueeze(1), thetas)

    def _family_laws(self) -> tuple[Laws, ...]:
        """What the family guarantees along each coordinate."""
        return (Laws.IDENTITY,) * self.n_params

    def _steer(self, e: Float[Tensor, "*e d"], theta: Float[Tensor, "*t p"]) -> Float[Tensor, "*batch d"]:
        """forward on checked arguments, e in float32 at least; this dense form is the slow default."""
        matrix = self.matrix(theta).to(e.dtype)
        return torch.einsum("...ij,...j->...i", matrix, e) + self.offset(theta).to(e.dtype)

    def _linear_laws(self) -> tuple[Laws, ...]:
        """All laws where phi is linear and does not wrap: past a period's end, plus no longer composes."""
        if not self.features.is_linear:
            return (Laws.IDENTITY,) * self.n_params
        return tuple(Laws.ALL if period is None else Laws.IDENTITY for period in self.features.period_values)

    def _check_embedding(self, e: Tensor) -> None:
        if not isinstance(e, Tensor) or not e.is_floating_point():
            kind = e.dtype if isinstance(e, Tensor) else type(e).__name__
            raise ShapeError(
                f"embeddings are {kind}; expected a floating tensor (..., {self.dim}): convert them"
            )
        if e.ndim == 0 or e.shape[-1] != self.dim:
            raise ShapeError(
                f"embeddings have shape {tuple(e.shape)}; this map expected (..., {self.dim}): "
                "use the encoder that the map was made for"
            )


def within_width(what: str, value: int | None, default: int, dim: int) -> int:
    """A rank between 1 and dim; None is the default, or dim where that is smaller.

    Raises:
        ConfigError: outside 1..dim.
    """
    value = min(default, dim) if value is None else value
    if not 1 <= value <= dim:
        raise ConfigError(
            f"{what} is {value}; expected 1 to {dim}, the width of the embedding: choose within"
        )
    return value


def _broadcast_or_raise(e: Tensor, theta: Tensor) -> None:
    try:
        torch.broadcast_shapes(e.shape[:-1], theta.shape[:-1])
    except RuntimeError as error:
        raise ShapeError(
            f"embeddings {tuple(e.shape)} and theta {tuple(theta.shape)} do not pair up; expected leading "
            "axes that broadcast: give one theta per embedding, or use orbit(e, thetas) for every pair"
        ) from error


def _solve(matrix: Float[Tensor, "*t d d"], e: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """x with matrix x = e, *t broadcast to *batch; axes that share a matrix share its factorization."""
    own = (1,) * (e.ndim + 1 - matrix.ndim) + tuple(matrix.shape[:-2])
    shared = [axis for axis, size in enumerate(own) if size == 1]
    kept = [axis for axis, size in enumerate(own) if size != 1]
    columns = e.permute(*kept, e.ndim - 1, *shared)
    matrix = matrix.reshape(*(own[axis] for axis in kept), *matrix.shape[-2:])
    try:
        solution = torch.linalg.solve(
            matrix, columns.flatten(len(kept) + 1) if shared else columns.unsqueeze(-1)
        )
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise ThetaError(
            "the map's matrix is singular at this theta; expected one that can be inverted: "
            "use a theta nearer to zero"
        ) from error
    order = [*kept, e.ndim - 1, *shared]
    return solution.reshape(columns.shape).permute(*(order.index(axis) for axis in range(e.ndim)))


def _parse_laws(names: Laws | Iterable[str]) -> Laws:
    if isinstance(names, Laws):
        return names
    laws = Laws.NONE
    for name in names:
        if name.upper() not in Laws.__members__:
            raise unknown_name("law", name, [law.lower() for law in Laws.__members__])
        laws |= Laws[name.upper()]
    return laws


class IdentityMap(SteeringMap):
    """e' = e whatever theta is: the control that every table shows. It has no weights."""

    name = "identity"
    linear_in_phi = True

    def matrix(self, theta: Tensor) -> Float[Tensor, "*batch d d"]:
        """The identity (*, d, d)."""
        theta = self.features.check(theta)
        eye = torch.eye(self.dim, dtype=theta.dtype, device=theta.device)
        return eye.expand(*theta.shape[:-1], self.dim, self.dim)

    def moves(self, e: Float[Tensor, "*e d"]) -> Float[Tensor, "*e k d"]:
        """Zeros (*, k, d)."""
        return torch.zeros_like(e).unsqueeze(-2).repeat_interleave(self.features.n_features, dim=-2)

    def _steer(self, e: Float[Tensor, "*e d"], theta: Float[Tensor, "*t p"]) -> Float[Tensor, "*batch d"]:
        return e.expand(*torch.broadcast_shapes(e.shape[:-1], theta.shape[:-1]), self.dim)

    def _family_laws(self) -> tuple[Laws, ...]:
        return (Laws.ALL,) * self.n_params
