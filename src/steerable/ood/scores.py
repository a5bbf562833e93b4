"""What the logits of an image's views say about whether it belongs: one number per image, higher is further out."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "b v c"]
Scores = Float[Tensor, " b"]


def confidence(logits: Logits) -> Scores:
    """1 - the largest of the views' mean probabilities."""
    return 1 - logits.softmax(-1).mean(1).amax(-1)


def entropy(logits: Logits) -> Scores:
    """Entropy of the views' mean probabilities, in nats."""
    return _entropy(logits.softmax(-1).mean(1))


def mean_entropy(logits: Logits) -> Scores:
    """Mean of the views' entropies, in nats."""
    return _entropy(logits.softmax(-1)).mean(1)


def mutual_information(logits: Logits) -> Scores:
    """`entropy` - `mean_entropy`: what the views disagree about, in nats."""
    return entropy(logits) - mean_entropy(logits)


def disagreement(logits: Logits) -> Scores:
    """Share of views whose largest logit is not the class of the merged probabilities."""
    merged = logits.softmax(-1).mean(1).argmax(-1, keepdim=True)
    return (logits.argmax(-1) != merged).float().mean(1)


def spread(logits: Logits) -> Scores:
    """Root mean square distance of the views' centered logits from their mean."""
    centered = logits - logits.mean(-1, keepdim=True)
    return (centered - centered.mean(1, keepdim=True)).square().mean((1, 2)).sqrt()


def energy(logits: Logits) -> Scores:
    """Mean of the views' energies, - log sum exp."""
    return -logits.logsumexp(-1).mean(1)


def max_logit(logits: Logits) -> Scores:
    """- mean of the views' largest logits."""
    return -logits.amax(-1).mean(1)


ORBIT_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        confidence, entropy, mean_entropy, mutual_information, disagreement, spread, energy, max_logit,
    )
}  # fmt: skip
"""Functions of logits (b, v, c) by name."""


def _entropy(probabilities: Float[Tensor, "*b c"]) -> Float[Tensor, "*b"]:
    return torch.special.entr(probabilities).sum(-1)
