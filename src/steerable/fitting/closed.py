"""The closed forms: one pass over the pairs, what held-out pairs choose, and the weights that follow."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import FitError
from steerable.fitting.choice import Choice, Fitted, choose, expansions, finite
from steerable.fitting.moments import Moments, Spread
from steerable.fitting.pairs import GIB, PairBatch
from steerable.fitting.ridge import NormalEquations, room
from steerable.maps import Features, LowRankMap, ShiftMap, SteeringMap, build
from steerable.maps.base import within_width

_UNKNOWNS = 4200  # rows of the normal equations that "auto" allows: solved in seconds on two cores
_WIDTHS = (64, 128, 256, 512)
_FEW = 128  # inputs that products of theta's coordinates must leave, or "auto" does without them


def fit_closed_form(
    empty: SteeringMap,
    first: PairBatch,
    batches: Iterator[PairBatch],
    *,
    auto: bool,
    ridge: float | int | None,
    projection: int | str | None,
    memory: float | int,
    strict: bool,
    twice: bool,
) -> Fitted:
    """The map fitted on all pairs, and (twice) the same fitted without those that are held out.

    empty: a shift, basis or low_rank map with the largest expansion; auto: parts of that are tried as well.

    Raises:
        FitError: as `fit_embeddings`.
    """
    largest = _considered(empty.name, empty.dim, empty.features, projection) if auto else empty.features
    largest = Features.from_config(largest.config(), empty.n_params).to(first.source.device)
    widths = _widths(empty.name, empty.dim, largest.n_features, projection)
    directions = None
    if isinstance(projection, int) or 0 < widths[-1] < empty.dim:
        directions, batches = _directions(first, batches, widths[-1], memory=memory, strict=strict)
    equations = NormalEquations(
        largest.double(),
        first,
        projection=directions,
        with_source=widths[-1] > 0,
        strict=strict,
        memory=memory,
    )
    for batch in batches:
        equations.add(batch)
    system = equations.close()
    rank = empty.rank if isinstance(empty, LowRankMap) else None
    candidates = expansions(largest) if auto else [largest]
    choice = choose(system, largest, candidates, widths, ridge=ridge, rank=rank, needed=twice)
    early = _solved(empty, choice, choice.system.fitted, directions, rank) if twice else None
    choice.system.fitted.include(choice.system.held)
    record = {
        "features": choice.features.expansion, "inputs": choice.width, "ridge": choice.strength,
        "held_out_error": finite(choice.error),
    }  # fmt: skip
    return Fitted(_solved(empty, choice, choice.system.fitted, directions, rank), early, record)


def check_room(
    map: str, dim: int, features: Features, *, projection: int | str | None, memory: float | int
) -> int:
    """Bytes that `fit_embeddings` will need for a closed form, known before there are pairs; 0 without one.

    features: the expansion, or the largest that is tried.

    Raises:
        FitError: they are more than the memory, in GiB.
    """
    if map not in ("shift", "basis", "low_rank"):
        return 0
    features = _considered(map, dim, features, projection) if features.auto else features
    width = _widths(map, dim, features.n_features, projection)[-1]
    return room(features.n_features * (width + 1), features.n_features, dim, memory)


def _widths(map: str, d: int, k: int, projection: int | str | None) -> list[int]:
    """How much of e may be read: d, the number asked for, or what "auto" tries; nothing by a shift map."""
    if map == ShiftMap.name:
        return [0]
    if isinstance(projection, int):
        return [within_width("projection", projection, projection, d)]
    if projection is None or k * (d + 1) <= _UNKNOWNS:
        return [d]
    most = max(1, _UNKNOWNS // k - 1)
    return [width for width in _WIDTHS if width <= most] or [most]


def _considered(map: str, d: int, largest: Features, projection: int | str | None) -> Features:
    """The largest expansion for "auto", without products where these would leave too few inputs to all expansions."""
    width = _widths(map, d, largest.n_features, projection)[-1]
    if not 0 < width < min(d, _FEW) or isinstance(projection, int) or "pairwise" not in largest.terms:
        return largest
    terms = "+".join(term for term in largest.terms if term != "pairwise")
    return Features.from_config(largest.config() | {"expansion": terms}, largest.n_params)


def _directions(
    first: PairBatch, batches: Iterator[PairBatch], n: int, *, memory: float | int, strict: bool
) -> tuple[Float[Tensor, "n d"], Iterator[PairBatch]]:
    """The whitened principal directions of the first pairs, and all batches, those pairs among them."""
    spread, kept, size = Spread(first.source[0]), [], 0
    for batch in batches:
        spread.add(batch.source)
        kept.append(batch)
        size += sum(values.nbytes for values in batch[:3])
        if size > memory * GIB / 8:
            break
    if strict:
        spread.check("source", rank=False)
    return spread.principal(n), itertools.chain(_released(kept), batches)


def _released(batches: list[PairBatch]) -> Iterable[PairBatch]:
    """Each in turn; none is held any longer once it has been passed on."""
    batches.reverse()
    while batches:
        yield batches.pop()


def _solved(
    empty: SteeringMap, choice: Choice, part: Moments, directions: Tensor | None, rank: int | None
) -> SteeringMap:
    coefficients, frame = choice.system.solve(part, choice.strength, rank)
    if not bool(torch.isfinite(coefficients).all()):
        raise FitError(
            f"the system is singular at ridge {choice.strength:g}; expected a larger one: raise ridge, or "
            "leave it out"
        )
    slopes, shift = choice.system.raw(coefficients)
    settings = empty.config() | {"features": choice.features.config()}
    read = None if directions is None else directions[: choice.width]
    if frame is not None:
        slopes = slopes @ frame if read is None else torch.einsum("red,ej->rjd", slopes @ frame, read)
        weights = {"basis": frame, "weight": slopes.transpose(1, 2), "bias": shift @ frame}
    elif choice.width == 0:
        weights = {"bias": shift}
    else:
        weights = {"weight": slopes.transpose(1, 2), "bias": shift}
        if read is not None:
            settings, weights = settings | {"inner": choice.width}, weights | {"projection": read}
    steering = build(settings).to(part.gram.device)
    with torch.no_grad():
        for name, value in weights.items():
            getattr(steering, name).copy_(value)
    return steering
