"""The closed forms: one pass over the pairs, what held-out pairs choose, and the weights that follow."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import FitError
from steerable.fitting.choice import Asked, Choice, Fitted, choose, expansions, finite
from steerable.fitting.moments import Moments, Spread
from steerable.fitting.pairs import GIB, PairBatch
from steerable.fitting.ridge import NormalEquations, room
from steerable.maps import Features, LowRankMap, ShiftMap, SteeringMap, build
from steerable.maps.base import within_width

_UNKNOWNS = 4200  # rows of the normal equations that "auto" allows: solved in seconds on two cores
_WIDTHS = (64, 128, 256, 512)
_FEW = 128  # inputs that products of theta's coordinates must leave to be tried by "auto"


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
    features = Features.from_config(empty.features.config(), empty.n_params)
    plan = _plan(empty.name, empty.dim, features, projection, auto=auto)
    whole = -1 if isinstance(projection, int) else empty.dim  # inputs that need no projection
    part = max((asked.most for asked in plan if asked.most != whole), default=0)
    directions = None
    if part:
        directions, batches = _directions(first, batches, part, memory=memory, strict=strict)
    streams = [
        NormalEquations(
            asked.largest.to(first.source.device).double(),
            first,
            projection=None if directions is None or asked.most in (0, whole) else directions[: asked.most],
            with_source=asked.most > 0,
            strict=strict,
            memory=memory,
        )
        for asked in plan
    ]
    for batch in batches:
        for equations in streams:
            equations.add(batch)
    rank = empty.rank if isinstance(empty, LowRankMap) else None
    systems = [(asked, equations.close()) for asked, equations in zip(plan, streams, strict=True)]
    choice = choose(systems, ridge=ridge, rank=rank, needed=twice)
    if choice.width == whole:
        directions = None
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
    plan = _plan(map, dim, features, projection, auto=features.auto)
    sizes = [(asked.largest.n_features, asked.most) for asked in plan]
    return sum(room(k * (width + 1), k, dim, memory) for k, width in sizes)


def _plan(map: str, d: int, features: Features, projection: int | str | None, *, auto: bool) -> list[Asked]:
    """A system for each number of inputs, since a cheap expansion may read more of e than a dear one.

    auto: parts of the features are tried as well; products go where they would leave so few inputs that they never win.
    """
    plan: list[Asked] = []
    for part in reversed(expansions(features)) if auto else [features]:
        widths = _widths(map, d, part.n_features, projection)
        few = projection == "auto" and 0 < widths[-1] < min(d, _FEW)
        if few and auto and "pairwise" in part.terms:
            continue
        for asked in plan:
            if asked.widths == widths and {*part.terms} <= {*asked.largest.terms}:
                asked.members.append(part)
                break
        else:
            plan.append(Asked(part, [part], widths))
    return plan


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
