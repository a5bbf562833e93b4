"""Losses against their definitions, and the failure that each form is there to prevent."""

import itertools
import math

import pytest
import torch

from steerable import losses, metrics
from steerable.theta import Param


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(12, 5, generator=generator)
    target = source + 0.5 * torch.randn(12, 5, generator=generator)
    steered = source + 0.3 * torch.randn(12, 5, generator=generator)
    return source, target, steered


def test_perfect_steering_costs_nothing(pairs):
    source, target, _ = pairs
    assert losses.squared(source, target, target) == 0
    assert losses.relative(source, target, target) == 0


def test_relative_is_the_metric(pairs):
    assert losses.relative(*pairs).item() == pytest.approx(metrics.relative_error(*pairs), rel=1e-4)


def test_relative_is_one_without_steering(pairs):
    source, target, _ = pairs
    assert losses.relative(source, target, source).item() == pytest.approx(1, rel=1e-4)


def test_squared_is_the_mean_squared_error_over_the_spread(pairs):
    source, target, steered = pairs
    both = torch.cat([source, target])
    spread = (both - both.mean(0)).square().sum(1).mean()
    expected = (target - steered).square().sum(1).mean() / spread
    assert losses.squared(*pairs).item() == pytest.approx(expected.item(), rel=1e-4)


def test_shrinking_every_embedding_does_not_lower_squared(pairs):
    small = [0.1 * part for part in pairs]
    assert losses.squared(*small).item() == pytest.approx(losses.squared(*pairs).item(), rel=1e-3)


def test_the_spread_in_squared_carries_no_gradient(pairs):
    source, target, steered = (part.clone().requires_grad_() for part in pairs)
    losses.squared(source, target, steered).backward()
    # source appears in the spread only, so a gradient there would come from the division
    assert source.grad is None or bool((source.grad == 0).all())
    assert target.grad is not None


def test_relative_rewards_motion(pairs):
    source, target, _ = pairs
    steered = source.clone()
    moved = target.clone().requires_grad_()
    error = (moved - steered).detach()
    # with a fixed residual, moving further must lower the loss
    loss = losses.relative(source, moved, (moved - 0.1 * error))
    loss.backward()
    further = losses.relative(
        source, target + 0.1 * (target - source), target + 0.1 * (target - source) - 0.1 * error
    )
    assert further < loss


def test_contrastive_is_the_cross_entropy_of_the_true_theta():
    generator = torch.Generator().manual_seed(1)
    target, orbits = torch.randn(4, 6, generator=generator), torch.randn(4, 3, 6, generator=generator)
    expected = 0.0
    for i in range(4):
        cosines = [torch.cosine_similarity(target[i], orbits[i, j], dim=0).item() / 0.2 for j in range(3)]
        expected -= cosines[0] - math.log(sum(math.exp(c) for c in cosines))
    assert losses.contrastive(target, orbits, temperature=0.2).item() == pytest.approx(expected / 4, rel=1e-4)


def test_contrastive_falls_as_the_first_view_fits():
    generator = torch.Generator().manual_seed(2)
    target, orbits = torch.randn(4, 6, generator=generator), torch.randn(4, 3, 6, generator=generator)
    fitting = orbits.clone()
    fitting[:, 0] = target
    assert losses.contrastive(target, fitting) < losses.contrastive(target, orbits)


def test_uniformity_is_its_definition_over_all_pairs():
    e = torch.randn(7, 4, generator=torch.Generator().manual_seed(3))
    u = e / e.norm(dim=1, keepdim=True)
    distances = [(u[i] - u[j]).square().sum().item() for i, j in itertools.permutations(range(7), 2)]
    expected = math.log(sum(math.exp(-2 * d) for d in distances) / len(distances))
    assert losses.uniformity(e).item() == pytest.approx(expected, rel=1e-4)


def test_uniformity_ignores_norms_and_punishes_collapse():
    e = torch.randn(7, 4, generator=torch.Generator().manual_seed(4))
    assert losses.uniformity(100 * e).item() == pytest.approx(losses.uniformity(e).item(), abs=1e-4)
    assert losses.uniformity(torch.ones(7, 4)).item() == pytest.approx(0, abs=1e-5)
    assert losses.uniformity(e) < 0


def test_instance_is_the_cross_entropy_among_the_targets(pairs):
    _, target, steered = pairs
    cosine = torch.nn.functional.cosine_similarity(steered[:, None], target[None], dim=-1)
    expected = -(cosine / 0.2).log_softmax(1).diagonal().mean()
    assert losses.instance(target, steered, temperature=0.2).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    assert losses.instance(target, target, temperature=0.01) < 0.01 < losses.instance(target, target.flip(0))


PARAMS = (Param("zoom", "octave", 0.0, 1.8), Param("rotate", "degree", 0.0, 270.0, 360.0, 90.0, True))


def test_prediction_is_squared_error_in_scales_and_cross_entropy_over_levels():
    theta = torch.tensor([[0.9, 90.0], [1.8, 270.0]])
    assert losses.prediction_width(PARAMS) == 5
    predicted = torch.tensor([[0.0, 0.0, 9.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 9.0]])
    wrong_level = math.log(1 + 3 * math.exp(-9))
    expected = (0.5**2 / 2 + wrong_level) / 2
    assert losses.prediction(predicted, theta, PARAMS).item() == pytest.approx(expected, rel=1e-4)
    assert losses.prediction(predicted.flip(0), theta, PARAMS) > 4


def test_nt_xent_is_lightlys():
    from lightly.loss import NTXentLoss

    a, b = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, theirs = losses.nt_xent(a, b, temperature=0.3), NTXentLoss(temperature=0.3)(a, b)
    torch.testing.assert_close(ours, theirs)
