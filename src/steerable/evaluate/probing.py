"""Linear probes: what a linear classifier reads from frozen embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerable.errors import ConfigError, ShapeError
from steerable.evaluate.minibatch import as_head, minibatch_head, split_off, steered
from steerable.maps import SteeringMap

ITERATIONS, TOLERANCE = 300, 1e-4  # per C; of the largest entry of the gradient; scikit-learn's in spirit
C_GRID = tuple(float(c) for c in np.logspace(-6, 5, 45))
"""The 45 inverse strengths of L2 of the protocol; every fifth is a quick grid."""


def strengths(count: int) -> tuple[float, ...]:
    """At most ``count`` values of `C_GRID`, evenly spaced from its low end: 9 are every fifth.

    Raises:
        ConfigError: a count out of range.
    """
    if not 1 <= count <= len(C_GRID):
        raise ConfigError(
            f"the grid has {count} values of C; expected 1 to {len(C_GRID)}: correct it (--grid)"
        )
    return C_GRID[:: -(-len(C_GRID) // count)]


@dataclass(frozen=True)
class ProbeResult:
    """accuracy: top-1, in [0, 1]. per_class: mean over classes. c: the strength chosen on validation."""

    accuracy: float
    per_class: float
    c: float


def probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    steering: SteeringMap | None = None,
    thetas: Tensor | None = None,
) -> ProbeResult:
    """L2 logistic regression on frozen embeddings, its strength chosen on 10 % of train, then refitted on all of train.

    train (n, d), test (b, d): embeddings, standardized by train's mean and deviation; labels (n,), (b,).
    steering, thetas (v, p): train on steered embeddings, augmentation without images: each step of a minibatch
    solver draws one theta and moves half of its embeddings by it. Test embeddings stay as they are.

    Raises:
        ShapeError: lengths or widths that differ, or fewer than two classes.
    """
    if len(test) != len(test_labels) or train.shape[1:] != test.shape[1:]:
        raise ShapeError(
            f"train is {tuple(train.shape)} and test {tuple(test.shape)} with {len(test_labels)} labels; "
            "expected (n, d) and (b, d) with b labels: pair them up"
        )
    if steering is None or thetas is None:
        head, c = linear_head(train, train_labels, grid=grid, seed=seed)
    else:
        head, c = minibatch_head(train, train_labels, steered(train, steering, thetas), grid=grid, seed=seed)
    return scored(head, c, test, test_labels)


def linear_head(
    train: Tensor,
    labels: Tensor,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    held_out: Tensor | None = None,
) -> tuple[nn.Linear, float]:
    """The probe itself: a linear layer on embeddings as they are (n, d), and the C chosen on ``held_out``.

    Outputs are numbered as labels (n,) are; those between 0 and the largest that do not occur are never chosen.
    held_out: rows to choose C on; by default 10 % by class. The layer is fitted to all rows, on train's device.

    L-BFGS on all rows at once, at most 300 steps for each C, which starts from the solution for the one below. The
    objective is scikit-learn's; where its optimum lies far out (large C, separable data), so that the tolerance decides
    where to stop, accuracy may differ from scikit-learn's by a point or two.

    Raises:
        ShapeError: lengths that differ, or fewer than two classes.
    """
    fit, val = _parted(labels, len(train), seed, held_out)
    classes, y = torch.unique(labels.to(train.device), return_inverse=True)
    mean, scale = train.mean(0), train.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    x = (train - mean) / scale
    weight, best = x.new_zeros(len(classes), x.shape[1] + 1), (-1.0, 0.0, x)
    fit_x, fit_y, val_x, val_y = x[fit], y[fit], x[val], y[val]
    for c in sorted(grid):
        weight = _solved(fit_x, fit_y, c, weight)
        right = (_logits(val_x, weight).argmax(1) == val_y).double().mean().item()
        best = max(
            best, (right, c, weight), key=lambda found: found[0]
        )  # of equals the first, the smallest C
    _, c, weight = best
    weight = _solved(x, y, c, weight)
    return as_head(weight[:, :-1], weight[:, -1], mean.cpu(), scale.cpu(), classes.cpu()), c


def scored(head: nn.Linear, c: float, test: Tensor, labels: Tensor) -> ProbeResult:
    """What a head reads from test embeddings (b, d) with labels (b,)."""
    with torch.no_grad():
        predicted = head(test.to(head.weight)).argmax(1)
    return ProbeResult(*accuracies(predicted, labels), c)


def accuracies(predicted: Int[Tensor, " b"], labels: Int[Tensor, " b"]) -> tuple[float, float]:
    """Top-1, and the mean over the classes that occur of the share of each that was told right."""
    right, y = (predicted.cpu() == labels.cpu()).double(), labels.cpu()
    counts = torch.bincount(y)
    hits = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, y, right)
    return right.mean().item(), (hits / counts)[counts > 0].mean().item()


def _parted(labels: Tensor, n: int, seed: int, held_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows that are fitted and rows that C is chosen on."""
    fit, val = (torch.from_numpy(rows) for rows in split_off(labels, n, seed))
    if held_out is None:
        return fit, val
    rows = torch.ones(n, dtype=torch.bool)
    rows[held_out.cpu()] = False
    return rows.nonzero().flatten(), held_out.cpu()


def _logits(x: Float[Tensor, "n d"], weight: Float[Tensor, "c e"]) -> Float[Tensor, "n c"]:
    """The last column of weight is the bias."""
    return torch.addmm(weight[:, -1], x, weight[:, :-1].T)


def _solved(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], c: float, start: Float[Tensor, "c e"]
) -> Float[Tensor, "c e"]:
    """Weights and bias that minimize mean cross-entropy + |weights|^2 / (2 n C)."""
    weight = start.clone().requires_grad_()
    # two classes have one vector in scikit-learn, which is the difference of ours
    penalty = (2 if len(start) == 2 else 1) / (c * len(x))
    rows = torch.arange(len(x), device=x.device)
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=ITERATIONS,
        tolerance_grad=TOLERANCE,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def objective() -> Tensor:
        log_p = _logits(x, weight).log_softmax(1)
        loss = -log_p[rows, y].mean() + penalty / 2 * weight[:, :-1].square().sum()
        p = log_p.exp_()
        p[rows, y] -= 1
        weight.grad = torch.cat([p.T @ x, p.sum(0)[:, None]], 1) / len(x)
        weight.grad[:, :-1] += penalty * weight[:, :-1]
        return loss

    optimizer.step(objective)
    return weight.detach()
