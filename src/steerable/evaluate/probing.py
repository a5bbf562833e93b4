"""Linear probes: what a linear classifier reads from frozen embeddings."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from steerable.errors import ShapeError

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
) -> ProbeResult:
    """L2 logistic regression on frozen embeddings, its strength chosen on 10 % of train, then refitted on all of train.

    train (n, d), test (b, d): embeddings, standardized by train's mean and deviation; labels (n,), (b,).

    Raises:
        ShapeError: lengths or widths that differ, or fewer than two classes.
    """
    if len(train) != len(train_labels) or len(test) != len(test_labels) or train.shape[1:] != test.shape[1:]:
        raise ShapeError(
            f"train is {tuple(train.shape)} with {len(train_labels)} labels and test {tuple(test.shape)} with "
            f"{len(test_labels)}; expected (n, d) and (b, d) with n and b labels: pair them up"
        )
    x, y, x_test, y_test = (part.cpu().numpy() for part in (train, train_labels, test, test_labels))
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        raise ShapeError(f"train has {len(classes)} class; a probe expected at least 2: give labeled images")
    # a class with a single image cannot be in both parts
    stratify = y if counts.min() > 1 and len(y) // 10 >= len(classes) else None
    x_fit, x_val, y_fit, y_val = train_test_split(x, y, test_size=0.1, random_state=seed, stratify=stratify)
    c = max(grid, key=lambda c: _fitted(x_fit, y_fit, c).score(x_val, y_val))
    predicted = _fitted(x, y, c).predict(x_test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # test may lack a class of train
        per_class = balanced_accuracy_score(y_test, predicted)
    return ProbeResult(float((predicted == y_test).mean()), float(per_class), c)


def _fitted(x: Any, y: Any, c: float) -> Any:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300))
    with warnings.catch_warnings():
        # weak regularization of separable data has its optimum at infinity; the iterate is what counts
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)
