"""fit_embeddings: planted maps come back, noise meets its floor, groups stay apart, bad input is named."""

import logging
import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from steerable import fitting
from steerable.errors import ConfigError, FitError
from steerable.fitting import fit_embeddings, gradient
from steerable.fitting.pairs import HeldOut
from steerable.maps import MAPS, BasisMap, Features, SteeringMap

D, P, N = 12, 3, 1500
SCALES = [1.0, 2.0, 30.0]
Pairs = tuple[Tensor, Tensor, Tensor]


def planted(
    name: str = "basis", seed: int = 0, *, expansion: str = "linear", periods=None, **settings
) -> SteeringMap:
    torch.manual_seed(seed)
    steering = MAPS[name](D, P, features=Features(expansion, P, SCALES, periods), **settings)
    with torch.no_grad():
        for weight in steering.parameters():
            weight.add_(torch.randn(weight.shape) * 0.3 / weight.shape[-1] ** 0.5)
    return steering


def pairs(steering: SteeringMap, seed: int = 1, n: int = N, noise: float = 0.0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    source = 5 + torch.randn(n, D, generator=generator) * torch.linspace(0.2, 3, D)
    theta = (2 * torch.rand(n, P, generator=generator) - 1) * torch.tensor(SCALES)
    with torch.no_grad():
        target = steering(source, theta)
    return source, theta, target + noise * torch.randn(n, D, generator=generator)


def relative_error(steering: SteeringMap, source: Tensor, theta: Tensor, target: Tensor) -> float:
    """sum |target - steered|^2 / sum |target - source|^2."""
    with torch.no_grad():
        return float((steering(source, theta) - target).square().sum() / (target - source).square().sum())


@pytest.mark.parametrize(
    ("name", "expansion"),
    [("shift", "linear"), ("basis", "linear"), ("basis", "linear+squares+pairwise"), ("low_rank", "linear")],
)
def test_recovers_a_planted_action(name: str, expansion: str):
    truth = planted(name, expansion=expansion, **({"rank": 4} if name == "low_rank" else {}))
    rank = 4 if name == "low_rank" else None
    fitted = fit_embeddings(*pairs(truth), map=name, features=expansion, rank=rank)
    assert relative_error(fitted, *pairs(truth, seed=2)) < 1e-8  # (1e-4)^2
    theta = torch.tensor(SCALES) / 2
    assert (fitted.matrix(theta) - truth.matrix(theta)).norm() < 1e-4 * truth.matrix(theta).norm()
    assert torch.equal(fitted.matrix(theta * 0), torch.eye(D))


def test_recovers_harmonics_of_a_coordinate_with_a_period():
    periods = [None, None, 40.0]
    truth = planted(expansion="linear+harmonics", periods=periods)
    fitted = fit_embeddings(*pairs(truth), features=Features("linear+harmonics", P, SCALES, periods))
    assert relative_error(fitted, *pairs(truth, seed=2)) < 1e-8


@pytest.mark.parametrize("name", ["rotation", "exponential"])
def test_recovers_by_gradient_what_the_basis_map_cannot(name: str):
    truth = planted(name)
    data, fresh = pairs(truth, n=400), pairs(truth, seed=2)
    assert relative_error(fit_embeddings(*data, map=name), *fresh) < 1e-3
    assert relative_error(fit_embeddings(*data), *fresh) > 5e-3


def test_a_start_that_gradients_cannot_better_is_kept(monkeypatch: pytest.MonkeyPatch):
    def spoil(steering: SteeringMap, *_: Tensor) -> None:
        with torch.no_grad():
            for weight in steering.parameters():
                weight.mul_(math.nan)

    monkeypatch.setattr(gradient, "_lbfgs", spoil)
    truth = planted("exponential")
    error = relative_error(fit_embeddings(*pairs(truth, n=400), map="exponential"), *pairs(truth, seed=2))
    assert error < 0.5


@pytest.mark.parametrize("name", ["rotation", "exponential"])
def test_wide_embeddings_are_fitted_within_their_leading_directions(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """Planted in 8 of 13 directions; there it comes back, the laws hold, and the other directions stay as they were."""
    monkeypatch.setattr(gradient, "_INNER", 8)
    torch.manual_seed(3)
    inner = MAPS[name](
        8, P, features=Features("linear", P, SCALES), **({"rank": 2} if name == "exponential" else {})
    )
    with torch.no_grad():
        for weight in inner.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
        frame = torch.linalg.qr(torch.randn(13, 13)).Q
        source = torch.randn(N, 8)
        theta = torch.tensor(SCALES) * (2 * torch.rand(N, P) - 1)
        target = inner(source, theta) @ frame[:, :8].T
        source, rest = source @ frame[:, :8].T, torch.randn(N, 5) @ frame[:, 8:].T
    settings = {"rank": 2} if name == "exponential" else {}
    found = fit_embeddings(source, theta, target, map=name, scales=SCALES, strict=False, **settings)
    with torch.no_grad():
        steered = found(source, theta)
        assert (steered - target).square().sum() < 1e-3 * (target - source).square().sum()
        assert torch.allclose(found(rest, theta), rest, atol=1e-3)
        assert torch.allclose(found(steered, -theta), source, atol=1e-3)
    assert found.fit_record is not None
    assert found.fit_record["held_out_error"] < 1e-3


def test_recovers_a_flip_as_half_a_turn():
    generator = torch.Generator().manual_seed(0)
    frame, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    source = torch.randn(400, 6, generator=generator)
    theta = torch.randint(2, (400, 1), generator=generator).float()
    target = source - 2 * theta * (source @ frame[:, :4]) @ frame[:, :4].T
    fitted = fit_embeddings(source, theta, target, map="rotation", periods=[2.0])
    assert relative_error(fitted, source, theta, target) < 0.05


def test_the_identity_needs_no_fit():
    assert fit_embeddings(*pairs(planted()), map="identity").name == "identity"


def test_noise_is_met_at_its_floor():
    truth, noise = planted(), 0.5
    fitted = fit_embeddings(*pairs(truth, n=4000, noise=noise))
    source, theta, target = pairs(truth, seed=2, noise=noise)
    with torch.no_grad():
        floor = (fitted(source, theta) - target).square().mean().sqrt()
    assert noise * 0.98 < floor < noise * 1.03


@pytest.mark.parametrize("refine", [None, "cosine"])
def test_the_held_out_error_is_that_of_fresh_pairs(refine: str | None):
    data = pairs(planted(), noise=0.3, n=3000)
    found = fit_embeddings(*data, refine=refine)
    fresh = pairs(planted(), seed=2, noise=0.3, n=3000)
    assert found.fit_record is not None
    assert found.fit_record["held_out_error"] == pytest.approx(relative_error(found, *fresh), rel=0.1)
    assert fit_embeddings(*data, groups=[0] * 3000, ridge=0.1).fit_record["held_out_error"] is None


def test_low_rank_equals_the_basis_map_at_full_rank_and_beats_it_on_little_data():
    truth = planted("low_rank", rank=2)
    few = pairs(truth, n=120, noise=2.0)
    fresh = pairs(truth, seed=2)
    full = fit_embeddings(*few, map="low_rank", rank=D, ridge=1e-3)
    basis = fit_embeddings(*few, ridge=1e-3)
    torch.testing.assert_close(full(*fresh[:2]), basis(*fresh[:2]), rtol=1e-4, atol=1e-4)
    narrow = fit_embeddings(*few, map="low_rank", rank=2, ridge=1e-3)
    assert relative_error(narrow, *fresh) < 0.8 * relative_error(basis, *fresh)


def test_a_strong_ridge_tends_to_the_shift_map():
    data = pairs(planted())
    strong, shift = fit_embeddings(*data, ridge=1e9), fit_embeddings(*data, map="shift")
    e, theta = data[0][:5], data[1][:5]
    with torch.no_grad():
        # The basis map's shift is measured at the mean embedding; so is the shift map's, up to sampling.
        torch.testing.assert_close(strong(e, theta) - e, shift(e, theta) - e, rtol=0.05, atol=0.05)


def test_the_chosen_ridge_is_the_best_of_the_grid_on_fresh_pairs(caplog: pytest.LogCaptureFixture):
    truth = planted()
    few, fresh = pairs(truth, n=60, noise=4.0), pairs(truth, seed=2)
    with caplog.at_level(logging.INFO, "steerable"):
        chosen = relative_error(fit_embeddings(*few), *fresh)
    assert "ridge" in caplog.text
    grid = [relative_error(fit_embeddings(*few, ridge=strength), *fresh) for strength in (1e-1, 1e-3, 1e-8)]
    assert chosen < 0.5 * max(grid)
    assert chosen < 1.3 * min(grid)


def test_held_out_groups_are_whole_and_about_one_in_five():
    held_out, groups = HeldOut(), torch.arange(1000).repeat_interleave(3)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    mask = torch.cat([held_out.mask(held_out.names(part, len(part))) for part in groups[order].split(100)])
    per_group = torch.zeros(1000).index_add_(0, groups[order], mask.float())
    assert set(per_group.tolist()) == {0.0, 3.0}
    assert 0.15 < mask.float().mean() < 0.25
    assert HeldOut().mask(["a", "a", "b", "b"]).tolist() == [False, False, True, True]


def test_groups_choose_another_ridge_than_rows(caplog: pytest.LogCaptureFixture):
    """Each image moves in its own way: rows of known images flatter a weak ridge, held-out images do not."""
    generator = torch.Generator().manual_seed(0)
    image = torch.arange(16).repeat_interleave(40)
    source = torch.randn(16, D, generator=generator)[image]
    theta = torch.randn(640, 1, generator=generator)
    target = source + theta * torch.randn(16, D, generator=generator)[image]
    with caplog.at_level(logging.INFO, "steerable"):
        fit_embeddings(source, theta, target)
        fit_embeddings(source, theta, target, groups=image)
    rows, groups = (float(found) for found in re.findall(r"ridge (\S+);", caplog.text))
    assert groups > 10 * rows


@pytest.mark.parametrize("name", ["shift", "basis", "low_rank"])
@pytest.mark.parametrize("with_groups", [False, True])
def test_streaming_equals_in_memory(name: str, with_groups: bool):
    source, theta, target = pairs(planted(), noise=1.0)
    groups = torch.arange(N) // 5
    at_once = fit_embeddings(
        source, theta, target, map=name, scales=SCALES, groups=groups if with_groups else None
    )
    parts = [source.split(170), theta.split(170), target.split(170), groups.split(170)]
    stream = (batch for batch in zip(*(parts if with_groups else parts[:3]), strict=True))
    streamed = fit_embeddings(stream, map=name, scales=SCALES)
    torch.testing.assert_close(streamed(source, theta), at_once(source, theta), rtol=1e-5, atol=1e-5)


def test_numpy_arrays_and_string_groups_serve_as_well():
    data = pairs(planted(), n=200)
    names = [f"image-{i // 4}.jpg" for i in range(200)]
    arrays = fit_embeddings(*(part.numpy() for part in data), groups=np.array(names))
    tensors = fit_embeddings(*data, groups=names)
    assert torch.equal(arrays(*data[:2]), tensors(*data[:2]))


def test_scales_default_to_the_largest_value():
    source, theta, target = pairs(planted())
    fitted = fit_embeddings(source, theta, target)
    assert fitted.features.scale_values == pytest.approx(theta.abs().amax(dim=0).tolist())


def test_scale_of_theta_and_shift_of_the_embeddings_do_not_matter():
    source, theta, target = (part.double() for part in pairs(planted(), noise=1.0))
    plain = fit_embeddings(source, theta, target, scales=SCALES, ridge=0.1).double()
    moved = fit_embeddings(source * 10 + 300, theta * 7, target * 10 + 300, ridge=0.1).double()
    torch.testing.assert_close(
        (moved(source * 10 + 300, theta * 7) - 300) / 10, plain(source, theta), rtol=1e-3, atol=1e-3
    )


def test_not_strict_leaves_dead_directions_to_the_ridge():
    truth = planted()
    source, theta, target = pairs(truth)
    source[:, 3] = target[:, 3] = 0
    theta[:, 1] = 0
    fitted = fit_embeddings(source, theta, target, strict=False)
    assert isinstance(fitted, BasisMap)
    assert not fitted.weight[:, :, 3].any()
    assert not fitted.weight[1].any()
    assert fit_embeddings(*(part[:5] for part in (source, theta, target)), strict=False).dim == D


def spoil(data: Pairs, part: str, column: int, value) -> dict[str, Tensor]:
    parts = dict(zip(("source", "theta", "target"), (tensor.clone() for tensor in data), strict=True))
    parts[part][:, column] = value(parts[part]) if callable(value) else value
    return parts


@pytest.mark.parametrize("name", ["basis", "exponential"])
@pytest.mark.parametrize(
    ("part", "column", "value", "message"),
    [
        ("source", 7, 0.0, r"source is constant in column\(s\) 7;"),
        ("source", 2, 3.1, r"source is constant in column\(s\) 2;"),
        ("theta", 1, 0.0, r"theta is constant in column\(s\) 1;"),
        (
            "source",
            4,
            lambda e: 2 * e[:, 9] - e[:, 1],
            "source has rank 11 of 12: column [149] is a combination",
        ),
        ("theta", 2, lambda t: -3 * t[:, 0], "theta has rank 2 of 3: column [02] is a combination"),
        ("target", 5, math.nan, r"target is not finite in 100.00% of its rows, first in column 5"),
        ("source", 0, math.inf, r"source is not finite in 100.00% of its rows, first in column 0"),
    ],
)
def test_degenerate_input_is_named(name: str, part: str, column: int, value, message: str):
    with pytest.raises(FitError, match=message):
        fit_embeddings(**spoil(pairs(planted(), n=300), part, column, value), map=name)


def test_a_share_of_bad_rows_is_named_also_in_a_stream():
    source, theta, target = pairs(planted(), n=400)
    target[250:300, 6] = math.nan
    batches = list(zip(source.split(200), theta.split(200), target.split(200), strict=True))
    with pytest.raises(FitError, match=r"target is not finite in 25\.00% of its rows, first in column 6"):
        fit_embeddings(batches)


def test_lengths_widths_and_counts():
    source, theta, target = pairs(planted(), n=40)
    with pytest.raises(FitError, match=r"rows differ: source 40, theta 39, target 40"):
        fit_embeddings(source, theta[1:], target)
    with pytest.raises(FitError, match=r"groups 3"):
        fit_embeddings(source, theta, target, groups=[1, 2, 3])
    with pytest.raises(FitError, match="differ in width"):
        fit_embeddings(source, theta, target[:, 1:])
    with pytest.raises(FitError, match=r"source has shape \(12,\)|rows differ"):
        fit_embeddings(source[0], theta, target)
    with pytest.raises(FitError, match="theta is missing"):
        fit_embeddings(source, target=target)
    with pytest.raises(FitError, match="12 pairs for embeddings 12 wide; expected at least 13"):
        fit_embeddings(source[:12], theta[:12], target[:12])
    with pytest.raises(FitError, match="there are no pairs"):
        fit_embeddings([])
    with pytest.raises(FitError, match="there are no pairs"):
        fit_embeddings(source[:0], theta[:0], target[:0])
    with pytest.raises(FitError, match="batch 1 has 2 parts"):
        fit_embeddings([(source, theta, target), (source, theta)])
    with pytest.raises(FitError, match="batch 1 has widths"):
        fit_embeddings([(source, theta, target), (source, theta[:, :2], target)])
    with pytest.raises(FitError, match="all pairs are of one group"):
        fit_embeddings(source, theta, target, groups=[7] * 40)


def test_settings_out_of_range():
    data = pairs(planted(), n=40)
    with pytest.raises(ConfigError, match="did you mean basis"):
        fit_embeddings(*data, map="bases")
    with pytest.raises(ConfigError, match="ridge is -1"):
        fit_embeddings(*data, ridge=-1)
    with pytest.raises(ConfigError, match="setting of map basis 'rank'"):
        fit_embeddings(*data, rank=3)
    with pytest.raises(ConfigError, match="features already hold"):
        fit_embeddings(*data, features=Features("linear", P), scales=SCALES)
    with pytest.raises(ConfigError, match="did you mean squares"):
        fit_embeddings(*data, features="square")


def test_public_names():
    assert fitting.__all__ == ["check_room", "fit_embeddings"]
