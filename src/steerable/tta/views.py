"""Which views: named sets, and those that help on validation data."""

import itertools
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.errors import ConfigError, ShapeError, ThetaError, one_of
from steerable.maps import SteeringMap
from steerable.theta import named_theta
from steerable.transforms import PRESETS, Chain
from steerable.tta.merging import BLOCK, orbit_logits

_INSET = 0.125  # of the side, which a crop leaves out: 224 of 256 pixels


def _product(**values: tuple[float, ...]) -> list[dict[str, float]]:
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def _crops() -> list[dict[str, float]]:
    """The center and the four corners, each enlarged to the whole frame."""
    scale = 1 / (1 - _INSET)
    shift = (scale - 1) / 2
    corners = [(0.0, 0.0), *itertools.product((shift, -shift), repeat=2)]
    return [{"zoom": math.log2(scale), "shift_x": x, "shift_y": y} for x, y in corners]


VIEWS: Mapping[str, list[dict[str, float]]] = {
    "plain": [{}],
    "hflip": _product(hflip=(0, 1)),
    "flip": _product(hflip=(0, 1), vflip=(0, 1)),
    "d4": _product(rotate=(0, 90, 180, 270), hflip=(0, 1)),
    "multiscale": _product(zoom=(0, 0.25, 0.5, 0.75, 1)),
    "five-crop": _crops(),
    "ten-crop": [{**crop, "hflip": flip} for crop in _crops() for flip in (0.0, 1.0)],
}
"""Named sets of views, as coordinates that are not zero."""


def views(name: str, chain: Chain, *, seed: int = 0, strength: float = 1.0) -> Float[Tensor, "v p"]:
    """Thetas (v, p) of a named set, in the chain's coordinates.

    name: a key of `VIEWS`; or "PRESET:n" such as "simclr:256", or "chain:n" for the chain's own ranges: the untouched
    image and n - 1 draws by ``seed``, multiplied by ``strength`` except for switches. Views outside the range that a
    map was fitted on (`SteerableEncoder.outside`) are extrapolated.

    Raises:
        ConfigError: an unknown name.
        ThetaError: the set moves coordinates that the chain lacks (all are named).
    """
    kind, _, count = name.partition(":")
    known = [*VIEWS, *(f"{preset}:n" for preset in ("chain", *PRESETS))]
    if kind not in (("chain", *PRESETS) if count else VIEWS) or (
        count and not (count.isdecimal() and int(count))
    ):
        raise ConfigError(f"views are {name!r}; {one_of(name, known)}")
    own = [param.name for param in chain.params]
    source = chain if kind == "chain" else Chain.preset(kind) if count else None
    moved = {p.name for p in source.params} if source else {key for view in VIEWS[kind] for key in view}
    missing = sorted(moved.difference(own))
    if missing:
        raise ThetaError(
            f"views {name!r} move {', '.join(missing)}, which the chain lacks; expected only {', '.join(own)}: "
            "choose other views, or fit a map for a chain that has these"
        )
    if source is None:
        return torch.stack([named_theta(chain.params, view) for view in VIEWS[kind]])
    thetas = torch.zeros(int(count), len(own))
    columns = [own.index(param.name) for param in source.params]
    scale = torch.tensor([1.0 if param.is_switch else strength for param in source.params])
    thetas[1:, columns] = scale * source.sample(int(count) - 1, generator=torch.Generator().manual_seed(seed))
    return thetas


def choose_views(
    steering: SteeringMap,
    head: nn.Linear,
    e: Tensor,
    labels: Tensor,
    thetas: Tensor,
    *,
    how: str = "learned",
) -> tuple[Float[Tensor, "u p"], Float[Tensor, " u"]]:
    """The views among thetas (v, p) that help on validation embeddings e (n, d) with labels (n,), and their weights.

    Chosen for the log-likelihood of the weighted mean of probabilities. The untouched view is always a
    candidate, so that on these embeddings the choice is never worse than no views. Returns thetas (u, p) and
    weights (u,) that sum to one.

    how: "learned" gives the weights on the simplex that maximize the log-likelihood (expectation maximization
        for the weights of a mixture; the problem is concave); "greedy" adds one view at a time, with
        repetition, while that helps (Caruana et al., Ensemble selection from libraries of models, 2004).

    Raises:
        ConfigError: unknown ``how``.
        ShapeError, ThetaError: as in `orbit_logits`; or labels that do not fit.
    """
    if how not in _CHOICES:
        raise ConfigError(f"how is {how!r}; {one_of(how, _CHOICES)}")
    if (
        labels.shape != e.shape[:1]
        or not len(e)
        or not 0 <= int(labels.min()) <= int(labels.max()) < head.out_features
    ):
        raise ShapeError(
            f"labels have shape {tuple(labels.shape)} for embeddings {tuple(e.shape)}; expected one index below "
            f"{head.out_features} per embedding: pair them up"
        )
    thetas = torch.cat([torch.zeros_like(thetas[:1]), thetas])
    likelihood = _likelihood(steering, head, e, labels, thetas)
    weights = _CHOICES[how](likelihood)
    if (likelihood @ weights).log().mean() < likelihood[:, 0].log().mean():
        weights = torch.zeros_like(weights)
        weights[0] = 1
    kept = weights > 0
    return thetas[kept.to(thetas.device)], weights[kept].float()


@torch.no_grad()
def _likelihood(
    steering: SteeringMap, head: nn.Linear, e: Tensor, labels: Tensor, thetas: Tensor
) -> Float[Tensor, "n v"]:
    """The probability that each view gives to each embedding's label, in blocks of embeddings."""
    rows = max(1, BLOCK // (len(thetas) * head.out_features))
    parts = []
    for part, y in zip(e.split(rows), labels.to(e.device).split(rows), strict=True):
        p = orbit_logits(steering, head, part, thetas).softmax(-1)
        parts.append(p.gather(2, y.view(-1, 1, 1).expand(-1, p.shape[1], 1))[..., 0])
    return torch.cat(parts).double().clamp(min=1e-30)


def _learned(likelihood: Float[Tensor, "n v"], steps: int = 300, least: float = 1e-3) -> Float[Tensor, " v"]:
    weights = torch.full_like(likelihood[0], 1 / likelihood.shape[1])
    for _ in range(steps):
        weights = weights * (likelihood / (likelihood @ weights).unsqueeze(1)).mean(0)
    weights = weights * (weights >= least)
    return weights / weights.sum()


def _greedy(likelihood: Float[Tensor, "n v"], steps: int = 50) -> Float[Tensor, " v"]:
    counts = torch.zeros_like(likelihood[0])
    counts[0] = 1
    total = likelihood[:, 0]
    for _ in range(steps):
        scores = ((total.unsqueeze(1) + likelihood) / (counts.sum() + 1)).log().mean(0)
        if scores.max() <= (total / counts.sum()).log().mean():
            break
        best = int(scores.argmax())
        counts[best] += 1
        total = total + likelihood[:, best]
    return counts / counts.sum()


_CHOICES = {"learned": _learned, "greedy": _greedy}
