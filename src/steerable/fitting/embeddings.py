"""fit_embeddings: from pairs (source, theta, target) to a steering map."""

import copy
import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import ConfigError, FitError
from steerable.fitting.gradient import fit_by_gradient
from steerable.fitting.pairs import PairBatch, pair_batches
from steerable.fitting.ridge import STRENGTHS, Moments, NormalEquations
from steerable.maps import BasisMap, Features, IdentityMap, LowRankMap, ShiftMap, SteeringMap, build

_LOG = logging.getLogger(__name__)


def fit_embeddings(
    source: Any,
    theta: Any = None,
    target: Any = None,
    *,
    map: str = "basis",
    features: str | Features = "linear",
    groups: Any = None,
    ridge: float | int | None = None,
    scales: Sequence[float | int] | None = None,
    periods: Sequence[float | int | None] | None = None,
    rank: int | None = None,
    strict: bool = True,
) -> SteeringMap:
    """The map of a family that best sends source embeddings to target embeddings, in squared error.

    "shift", "basis" and "low_rank" (reduced-rank regression: Izenman 1975, Reinsel and Velu 1998) have
    closed forms: normal equations in float64, so that memory does not grow with the pairs. "rotation" and
    "exponential" are refined by gradient from the closed form, with all pairs in memory.

    Args:
        source: (n, d) embeddings of the plain images, tensor or array; or an iterable of batches
            (source, theta, target) or (source, theta, target, groups), read once, with theta and target
            left out.
        theta: (n, p) parameters of the transform that each target underwent.
        target: (n, d) embeddings of the transformed images.
        map: a name in `steerable.maps.MAPS`.
        features: an expansion, or `Features` (which then brings scales and periods).
        groups: (n,) image ids, whole numbers or strings. One group in five is held out to choose the ridge
            strength; the map is then fitted on all. Without groups each row is its own.
        ridge: strength, at least 0, on columns scaled to unit power; None chooses it on the held-out groups.
        scales: per coordinate; by default the largest absolute value in the first batch.
        periods: per coordinate, a period or None.
        rank: of "low_rank" and "exponential".
        strict: False accepts constant or dependent columns and few rows, and leaves those directions to
            the ridge.

    Returns:
        The fitted map, in float32, on the device of source. M(0) = I exactly.

    Raises:
        FitError: input that is not finite, constant or dependent columns, too few rows or groups, parts
            that differ in length.
        ConfigError: unknown map or features, or a setting out of range.
    """
    if ridge is not None and not (math.isfinite(ridge) and ridge >= 0):
        raise ConfigError(
            f"ridge is {ridge}; expected a finite number from 0: correct it, or None to choose it"
        )
    batches = pair_batches(source, theta, target, groups)
    first = next(batches, None)
    if first is None:
        raise FitError(
            "there are no pairs; expected at least one batch with rows: check the source of the pairs"
        )
    steering = _empty_map(map, first, features, scales, periods, rank)
    batches = itertools.chain([first], batches)
    if isinstance(steering, ShiftMap | BasisMap | LowRankMap):
        _fit_closed_form(steering, first, batches, ridge, strict)
    elif not isinstance(steering, IdentityMap):
        fit_by_gradient(steering, batches, strict=strict)
    return steering.to(first.source.device)


def _empty_map(
    name: str,
    first: PairBatch,
    features: str | Features,
    scales: Sequence[float | int] | None,
    periods: Sequence[float | int | None] | None,
    rank: int | None,
) -> SteeringMap:
    n_params = first.theta.shape[1]
    if isinstance(features, str):
        largest = first.theta.abs().amax(dim=0)
        scales = torch.where(largest > 0, largest, 1.0).tolist() if scales is None else scales
        features = Features(features, n_params, scales, periods)
    elif scales is not None or periods is not None:
        raise ConfigError(
            "features already hold scales and periods; expected these once: leave out scales= and periods="
        )
    settings = {"name": name, "dim": first.source.shape[1], "n_params": n_params, "features": features}
    return build(settings if rank is None else settings | {"rank": rank})


def _fit_closed_form(
    steering: ShiftMap | BasisMap | LowRankMap,
    first: PairBatch,
    batches: Iterable[PairBatch],
    ridge: float | int | None,
    strict: bool,
) -> None:
    features = copy.deepcopy(steering.features).double().to(first.source.device)
    equations = NormalEquations(features, first, with_source=not isinstance(steering, ShiftMap))
    for batch in batches:
        equations.add(batch)
    equations.close(strict=strict)
    rank = steering.rank if isinstance(steering, LowRankMap) else None
    strength = _choose_strength(equations, rank) if ridge is None else ridge
    equations.fitted.include(equations.held)
    coefficients, frame = _solve(equations, equations.fitted, strength, rank)
    if not bool(torch.isfinite(coefficients).all()):
        raise FitError(
            f"the system is singular at ridge {strength:g}; expected a larger one: raise ridge, or "
            "leave it out"
        )
    _write(steering, *equations.raw(coefficients), frame)


def _choose_strength(equations: NormalEquations, rank: int | None) -> float:
    """The strength with the least held-out error, from strong to weak until the error has risen twice."""
    if not equations.with_source:
        return 0.0  # nothing is penalized
    if not (equations.held.rows and equations.fitted.rows):
        raise FitError(
            "all pairs are of one group; expected two at least, so that one can be held out: "
            "give more images, or ridge="
        )
    errors: dict[float, float] = {}
    for strength in STRENGTHS:
        coefficients, _ = _solve(equations, equations.fitted, strength, rank)
        error = equations.held.relative_error(coefficients)
        errors[strength] = error if math.isfinite(error) else math.inf
        last = list(errors.values())[-3:]
        if len(last) == 3 and last[0] < last[1] < last[2]:
            break
    best = min(errors, key=lambda strength: errors[strength])
    _LOG.debug("ridge %g: relative error %.4f on %d held-out pairs", best, errors[best], equations.held.rows)
    return best


def _solve(
    equations: NormalEquations, part: Moments, strength: float, rank: int | None
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "d r"] | None]:
    """Ridge coefficients; with a rank, projected on the r strongest directions of the fit, and these."""
    b = equations.solve(part, strength)
    if rank is None or not bool(torch.isfinite(b).all()):
        return b, None
    _, vectors = torch.linalg.eigh(b.T @ (part.gram @ b))
    frame = vectors[:, -rank:]
    return b @ frame @ frame.T, frame


def _write(
    steering: ShiftMap | BasisMap | LowRankMap,
    slopes: Float[Tensor, "k e d"],
    shift: Float[Tensor, "k d"],
    frame: Float[Tensor, "d r"] | None,
) -> None:
    weights = {"bias": shift}
    if isinstance(steering, LowRankMap) and frame is not None:
        weights = {"basis": frame, "weight": (slopes @ frame).transpose(1, 2), "bias": shift @ frame}
    elif isinstance(steering, BasisMap):
        weights["weight"] = slopes.transpose(1, 2)
    with torch.no_grad():
        for name, value in weights.items():
            getattr(steering, name).copy_(value)
