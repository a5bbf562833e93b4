"""What the figures mean: every metric that the project prints, as a function of tensors.

Conventions are those of docs/protocols.md. Sums run over all items, so a ratio is a ratio of sums, not a mean
of ratios.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

KNN_BLOCK = 1024  # queries whose similarities to the whole gallery are in memory at one time


def relative_error(
    source: Float[Tensor, "n d"], target: Float[Tensor, "n d"], steered: Float[Tensor, "n d"]
) -> float:
    """sum |target - steered|^2 / sum |target - source|^2: 0 is perfect, 1 no better than not steering.

    source is e(x), target e(t x), steered M e(x). Infinite where nothing moves but the map does; nan where
    neither does.
    """
    return _ratio((target - steered).double().square().sum(), (target - source).double().square().sum())


def invariance_level(source: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> float:
    """sum |e(t x) - e(x)|^2 / sum |e(x) - mean|^2: 0 is an encoder that ignores the transform."""
    spread = (source - source.mean(0)).double().square().sum()
    return _ratio((target - source).double().square().sum(), spread)


def r2(target: Float[Tensor, "n d"], steered: Float[Tensor, "n d"]) -> float:
    """1 - sum |target - steered|^2 / sum |target - mean|^2, with the mean of each coordinate over items."""
    return 1 - _ratio(
        (target - steered).double().square().sum(), (target - target.mean(0)).double().square().sum()
    )


def column_r2(target: Float[Tensor, "n p"], predicted: Float[Tensor, "n p"]) -> list[float]:
    """R2 of each column against that column's own mean."""
    residual = (target - predicted).double().square().sum(0)
    total = (target - target.mean(0)).double().square().sum(0)
    return [1 - _ratio(r, t) for r, t in zip(residual, total, strict=True)]


TIED = 1e-6


def view_ranks(
    steered: Float[Tensor, "n d"], views: Float[Tensor, "n v d"], true: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Rank (1 is best) of the true view of each image among v views of the same image, by cosine.

    A tie counts against us at its middle place, so that a collapsed encoder scores as chance does. Cosines within 1e-6
    of each other are tied: float32 does not tell them apart, and its rounding differs between processors.
    """
    similarity = torch.einsum("nd,nvd->nv", F.normalize(steered, dim=-1), F.normalize(views, dim=-1))
    own = similarity.gather(1, true[:, None])
    ahead = (similarity > own + TIED).sum(1)
    tied = ((similarity - own).abs() <= TIED).sum(1) - 1
    return 1 + ahead + tied // 2


def mean_reciprocal_rank(ranks: Int[Tensor, " n"]) -> float:
    """Mean of 1 / rank; chance among v views is (1 + 1/2 + ... + 1/v) / v, 0.09 for 50."""
    return (1 / ranks.double()).mean().item()


def hit_at(ranks: Int[Tensor, " n"], k: int) -> float:
    """Share of items whose rank is at most k; chance among v views is k / v."""
    return (ranks <= k).double().mean().item()


def paired_gain(ours: Bool[Tensor, " n"], plain: Bool[Tensor, " n"]) -> tuple[float, float]:
    """Difference of the shares of two hits on the same n items, and its standard error."""
    difference = ours.double() - plain.double()
    return difference.mean().item(), (difference.std(correction=0) / len(difference) ** 0.5).item()


def knn_accuracy(
    gallery: Float[Tensor, "n d"],
    gallery_labels: Int[Tensor, " n"],
    query: Float[Tensor, "b d"],
    query_labels: Int[Tensor, " b"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of the queries whose class `knn_classes` finds."""
    found = knn_classes(gallery, gallery_labels, query, k=k, temperature=temperature)
    return (found == query_labels).double().mean().item()


def knn_classes(
    gallery: Float[Tensor, "n d"],
    gallery_labels: Int[Tensor, " n"],
    query: Float[Tensor, "b d"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Int[Tensor, " b"]:
    """Classes by weighted nearest neighbors: the score of a class is the sum of exp(cos / T) over the top k.

    Formula: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination (arXiv
    1805.01978).
    """
    unit = F.normalize(gallery, dim=-1)
    classes, found = int(gallery_labels.max()) + 1, []
    for part in F.normalize(query, dim=-1).split(KNN_BLOCK):
        top, index = (part @ unit.T).topk(min(k, len(unit)), dim=1)
        scores = torch.zeros(len(part), classes, device=query.device)
        scores.scatter_add_(1, gallery_labels[index], (top / temperature).exp())
        found.append(scores.argmax(1))
    return torch.cat(found)


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    return (numerator / denominator).item()  # 0/0 is nan and x/0 inf: an undefined ratio must look undefined


def ood_figures(known: Float[Tensor, " n"], foreign: Float[Tensor, " m"]) -> dict[str, float]:
    """How well scores (higher is further out) part in-distribution items from foreign ones; all in [0, 1].

    auroc: chance that a foreign item scores higher, ties half; 0.5 is guessing. aupr_out, aupr_in: average
    precision with foreign items, or in-distribution items, as positives; these two depend on n and m.
    fpr95_ood_positive: share of in-distribution items at or above the score that 95 % of the foreign items
    reach. fpr95_id_positive: share of foreign items at or below the score that 95 % of the
    in-distribution items stay within.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = torch.cat([known, foreign]).double().cpu()
    is_foreign = torch.cat([torch.zeros(len(known)), torch.ones(len(foreign))])
    return {
        "auroc": float(roc_auc_score(is_foreign, scores)),
        "aupr_in": float(average_precision_score(1 - is_foreign, -scores)),
        "aupr_out": float(average_precision_score(is_foreign, scores)),
        "fpr95_ood_positive": _false_positives(foreign, known),
        "fpr95_id_positive": _false_positives(-known, -foreign),
    }


def _false_positives(
    positive: Float[Tensor, " n"], negative: Float[Tensor, " m"], *, keep: float = 0.95
) -> float:
    """Share of negatives at or above the score that the share ``keep`` of the positives reaches."""
    place = math.ceil(keep * len(positive) - 1e-9) - 1
    limit = positive.sort(descending=True).values[place]
    return (negative >= limit).double().mean().item()
