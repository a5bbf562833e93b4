"""check_map can fail: for every promise, a map that breaks it."""

import pytest
import torch
from torch import Tensor

from steerable.maps import BasisMap, ExponentialMap, Features, LowRankMap, RotationMap, ShiftMap, SteeringMap
from steerable.testing.map import check_map
from steerable.theta import Laws


class NotIdentity(BasisMap):
    def matrix(self, theta: Tensor) -> Tensor:
        return super().matrix(theta) * (1 + 1e-6)


class NotZeroOffset(BasisMap):
    def offset(self, theta: Tensor) -> Tensor:
        return super().offset(theta) + 1e-12


class NotIdentityForward(BasisMap):
    def _steer(self, e: Tensor, theta: Tensor) -> Tensor:
        return super()._steer(e, theta) * (1 + 1e-6)


class NotItsDenseTwin(BasisMap):
    def _steer(self, e: Tensor, theta: Tensor) -> Tensor:
        return super()._steer(e, theta * 1.01)


class PairsOnly(BasisMap):
    """Right for pairs, wrong where one theta serves all."""

    def _steer(self, e: Tensor, theta: Tensor) -> Tensor:
        return super()._steer(e, theta * 1.01 if theta.ndim == 1 and e.ndim == 2 else theta)


class OrbitInAnotherOrder(BasisMap):
    def orbit(self, e: Tensor, thetas: Tensor) -> Tensor:
        return super().orbit(e, thetas).flip(1)


class InverseByMinusTheta(BasisMap):
    def inverse(self, e: Tensor, theta: Tensor) -> Tensor:
        return self(e, -theta)


class DeclaresCompose(BasisMap):
    def _family_laws(self):
        return (Laws.IDENTITY | Laws.COMPOSE,) * self.n_params


class DeclaresInverse(BasisMap):
    def _family_laws(self):
        return (Laws.IDENTITY | Laws.INVERSE,) * self.n_params


class LosesAGradient(BasisMap):
    def _steer(self, e: Tensor, theta: Tensor) -> Tensor:
        moves = torch.einsum("kij,...j->...ki", self.weight, e) + self.bias.detach()
        return e + torch.einsum("...k,...kd->...d", self.features(theta), moves)


class LosesEveryGradient(BasisMap):
    def _steer(self, e: Tensor, theta: Tensor) -> Tensor:
        return super()._steer(e, theta).detach()


class ForgetsItsRank(LowRankMap):
    def config(self):
        return {key: value for key, value in super().config().items() if key != "rank"}


class ForgetsAConstant(BasisMap):
    """Scales phi by a number that is neither saved nor configured."""

    def __init__(self, dim: int, n_params: int, *, features="linear", laws=None, factor: float = 1.0):
        super().__init__(dim, n_params, features=features, laws=laws)
        self.features.scales /= factor


class BadInTheTail(SteeringMap):
    """A rotation of a plane whose angle is theta, but theta^2 for the few values above 0.9."""

    name = "tail"

    def matrix(self, theta: Tensor) -> Tensor:
        theta = self.features.check(theta)[..., 0]
        angle = torch.where(theta > 0.9, theta.square(), theta)
        rows = [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)]
        return torch.stack(rows, -2)

    def _family_laws(self):
        return (Laws.ALL,)


class OneCoordinateSquared(SteeringMap):
    """exp(theta_0 + theta_1^2): only the first coordinate keeps the laws that both declare."""

    name = "squared"

    def matrix(self, theta: Tensor) -> Tensor:
        theta = self.features.check(theta)
        return torch.exp(theta[..., 0] + theta[..., 1].square())[..., None, None]

    def _family_laws(self):
        return (Laws.ALL, Laws.ALL)


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        (NotIdentity(6, 2), r"identity: M\(0\) = I"),
        (NotZeroOffset(6, 2), r"identity: b\(0\) = 0"),
        (NotIdentityForward(6, 2), r"identity: forward\(e, 0\) = e"),
        (NotItsDenseTwin(6, 2), r"forward\(e, theta\) against matrix and offset: worst error"),
        (PairsOnly(6, 2), "forward with one theta against matrix"),
        (OrbitInAnotherOrder(6, 2), "orbit against forward one by one"),
        (InverseByMinusTheta(6, 2), "inverse"),
        (DeclaresCompose(6, 2), "COMPOSE.*coordinate 0: worst error"),
        (DeclaresInverse(6, 2), "INVERSE.*coordinate 0: worst error"),
        (OneCoordinateSquared(1, 2), "COMPOSE.*coordinate 1"),
        (LosesAGradient(6, 2), "gradient.*weight bias"),
        (LosesEveryGradient(6, 2), "gradient: none reaches"),
        (ForgetsAConstant(6, 2, factor=2.0), "round trip"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SteeringMap) else None,
)
def test_a_broken_map_fails(steering: SteeringMap, message: str):
    with pytest.raises(AssertionError, match=message):
        check_map(steering)


def test_a_config_that_forgets_a_size_fails():
    with pytest.raises((AssertionError, RuntimeError), match=r"rank|size mismatch"):
        check_map(ForgetsItsRank(6, 2, rank=2))


def test_one_bad_row_is_enough():
    failures = 0
    for seed in range(20):
        try:
            check_map(BadInTheTail(2, 1), generator=torch.Generator().manual_seed(seed))
        except AssertionError:
            failures += 1
    assert failures >= 5  # one theta in twenty is bad, of eight per law


def test_a_period_that_the_map_ignores_fails():
    with pytest.raises(AssertionError, match=r"period, T\(a \+ 2\) = T\(a\), coordinate 1"):
        check_map(ShiftMap(6, 2), periods=[None, 2.0])
    check_map(ShiftMap(6, 2, features=Features("linear", 2, periods=[None, 2.0])), periods=[None, 2.0])


def test_laws_that_are_not_declared_are_not_asked_for():
    check_map(OneCoordinateSquared(1, 2, laws=[Laws.ALL, Laws.IDENTITY]))


@pytest.mark.parametrize("steering", [RotationMap(6, 2), ExponentialMap(6, 2)])
def test_the_map_is_left_as_it_is(steering: SteeringMap):
    before = {name: weight.clone() for name, weight in steering.state_dict().items()}
    check_map(steering)
    assert all(torch.equal(weight, before[name]) for name, weight in steering.state_dict().items())
