"""Figures on embeddings whose answers are known."""

import math

import pytest
import torch

from steerable.auditing.measure import (
    chance_figures,
    decoding_figures,
    law_figures,
    motion_figures,
    rank_figures,
)
from steerable.maps import Features, IdentityMap, ShiftMap
from steerable.theta import Param

X = Param("x", "stop", -1.0, 1.0)
FLIP = Param("flip", "switch", 0.0, 1.0, period=2.0, step=1.0)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shift_map(expansion: str, period: float | None = None) -> ShiftMap:
    map_ = ShiftMap(4, 1, features=Features(expansion, 1, periods=[period]))
    with torch.no_grad():
        map_.bias.copy_(torch.arange(1.0, 5.0)[None])
    return map_.requires_grad_(False)


def test_motion_of_a_half_predicted_move():
    source, move = draw(30, 6), draw(30, 6, seed=1)
    figures = motion_figures(source, source + move, source + move / 2)
    assert figures["relative_error"] == pytest.approx(0.25, rel=1e-5)
    spread = (source - source.mean(0)).square().sum()
    assert figures["invariance_level"] == pytest.approx(float(move.square().sum() / spread), rel=1e-5)


def test_cosine_form_does_not_see_lengths():
    source, target = draw(30, 6), draw(30, 6, seed=1)
    figures = motion_figures(source, target, 3 * target)
    assert figures["relative_error_cosine"] == pytest.approx(0, abs=1e-10)
    assert figures["relative_error"] is not None
    assert figures["relative_error"] > 1


def test_not_steering_is_exactly_one():
    source, target = draw(30, 6), draw(30, 6, seed=1)
    figures = motion_figures(source, target, source)
    assert figures["relative_error"] == 1
    assert figures["relative_error_cosine"] == 1


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_without_motion_there_is_no_error(noise: float):
    source = draw(30, 6)
    figures = motion_figures(source, source + noise * draw(30, 6, seed=1), source)
    assert figures["relative_error"] is None
    assert figures["relative_error_cosine"] is None


def test_a_collapsed_encoder_has_no_figures():
    source = torch.ones(5, 3)
    assert set(motion_figures(source, source, source).values()) == {None}


def test_ranks_of_a_perfect_and_of_no_prediction():
    views = draw(20, 8, 5)
    assert rank_figures(views, views) == {"mrr": 1, "hit_at_1": 1, "hit_at_5": 1}
    nothing = rank_figures(draw(20, 1, 5, seed=3).expand(20, 8, 5), views)
    # each view is the true one in turn, so that a constant prediction scores exactly as guessing does
    assert nothing == pytest.approx(chance_figures(8))


def test_chance_among_fifty():
    assert chance_figures(50) == pytest.approx(
        {"mrr": 0.0899841, "hit_at_1": 0.02, "hit_at_5": 0.1}, rel=1e-5
    )


def test_laws_hold_where_a_shift_is_linear():
    e, a, b = draw(9, 4), draw(9, 1, seed=1), draw(9, 1, seed=2)
    laws = law_figures(shift_map("linear"), e, a, b, [X])
    assert laws["law_identity"] == 0
    assert laws["law_composition"] == pytest.approx(0, abs=1e-5)
    assert laws["law_inverse"] == pytest.approx(0, abs=1e-5)


def test_law_violations_of_a_square_are_twice_the_effect():
    e, a = draw(9, 4), torch.full((9, 1), 0.7)
    # with phi = theta^2: (a + a)^2 - a^2 - a^2 = 2 a^2, and a^2 + (-a)^2 = 2 a^2
    laws = law_figures(shift_map("squares"), e, a, a, [X])
    assert laws["law_identity"] == 0
    assert laws["law_composition"] == pytest.approx(2, rel=1e-4)
    assert laws["law_inverse"] == pytest.approx(2, rel=1e-4)


def test_laws_wrap_with_the_period():
    e, on = draw(9, 4), torch.ones(9, 1)
    # on twice is off: M(1) M(1) e - M(0) e, twice the step, is one step too many on either law
    laws = law_figures(shift_map("linear"), e, on, on, [FLIP])
    assert laws["law_composition"] == pytest.approx(2, rel=1e-4)
    assert laws["law_inverse"] == pytest.approx(2, rel=1e-4)


def test_a_map_that_does_nothing_has_no_law_figures():
    e, a = draw(9, 4), draw(9, 1, seed=1)
    assert set(law_figures(IdentityMap(4, 1), e, a, a, [X]).values()) == {None}


def test_decoding_reads_what_is_there_and_nothing_else():
    theta = draw(400, 2)
    source = draw(400, 5, seed=1)
    target = source + theta[:, :1] * torch.arange(1.0, 6.0)
    written, absent = decoding_figures(source, target, theta, 200)
    assert written == pytest.approx(1, abs=1e-3)
    assert absent is not None
    assert absent < 0.1


def test_decoding_a_constant_is_not_defined():
    source = draw(40, 5)
    assert decoding_figures(source, source + 1, torch.zeros(40, 1), 20) == [None]


def test_figures_are_never_nan():
    views = torch.zeros(3, 4, 2)
    figures = rank_figures(views, views) | motion_figures(views[:, 0], views[:, 0], views[:, 0])
    assert all(value is None or math.isfinite(value) for value in figures.values())
