"""Adapters: a small layer on frozen embeddings that turns up what moves predictably and turns down the rest."""

import logging
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.encoders import Neck
from steerable.errors import ConfigError, FitError, one_of
from steerable.fitting import fit_embeddings
from steerable.maps import SteeringMap
from steerable.posthoc.pairs import Pair
from steerable.posthoc.training import HELD, Table, train_adapter

ADAPTERS = ("discriminant", "linear", "hidden")
WIDTH = 512  # principal directions of the raw embedding that an adapter reads: its own price, and the map's
_FAR = 3.0  # distance of the embeddings' mean from zero, in their root mean square distances from the mean
_NOISE = 1e-2  # share of the mean residual variance that is added to each direction's
_LOG = logging.getLogger(__name__)


def adapted(
    neck: Neck,
    pairs: Iterable[Pair],
    plain: Float[Tensor, "n r"],
    final: slice,
    kind: str,
    *,
    views: int,
    settings: dict,
    memory: float = 2.0,
    width: int = WIDTH,
    seed: int = 0,
) -> Neck:
    """The neck with an adapter behind its standardization.

    "discriminant" is a closed form: Fisher's linear discriminant (1936) with the motion that a map predicts, across
    the views of one image, as what to tell apart, and what the map leaves unexplained as noise. Directions are made
    independent, and scaled by the root of predictable over unpredictable variance; of the ``width`` leading principal
    directions none is dropped, so that a linear probe reads what it could read there. "linear" and "hidden" (one layer
    with GELU) start there and are trained: contrast among views of one image, relative error, uniformity, and the
    divergence from the encoder's own neighborhoods.

    All end with an offset along the least predictable direction, three times as long as the rest: cosines of centered
    embeddings leave their lengths out, by which views of a picture differ, while from afar a cosine ranks as the
    distance does. Maps, distances and linear probes do not notice.

    neck: a standardizing one. pairs: of its embeddings (n, r), ``views`` for each image, ids from 0 to n - 1.
    plain: embeddings of all images; final: the columns of the last layer.
    settings: map, features, projection, scales, periods, as `fit_embeddings` takes them. memory: GiB.

    Raises:
        ConfigError, FitError: as `check_adapter`.
    """
    n, r = plain.shape
    check_adapter(kind, n, views, r, width=width, memory=memory)
    settings = {**settings, "memory": memory, "strict": False}
    center, frame = _principal(plain, adapted_width(n, r, width), seed)
    fitted, held = _table(pairs, plain, center, frame, final, views).held()
    weight = discriminant(fit_embeddings(**fitted.pairs(), **settings), held)
    layers = _initial(weight, kind)
    if kind != "discriminant":
        train_adapter(_joined(layers), fitted, held, settings, seed=seed)
    with torch.no_grad():
        layers[-1].bias[-1] += _FAR * _joined(layers)(fitted.plain).square().sum(1).mean().sqrt()
    return _behind(neck, layers, center, frame)


def adapted_width(n: int, r: int, width: int = WIDTH) -> int:
    """Width q of embeddings behind an adapter that was made with n images, of raw ones (., r)."""
    return min(width, r, n - 1)


def check_adapter(
    kind: str, n: int, views: int, r: int, *, width: int = WIDTH, memory: float | int = 2.0
) -> int:
    """Bytes that `adapted` needs for n images, known before there are embeddings (., r).

    Raises:
        ConfigError: an unknown kind. FitError: fewer than ten images, one view, or pairs that need more than memory.
    """
    if kind not in ADAPTERS:
        raise ConfigError(f"adapter is {kind!r}; {one_of(kind, ADAPTERS)}")
    if n < 2 * HELD or views < 2:
        raise FitError(
            f"there are {n} images with {views} views; expected for an adapter {2 * HELD} images and 2 views at "
            "least: give more"
        )
    # plain embeddings as read, standardized and centered; pairs as kept, split in two, and as fitting repeats them
    need = 3 * 4 * n * (r + (views + 1) * adapted_width(n, r, width))
    if need > memory * 2**30:
        raise FitError(
            f"an adapter keeps its pairs, and these need {need / 2**30:.2g} GiB; expected at most memory={memory:g}: "
            "give fewer images or views, or raise memory"
        )
    return need


def discriminant(steering: SteeringMap, held: Table) -> Float[Tensor, "q q"]:
    """Columns: directions of q-space from the most to the least predictable motion, scaled by the root of the ratio.

    Of the generalized eigenproblem S w = l R w with S the covariance of predicted motion within images and R that of
    the residual; the embeddings that it is measured on must not have been fitted to.
    """
    with torch.no_grad():
        steered = steering(held.plain[:, None], held.theta)
    rest = (held.moved - steered).flatten(0, 1).double()
    noise = rest.T @ rest / len(rest)
    noise.diagonal().add_(_NOISE * noise.diagonal().mean() + 1e-12)
    motion = (steered - steered.mean(1, keepdim=True)).flatten(0, 1).double()
    v = held.theta.shape[1]
    signal = motion.T @ motion / (len(motion) * (v - 1) / v)
    root = torch.linalg.inv(torch.linalg.cholesky(noise))
    ratios, vectors = torch.linalg.eigh(root @ signal @ root.T)
    # above zero where nothing moves: no direction is lost, nor drowned by the offset in float32
    least = max(1e-6 * float(ratios.max()), 1e-12)
    ratios, vectors = ratios.flip(0).clamp_min(least), (root.T @ vectors).flip(1)
    top = ", ".join(f"{value:.2g}" for value in ratios[[0, len(ratios) // 16, len(ratios) // 4]])
    _LOG.info("adapter: predictable over unpredictable motion, first, 1/16th and 1/4th direction: %s", top)
    scaled = vectors * ratios.sqrt()
    spread = (held.plain.double() @ scaled).var(dim=0).sum().sqrt()
    return (scaled * math.sqrt(len(scaled)) / spread).float()


def _principal(
    plain: Float[Tensor, "n r"], q: int, seed: int
) -> tuple[Float[Tensor, " r"], Float[Tensor, "r q"]]:
    """The mean, and the q leading principal directions, orthonormal (all directions where q is their number)."""
    center = plain.mean(0)
    if q == plain.shape[1]:
        return center, torch.eye(q, device=plain.device)
    own = [plain.device] if plain.is_cuda else []
    with torch.random.fork_rng(devices=own):  # torch's own draws from the global generator
        torch.manual_seed(seed)
        _, _, frame = torch.pca_lowrank(plain - center, q=q, center=False)
    return center, frame


def _table(
    pairs: Iterable[Pair], plain: Tensor, center: Tensor, frame: Tensor, final: slice, views: int
) -> Table:
    n, q = len(plain), frame.shape[1]
    moved, thetas = plain.new_empty(n, views, q), torch.empty(0)
    seen = torch.zeros(n, dtype=torch.int64)
    for _, theta, target, ids in pairs:
        if not thetas.numel():
            thetas = plain.new_empty(n, views, theta.shape[1])
        moved[ids, seen[ids]], thetas[ids, seen[ids]] = (target - center) @ frame, theta.to(plain)
        seen[ids] += 1
    return Table((plain - center) @ frame, thetas, moved, plain[:, final])


def _initial(weight: Float[Tensor, "q q"], kind: str) -> list[nn.Linear]:
    """The discriminant as one layer, or as two that compute the same: gelu(x) - gelu(-x) = x."""
    q = len(weight)
    if kind != "hidden":
        return [_linear(weight.T, weight.new_zeros(q))]
    eye = torch.eye(q, device=weight.device)
    first = _linear(torch.cat([weight.T, -weight.T]), weight.new_zeros(2 * q))
    return [first, _linear(torch.cat([eye, -eye], dim=1), weight.new_zeros(q))]


def _joined(layers: list[nn.Linear]) -> nn.Module:
    return layers[0] if len(layers) == 1 else nn.Sequential(layers[0], nn.GELU(), layers[1])


def _behind(
    neck: Neck, layers: list[nn.Linear], center: Float[Tensor, " r"], frame: Float[Tensor, "r q"]
) -> Neck:
    """The standardizing neck with ``layers``, which act in principal coordinates, made to act on all of e."""
    with torch.no_grad():
        weight = layers[0].weight @ frame.T
        layers = [_linear(weight, layers[0].bias - weight @ center), *layers[1:]]
    hidden = layers[0].out_features if len(layers) > 1 else None
    made = Neck(neck.width, hidden=hidden, out=layers[-1].out_features).to(center.device)
    made.mean.copy_(neck.mean)
    made.scale.copy_(neck.scale)
    made.adapter = _joined(layers)
    return made.eval().requires_grad_(False)


def _linear(weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"]) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
