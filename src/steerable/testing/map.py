"""check_map: the laws of a steering map as assertions, for the families here and for those of others."""

import copy
import json
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.maps import SteeringMap
from steerable.theta import Laws

_ROWS = 8  # embeddings and thetas per check


def check_map(
    steering: SteeringMap,
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-4,
    periods: Sequence[float | int | None] | None = None,
) -> None:
    """Raise AssertionError with law, coordinate and worst error unless a map keeps what it promises.

    Checked, on a copy whose weights are first moved at random (a map that starts as the identity proves
    nothing): M(0) = I and b(0) = 0 exactly; forward equals matrix and offset; orbit equals forward one by
    one; inverse undoes forward; the laws declared for each coordinate; coordinates with a period repeat;
    gradients reach every weight; config and state_dict rebuild the same map. Drawn thetas are within the
    scales of the map's features.

    Args:
        steering: the map; it is left as it is.
        generator: CPU randomness; seeded with 0 by default.
        tolerance: largest norm of a difference, as a share of the norm of what is expected, over all rows.
        periods: a period or None per coordinate; by default those of the map's features.
    """
    generator = generator or torch.Generator().manual_seed(0)
    steering = _moved_copy(steering, generator)
    e = torch.randn(_ROWS, steering.dim, generator=generator)
    theta = _draw(steering, generator)
    periods = steering.features.period_values if periods is None else tuple(periods)
    with torch.no_grad():
        _check_identity(steering, e)
        _check_dense_twin(steering, e, theta, tolerance)
        _check_inverse_method(steering, e, theta, tolerance)
        for coordinate, laws in enumerate(steering.param_laws):
            along = _along(steering, coordinate, periods[coordinate], generator)
            _check_laws(steering, e, coordinate, laws, along, tolerance)
            _check_period(steering, e, theta, coordinate, periods[coordinate], tolerance)
        _check_round_trip(steering, e, theta)
    _check_gradients(steering, e, theta)


def _moved_copy(steering: SteeringMap, generator: torch.Generator) -> SteeringMap:
    steering = copy.deepcopy(steering).cpu().float()
    with torch.no_grad():
        for weight in steering.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(0.3 / weight.shape[-1] ** 0.5 * noise)
    return steering


def _draw(steering: SteeringMap, generator: torch.Generator) -> Float[Tensor, "b p"]:
    uniform = 2 * torch.rand(_ROWS, steering.n_params, generator=generator) - 1
    return uniform * torch.tensor(steering.features.scale_values)


def _along(
    steering: SteeringMap, coordinate: int, period: float | None, generator: torch.Generator
) -> Float[Tensor, "b p"]:
    """Thetas with one coordinate set; half a period is among them, where a switch such as a flip stands."""
    theta = torch.zeros(_ROWS, steering.n_params)
    theta[:, coordinate] = _draw(steering, generator)[:, coordinate]
    if period is not None:
        theta[0, coordinate] = period / 2
    return theta


def _check_identity(steering: SteeringMap, e: Float[Tensor, "b d"]) -> None:
    zero = torch.zeros(steering.n_params)
    eye = torch.eye(steering.dim)
    for what, seen, wanted in (
        ("M(0) = I", steering.matrix(zero), eye),
        ("b(0) = 0", steering.offset(zero), torch.zeros(steering.dim)),
        ("forward(e, 0) = e", steering(e, zero), e),
    ):
        if not torch.equal(seen, wanted):
            worst = (seen - wanted).abs().max().item()
            raise AssertionError(f"identity: {what} does not hold exactly; worst error {worst:.3g}")


def _check_dense_twin(
    steering: SteeringMap, e: Float[Tensor, "b d"], theta: Float[Tensor, "b p"], tolerance: float
) -> None:
    dense = torch.einsum("vij,bj->bvi", steering.matrix(theta), e) + steering.offset(theta)
    pairs = dense.diagonal(dim1=0, dim2=1).T
    _compare("forward(e, theta) against matrix and offset", steering(e, theta), pairs, tolerance)
    _compare(
        "forward with one theta against matrix and offset", steering(e, theta[0]), dense[:, 0], tolerance
    )
    _compare(
        "forward(e[:, None], theta) against matrix and offset", steering(e[:, None], theta), dense, tolerance
    )
    views = theta[:5]
    single = torch.stack([torch.stack([steering(row, view) for view in views]) for row in e])
    _compare("orbit against forward one by one", steering.orbit(e, views), single, tolerance)


def _check_inverse_method(
    steering: SteeringMap, e: Float[Tensor, "b d"], theta: Float[Tensor, "b p"], tolerance: float
) -> None:
    _compare(
        "inverse(forward(e, theta), theta) against e",
        steering.inverse(steering(e, theta), theta),
        e,
        tolerance,
    )


def _check_laws(
    steering: SteeringMap,
    e: Float[Tensor, "b d"],
    coordinate: int,
    laws: Laws,
    first: Float[Tensor, "b p"],
    tolerance: float,
) -> None:
    second = first.flip(0)
    steer: Callable[[Tensor, Tensor], Tensor] = steering
    if Laws.COMPOSE in laws:
        seen, wanted = steer(steer(e, first), second), steer(e, first + second)
        _compare(f"COMPOSE, T(b) T(a) = T(a + b), coordinate {coordinate}", seen, wanted, tolerance)
    if Laws.INVERSE in laws:
        seen = steer(steer(e, first), -first)
        _compare(f"INVERSE, T(-a) T(a) = 1, coordinate {coordinate}", seen, e, tolerance)


def _check_period(
    steering: SteeringMap,
    e: Float[Tensor, "b d"],
    theta: Float[Tensor, "b p"],
    coordinate: int,
    period: float | None,
    tolerance: float,
) -> None:
    if period is None:
        return
    later = theta.clone()
    later[:, coordinate] += period
    what = f"period, T(a + {period:g}) = T(a), coordinate {coordinate}"
    _compare(what, steering(e, later), steering(e, theta), tolerance)


def _check_gradients(steering: SteeringMap, e: Float[Tensor, "b d"], theta: Float[Tensor, "b p"]) -> None:
    steering.requires_grad_(True).zero_grad(set_to_none=True)
    if not list(steering.parameters()):
        return
    steered = steering(e, theta)
    if not steered.requires_grad:
        raise AssertionError("gradient: none reaches the map's weights; forward detaches its result")
    (steered * e.flip(0)).sum().backward()
    for name, weight in steering.named_parameters():
        if weight.grad is None or not bool(weight.grad.isfinite().all()) or not bool(weight.grad.any()):
            raise AssertionError(f"gradient: none, or none that is finite, reaches weight {name} of the map")


def _check_round_trip(steering: SteeringMap, e: Float[Tensor, "b d"], theta: Float[Tensor, "b p"]) -> None:
    config = json.loads(json.dumps(steering.config()))
    twin = type(steering).from_config(config)
    twin.load_state_dict(steering.state_dict())
    if twin.config() != steering.config() or twin.param_laws != steering.param_laws:
        raise AssertionError(f"round trip: config {config} came back as {twin.config()}")
    worst = (twin(e, theta) - steering(e, theta)).abs().max().item()
    if worst != 0:
        raise AssertionError(f"round trip: config and state_dict give another map; worst error {worst:.3g}")


def _compare(what: str, seen: Tensor, wanted: Tensor, tolerance: float) -> None:
    if seen.shape != wanted.shape:
        raise AssertionError(f"{what}: shape {tuple(seen.shape)}, expected {tuple(wanted.shape)}")
    error = (seen - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    worst = error.nan_to_num(nan=float("inf")).max().item()
    if worst > tolerance:
        raise AssertionError(f"{what}: worst error {worst:.3g} of the norm, tolerance {tolerance:g}")
