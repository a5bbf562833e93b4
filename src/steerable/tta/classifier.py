"""SteeredClassifier: images to merged probabilities and embeddings in one pass."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.errors import ConfigError, one_of
from steerable.tta.merging import OF, as_linear, checked_weights, design, logit_basis, merged, merged_basis


class SteeredClassifier(nn.Module):
    """Classify by steered views: ``forward(images (b, 3, h, w)) -> (probabilities (b, c), embeddings (b, d))``.

    model: a `SteerableEncoder` with a head. thetas (v, p), weights (v,) or None, how, of: as in `merged`;
    merged logits go through a softmax. For maps that are linear in phi, head and basis are multiplied out here
    into one linear layer, and means and sums of logits or embeddings into one that gives them at once: snapshots,
    so build it anew after the model has changed.

    Raises:
        ConfigError: the model has no head; unknown ``how`` or ``of``; weights that do not fit.
        ThetaError: thetas is not a finite real tensor (v, p).
    """

    thetas: Tensor
    weights: Tensor

    def __init__(
        self,
        model: Any,
        thetas: Tensor,
        *,
        weights: Tensor | None = None,
        how: str = "mean",
        of: str = "probabilities",
    ):
        super().__init__()
        if getattr(model, "head", None) is None:
            raise ConfigError(
                "the model has no head; expected a linear classifier: set model.head = nn.Linear(...)"
            )
        if of not in OF:
            raise ConfigError(f"of is {of!r}; {one_of(of, OF)}")
        self.model, self.how, self.of = model, how, of
        device = model.head.weight.device
        weights = checked_weights(weights, len(thetas), how)
        self.register_buffer("weights", weights[weights > 0].to(device, torch.float32))
        self.register_buffer("thetas", model.steering.features.check(thetas)[weights > 0].to(device))
        steering, head = model.steering, model.head
        self.folded = how in ("mean", "sum") and of != "probabilities"
        self.basis: nn.Linear | None = None
        if steering.linear_in_phi and self.folded:
            self.basis = as_linear(self._merged, head).requires_grad_(False)
        elif steering.linear_in_phi and of != "embeddings":
            self.basis = as_linear(lambda e: logit_basis(steering, head, e).flatten(1), head)
            self.basis.requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b d"]]:
        e = self.model(images)
        with torch.autocast(e.device.type, enabled=False):
            if self.basis is None:
                out = self._merged(e)
            elif self.folded:
                out = self.basis(e)
            else:
                basis = self.basis(e).unflatten(1, (-1, self.model.head.out_features))
                views = design(self.model.steering, self.thetas)
                out = merged_basis(basis, views, self.weights, self.how, self.of)
            return out if self.of == "probabilities" else out.softmax(-1), e

    def _merged(self, e: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        weights = None if self.how in ("max", "min") else self.weights
        return merged(
            self.model.steering, self.model.head, e, self.thetas, self.how, of=self.of, weights=weights
        )
