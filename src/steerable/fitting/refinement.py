"""Gradient steps after a fit, by a criterion other than squared error, stopped early on held-out groups."""

import logging
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steerable.errors import FitError
from steerable.fitting.pairs import Pairs
from steerable.maps import SteeringMap

_LOG = logging.getLogger(__name__)
CRITERIA = ("cosine", "contrastive")
_BATCH = 256  # pairs per step, groups together
_STEPS, _EVERY, _PATIENCE = 400, 20, 4  # steps, steps between evaluations, evaluations without improvement
_RATE = 0.02  # of a step, as a share of a weight's root mean square
_MOST_HELD = 4096  # held-out pairs that are looked at
_WEIGHT = 0.1  # of the squared error beside the contrast: it costs hardly any MRR where views are predictable
_TEMPERATURES = [10 ** (power / 4) for power in range(-12, 1)]  # 0.001 to 1

Criterion = Callable[[Tensor, Pairs, Tensor], Tensor]  # steered, its pairs, temperatures


def refine_map(steering: SteeringMap, early: SteeringMap, pairs: Pairs, criterion: str) -> float:
    """Refine in place: as many steps as serve `early`, which has not seen the held-out pairs; perhaps none.

    Adam on all weights, with steps in proportion to each weight's root mean square, and on the temperature.
    Returns the held-out relative error of early after these steps.

    Raises:
        FitError: no group has two pairs (contrastive).
    """
    fitted = pairs.rows(~pairs.held)
    held = pairs.rows(pairs.held.nonzero().flatten()[:_MOST_HELD])
    if criterion == "contrastive" and min(int(part.group.bincount().max()) for part in (fitted, held)) < 2:
        raise FitError(
            "every group holds one pair; contrastive refinement expected at least two views of an image: "
            "give groups= and several targets of each, or refine='cosine'"
        )
    loss = _cosine if criterion == "cosine" else _contrastive
    first, temperature = _judged(early, held, loss)
    curve, best, error = [first], 0, _error(early, held)
    for step in _steps(early, fitted, loss, temperature, _STEPS):
        if step % _EVERY == 0:
            curve.append(_judged(early, held, loss)[0])
            best = min(range(len(curve)), key=curve.__getitem__)
            error = _error(early, held) if best == len(curve) - 1 else error
            if len(curve) - 1 - best >= _PATIENCE:
                break
    _LOG.info(
        "%s refinement: %d steps, held-out %.4f to %.4f on %d pairs",
        criterion, best * _EVERY, first, curve[best], len(held.source),
    )  # fmt: skip
    for _ in _steps(steering, pairs, loss, temperature, best * _EVERY):
        pass
    return error


@torch.no_grad()
def _error(steering: SteeringMap, pairs: Pairs) -> float:
    rest = (steering(pairs.source, pairs.theta) - pairs.target).square().sum()
    return float(rest / (pairs.target - pairs.source).square().sum())


def _steps(steering: SteeringMap, pairs: Pairs, loss: Criterion, temperature: float, n: int) -> Iterator[int]:
    """Take n steps; yields the number of steps taken after each."""
    sharpness = torch.tensor(-math.log(temperature), device=pairs.source.device, requires_grad=True)
    rates = {
        weight: _RATE * float(weight.detach().square().mean().sqrt()) for weight in steering.parameters()
    }
    settings = [{"params": [weight], "lr": rate} for weight, rate in (rates | {sharpness: _RATE}).items()]
    optimizer = torch.optim.Adam(settings)
    # The whole course is one for every n, so that fewer steps are the beginning of more.
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=_STEPS)
    generator, taken = torch.Generator().manual_seed(0), 0
    while taken < n:
        for rows in _batches(pairs.group, generator)[: n - taken]:
            batch = pairs.rows(rows)
            optimizer.zero_grad()
            steered = steering(batch.source, batch.theta)
            loss(steered, batch, (-sharpness).exp()[None]).sum().backward()
            optimizer.step()
            decay.step()
            taken += 1
            yield taken
    optimizer.zero_grad()


def _batches(group: Int[Tensor, " n"], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Rows in the order of shuffled groups, cut to size."""
    place = torch.randperm(int(group.max()) + 1, generator=generator).to(group.device)
    return place[group].argsort(stable=True).split(_BATCH)


@torch.no_grad()
def _judged(steering: SteeringMap, pairs: Pairs, loss: Criterion) -> tuple[float, float]:
    """The mean loss at the temperature that serves best (another one must not pass for a better map), and that."""
    temperatures = torch.tensor(_TEMPERATURES, device=pairs.source.device)
    total = torch.zeros_like(temperatures)
    for rows in pairs.group.argsort(stable=True).split(_BATCH):
        batch = pairs.rows(rows)
        steered = steering(batch.source, batch.theta)
        total += len(rows) * loss(steered, batch, temperatures)
    best = int(total.argmin())
    return float(total[best]) / len(pairs.source), _TEMPERATURES[best]


def _cosine(
    steered: Float[Tensor, "n d"], pairs: Pairs, temperatures: Float[Tensor, " t"]
) -> Float[Tensor, " t"]:
    return (1 - F.cosine_similarity(steered, pairs.target, dim=-1).mean()).expand(len(temperatures))


def _contrastive(
    steered: Float[Tensor, "n d"], pairs: Pairs, temperatures: Float[Tensor, " t"]
) -> Float[Tensor, " t"]:
    """Cross-entropy of the own target among those of the group, at each temperature, and the relative error.

    The cross-entropy alone lets steered embeddings drift far from real ones, whose squared error then multiplies.
    """
    cosine = F.normalize(steered, dim=-1) @ F.normalize(pairs.target, dim=-1).T
    foreign, own = pairs.group[:, None] != pairs.group, torch.arange(len(steered), device=steered.device)
    # masked after the division: the gradient of a temperature below infinity is not a number
    logits = [(cosine / temperature).masked_fill(foreign, -torch.inf) for temperature in temperatures]
    rest = (steered - pairs.target).square().sum() / (pairs.target - pairs.source).square().sum()
    return torch.stack([F.cross_entropy(each, own) for each in logits]) + _WEIGHT * rest
