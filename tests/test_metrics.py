"""Metrics against their definitions, spelled out in plain loops, and against their known extremes."""

import math

import pytest
import torch

from steerable import metrics


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def triple() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = draws(7, 4) + 3
    target = source + draws(7, 4, seed=1)
    return source, target, target + 0.3 * draws(7, 4, seed=2)


def squares(a: torch.Tensor, b: torch.Tensor) -> float:
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True))


def test_relative_error(triple):
    source, target, steered = triple
    expected = squares(target, steered) / squares(target, source)
    assert metrics.relative_error(source, target, steered) == pytest.approx(expected, rel=1e-5)
    assert metrics.relative_error(source, target, target) == 0
    assert metrics.relative_error(source, target, source) == 1


def test_undefined_ratios_look_undefined(triple):
    source, _, steered = triple
    assert math.isinf(metrics.relative_error(source, source, steered))
    assert math.isnan(metrics.relative_error(source, source, source))
    assert math.isnan(metrics.invariance_level(source[:1], source[:1]))


def test_invariance_level(triple):
    source, target, _ = triple
    mean = torch.tensor([[sum(column.tolist()) / 7 for column in source.T]]).expand(7, 4)
    expected = squares(target, source) / squares(source, mean)
    assert metrics.invariance_level(source, target) == pytest.approx(expected, rel=1e-5)
    assert metrics.invariance_level(source, source) == 0


def test_invariance_level_ignores_shift_and_scale(triple):
    source, target, _ = triple
    level = metrics.invariance_level(source, target)
    assert metrics.invariance_level(5 * source - 2, 5 * target - 2) == pytest.approx(level, rel=1e-4)


def test_r2(triple):
    _, target, steered = triple
    mean = target.mean(0, keepdim=True).expand_as(target)
    assert metrics.r2(target, steered) == pytest.approx(
        1 - squares(target, steered) / squares(target, mean), rel=1e-4
    )
    assert metrics.r2(target, target) == 1
    assert metrics.r2(target, mean.clone()) == pytest.approx(0, abs=1e-6)


def test_column_r2_uses_each_columns_mean():
    target = draws(20, 3) + torch.tensor([0.0, 10.0, -100.0])
    predicted = target + torch.tensor([0.1, 1.0, 0.0]) * draws(20, 3, seed=1)
    values = metrics.column_r2(target, predicted)
    for i, value in enumerate(values):
        mean = target[:, i].mean().expand(20)
        expected = 1 - squares(target[:, i], predicted[:, i]) / squares(target[:, i], mean)
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert values[1] < 0.5 < values[0], "one global mean would hide the bad column"


def test_ranks_against_sorting():
    steered, views, true = draws(6, 5), draws(6, 9, 5, seed=1), torch.tensor([0, 3, 8, 1, 1, 5])
    ranks = metrics.view_ranks(steered, views, true)
    for i in range(6):
        cosines = [torch.cosine_similarity(steered[i], view, dim=0).item() for view in views[i]]
        assert ranks[i] == 1 + sorted(cosines, reverse=True).index(cosines[true[i]])


def test_ranks_of_extremes():
    views, true = draws(6, 9, 5), torch.arange(6)
    own = views[torch.arange(6), true]
    assert metrics.view_ranks(own, views, true).tolist() == [1] * 6
    assert metrics.view_ranks(3 * own, views, true).tolist() == [1] * 6, "cosine ignores length"
    assert metrics.view_ranks(-own, views, true).tolist() == [9] * 6


def test_a_collapsed_encoder_scores_as_chance():
    same = torch.ones(4, 50, 8)
    ranks = metrics.view_ranks(torch.ones(4, 8), same, torch.arange(4))
    assert ranks.tolist() == [25] * 4
    assert metrics.hit_at(ranks, 5) == 0


def test_mean_reciprocal_rank_and_hits():
    ranks = torch.tensor([1, 2, 4, 10])
    assert metrics.mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 10) / 4)
    assert [metrics.hit_at(ranks, k) for k in (1, 3, 4, 10)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (5, 1.0), (100, 0.07)])
def test_knn_accuracy_against_a_loop(k, temperature):
    labels = torch.arange(30) % 3
    centers = 0.8 * draws(3, 6, seed=3)
    gallery = centers[labels] + draws(30, 6)
    query, query_labels = centers[labels[:12]] + draws(12, 6, seed=1), labels[:12]
    hits = 0
    for e, label in zip(query, query_labels, strict=True):
        cosines = torch.stack([torch.cosine_similarity(e, other, dim=0) for other in gallery])
        scores = [0.0] * 3
        for index in cosines.argsort(descending=True)[:k].tolist():
            scores[labels[index]] += math.exp(cosines[index] / temperature)
        hits += scores.index(max(scores)) == label
    got = metrics.knn_accuracy(gallery, labels, query, query_labels, k=k, temperature=temperature)
    assert got == pytest.approx(hits / 12)
    assert 0 < got < 1, "the case must be able to fail"


def test_knn_counts_classes_absent_from_the_gallery_as_wrong():
    gallery = draws(4, 3)
    assert (
        metrics.knn_accuracy(gallery, torch.zeros(4, dtype=torch.long), gallery, torch.tensor([0, 0, 0, 5]))
        == 0.75
    )
