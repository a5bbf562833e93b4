"""What is looked at: images, ranges, levels."""

import pytest
import torch

from steerable.auditing.plan import drawn_alone, levels, make_plan, range_alone, spaced
from steerable.transforms import Chain

PARAMS = {param.name: param for param in Chain.preset("simclr").params}


def plan_for(count: int, n_images: int = 500):
    return make_plan(
        count,
        views=50,
        n_images=n_images,
        n_pool=100,
        strengths=5,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("count", [4, 5, 101, 3000])
def test_ridge_images_are_not_measured(count: int):
    plan = plan_for(count)
    measured, ridge = set(plan.measured.tolist()), set(plan.ridge.tolist())
    assert not measured & ridge
    assert len(measured) == min(500, count // 2)
    assert len(ridge) == min(2000, count - len(measured))
    assert 1 <= plan.alone <= plan.pool <= len(measured)


def test_a_default_audit_costs_what_two_cores_bear():
    assert plan_for(5000).passes(tuple(PARAMS.values())) < 60_000


def test_ranges_alone():
    assert range_alone(PARAMS["zoom"]) == (0, 1.8)
    assert PARAMS["shift_x"].high > 1
    assert range_alone(PARAMS["shift_x"]) == (-0.5, 0.5)


def test_levels_reach_both_ends_without_zero():
    assert levels(PARAMS["zoom"], 3) == pytest.approx([0.6, 1.2, 1.8])
    assert sorted(levels(PARAMS["hue"], 2)) == pytest.approx([-0.1, -0.05, 0.05, 0.1])
    assert levels(PARAMS["hflip"], 5) == [1]


def test_draws_stay_in_the_range():
    generator = torch.Generator().manual_seed(0)
    draw = drawn_alone(PARAMS["shift_x"], 500, generator)
    assert -0.5 <= float(draw.min()) < -0.45
    assert 0.45 < float(draw.max()) <= 0.5
    assert drawn_alone(PARAMS["hflip"], 3, generator).tolist() == [1, 1, 1]


def test_views_fill_the_range_evenly():
    values = spaced(PARAMS["zoom"], 9)
    assert values.tolist() == pytest.approx([0.1 + 0.2 * i for i in range(9)])
