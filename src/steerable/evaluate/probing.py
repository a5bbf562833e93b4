"""Linear probes: what a linear classifier reads from frozen embeddings."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from steerable.errors import ShapeError
from steerable.evaluate.minibatch import as_head, minibatch_head, split_off, steered
from steerable.maps import SteeringMap

C_GRID = tuple(float(c) for c in np.logspace(-6, 5, 45))
"""The 45 inverse strengths of L2 of the protocol; every fifth is a quick grid."""


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
    train: Tensor, labels: Tensor, *, grid: Sequence[float] = C_GRID, seed: int = 0
) -> tuple[nn.Linear, float]:
    """The probe itself: a linear layer on embeddings as they are (n, d), and the C chosen on 10 % of them.

    Outputs are numbered as labels (n,) are; those between 0 and the largest that do not occur are never chosen.

    Raises:
        ShapeError: lengths that differ, or fewer than two classes.
    """
    x, y = train.cpu().numpy(), labels.cpu().numpy()
    fit, val = split_off(labels, len(train), seed)
    c = max(grid, key=lambda c: _fitted(x[fit], y[fit], c).score(x[val], y[val]))
    scaler, model = _fitted(x, y, c)
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(weight) == 1:  # scikit-learn's form for two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return as_head(weight, bias, scaler.mean_, scaler.scale_, torch.from_numpy(model.classes_)), c


def scored(head: nn.Linear, c: float, test: Tensor, labels: Tensor) -> ProbeResult:
    """What a head reads from test embeddings (b, d) with labels (b,)."""
    with torch.no_grad():
        predicted = head(test.to(head.weight)).argmax(1).cpu().numpy()
    y = labels.cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # test may lack a class of train
        per_class = balanced_accuracy_score(y, predicted)
    return ProbeResult(float((predicted == y).mean()), float(per_class), c)


def _fitted(x: Any, y: Any, c: float) -> Any:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300))
    with warnings.catch_warnings():
        # weak regularization of separable data has its optimum at infinity; the iterate is what counts
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)
