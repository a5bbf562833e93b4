"""Fits for the families without a closed form: a start from linear regression, then gradient descent.

Wide embeddings are fitted within the leading directions of themselves and their motion, and left alone in the others:
the cost of a step grows with the cube of the width.
"""

import copy
import logging
import math
from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import FitError
from steerable.fitting.choice import Fitted, finite
from steerable.fitting.moments import Spread
from steerable.fitting.pairs import Kept, PairBatch, Pairs, need_two_groups
from steerable.maps import ExponentialMap, Features, RotationMap, SteeringMap, build

_LOG = logging.getLogger(__name__)
_INNER = 256  # directions that a map is fitted in; even, since a rotation turns planes
_START_ROWS = 4096  # pairs behind the linear start
_ROWS = 8192  # pairs per L-BFGS step
_BATCH = 512  # pairs per Adam step
_ADAM_STEPS = 400
_LBFGS_STEPS = 60
_AGAIN = 1 / 3  # of the steps, on all pairs, from a map of those that are not held out
_RIDGE = 1e-3
_STILL = 0.02  # radians per unit of phi: slower planes are not told apart from noise


def fit_by_gradient(
    empty: SteeringMap, batches: Iterable[PairBatch], kept: Kept, *, strict: bool, twice: bool
) -> Fitted:
    """Fits of a rotation or exponential map: without the pairs that are held out, and from there on all pairs.

    By the relative squared error of the motion: L-BFGS on up to 8,192 pairs; Adam where frequencies are
    rounded to whole turns (a coordinate with a period of a rotation map), since line searches do not bear the
    steps. Pairs are drawn by a generator with seed 0. A start that is better than the end is kept.

    Raises:
        FitError: constant or dependent columns (where strict), a loss that is not finite, or (twice) no held-out pairs.
    """
    spreads: dict[str, Spread] = {}
    for batch in batches:
        for name, values in (("theta", batch.theta), ("source", batch.source)):
            spreads.setdefault(name, Spread(values[0])).add(values)
    for name, spread in spreads.items():
        if strict:
            spread.check(name)
    pairs = kept.pairs()
    held = pairs.rows(pairs.held)
    if twice:
        need_two_groups(len(pairs.source) - len(held.source), len(held.source))
    if empty.dim > _INNER:
        frame = _leading(pairs)
        inner = pairs._replace(source=pairs.source @ frame, target=pairs.target @ frame)
        steering, early = (_lifted(empty, each, frame) for each in _both(_narrowed(empty), inner))
    else:
        steering, early = _both(empty, pairs)
    error = finite(_loss(early, held[:3])) if len(held.source) else None
    return Fitted(steering, early, {"features": empty.features.expansion, "held_out_error": error})


def _both(empty: SteeringMap, pairs: Pairs) -> tuple[SteeringMap, SteeringMap]:
    """Of all pairs and of those that are not held out, which is where the first goes on from."""
    early = copy.deepcopy(empty).to(pairs.source.device)
    rows = _shuffled(pairs.rows(~pairs.held))
    _start(early, *(values[:_START_ROWS] for values in rows))
    _descend(early, rows, 1.0)
    steering = copy.deepcopy(early)
    _descend(steering, _shuffled(pairs), _AGAIN)
    return steering, early


def _shuffled(pairs: Pairs) -> tuple[Tensor, ...]:
    order = torch.randperm(len(pairs.source), generator=torch.Generator().manual_seed(0))
    return tuple(values[order.to(values.device)] for values in pairs[:3])


def _descend(steering: SteeringMap, rows: tuple[Tensor, ...], share: float) -> None:
    """In place, by this share of the steps; a start that is better than the end is kept."""
    start, first = copy.deepcopy(steering.state_dict()), _loss(steering, rows)
    if isinstance(steering, RotationMap) and any(steering.features.period_values):
        _adam(steering, rows, round(share * _ADAM_STEPS))
    else:
        _lbfgs(steering, tuple(values[:_ROWS] for values in rows), round(share * _LBFGS_STEPS))
    last = _loss(steering, rows)
    if not last < first:
        steering.load_state_dict(start)
    if not math.isfinite(min(first, last)):
        raise FitError(
            "the fit left the finite numbers; expected embeddings of ordinary size: scale them, or take basis"
        )
    _LOG.info("%s: relative error %.4f on the fitted pairs, %.4f at the start", steering.name, last, first)


def _leading(pairs: Pairs) -> Float[Tensor, "d r"]:
    """Orthonormal directions in which embeddings and their motion, each of total power one, are largest."""
    total = pairs.source.new_zeros(pairs.source.shape[1], pairs.source.shape[1], dtype=torch.float64)
    for part in (pairs.source, pairs.target - pairs.source):
        gram = (part[:_ROWS].T @ part[:_ROWS]).double()
        total += gram / gram.trace().clamp_min(1e-30)
    return torch.linalg.eigh(total).eigenvectors[:, -_INNER:].float()


def _narrowed(empty: SteeringMap) -> SteeringMap:
    config = empty.config() | {"dim": _INNER}
    return build(config | ({"rank": min(config["rank"], _INNER)} if "rank" in config else {}))


@torch.no_grad()
def _lifted(empty: SteeringMap, inner: SteeringMap, frame: Float[Tensor, "d r"]) -> SteeringMap:
    """The map that acts as ``inner`` in the span of the frame and as the identity beside it."""
    steering = copy.deepcopy(empty).to(frame.device)
    if isinstance(steering, ExponentialMap) and isinstance(inner, ExponentialMap):
        steering.left.zero_()
        steering.left[..., : inner.rank] = frame @ inner.left
        steering.right[..., : inner.rank] = frame @ inner.right
    elif isinstance(steering, RotationMap) and isinstance(inner, RotationMap):
        within = frame @ cast(Tensor, inner.frame.weight)
        beside = torch.linalg.qr(frame.double(), mode="complete").Q[:, _INNER:].to(frame)
        m, k = _INNER // 2, steering.dim // 2 - _INNER // 2
        columns = [within[:, :m], beside[:, :k], within[:, m:], beside[:, k:]]
        steering.frame.weight = torch.cat(columns, dim=1)
        steering.frequency.zero_()
        steering.frequency[:, :m] = inner.frequency
    return steering


@torch.no_grad()
def _loss(steering: SteeringMap, rows: tuple[Tensor, ...]) -> float:
    loss = float(_relative_error(steering, *(values[:_ROWS] for values in rows)))
    return loss if math.isfinite(loss) else math.inf


def _relative_error(
    steering: SteeringMap,
    source: Float[Tensor, "n d"],
    theta: Float[Tensor, "n p"],
    target: Float[Tensor, "n d"],
) -> Float[Tensor, ""]:
    return (steering(source, theta) - target).square().sum() / (target - source).square().sum().clamp(
        min=1e-30
    )


def _lbfgs(steering: SteeringMap, pairs: tuple[Tensor, ...], steps: int) -> None:
    optimizer = torch.optim.LBFGS(
        steering.parameters(), max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = _relative_error(steering, *pairs)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    optimizer.zero_grad()


def _adam(steering: SteeringMap, pairs: tuple[Tensor, ...], steps: int) -> None:
    optimizer = torch.optim.Adam(steering.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    n = len(pairs[0])
    for step in range(steps):
        rows = torch.arange(step * _BATCH, (step + 1) * _BATCH, device=pairs[0].device) % n
        optimizer.zero_grad()
        _relative_error(steering, *(values[rows] for values in pairs)).backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()


def _start(steering: SteeringMap, source: Tensor, theta: Tensor, target: Tensor) -> None:
    generators = _regress(steering.features, source, theta, target)
    if isinstance(steering, ExponentialMap):
        left, values, right = torch.linalg.svd(generators)
        root = values[:, None, : steering.rank].sqrt()
        with torch.no_grad():
            steering.left.copy_(left[..., : steering.rank] * root)
            steering.right.copy_(right[:, : steering.rank].transpose(1, 2) * root)
    elif isinstance(steering, RotationMap):
        _start_rotation(steering, generators)


def _regress(
    features: Features,
    source: Float[Tensor, "n d"],
    theta: Float[Tensor, "n p"],
    target: Float[Tensor, "n d"],
) -> Float[Tensor, "k d d"]:
    """A_k of target - source = sum_k phi_k A_k source, by ridge in its dual form: as wide as there are pairs."""
    phi, e, motion = features(theta).double(), source.double(), (target - source).double()
    kernel = (phi @ phi.T) * (e @ e.T)
    kernel.diagonal().add_(_RIDGE * kernel.trace() / (phi.shape[1] * e.shape[1]) + 1e-30)
    dual = torch.linalg.solve(kernel, motion)
    return torch.stack([dual.T @ (column[:, None] * e) for column in phi.T]).to(source.dtype)


def _start_rotation(steering: RotationMap, generators: Float[Tensor, "k d d"]) -> None:
    """Planes shared by the generators, and the rate of each coordinate in each plane."""
    frame, m = _shared_frame(generators), steering.dim // 2
    moved = torch.einsum("ia,kij,jb->kab", frame, generators, frame)
    rates = (moved[:, m : 2 * m, :m] - moved[:, :m, m : 2 * m].transpose(1, 2)).diagonal(dim1=1, dim2=2) / 2
    diagonal = moved.diagonal(dim1=1, dim2=2)
    stretch = (diagonal[:, :m] + diagonal[:, m : 2 * m]) / 2
    with torch.no_grad():
        steering.frame.weight = frame
        settings = zip(steering.features.scale_values, steering.features.period_values, strict=True)
        for i, (scale, period) in enumerate(settings):
            if period is None:
                steering.frequency[i] = rates[i]
            else:  # a half turn at P / 2, as by a flip, has no skew part: phi = P / (2 scale) moves by -2
                turns = rates[i] * period / (2 * math.pi * scale)
                half = (stretch[i] < -2 * scale / period).to(turns)
                steering.frequency[i] = torch.where(turns.round() == 0, half, turns)


def _shared_frame(generators: Float[Tensor, "k d d"]) -> Float[Tensor, "d d"]:
    """Q of a generic combination of the generators, which where these commute is exact for each of them.

    Turning planes come from the skew part S: i S is Hermitian, and the real and imaginary parts of one of its
    eigenvectors span a plane. Half turns have no skew part: in what is left they are the directions that the
    symmetric part reverses.
    """
    mix = torch.rand(len(generators), generator=torch.Generator().manual_seed(0)).to(generators) + 0.5
    mixed = torch.einsum("k,kij->ij", mix, generators).double()
    rates, vectors = torch.linalg.eigh(1j * (mixed - mixed.T) / 2)
    moving = math.sqrt(2) * vectors[:, rates > _STILL]
    m = moving.shape[1]
    rest = torch.linalg.qr(torch.cat([moving.real, moving.imag], dim=1), mode="complete").Q[:, 2 * m :]
    rest = rest @ torch.linalg.eigh(rest.T @ mixed @ rest).eigenvectors
    pairs = rest.shape[1] // 2 * 2
    columns = [moving.real, rest[:, 0:pairs:2], moving.imag, rest[:, 1:pairs:2], rest[:, pairs:]]
    return torch.cat(columns, dim=1).to(generators)
