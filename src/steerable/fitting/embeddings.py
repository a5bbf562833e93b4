"""fit_embeddings: from pairs (source, theta, target) to a steering map."""

import itertools
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from steerable.errors import ConfigError, FitError
from steerable.fitting.closed import fit_closed_form
from steerable.fitting.gradient import fit_by_gradient
from steerable.fitting.pairs import Kept, PairBatch, pair_batches
from steerable.fitting.refinement import CRITERIA, refine_map
from steerable.maps import MAPS, Features, SteeringMap, build
from steerable.maps.features import unknown_name

_LOG = logging.getLogger(__name__)
_CLOSED = ("shift", "basis", "low_rank")


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
    window: Sequence[int] | None = None,
    rank: int | None = None,
    projection: int | str | None = None,
    refine: str | None = None,
    memory: float | int = 2.0,
    strict: bool = True,
) -> SteeringMap:
    """The map of a family that best sends source embeddings to target embeddings, in squared error.

    "shift", "basis" and "low_rank" (reduced-rank regression: Izenman 1975, Reinsel and Velu 1998) have
    closed forms: normal equations in float64, so that memory does not grow with the pairs. "rotation" and
    "exponential" are refined by gradient from the closed form, with all pairs in memory. What was chosen is
    logged at INFO, with every candidate's held-out error and price.

    Args:
        source: (n, d) embeddings of the plain images, tensor or array; or an iterable of batches
            (source, theta, target) or (source, theta, target, groups), read once, with theta and target
            left out.
        theta: (n, p) parameters of the transform that each target underwent.
        target: (n, d) embeddings of the transformed images.
        map: a name in `steerable.maps.MAPS`.
        features: an expansion, or `Features` (which then brings scales, periods and window). "auto" (families
            with a closed form; linear for others) chooses: "linear", "linear+squares",
            "linear+squares+pairwise", and with harmonics where a coordinate has a period and window where there
            is a crop; a dearer one is taken where it lowers the held-out error by over 1 %. Each reads as many
            directions as projection "auto" leaves it; products that would leave under 128 are not tried.
        groups: (n,) image ids, whole numbers or strings. One group in five is held out for every choice; the
            map is then fitted on all. Without groups each row is its own.
        ridge: strength, at least 0, on columns scaled to unit power; None chooses it on the held-out groups.
        scales: per coordinate; by default the largest absolute value in the first batch.
        periods: per coordinate, a period or None.
        window: the places of a crop's coordinates in theta, as in `Features`.
        rank: of "low_rank" and "exponential".
        projection: of "basis" and "low_rank": the map reads this many leading principal directions of the
            source, whitened, so that the ridge penalizes all alike ("basis" then has `inner`). Directions
            come from the first pairs, up to an eighth of the memory: shuffle a longer stream. "auto" reads
            all of e where k (d + 1) <= 4,200, and else 64, 128, 256 or 512 directions, by held-out error, within
            k (r + 1) <= 4,200 (k of the largest expansion). Other families read no or all directions.
        refine: None, "cosine" or "contrastive": after the fit, gradient steps on the map's weights. "cosine"
            lowers 1 - cos(steered, target); "contrastive" the cross-entropy of finding the true target among
            the targets of its group by cosine, which is what MRR measures and least squares, which shrinks,
            loses. The price of that is a higher squared error, of which a tenth is added to hold it. At most
            400 steps, stopped early on the held-out groups; a map that does not improve there is left as it
            was. Keeps pairs in memory.
        memory: GiB, for normal equations and their solution, and for pairs that are kept.
        strict: False accepts constant or dependent columns and few rows, and leaves those directions to
            the ridge.

    Returns:
        The fitted map, in float32, on the device of source. M(0) = I exactly. Its ``fit_record`` says what was
        chosen ("features"; of a closed form also "inputs" and "ridge"), and "held_out_error", the relative error
        on the held-out groups of the map that has not seen them: None where there is one group, or no fit.

    Raises:
        FitError: input that is not finite, constant or dependent columns, too few rows or groups, parts
            that differ in length, more than the memory, groups of one pair each for "contrastive".
        ConfigError: unknown map or features, or a setting out of range.
    """
    started = time.monotonic()
    _check_settings(map, ridge, projection, refine)
    batches = pair_batches(source, theta, target, groups)
    first = next(batches, None)
    if first is None:
        raise FitError(
            "there are no pairs; expected at least one batch with rows: check the source of the pairs"
        )
    settings = {"name": map, "dim": first.source.shape[1], "n_params": first.theta.shape[1]}
    settings |= {} if rank is None else {"rank": rank}
    chosen = _features(map, first, features, scales, periods, window)
    by_gradient = map not in _CLOSED
    with torch.device("cpu" if by_gradient else "meta"):  # closed forms may refuse before weights have room
        empty = build(settings | {"features": chosen})
    if map == "identity":
        return empty.to(first.source.device)
    batches, kept = itertools.chain([first], batches), Kept(memory)
    batches = kept.through(batches) if refine or by_gradient else batches
    if by_gradient:
        fitted = fit_by_gradient(empty, batches, kept, strict=strict, twice=bool(refine))
    else:
        fitted = fit_closed_form(
            empty, first, batches, auto=chosen.auto, ridge=ridge, projection=projection,
            memory=memory, strict=strict, twice=bool(refine),
        )  # fmt: skip
    steering, record = fitted.steering, fitted.record
    if refine and fitted.early is not None:
        record["held_out_error"] = refine_map(steering, fitted.early, kept.pairs(), refine)
    _LOG.info("%s map fitted in %.1f s", map, time.monotonic() - started)
    steering.fit_record = record
    return steering


def _check_settings(
    name: str, ridge: float | int | None, projection: int | str | None, refine: str | None
) -> None:
    if name not in MAPS:
        raise unknown_name("map", name, MAPS)
    if ridge is not None and not (math.isfinite(ridge) and ridge >= 0):
        raise ConfigError(
            f"ridge is {ridge}; expected a finite number from 0: correct it, or None to choose it"
        )
    if refine is not None and refine not in CRITERIA:
        raise unknown_name("criterion", refine, CRITERIA)
    if isinstance(projection, str) and projection != "auto":
        raise ConfigError(
            f"projection is {projection!r}; expected a number of directions, 'auto' or None: use one of these"
        )
    if isinstance(projection, int) and name not in ("basis", "low_rank"):
        raise ConfigError(
            f"projection is {projection} and map is {name!r}; expected basis or low_rank with it: leave it out"
        )


def _features(
    name: str,
    first: PairBatch,
    features: str | Features,
    scales: Sequence[float | int] | None,
    periods: Sequence[float | int | None] | None,
    window: Sequence[int] | None,
) -> Features:
    """phi with its scales; of "auto" the largest expansion."""
    if isinstance(features, Features):
        if not (scales is periods is window is None):
            raise ConfigError(
                "features already hold scales, periods and window; expected these once: leave out scales=, periods= "
                "and window="
            )
    else:
        largest = first.theta.abs().amax(dim=0)
        scales = torch.where(largest > 0, largest, 1.0).tolist() if scales is None else scales
        features = Features(features, first.theta.shape[1], scales, periods, window)
    if features.auto and name not in _CLOSED:
        return Features("linear", features.n_params, features.scale_values, features.period_values)
    return features
