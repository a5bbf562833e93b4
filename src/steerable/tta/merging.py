"""Logits of steered views, and their merges, by contraction: the head meets the map's basis once per embedding.

Where a map is linear in phi, logits of view v are l_0 + sum_k phi_k(theta_v) l_k with l_0 = head(e) and
l_k = W (A_k e + b_k), so that a view costs k multiply-adds per class. Other maps are steered view by view.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from steerable.errors import ConfigError, ShapeError, ThetaError, one_of
from steerable.maps import SteeringMap

MERGES = ("mean", "gmean", "sum", "max", "min", "tsharpen")
"""What `merge` knows, under ttach's names; tsharpen is the mean of square roots."""
OF = ("probabilities", "logits", "embeddings")
"""What `merged` merges."""

BLOCK = (
    2**17
)  # numbers per block of views: logits and probabilities, half a megabyte each, stay in a core's cache
DEVICE_BLOCK = 2**26  # on other devices, where it is the number of calls that costs
_INNER = {"gmean": torch.log, "tsharpen": torch.sqrt}


def orbit_logits(steering: SteeringMap, head: nn.Linear, e: Tensor, thetas: Tensor) -> Float[Tensor, "b v c"]:
    """head(steering.orbit(e, thetas)) without the orbit: (b, v, c) from e (b, d) and thetas (v, p).

    Raises:
        ShapeError: e is not a floating tensor (b, d), or head is of another width.
        ThetaError: thetas is not a finite real tensor (v, p).
    """
    e, thetas = _checked(steering, head, e, thetas)
    if steering.linear_in_phi:
        return design(steering, thetas) @ logit_basis(steering, head, e)
    return _linear(head, steering.orbit(e, thetas))


def merge(outputs: Tensor, how: str = "mean", weights: Tensor | None = None) -> Float[Tensor, "b c"]:
    """Merge outputs (b, v, c) of v views into (b, c), under the names that ttach uses.

    mean; gmean, the geometric mean, and tsharpen, the mean of square roots, both of what is not negative; sum;
    max; min. weights (v,), not negative, count views in the first four; means divide by their sum.

    Raises:
        ConfigError: unknown ``how``, weights that do not fit, or negative outputs for gmean or tsharpen.
        ShapeError: outputs are not (b, v, c).
    """
    if outputs.ndim != 3:
        raise ShapeError(
            f"outputs have shape {tuple(outputs.shape)}; expected (b, v, c): stack the views on axis 1"
        )
    weights = checked_weights(weights, outputs.shape[1], how).to(outputs)
    if how in _INNER and bool((outputs < 0).any()):
        raise ConfigError(
            f"outputs to merge by {how} go below 0; expected probabilities: take a softmax, or use mean"
        )
    return _reduced([outputs[:, weights > 0]], weights[weights > 0], how)


def merged(
    steering: SteeringMap,
    head: nn.Linear,
    e: Tensor,
    thetas: Tensor,
    how: str = "mean",
    *,
    of: str = "probabilities",
    weights: Tensor | None = None,
) -> Float[Tensor, "b c"]:
    """Merge what steered views give, in blocks: (b, v, c) is never held.

    e (b, d), thetas (v, p), weights (v,) or None; how as in `merge`.
    of: "probabilities" gives merged probabilities, "logits" merged logits, and "embeddings" the logits of the
    merged embedding. Means of logits or embeddings cost nothing per view; see also `fold`.

    Raises:
        ConfigError, ShapeError, ThetaError: as in `merge` and `orbit_logits`; or unknown ``of``.
    """
    e, thetas = _checked(steering, head, e, thetas)
    if of not in OF:
        raise ConfigError(f"of is {of!r}; {one_of(of, OF)}")
    if how in _INNER and of != "probabilities":
        raise ConfigError(
            f"how is {how!r} of {of}, which go below 0; expected probabilities: use of='probabilities'"
        )
    weights = checked_weights(weights, len(thetas), how).to(e)
    thetas, weights = thetas[weights > 0], weights[weights > 0]
    inner = None if of == "embeddings" else head
    if steering.linear_in_phi:
        out = merged_basis(logit_basis(steering, inner, e), design(steering, thetas), weights, how, of)
    else:
        out = _reduced(_dense_blocks(steering, inner, e, thetas, of), weights, how)
    return _linear(head, out) if of == "embeddings" else out


def fold(steering: SteeringMap, head: nn.Linear, thetas: Tensor, weights: Tensor | None = None) -> nn.Linear:
    """The linear head whose logits are the (weighted) mean of the steered views' logits, for every embedding.

    With first-order features and thetas of zero mean it is ``head`` itself.

    Raises:
        ConfigError, ShapeError, ThetaError: as in `merged`.
    """
    return as_linear(lambda e: merged(steering, head, e, thetas, of="logits", weights=weights), head)


def as_linear(function: Callable[[Tensor], Tensor], head: nn.Linear) -> nn.Linear:
    """An affine function of embeddings (b, d) -> (b, m) as one layer, of head's device and type.

    What the function does to zero and to the unit vectors tells all of it; it is asked in float64.
    """
    d, weight = head.in_features, head.weight
    probes = torch.cat([torch.zeros(1, d), torch.eye(d)]).to(weight.device, torch.float64)
    with torch.no_grad():
        out = torch.cat([function(part) for part in probes.split(256)])
        layer = nn.Linear(d, out.shape[1], device=weight.device, dtype=weight.dtype)
        layer.weight.copy_((out[1:] - out[0]).T)
        layer.bias.copy_(out[0])
    return layer


def design(steering: SteeringMap, thetas: Float[Tensor, "v p"]) -> Float[Tensor, "v m"]:
    """(1, phi(theta)) per view, m = 1 + k: what a basis is contracted with."""
    phi = steering.features(thetas)
    return torch.cat([torch.ones_like(phi[:, :1]), phi], dim=1)


def logit_basis(
    steering: SteeringMap, head: nn.Linear | None, e: Float[Tensor, "b d"]
) -> Float[Tensor, "b m c"]:
    """head(e), then W (A_k e + b_k) for every k, m = 1 + k; embeddings themselves without a head."""
    moves = steering.moves(e)
    if head is None:
        return torch.cat([e.unsqueeze(1), moves], dim=1)
    return torch.cat([_linear(head, e).unsqueeze(1), linear(moves, head.weight.to(e.dtype))], dim=1)


def merged_basis(
    basis: Float[Tensor, "b m c"],
    views: Float[Tensor, "v m"],
    weights: Float[Tensor, " v"],
    how: str,
    of: str,
) -> Float[Tensor, "b c"]:
    """Merge the views of a `logit_basis`, block by block."""
    views = views.to(basis.dtype)
    if of != "probabilities" and how in ("mean", "sum"):  # sums over views are sums of phi
        return (_share(weights, how) @ views) @ basis
    images = basis.split(max(1, _room(basis) // (len(views) * basis.shape[2])))
    return torch.cat([_reduced(_blocks(part, views, of), weights, how) for part in images])


def checked_weights(weights: Tensor | None, n: int, how: str) -> Float[Tensor, " v"]:
    """Ones, or the weights of n views; raises ConfigError for unknown ``how`` or weights that do not fit."""
    if how not in MERGES:
        raise ConfigError(f"how is {how!r}; {one_of(how, MERGES)}")
    if not n:
        raise ThetaError("there are no views to merge; expected one at least: give thetas (v, p) with rows")
    if weights is None:
        return torch.ones(n)
    if how in ("max", "min"):
        raise ConfigError(
            f"weights are given with how={how!r}, which has none; expected mean: leave weights out"
        )
    if weights.shape != (n,) or bool((weights < 0).any()) or not 0 < float(weights.sum()) < float("inf"):
        raise ConfigError(
            f"weights of shape {tuple(weights.shape)} sum to {float(weights.sum()):g}; expected ({n},) finite "
            "numbers, none negative and one positive: one per view"
        )
    return weights


def _reduced(blocks: Iterable[Tensor], weights: Tensor, how: str) -> Float[Tensor, "b c"]:
    """Blocks (b, v', c) of views, in the order of weights (v,), merged into (b, c)."""
    if how in ("max", "min"):
        both, along = (torch.maximum, torch.amax) if how == "max" else (torch.minimum, torch.amin)
        return reduce(both, (along(block, 1) for block in blocks))
    inner, total, place = _INNER.get(how), torch.zeros(()), 0
    weights = _share(weights, how)
    for block in blocks:
        seen = weights[place : place + block.shape[1]]
        total = total.to(block) + seen @ (block if inner is None else inner(block))
        place += block.shape[1]
    return total.exp() if how == "gmean" else total


def _share(weights: Tensor, how: str) -> Tensor:
    return weights if how == "sum" else weights / weights.sum()


def _blocks(basis: Float[Tensor, "b m c"], views: Float[Tensor, "v m"], of: str) -> Iterator[Tensor]:
    for part in views.split(_block_size(basis[:, 0])):
        # one image: a product of two matrices, which is three times as fast as a stack of small ones
        yield _as(of, part @ basis if len(basis) > 1 else (part @ basis[0]).unsqueeze(0))


def _dense_blocks(
    steering: SteeringMap, head: nn.Linear | None, e: Tensor, thetas: Tensor, of: str
) -> Iterator[Float[Tensor, "b v c"]]:
    for part in thetas.split(_block_size(e)):
        views = steering.orbit(e, part)
        yield _as(of, views if head is None else _linear(head, views))


def _block_size(one_view: Float[Tensor, "b c"]) -> int:
    return max(1, _room(one_view) // max(1, one_view.numel()))


def _room(x: Tensor) -> int:
    return BLOCK if x.device.type == "cpu" else DEVICE_BLOCK


def _as(of: str, logits: Tensor) -> Tensor:
    return logits.softmax(-1) if of == "probabilities" else logits


def _linear(head: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, head.weight.to(x.dtype), None if head.bias is None else head.bias.to(x.dtype))


def _checked(steering: SteeringMap, head: nn.Linear, e: Tensor, thetas: Tensor) -> tuple[Tensor, Tensor]:
    """e in float32 at least and thetas beside it, or an error."""
    if not isinstance(e, Tensor) or not e.is_floating_point() or e.ndim != 2 or e.shape[1] != steering.dim:
        got = f"{e.dtype} of shape {tuple(e.shape)}" if isinstance(e, Tensor) else type(e).__name__
        raise ShapeError(
            f"embeddings are {got}; expected floating (b, {steering.dim}): use what model.encode gives"
        )
    if head.in_features != steering.dim:
        raise ShapeError(
            f"the head takes embeddings of width {head.in_features} and the map's have {steering.dim}; expected "
            f"equal widths: use nn.Linear({steering.dim}, classes)"
        )
    thetas = steering.features.check(thetas)
    if thetas.ndim != 2:
        raise ThetaError(
            f"thetas has shape {tuple(thetas.shape)}; expected (v, {steering.n_params}): one row per view"
        )
    return e.to(torch.promote_types(e.dtype, torch.float32)), thetas.to(e.device)
