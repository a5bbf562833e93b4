"""Every family of maps: laws, dense twins, broadcasting, types, memory and errors."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from steerable.errors import ConfigError, LawError, ShapeError, ThetaError
from steerable.maps import (
    MAPS,
    BasisMap,
    ExponentialMap,
    Features,
    LowRankMap,
    RotationMap,
    SteeringMap,
    build,
)
from steerable.testing.map import check_map
from steerable.theta import Laws

FAMILIES = sorted(MAPS)
NONLINEAR = [name for name in FAMILIES if name != "rotation"]


def moved(steering: SteeringMap, seed: int = 0) -> SteeringMap:
    """The same map with weights away from the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in steering.parameters():
            weight.add_(0.3 / weight.shape[-1] ** 0.5 * torch.randn(weight.shape, generator=generator))
    return steering


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dim", [6, 7])
@pytest.mark.parametrize("n_params", [1, 5])
def test_families_keep_their_laws(name: str, dim: int, n_params: int):
    check_map(MAPS[name](dim=dim, n_params=n_params))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_their_laws_with_periods(name: str):
    features = Features("linear", 3, scales=[90.0, 1.0, 0.3], periods=[360.0, 2.0, None])
    check_map(MAPS[name](dim=9, n_params=3, features=features), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", NONLINEAR)
@pytest.mark.parametrize("expansion", ["linear+squares+pairwise", "absolute+cubes", "linear+harmonics"])
def test_families_keep_their_laws_with_other_features(name: str, expansion: str):
    features = Features(expansion, 3, scales=[90.0, 1.0, 0.3], periods=[360.0, 2.0, None])
    check_map(MAPS[name](dim=8, n_params=3, features=features))


@pytest.mark.parametrize("dim", [6, 7])
def test_a_basis_map_that_reads_few_directions_keeps_its_laws(dim: int):
    check_map(BasisMap(dim, 3, features="linear+squares", inner=2))


@pytest.mark.parametrize(
    "steering",
    [
        MAPS["identity"](6, 2),
        MAPS["shift"](6, 2),
        BasisMap(6, 2, features="linear+pairwise"),
        BasisMap(6, 2, inner=3),
        LowRankMap(6, 2, rank=2),
    ],
    ids=lambda steering: str(sorted(steering.config().items())[:3]),
)
def test_moves_are_what_a_unit_of_each_function_adds(steering: SteeringMap):
    steering = moved(steering).double()
    generator = torch.Generator().manual_seed(1)
    e, theta = (
        torch.randn(3, 6, generator=generator).double(),
        torch.randn(5, 2, generator=generator).double(),
    )
    phi = steering.features(theta)
    expected = torch.einsum("vij,bj->bvi", steering.matrix(theta), e) + steering.offset(theta)
    assert steering.linear_in_phi
    torch.testing.assert_close(
        e[:, None] + torch.einsum("vk,bkd->bvd", phi, steering.moves(e)), expected, rtol=1e-6, atol=1e-6
    )
    assert steering.moves(e[0]).shape == (phi.shape[1], 6)
    assert steering.moves(e[:0]).shape == (0, phi.shape[1], 6)


@pytest.mark.parametrize("name", ["rotation", "exponential"])
def test_families_that_are_not_linear_in_phi_have_no_moves(name: str):
    steering = MAPS[name](6, 2)
    assert not steering.linear_in_phi
    with pytest.raises(LawError, match=f"map {name} is not linear in phi"):
        steering.moves(torch.ones(3, 6))


def test_few_directions_are_read_once_for_all_views():
    d, r, k, n = 256, 4, 5, 64
    steering = moved(BasisMap(d, k, inner=r))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        steering.orbit(torch.ones(n, d), torch.ones(32, k))
    assert counter.get_total_flops() == 2 * n * (d * r + k * r * d + 32 * k * d)


def test_declared_laws():
    features = Features("linear", 2, periods=[None, 2.0])
    declared = {name: MAPS[name](dim=4, n_params=2, features=features).param_laws for name in FAMILIES}
    some = (Laws.ALL, Laws.IDENTITY)  # linear, then wrapped
    assert declared == {
        "identity": (Laws.ALL, Laws.ALL),
        "shift": some,
        "basis": (Laws.IDENTITY, Laws.IDENTITY),
        "low_rank": (Laws.IDENTITY, Laws.IDENTITY),
        "rotation": (Laws.ALL, Laws.ALL),
        "exponential": some,
    }
    assert MAPS["shift"](dim=4, n_params=2, features=features).laws == Laws.IDENTITY
    assert MAPS["shift"](dim=4, n_params=2, features="squares").laws == Laws.IDENTITY


def test_laws_are_bounded_by_the_argument():
    steering = RotationMap(4, 2, laws=[Laws.IDENTITY | Laws.INVERSE, Laws.NONE])
    assert steering.param_laws == (Laws.IDENTITY | Laws.INVERSE, Laws.NONE)
    assert BasisMap(4, 2, laws=[Laws.ALL, Laws.ALL]).laws == Laws.IDENTITY
    with pytest.raises(ConfigError, match="laws has 1 entries; expected 2"):
        RotationMap(4, 2, laws=[Laws.ALL])


@pytest.mark.parametrize("name", ["identity", "shift", "basis", "low_rank", "exponential"])
def test_maps_without_random_planes_start_as_the_identity(name: str):
    generator = torch.Generator().manual_seed(0)
    e, theta = torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)
    assert torch.equal(MAPS[name](dim=6, n_params=3)(e, theta), e)


@pytest.mark.parametrize("name", ["shift", "basis", "low_rank", "exponential"])
def test_training_can_leave_the_start(name: str):
    generator = torch.Generator().manual_seed(0)
    e, theta = torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)
    steering = MAPS[name](dim=6, n_params=3)
    (steering(e, theta) - e.flip(0)).square().sum().backward()
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in steering.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_leading_axes_broadcast(name: str):
    steering = moved(MAPS[name](dim=6, n_params=2))
    generator = torch.Generator().manual_seed(1)
    e, theta = torch.randn(3, 1, 6, generator=generator), torch.randn(3, 4, 2, generator=generator)
    out = steering(e, theta)
    assert out.shape == (3, 4, 6)
    for b in range(3):
        for v in range(4):
            torch.testing.assert_close(out[b, v], steering(e[b, 0], theta[b, v]))
            torch.testing.assert_close(steering(e[b], theta[b, v : v + 1])[0], out[b, v])
    assert steering(e[0, 0], theta[0, :1]).shape == (1, 6)
    assert steering(e, theta[0, 0]).shape == (3, 1, 6)
    assert steering(e[:0, 0], theta[:0, 0]).shape == (0, 6)


@pytest.mark.parametrize("name", FAMILIES)
def test_inverse_undoes_forward_whatever_the_axes(name: str):
    steering = moved(MAPS[name](dim=6, n_params=2)).double()
    generator = torch.Generator().manual_seed(1)
    e = torch.randn(3, 1, 6, generator=generator).double()
    theta = torch.randn(3, 4, 2, generator=generator).double()
    for thetas in (theta, theta[0], theta[0, 0], theta[:, :1]):
        steered = steering(e, thetas)
        torch.testing.assert_close(steering.inverse(steered, thetas), e.expand_as(steered))


def test_inverse_is_not_the_map_at_minus_theta():
    steering = moved(BasisMap(6, 1))
    e, theta = torch.ones(1, 6), torch.ones(1, 1)
    assert not torch.allclose(steering(steering(e, theta), -theta), e, atol=1e-2)
    torch.testing.assert_close(steering.inverse(steering(e, theta), theta), e)


def test_a_singular_matrix_is_an_error():
    steering = BasisMap(3, 1)
    with torch.no_grad():
        steering.weight.copy_(-torch.eye(3))
    with pytest.raises(ThetaError, match="singular"):
        steering.inverse(torch.ones(2, 3), torch.ones(2, 1))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_result_has_the_type_of_the_embedding(name: str, dtype: torch.dtype):
    steering = moved(MAPS[name](dim=6, n_params=2))
    e, theta = torch.ones(4, 6, dtype=dtype), torch.full((4, 2), 0.5)
    assert steering(e, theta).dtype == dtype
    assert steering.inverse(e, theta.double()).dtype == dtype
    expected = steering(e.float(), theta)
    torch.testing.assert_close(steering(e, theta).float(), expected.to(dtype).float())


def test_autocast_does_not_lower_the_precision():
    steering = moved(BasisMap(32, 4))
    generator = torch.Generator().manual_seed(1)
    e, theta = torch.randn(8, 32, generator=generator), torch.randn(8, 4, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = steering(e, theta)
    assert torch.equal(inside, steering(e, theta))


class _LargestStorage(TorchDispatchMode):
    """Bytes of the largest storage that any operation returned."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("name", FAMILIES)
def test_orbit_makes_no_matrix_per_view_or_embedding(name: str):
    b, v, d = 64, 256, 256
    steering = moved(MAPS[name](dim=d, n_params=5))
    generator = torch.Generator().manual_seed(1)
    e, thetas = torch.randn(b, d, generator=generator), torch.randn(v, 5, generator=generator)
    with torch.no_grad(), _LargestStorage() as largest:
        out = steering.orbit(e, thetas)
    assert out.shape == (b, v, d)
    assert largest.bytes <= 4 * b * v * d  # the result; (v, d, d) alone would be four times as much


def test_orbit_never_asks_for_the_matrix():
    class NoMatrix(BasisMap):
        def matrix(self, theta: Tensor) -> Tensor:
            raise RuntimeError("dense")

    steering = NoMatrix(6, 2)
    assert steering.orbit(torch.ones(3, 6), torch.ones(4, 2)).shape == (3, 4, 6)


def test_rotation_keeps_lengths_and_one_direction_of_an_odd_width():
    steering = moved(RotationMap(7, 2))
    e, theta = torch.ones(1, 7), torch.tensor([[3.0, -2.0]])
    torch.testing.assert_close(steering(e, theta).norm(), e.norm())
    values = torch.linalg.eigvals(steering.matrix(theta[0]))
    assert int(((values - 1).abs() < 1e-5).sum()) == 1


def test_rotation_frequencies_are_whole_turns_where_there_is_a_period():
    steering = RotationMap(4, 1, features=Features("linear", 1, scales=[90.0], periods=[360.0]))
    with torch.no_grad():
        steering.frequency.copy_(torch.tensor([[1.3, 0.2]]))
    matrix = steering.matrix(torch.tensor([90.0]))
    torch.testing.assert_close(torch.linalg.matrix_power(matrix, 4), torch.eye(4), atol=1e-5, rtol=0)
    assert not torch.allclose(matrix, torch.eye(4), atol=0.1)


def test_exponential_is_accurate_far_from_zero():
    steering = moved(ExponentialMap(6, 2)).double()
    e, theta = torch.ones(6).double(), torch.tensor([20.0, -15.0]).double()
    expected = steering.matrix(theta) @ e
    assert expected.norm() > 10
    torch.testing.assert_close(steering(e, theta), expected, rtol=1e-8, atol=0)


def test_ranks():
    assert (LowRankMap(16, 1).rank, LowRankMap(100, 1).rank, ExponentialMap(100, 1).rank) == (16, 32, 8)
    for family in (LowRankMap, ExponentialMap):
        assert build(family(8, 2, rank=3).config()).config()["rank"] == 3
        with pytest.raises(ConfigError, match="rank is 9; expected 1 to 8"):
            family(8, 2, rank=9)
    assert "inner" not in BasisMap(8, 2).config()
    assert build(BasisMap(8, 2, inner=3).config()).config()["inner"] == 3
    with pytest.raises(ConfigError, match="inner is 0; expected 1 to 8"):
        BasisMap(8, 2, inner=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_input(name: str):
    steering = MAPS[name](dim=6, n_params=2)
    e, theta = torch.ones(4, 6), torch.zeros(4, 2)
    for method in (steering, steering.inverse, steering.orbit):
        with pytest.raises(ShapeError, match=r"shape \(4, 5\)"):
            method(e[:, :5], theta)
        with pytest.raises(ShapeError, match=r"int64"):
            method(e.long(), theta)
        with pytest.raises(ThetaError, match=r"shape \(4, 1\)"):
            method(e, theta[:, :1])
        with pytest.raises(ThetaError, match="not finite"):
            method(e, theta * math.nan)
    with pytest.raises(ThetaError, match="not finite"):
        steering.matrix(theta * math.nan)
    with pytest.raises(ThetaError, match="shape"):
        steering.offset(theta[:, :1])
    with pytest.raises(ShapeError, match="do not pair up"):
        steering(e, theta[:3])
    with pytest.raises(ShapeError, match=r"expected \(b, 6\)"):
        steering.orbit(e[0], theta)
    with pytest.raises(ThetaError, match=r"expected \(v, 2\)"):
        steering.orbit(e, theta[0])


def test_rotation_takes_linear_features_and_a_plane():
    with pytest.raises(ConfigError, match="expected 'linear'"):
        RotationMap(4, 2, features="linear+squares")
    with pytest.raises(ConfigError, match="dim of a rotation map is 1"):
        RotationMap(1, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_config_and_weights_rebuild_the_map(name: str):
    features = Features("linear", 2, scales=[90.0, 0.3], periods=[360.0, None])
    steering = moved(MAPS[name](dim=6, n_params=2, features=features, laws=[Laws.IDENTITY, Laws.ALL]))
    twin = build(steering.config())
    twin.load_state_dict(steering.state_dict())
    e, theta = torch.ones(6), torch.tensor([300.0, -0.2])
    assert type(twin) is type(steering)
    assert twin.param_laws == steering.param_laws
    assert torch.equal(twin(e, theta), steering(e, theta))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "bassis"}, "did you mean basis"),
        ({"name": None}, "map 'None' is unknown"),
        ({"dims": 3}, "did you mean dim"),
        ({"rank": 3}, "setting of map basis 'rank' is unknown"),
        ({"dim": None}, "dim of map basis is None"),
        ({"dim": 0}, "dim is 0"),
        ({"features": "squars"}, "did you mean squares"),
        ({"features": {"expansion": "linear", "scale": [1.0]}}, "did you mean scales"),
        ({"features": Features("linear", 3)}, "features are for 3 coordinates"),
        ({"laws": [["compos"], []]}, "did you mean compose"),
    ],
)
def test_bad_configs(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        build({"name": "basis", "dim": 4, "n_params": 2} | change)
