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
    into one linear layer: a snapshot, so build it anew after the model has changed.

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
        self.basis: nn.Linear | None = None
        if model.steering.linear_in_phi and of != "embeddings":
            self.basis = as_linear(
                lambda e: logit_basis(model.steering, model.head, e).flatten(1), model.head
            )
            self.basis.requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b d"]]:
        e = self.model(images)
        with torch.autocast(e.device.type, enabled=False):
            if self.basis is None:
                out = merged(
                    self.model.steering,
                    self.model.head,
                    e,
                    self.thetas,
                    self.how,
                    of=self.of,
                    weights=self._given(),
                )
            else:
                basis = self.basis(e).unflatten(1, (-1, self.model.head.out_features))
                out = merged_basis(
                    basis, design(self.model.steering, self.thetas), self.weights, self.how, self.of
                )
            return out if self.of == "probabilities" else out.softmax(-1), e

    def _given(self) -> Tensor | None:
        return None if self.how in ("max", "min") else self.weights
