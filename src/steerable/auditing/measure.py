"""Figures of one model and one map on embeddings that are there already, by `steerable.metrics`.

A figure that is not defined (nothing moves, nothing varies) is None, never nan.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from steerable import metrics
from steerable.maps import SteeringMap
from steerable.theta import Param, wrap

Figures = dict[str, float | None]

STILL = 1e-10  # an invariance level below this is float rounding: a ratio to it means nothing
TRUE_VIEWS = 10  # views of an image that are the true one in turn: ten ranks per image, for less noise
RIDGES = [10.0**exponent for exponent in range(-3, 5)]


def motion_figures(
    source: Float[Tensor, "n d"], target: Float[Tensor, "n d"], steered: Float[Tensor, "n d"]
) -> Figures:
    """Relative error (raw and on unit embeddings), invariance level and R2 of n pairs."""
    unit = [F.normalize(e, dim=-1) for e in (source, target, steered)]
    moved = defined(metrics.invariance_level(source, target))
    turned = defined(metrics.invariance_level(unit[0], unit[1]))
    still = moved is None or moved < STILL
    return {
        "relative_error": None if still else defined(metrics.relative_error(source, target, steered)),
        "relative_error_cosine": (
            None if turned is None or turned < STILL else defined(metrics.relative_error(*unit))
        ),
        "invariance_level": moved,
        "r2": defined(metrics.r2(target, steered)),
    }


def rank_figures(steered: Float[Tensor, "n v d"], views: Float[Tensor, "n v d"]) -> Figures:
    """MRR, Hit@1 and Hit@5 among the v views of the same image.

    steered: what the map predicts for each view. views: the views, encoded.
    """
    count = min(TRUE_VIEWS, views.shape[1])
    ranks = []
    for place in torch.linspace(0, views.shape[1] - 1, count).round().long().tolist():
        true = torch.full((len(views),), place, dtype=torch.int64, device=views.device)
        ranks.append(metrics.view_ranks(steered[:, place], views, true))
    rank = torch.cat(ranks)
    return {
        "mrr": metrics.mean_reciprocal_rank(rank),
        "hit_at_1": metrics.hit_at(rank, 1),
        "hit_at_5": metrics.hit_at(rank, 5),
    }


def chance_figures(views: int) -> Figures:
    """What guessing among that many views scores."""
    return {
        "mrr": math.fsum(1 / rank for rank in range(1, views + 1)) / views,
        "hit_at_1": 1 / views,
        "hit_at_5": min(1.0, 5 / views),
    }


def law_figures(
    steering: SteeringMap,
    e: Float[Tensor, "n d"],
    first: Float[Tensor, "n p"],
    second: Float[Tensor, "n p"],
    params: Sequence[Param],
) -> Figures:
    """Root mean square violations of the laws, as shares of the effect |M(a) e - e|; a is first, b second.

    Identity |M(0) e - e|, composition |M(b) M(a) e - M(a + b) e|, inverse |M(-a) M(a) e - e|. Sums and
    differences wrap where a coordinate has a period. None for a map that does nothing.
    """
    moved = steering(e, first)
    effect = _rms(moved - e)
    back = steering(moved, wrap(-first, params))
    twice = steering(moved, second) - steering(e, wrap(first + second, params))
    still = effect <= math.sqrt(STILL) * _rms(e)
    violations = {
        "law_identity": steering(e, torch.zeros_like(first)) - e,
        "law_composition": twice,
        "law_inverse": back - e,
    }
    return {name: None if still else defined(_rms(v) / effect) for name, v in violations.items()}


def decoding_figures(
    source: Float[Tensor, "n d"], target: Float[Tensor, "n d"], theta: Float[Tensor, "n p"], n_train: int
) -> list[float | None]:
    """R2 of theta, per coordinate, read from [e, e' - e] by ridge regression.

    The first n_train pairs train it (its strength by generalized cross-validation, per coordinate), the
    others measure it: give pairs of different images there.
    """
    from sklearn.linear_model import RidgeCV

    inputs = torch.cat([source, target - source], dim=1).double()
    mean, spread = inputs[:n_train].mean(0), inputs[:n_train].std(0)
    inputs = ((inputs - mean) / torch.where(spread > 0, spread, 1)).cpu().numpy()
    wanted = theta.double().cpu()
    ridge = RidgeCV(alphas=[n_train * strength for strength in RIDGES], alpha_per_target=True)
    ridge.fit(inputs[:n_train], wanted[:n_train].numpy())
    predicted = torch.from_numpy(ridge.predict(inputs[n_train:])).reshape(len(wanted) - n_train, -1)
    return [defined(value) for value in metrics.column_r2(wanted[n_train:], predicted)]


def neighbor_accuracy(
    gallery: Float[Tensor, "n d"],
    gallery_labels: Int64[Tensor, " n"],
    query: Float[Tensor, "b d"],
    query_labels: Int64[Tensor, " b"],
) -> float | None:
    """`metrics.knn_accuracy` (k = 20, T = 0.07); None where no query's class is in the gallery."""
    if not bool(torch.isin(query_labels, gallery_labels).any()):
        return None
    device = query.device
    return metrics.knn_accuracy(gallery, gallery_labels.to(device), query, query_labels.to(device))


def defined(value: float) -> float | None:
    """The value, or None where it is not finite."""
    return value if math.isfinite(value) else None


def _rms(e: Tensor) -> float:
    return e.double().square().sum(-1).mean().sqrt().item()
