"""What is trained: the modules of a run, and the terms of its loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerable import losses
from steerable.encoders import Encoder
from steerable.errors import MissingExtra
from steerable.theta import Param
from steerable.training.config import TrainConfig


@dataclass
class Views:
    """One step's outputs: source is the image itself (after base_chain), target its transform."""

    e: Tensor
    """(2b, d) embeddings, sources first"""
    source: Tensor
    """(b, s) what the map acts on: the embedding, a share of it, or a projection"""
    target: Tensor
    """(b, s)"""
    orbits: Tensor | None
    """(b, 1 + negatives, s): source steered by its own theta, then by thetas of other items"""
    outputs: Tensor
    """(2b, c) logits or (2b, projector) projections, sources first"""
    expanded: tuple[Tensor, Tensor] | None = None
    """(b, projector) each: steered and target, for the vicreg form"""
    predicted: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """by head: what it predicts, and theta: (b, w) and (b, p) of the chain, (2b, w) and (2b, q) of base_chain"""


class Learner(nn.Module):
    """Encoder, map, and the heads that the loss needs: everything that has weights.

    steering: a map of the width `steered_width`, or None. params, base_params: the coordinates of the chain and of
    base_chain, for the heads of prediction.
    """

    def __init__(
        self,
        encoder: Encoder,
        steering: nn.Module | None,
        config: TrainConfig,
        n_classes: int,
        *,
        params: Sequence[Param] = (),
        base_params: Sequence[Param] = (),
    ):
        super().__init__()
        self.encoder = encoder
        self.steering = steering
        self.negatives = config.negatives if "contrastive" in config.equivariance_weights else 0
        self.steered = steered_columns(config, encoder.dim)
        self.plain = slice(0, self.steered.start or encoder.dim)  # all, where the map has all
        width = config.projector
        self.readout = _readout(self.plain.stop, config, n_classes)
        self.lens = None
        if steering is not None and config.steering_at == "projector":
            self.lens = _mlp(self.steered.stop - self.steered.start, width)
        self.expander = None
        if "vicreg" in config.equivariance_weights:
            self.expander = _mlp(steered_width(config, encoder.dim), width)
        inputs = {"chain": (2 * encoder.dim, params), "base": (encoder.dim, base_params)}
        self.predictors = nn.ModuleDict(
            {
                key: _mlp(inputs[key][0], width, losses.prediction_width(inputs[key][1]), depth=3)
                for key, weight in config.prediction.items()
                if weight
            }
        )
        self.frozen_mode = config.base == "distill"
        self.steers_embedding = config.steers_embedding

    def train(self, mode: bool = True) -> "Learner":
        """As for any module, but in distill the encoder stays in evaluation mode while its weights learn.

        BatchNorm's running statistics are the teacher's and are right; those of one small batch, half of it
        transformed, would move every embedding before anything is learned.
        """
        super().train(mode)
        if self.frozen_mode:
            self.encoder.eval()
        return self

    def forward(
        self,
        images: Float[Tensor, "b2 3 h w"],
        theta: Float[Tensor, "n p"],
        base_theta: Float[Tensor, "b q"] | None = None,
    ) -> Views:
        """Images and their transforms, stacked, in one pass, so that both share BatchNorm's statistics.

        theta: what made the transforms, then those of other items, from which the contrastive form's negatives come;
        base_theta: what both went through before, where there is a base_chain.
        """
        e = self.encoder(images)
        steered = e[:, self.steered]
        source, target = (steered if self.lens is None else self.lens(steered).float()).chunk(2)
        orbits = expanded = None
        if self.steering is not None:
            orbits = self.steering(source[:, None], _with_negatives(theta, len(source), self.negatives))
            if self.expander is not None:
                own, true = self.expander(torch.cat([orbits[:, 0], target])).float().chunk(2)
                expanded = own, true
        predicted = {}
        if "chain" in self.predictors:
            predicted["chain"] = (
                self.predictors["chain"](torch.cat(e.chunk(2), dim=1)).float(),
                theta[: len(source)],
            )
        if "base" in self.predictors and base_theta is not None:
            predicted["base"] = self.predictors["base"](e).float(), base_theta.repeat(2, 1)
        return Views(e, source, target, orbits, self.readout(e[:, self.plain]), expanded, predicted)

    def head(self) -> nn.Linear | None:
        """The classifier on the whole embedding, zero in the columns that it did not see; None without labels."""
        if not isinstance(self.readout, nn.Linear) or self.plain.stop == self.encoder.dim:
            return self.readout if isinstance(self.readout, nn.Linear) else None
        head = nn.Linear(self.encoder.dim, self.readout.out_features).to(self.readout.weight)
        with torch.no_grad():
            head.weight.zero_()[:, self.plain] = self.readout.weight
            head.bias.copy_(self.readout.bias)
        return head


class HyperMatrix(nn.Module):
    """e' = sum_k theta_k W_k e, theta in units of its scales: a matrix linear in theta, and zero at zero.

    The form of SIE's predictor (Garrido et al., arXiv 2302.10283), kept for comparison. It breaks the rule of this
    library's maps, M(0) = I, and so is none of them and is never saved.
    """

    scales: Tensor

    def __init__(self, dim: int, params: Sequence[Param]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(params), dim, dim) / dim**0.5)
        self.register_buffer("scales", torch.tensor([param.scale for param in params]), persistent=False)

    def forward(self, e: Float[Tensor, "b 1 d"], theta: Float[Tensor, "b v p"]) -> Float[Tensor, "b v d"]:
        with torch.autocast(e.device.type, enabled=False):
            moves = torch.einsum("bd,pid->bpi", e[:, 0].float(), self.weight)
            return (theta / self.scales) @ moves


def steered_columns(config: TrainConfig, dim: int) -> slice:
    """The columns of the embedding that the equivariance terms see: the last ones."""
    return slice(dim - max(1, round(config.steered_share * dim)), dim)


def steered_width(config: TrainConfig, dim: int) -> int:
    """Width of what the map acts on in training."""
    columns = steered_columns(config, dim)
    return config.projector if config.steering_at == "projector" else columns.stop - columns.start


def _with_negatives(theta: Float[Tensor, "n p"], b: int, negatives: int) -> Float[Tensor, "b v p"]:
    """The first b items' own thetas, each with those of the items that follow it."""
    n = theta.shape[0]
    offsets = torch.arange(min(negatives, n - 1) + 1, device=theta.device)
    return theta[(torch.arange(b, device=theta.device)[:, None] + offsets) % n]


def _readout(dim: int, config: TrainConfig, n_classes: int) -> nn.Module:
    if config.base == "supervised":
        return nn.Linear(dim, n_classes)
    return nn.Identity() if config.base in ("none", "distill") else _mlp(dim, config.projector)


def _mlp(dim: int, width: int, out: int | None = None, *, depth: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, out or width))


class Objective:
    """The weighted terms of the loss, from one step's views."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        params: Sequence[Param] = (),
        base_params: Sequence[Param] = (),
    ):
        self.config = config
        self.base = _base_loss(config.base, config)
        self.vicreg: Any = _base_loss("vicreg", config) if "vicreg" in config.equivariance_weights else None
        self.params = {"chain": params, "base": base_params}

    def __call__(self, views: Views, goal: Int[Tensor, " b"] | Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """Terms by name, unweighted, and their weighted sum as "loss".

        goal: labels, or in distill the teacher's embeddings of the images themselves.
        """
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.base == "supervised":
            terms["supervised"] = F.cross_entropy(views.outputs, goal.repeat(2))
        elif config.base == "distill":
            # mean |e(x) - teacher(x)|^2 over the batch variance of the teacher's embeddings: no scale to tune, zero at
            # the start. What is near in every coordinate keeps its neighbors, and the classifier its meaning, which
            # a term on neighborhoods alone would not: they survive any rotation of the space
            terms["distill"] = losses.squared(goal, goal, views.e.chunk(2)[0])
        elif config.base != "none":
            terms[config.base] = self.base(*views.outputs.float().chunk(2))
        forms = self._equivariance(views)
        # a base loss of the same name has a term of its own
        named = {f"equivariance_{name}" if name == config.base else name: name for name in forms}
        weights = {own: config.equivariance_weights[name] for own, name in named.items()}
        terms |= {own: forms[name] for own, name in named.items()}
        for key, (predicted, theta) in views.predicted.items():
            name = f"prediction_{key}"
            terms[name] = losses.prediction(predicted, theta, self.params[key])
            weights[name] = config.prediction[key]
        if config.uniformity_weight:
            # over both views, so that the spread is that of the images the encoder meets
            terms["uniformity"] = losses.uniformity(views.e)
            weights["uniformity"] = config.uniformity_weight
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return {"loss": total, **terms}

    def _equivariance(self, views: Views) -> dict[str, Tensor]:
        if (orbits := views.orbits) is None:
            return {}
        steered, temperature = orbits[:, 0], self.config.temperature
        forms: dict[str, Callable[[], Tensor]] = {
            "squared": lambda: losses.squared(views.source, views.target, steered),
            "relative": lambda: losses.relative(views.source, views.target, steered),
            "contrastive": lambda: losses.contrastive(views.target, orbits, temperature=temperature),
            "instance": lambda: losses.instance(views.target, steered, temperature=temperature),
            "vicreg": lambda: self.vicreg(*(views.expanded or ())),
        }
        return {name: forms[name]() for name in self.config.equivariance_weights}


def _base_loss(name: str, config: TrainConfig) -> Any:
    if name in ("supervised", "distill", "none"):
        return None
    if name == "simclr":
        return partial(losses.nt_xent, temperature=config.base_temperature)
    try:
        from lightly import loss as lightly_loss
    except ImportError as error:
        raise MissingExtra("lightly", "train") from error
    # views come from all processes: nothing is left to gather
    return lightly_loss.VICRegLoss() if name == "vicreg" else lightly_loss.BarlowTwinsLoss()
