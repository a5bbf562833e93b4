"""phi(theta): zero at zero, the documented values, wrapping, and errors that say the way out."""

import math

import pytest
import torch

from steerable.errors import ConfigError, ThetaError
from steerable.maps import EXPANSIONS, Features

PLACES = [1, 2, 3, 4]  # of zoom, aspect, shift_x and shift_y


def test_every_expansion_is_exactly_zero_at_zero():
    for expansion in [*EXPANSIONS, "+".join(EXPANSIONS)]:
        features = Features(expansion, 5, [0.3, 45.0, 7.0, 1, 2], [None, 360.0, 2.0, None, None], PLACES)
        phi = features(torch.zeros(4, 5))
        assert phi.shape == (4, features.n_features)
        assert torch.equal(phi, torch.zeros_like(phi))


def test_values_by_hand():
    features = Features("linear+squares+cubes+absolute+pairwise", 2, scales=[2.0, 4.0])
    phi = features(torch.tensor([[1.0, -2.0]]))
    assert phi.tolist() == [[0.5, -0.5, 0.25, 0.25, 0.125, -0.125, 0.5, 0.5, -0.25]]


def test_harmonics_by_hand_for_the_coordinate_with_a_period_only():
    features = Features("harmonics", 2, scales=[1.0, 90.0], periods=[None, 360.0])
    phi = features(torch.tensor([5.0, 30.0]))
    angle = math.radians(30)
    expected = [math.sin(angle), math.cos(angle) - 1, math.sin(2 * angle), math.cos(2 * angle) - 1]
    torch.testing.assert_close(phi, torch.tensor(expected))


def test_pairwise_takes_every_pair_once():
    phi = Features("pairwise", 4)(torch.tensor([2.0, 3.0, 5.0, 7.0]))
    assert phi.tolist() == [6, 10, 14, 15, 21, 35]


def test_window_by_hand():
    """One octave in: a square of half an image's side in the middle right."""
    features = Features("window", 5, scales=[1, 1, 2, 9, 9], window=PLACES)
    corner = torch.tensor([-0.5, -0.5, 0.5, 0.0]) / 0.75  # 1 - 2 ** -(1 + 2 / 2)
    products = [corner[i] * corner[j] for i in range(4) for j in range(i, 4)]
    phi = features(torch.tensor([7.0, 1.0, 0.0, -0.5, 0.0]))
    torch.testing.assert_close(phi, torch.cat([corner, torch.stack(products)]))


def test_auto_is_all_that_there_are_coordinates_for():
    settings = {"scales": [1.0] * 5, "periods": [360.0, None, None, None, None], "window": PLACES}
    features = Features("auto", 5, **settings)
    assert features.auto
    assert features.expansion == "linear+squares+pairwise+harmonics+window"
    assert Features("auto", 5).expansion == "linear+squares+pairwise"
    assert not Features.from_config(features.config(), 5).auto


@pytest.mark.parametrize("expansion", ["linear", "squares+absolute", "harmonics", "linear+pairwise"])
def test_coordinates_with_a_period_wrap(expansion: str):
    features = Features(expansion, 2, scales=[90.0, 1.0], periods=[360.0, 2.0])
    theta = torch.tensor([[10.0, 1.0], [-170.0, 0.0], [100.0, -0.5]])
    later = theta + torch.tensor([360.0, -4.0])
    torch.testing.assert_close(features(later), features(theta), atol=1e-5, rtol=0)


def test_half_a_period_is_one_point_whatever_its_sign():
    features = Features("linear", 1, periods=[2.0])
    assert features(torch.tensor([[1.0], [-1.0], [3.0]])).flatten().tolist() == [1, 1, 1]


def test_gradients_reach_theta_with_and_without_periods():
    theta = torch.tensor([[0.3, 40.0]], requires_grad=True)
    features = Features("linear+harmonics", 2, scales=[0.5, 90.0], periods=[None, 360.0])
    features(theta)[:, :2].sum().backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, torch.tensor([[2.0, 1 / 90]]))


def test_computes_in_float32_at_least():
    features = Features("linear", 1)
    assert features(torch.tensor([[1]])).dtype == torch.float32
    assert features(torch.tensor([[1.0]], dtype=torch.bfloat16)).dtype == torch.float32
    assert features(torch.tensor([[1.0]], dtype=torch.float64)).dtype == torch.float64


def test_config_rebuilds():
    features = Features("linear+harmonics", 2, scales=[0.5, 90.0], periods=[None, 360.0])
    twin = Features.from_config(features.config(), 2)
    theta = torch.tensor([[0.3, -400.0]])
    assert twin.config() == features.config()
    assert torch.equal(twin(theta), features(theta))
    assert not features.state_dict()


def test_config_holds_the_window_where_it_is_used():
    features = Features("linear+window", 5, window=PLACES)
    theta = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    twin = Features.from_config(features.config(), 5)
    assert twin.config() == features.config()
    assert torch.equal(twin(theta), features(theta))
    assert (
        "window" not in Features("linear", 5, window=PLACES).config()
    )  # old bundles keep their fingerprints


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expansion": "lineer", "n_params": 2}, "did you mean linear"),
        ({"expansion": "linear+linear", "n_params": 2}, "twice"),
        ({"expansion": "harmonics", "n_params": 2}, "no coordinate has a period"),
        ({"expansion": "pairwise", "n_params": 1}, "no function"),
        ({"expansion": "linear", "n_params": 0}, "n_params is 0"),
        ({"expansion": "linear", "n_params": 2, "scales": [1.0]}, "scales has 1 values; expected 2"),
        ({"expansion": "linear", "n_params": 1, "scales": [0.0]}, "scales holds 0.0"),
        ({"expansion": "linear", "n_params": 1, "periods": [math.inf]}, "periods holds inf"),
        ({"expansion": "window", "n_params": 4}, "not known to hold a crop; .* take a chain with crop"),
        ({"expansion": "linear", "n_params": 4, "window": [0, 1, 2]}, r"window is \[0, 1, 2\]; expected"),
        ({"expansion": "linear", "n_params": 4, "window": [0, 1, 2, 4]}, "among 4 coordinates"),
        ({"expansion": "linear", "n_params": 4, "window": [0, 1, 2, 2]}, "each once"),
    ],
)
def test_bad_settings(arguments: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Features(**arguments)


def test_bad_config_key_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean scales"):
        Features.from_config({"expansion": "linear", "scale": [1.0]}, 1)


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (torch.zeros(4, 3), r"shape \(4, 3\)"),
        (torch.tensor(1.0), "shape"),
        (torch.tensor([[0.0, math.nan], [0.0, 1.0]]), r"not finite in coordinate\(s\) 1"),
        (torch.tensor([math.inf, 0.0]), r"not finite in coordinate\(s\) 0"),
        (torch.zeros(2, 2, dtype=torch.bool), "torch.bool"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex64"),
    ],
)
def test_bad_theta(theta, message: str):
    with pytest.raises(ThetaError, match=message):
        Features("linear", 2).check(theta)
