"""Losses on embeddings: equivariance in several forms, prediction of theta, and uniformity.

Everywhere source is e(x), target e(t x), and steered M(theta) e(x) + b(theta). Maps act on raw embeddings; who needs
unit vectors normalizes here.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steerable.theta import Param

EPS = 1e-6


def squared(
    source: Float[Tensor, "b d"], target: Float[Tensor, "b d"], steered: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """Mean |target - steered|^2, divided by the batch variance of the embeddings (detached).

    Without the division, shrinking every embedding wins; with the division differentiated, the spread would grow
    without bound.
    """
    spread = torch.cat([source, target]).detach().var(dim=0, correction=0).sum()
    return (target - steered).square().sum(-1).mean() / (spread + EPS)


def relative(
    source: Float[Tensor, "b d"], target: Float[Tensor, "b d"], steered: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """sum |target - steered|^2 / sum |target - source|^2, both differentiated: motion must grow and be predictable.

    This is the relative equivariance error itself; unlike ``squared`` it does not reward ignoring the transform.
    """
    moved = (target - source).square().sum()
    return (target - steered).square().sum() / (moved + EPS * source.detach().square().sum() + EPS)


def contrastive(
    target: Float[Tensor, "b d"], orbits: Float[Tensor, "b v d"], *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Cross-entropy of finding, among v steered versions of e(x), the one steered by the theta that was applied.

    orbits: versions of each item's own e(x); the first is steered by the theta that made its target, the others by
    thetas of other items. The negatives are views of the same image, so only the transform tells them apart, and
    they cost no encoder pass. Cosine similarity over ``temperature``.
    """
    # dividing the products by the norms, not each orbit by its own, keeps a copy of all orbits out of the graph
    products = torch.einsum("bd,bvd->bv", F.normalize(target, dim=-1), orbits)
    similarity = products / orbits.norm(dim=-1).clamp_min(EPS)
    return -(similarity / temperature).log_softmax(-1)[:, 0].mean()


def instance(
    target: Float[Tensor, "b d"], steered: Float[Tensor, "b d"], *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each steered embedding's own target among the b targets; cosine over ``temperature``.

    The negatives are other images, so what tells a view apart from its image's other views is not asked for. EquiMod's
    equivariance term (Devillers and Lefort, arXiv 2211.01244).
    """
    similarity = F.normalize(steered, dim=-1) @ F.normalize(target, dim=-1).T
    return F.cross_entropy(similarity / temperature, torch.arange(len(target), device=target.device))


def prediction(
    predicted: Float[Tensor, "b w"], theta: Float[Tensor, "b p"], params: Sequence[Param]
) -> Float[Tensor, ""]:
    """Mean over coordinates of the squared error of theta in units of its scale, or of the cross-entropy of its level.

    predicted: `prediction_width` columns, those of one coordinate after those of the other: one where it is continuous,
    one for each of its levels where it is not. AugSelf's auxiliary loss where both views are given (Lee et al., arXiv
    2111.09613), E-SSL's where one is (Dangovski et al., arXiv 2111.00899).
    """
    terms, column = [], 0
    for i, param in enumerate(params):
        if param.levels is None:
            terms.append((predicted[:, column] - theta[:, i] / param.scale).square().mean())
            column += 1
        else:
            level = ((theta[:, i] - param.low) / param.step).round().long()
            terms.append(F.cross_entropy(predicted[:, column : column + param.levels], level))
            column += param.levels
    return torch.stack(terms).mean()


def prediction_width(params: Sequence[Param]) -> int:
    """Columns that `prediction` reads."""
    return sum(param.levels or 1 for param in params)


def uniformity(e: Float[Tensor, "b d"], *, t: float = 2.0) -> Float[Tensor, ""]:
    """log E exp(-t |u - v|^2) over pairs of unit vectors; 0 for a collapsed batch, lower is more spread.

    On unit vectors because on raw ones growing norms would win. Formula: Wang and Isola, Understanding Contrastive
    Representation Learning through Alignment and Uniformity on the Hypersphere (arXiv 2005.10242).
    """
    u = F.normalize(e, dim=-1)
    b = e.shape[0]
    # an item's distance to itself is masked, not cut out: a GPU would be waited for
    itself = torch.eye(b, dtype=torch.bool, device=e.device)
    pairs = (2 * t * (u @ u.T - 1)).masked_fill(itself, -math.inf)
    return pairs.flatten().logsumexp(0) - (math.log(b * (b - 1)) if b > 1 else -math.inf)


def nt_xent(
    a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], *, temperature: float = 0.2
) -> Float[Tensor, ""]:
    """SimCLR's loss: cross-entropy of finding an item's other view among both views of all items (Chen et al., 2020).

    Cosine similarity over ``temperature``; equals lightly's NTXentLoss, but cuts nothing out, for which a GPU would be
    waited for.
    """
    u = F.normalize(torch.cat([a, b]), dim=-1)
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    similarity = (u @ u.T / temperature).masked_fill(itself, -math.inf)
    return F.cross_entropy(similarity, torch.arange(len(u), device=u.device).roll(len(a)))
