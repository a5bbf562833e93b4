"""pytorch-ood's detectors on embeddings and a linear head, all with one interface."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.errors import ConfigError, MissingExtra, one_of

_BUILDERS: dict[str, Callable[[Any, nn.Linear], Any]] = {
    "msp": lambda d, head: d.MaxSoftmax(None),
    "max_logit": lambda d, head: d.MaxLogit(None),
    "energy": lambda d, head: d.EnergyBased(None),
    "entropy": lambda d, head: d.Entropy(None),
    "gen": lambda d, head: d.GEN(None),
    "kl_matching": lambda d, head: d.KLMatching(None),
    "knn": lambda d, head: d.KNN(None),
    "mahalanobis": lambda d, head: d.Mahalanobis(None),
    "relative_mahalanobis": lambda d, head: d.RMD(None),
    # the authors' subspace takes half of 1024 and a quarter of 2048 features and more
    "vim": lambda d, head: d.ViM(None, min(512, head.in_features // 2), head.weight, _bias(head)),
    "nnguide": lambda d, head: d.NNGuide(None, head),
    "fdbd": lambda d, head: d.fDBD(None, head),
}

BASELINES = tuple(_BUILDERS)
"""Names of the single-pass detectors that `baseline` builds."""


class Baseline:
    """One of pytorch-ood's detectors, fed with embeddings; `baseline` makes it."""

    def __init__(self, detector: Any, head: nn.Linear):
        self.detector = detector
        self.head = head
        self.on_logits = hasattr(detector, "predict_logits")

    @torch.no_grad()
    def fit_features(self, e: Float[Tensor, "n d"], y: Tensor) -> "Baseline":
        """Fit on embeddings (n, d) with labels (n,); below zero is foreign."""
        if self.on_logits:
            self.detector.fit_logits(self.head(e), y)
        else:
            self.detector.fit_features(e, y)
        return self

    @torch.no_grad()
    def predict_features(self, e: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Scores (b,) of embeddings (b, d)."""
        if self.on_logits:
            return self.detector.predict_logits(self.head(e)).float()
        return self.detector.predict_features(e).float()


def baseline(name: str, head: nn.Linear) -> Baseline:
    """A detector of pytorch-ood by name, with its own settings, on embeddings and the logits of ``head``.

    Raises:
        ConfigError: an unknown name. MissingExtra: pytorch-ood is not installed.
    """
    if name not in _BUILDERS:
        raise ConfigError(f"baseline {name!r} is unknown; {one_of(name, BASELINES)}")
    try:
        from pytorch_ood import detector
    except ImportError:
        raise MissingExtra("pytorch-ood", "eval") from None
    return Baseline(_BUILDERS[name](detector, head), head)


def _bias(head: nn.Linear) -> Tensor:
    return head.weight.new_zeros(head.out_features) if head.bias is None else head.bias
