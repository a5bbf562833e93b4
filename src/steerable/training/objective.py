"""What is trained: the modules of a run, and the terms of its loss."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerable import losses
from steerable.encoders import Encoder
from steerable.errors import MissingExtra
from steerable.maps import SteeringMap
from steerable.training.config import TrainConfig


@dataclass
class Views:
    """One step's outputs: source is the image itself, target its transform."""

    source: Tensor
    """(b, d)"""
    target: Tensor
    """(b, d)"""
    orbits: Tensor | None
    """(b, 1 + negatives, d): e(x) steered by its own theta, then by thetas of other items"""
    outputs: Tensor
    """(2b, c) logits or (2b, projector) projections, source first"""


class Learner(nn.Module):
    """Encoder, map, and the head or projector that the base loss needs: everything that has weights."""

    def __init__(self, encoder: Encoder, steering: SteeringMap | None, config: TrainConfig, n_classes: int):
        super().__init__()
        self.encoder = encoder
        self.steering = steering
        self.negatives = config.negatives if "contrastive" in config.equivariance_weights else 0
        self.readout = _readout(encoder.dim, config, n_classes)
        self.frozen_mode = config.base == "distill"

    def train(self, mode: bool = True) -> "Learner":
        """As for any module, but in distill the encoder stays in evaluation mode while its weights learn.

        BatchNorm's running statistics are the teacher's and are right; those of one small batch, half of it
        transformed, would move every embedding before anything is learned.
        """
        super().train(mode)
        if self.frozen_mode:
            self.encoder.eval()
        return self

    def forward(self, images: Float[Tensor, "b2 3 h w"], theta: Float[Tensor, "b p"]) -> Views:
        """Images and their transforms, stacked, in one pass, so that both share BatchNorm's statistics."""
        e = self.encoder(images)
        source, target = e.chunk(2)
        orbits = None
        if self.steering is not None:
            orbits = self.steering(source[:, None], _with_negatives(theta, self.negatives))
        return Views(source, target, orbits, self.readout(e))


def _with_negatives(theta: Float[Tensor, "b p"], negatives: int) -> Float[Tensor, "b v p"]:
    """Each item's own theta, then those of the items that follow it in the batch."""
    b = theta.shape[0]
    offsets = torch.arange(min(negatives, b - 1) + 1, device=theta.device)
    return theta[(torch.arange(b, device=theta.device)[:, None] + offsets) % b]


def _readout(dim: int, config: TrainConfig, n_classes: int) -> nn.Module:
    if config.base == "supervised":
        return nn.Linear(dim, n_classes)
    if config.base in ("none", "distill"):
        return nn.Identity()
    width = config.projector
    return nn.Sequential(
        nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, width)
    )


class Objective:
    """The weighted terms of the loss, from one step's views."""

    def __init__(self, config: TrainConfig, *, distributed: bool = False):
        self.config = config
        self.base = _base_loss(config, distributed)

    def __call__(self, views: Views, goal: Int[Tensor, " b"] | Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """Terms by name, unweighted, and their weighted sum as "loss".

        goal: labels, or in distill the teacher's embeddings of the images themselves.
        """
        config = self.config
        terms: dict[str, Tensor] = {}
        weights = dict(config.equivariance_weights)
        if config.base == "supervised":
            terms["supervised"] = F.cross_entropy(views.outputs, goal.repeat(2))
        elif config.base == "distill":
            # mean |e(x) - teacher(x)|^2 over the batch variance of the teacher's embeddings: no scale to tune, zero at
            # the start. What is near in every coordinate keeps its neighbors, and the classifier its meaning, which
            # a term on neighborhoods alone would not: they survive any rotation of the space
            terms["distill"] = losses.squared(goal, goal, views.source)
        elif config.base != "none":
            terms[config.base] = self.base(*views.outputs.float().chunk(2))
        if views.orbits is not None:
            steered = views.orbits[:, 0]
            if "squared" in weights:
                terms["squared"] = losses.squared(views.source, views.target, steered)
            if "relative" in weights:
                terms["relative"] = losses.relative(views.source, views.target, steered)
            if "contrastive" in weights:
                terms["contrastive"] = losses.contrastive(
                    views.target, views.orbits, temperature=config.temperature
                )
        if config.uniformity_weight:
            # over both views, so that the spread is that of the images the encoder meets
            terms["uniformity"] = losses.uniformity(torch.cat([views.source, views.target]))
            weights["uniformity"] = config.uniformity_weight
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return {"loss": total, **terms}


def _base_loss(config: TrainConfig, distributed: bool) -> Any:
    if config.base in ("supervised", "distill", "none"):
        return None
    try:
        from lightly import loss as lightly_loss
    except ImportError as error:
        raise MissingExtra("lightly", "train") from error
    if config.base == "simclr":
        return lightly_loss.NTXentLoss(temperature=config.base_temperature, gather_distributed=distributed)
    family = lightly_loss.VICRegLoss if config.base == "vicreg" else lightly_loss.BarlowTwinsLoss
    return family(gather_distributed=distributed)
