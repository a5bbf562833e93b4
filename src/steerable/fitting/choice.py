"""What held-out pairs choose: the expansion of theta, the number of inputs, and the strength of the ridge."""

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from steerable.fitting.pairs import need_two_groups
from steerable.fitting.ridge import System
from steerable.maps import Features, SteeringMap

_LOG = logging.getLogger(__name__)
# strong to weak, on columns of unit power
STRENGTHS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)
_SKETCH = 512  # combinations of outputs that strengths are compared on
_WORTH = 0.99  # a dearer expansion is taken where it has at most this share of the cheaper one's error


class Asked(NamedTuple):
    """One system of normal equations: its expansion, parts of it to compare, and how much of e these may read."""

    largest: Features
    members: list[Features]
    widths: list[int]

    @property
    def most(self) -> int:
        """The largest of the widths, which the system is made for."""
        return self.widths[-1]


class Choice(NamedTuple):
    """A regression, with the strength and the held-out relative error that it reaches (nan: nothing is held out)."""

    features: Features
    width: int
    system: System
    strength: float
    error: float


class Fitted(NamedTuple):
    """A map of all pairs, the same without those that are held out (None: not needed), and what to tell of it."""

    steering: SteeringMap
    early: SteeringMap | None
    record: dict[str, Any]


def finite(value: float) -> float | None:
    """The value, or None where it is not a number or without bound."""
    return value if math.isfinite(value) else None


def expansions(largest: Features) -> list[Features]:
    """What "auto" chooses from, all of them parts of the largest expansion, cheap to dear."""
    settings, terms = largest.config(), largest.terms
    powers = [term for term in terms if term in ("linear", "squares", "pairwise")]
    names = ["+".join(powers[: i + 1]) for i in range(len(powers))] + [largest.expansion]
    for term in terms[len(powers) :]:
        names += [f"linear+{term}", "+".join([*powers, term])]
    found = [Features.from_config(settings | {"expansion": name}, largest.n_params) for name in names]
    return sorted({f.n_features: f for f in reversed(found)}.values(), key=lambda f: f.n_features)


def choose(
    systems: Sequence[tuple[Asked, System]], *, ridge: float | None, rank: int | None, needed: bool
) -> Choice:
    """The candidate with the least held-out error; of two expansions the cheaper unless that costs 1 %.

    Raises:
        FitError: there is something to choose, or an error is needed, and no rows are held out or none are left to fit.
    """
    asked, system = systems[0]
    candidates = [(member, *pair) for pair in systems for member in pair[0].members]
    # without inputs nothing is penalized
    strengths = STRENGTHS if ridge is None and system.strip > 1 else (ridge or 0.0,)
    single = len(strengths) * len(candidates) * len(asked.widths) == 1
    if single and not needed and not (system.fitted.rows and system.held.rows):
        return Choice(asked.largest, asked.widths[0], system, strengths[0], math.nan)
    need_two_groups(system.fitted.rows, system.held.rows)
    best = None
    for features, asked, system in sorted(candidates, key=lambda candidate: candidate[0].n_features):
        columns = _columns(asked.largest, features).to(system.scale.device)
        blocks = ((width, system.block(columns, width)) for width in asked.widths)
        tried = (_tried(features, width, block, strengths, rank) for width, block in blocks)
        found = min(tried, key=lambda choice: choice.error)
        if best is None or found.error < _WORTH * best.error:
            best = found
    return best  # pyright: ignore[reportReturnType]: candidates are not empty


def _tried(
    features: Features, width: int, system: System, strengths: Sequence[float], rank: int | None
) -> Choice:
    """From strong to weak until the error has risen twice; many outputs are judged by a sketch, at the end by all."""
    errors: list[float] = []
    d = system.fitted.cross.shape[1]
    seen = system.sketch(_SKETCH) if rank is None and d > 2 * _SKETCH and len(strengths) > 1 else system
    for strength in strengths:
        errors.append(_error(seen, strength, rank))
        if len(errors) > 2 and errors[-3] < errors[-2] < errors[-1]:
            break
    strength = strengths[errors.index(min(errors))]
    error = min(errors) if seen is system else _error(system, strength, rank)
    k, out = features.n_features, rank or d
    _LOG.info(
        "%s, %d inputs: held-out error %.4f at ridge %g; k = %d, %d coefficients, %d multiply-adds per "
        "embedding and %d per view",
        features.expansion, width, error, strength, k, k * (width + 1) * out, k * width * out, k * out,
    )  # fmt: skip
    return Choice(features, width, system, strength, error)


def _error(system: System, strength: float, rank: int | None) -> float:
    error = system.held.relative_error(system.solve(system.fitted, strength, rank)[0])
    return error if math.isfinite(error) else math.inf


def _columns(largest: Features, part: Features) -> torch.Tensor:
    """Where part's basis functions stand among the largest expansion's."""
    places = torch.arange(largest.n_features).split(list(largest.term_sizes.values()))
    by_term = dict(zip(largest.terms, places, strict=True))
    return torch.cat([by_term[term] for term in part.terms])
