"""Refinement by cosine and contrast: it betters what it is for on fresh images, and else leaves the map alone."""

import logging
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steerable import metrics
from steerable.errors import ConfigError, FitError
from steerable.fitting import embeddings, fit_embeddings
from steerable.fitting.pairs import Pairs
from steerable.maps import SteeringMap

D, P = 16, 2


def world(images: int, views: int, seed: int = 0, noise: float = 4.0) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, d), thetas (n, v, p) and views (n, v, d); in some directions the motion is mostly noise."""
    fixed, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    matrices = torch.randn(P, D, D, generator=fixed) / D**0.5
    frame = torch.linalg.qr(torch.randn(D, D, generator=fixed))[0]
    e = 1 + 2 * torch.randn(images, D, generator=generator)
    theta = 2 * torch.rand(images, views, P, generator=generator) - 1
    motion = torch.einsum("nvp,pij,nj->nvi", theta, matrices, e)
    spread = noise * torch.logspace(-2, 0.5, D)
    return (
        e,
        theta,
        e[:, None] + motion + (spread * torch.randn(images, views, D, generator=generator)) @ frame,
    )


def pairs(images: int, views: int, noise: float = 4.0) -> dict[str, Any]:
    e, theta, target = world(images, views, noise=noise)
    return {
        "source": e.repeat_interleave(views, 0),
        "theta": theta.flatten(0, 1),
        "target": target.flatten(0, 1),
        "groups": torch.arange(images).repeat_interleave(views),
    }


def judged(steering: SteeringMap, noise: float = 4.0) -> dict[str, float]:
    """On fresh images, each view sought among 30 of its image."""
    e, theta, target = world(400, 30, seed=1, noise=noise)
    with torch.no_grad():
        steered = steering(e[:, None], theta)
    ranks = torch.cat(
        [metrics.view_ranks(steered[:, v], target, torch.full((len(e),), v)) for v in range(0, 30, 3)]
    )
    return {
        "mrr": metrics.mean_reciprocal_rank(ranks),
        "hit": metrics.hit_at(ranks, 1),
        "cosine": float(F.cosine_similarity(steered, target, dim=-1).mean()),
        "error": metrics.relative_error(
            *(part.flatten(0, 1) for part in (e[:, None] + 0 * target, target, steered))
        ),
    }


@pytest.mark.parametrize("settings", [{}, {"projection": 12}, {"map": "low_rank", "rank": 12}])
def test_contrast_finds_views_that_least_squares_loses(settings: dict, caplog: pytest.LogCaptureFixture):
    data = pairs(100, 8)
    plain = judged(fit_embeddings(**data, **settings))
    with caplog.at_level(logging.INFO, "steerable"):
        refined = fit_embeddings(**data, **settings, refine="contrastive")
    found = judged(refined)
    assert found["mrr"] > plain["mrr"] + 0.03
    assert found["hit"] > plain["hit"] + 0.02
    assert found["error"] < plain["error"] + 0.4  # the price is bounded; 1 is no better than not steering
    with torch.no_grad():
        assert torch.equal(refined(data["source"], torch.zeros(P)), data["source"])
    first, last = re.findall(r"held-out (\S+) to (\S+) on", caplog.text)[0]
    assert float(last) < float(first)


def test_cosine_betters_the_angle_where_lengths_differ():
    """A few images have long embeddings: they decide a squared error, and count like any other in an angle."""
    generator = torch.Generator().manual_seed(0)
    size = torch.where(torch.rand(1200, 1, generator=generator) < 0.1, 20.0, 1.0)
    direction = F.normalize(torch.randn(1200, D, generator=generator), dim=-1)
    theta = torch.rand(1200, 1, generator=generator)
    matrix = torch.randn(2, D, D, generator=generator) / D**0.5
    # long and short ones move differently, and one affine map must serve both
    motion = torch.where(size > 1, direction @ matrix[0], direction @ matrix[1])
    source, target = size * direction, size * (direction + theta * motion)
    fit, fresh = slice(0, 900), slice(900, None)

    def angle(refine: str | None) -> float:
        steering = fit_embeddings(source[fit], theta[fit], target[fit], refine=refine)
        with torch.no_grad():
            return float(F.cosine_similarity(steering(source[fresh], theta[fresh]), target[fresh]).mean())

    assert angle("cosine") > angle(None) + 0.02


@pytest.mark.parametrize("refine", ["cosine", "contrastive"])
def test_a_map_that_is_exact_is_left_as_it_was(refine: str):
    data = pairs(60, 4, noise=0.0)
    plain, refined = fit_embeddings(**data), fit_embeddings(**data, refine=refine)
    assert judged(refined, noise=0.0)["error"] < 1e-8
    for one, other in zip(plain.parameters(), refined.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["shift", "rotation"])
def test_every_family_can_be_refined(name: str, caplog: pytest.LogCaptureFixture):
    data = pairs(30, 4)
    plain = judged(fit_embeddings(**data, map=name))
    with caplog.at_level(logging.INFO, "steerable"):
        refined = fit_embeddings(**data, map=name, refine="contrastive")
    assert refined.name == name
    assert "contrastive refinement:" in caplog.text
    assert judged(refined)["mrr"] > plain["mrr"] - 0.02


def test_the_held_out_images_are_not_seen_before_they_judge(monkeypatch: pytest.MonkeyPatch):
    """What judges is fitted without them; what is returned is fitted on all."""
    seen = []

    def spy(steering: SteeringMap, early: SteeringMap, kept: Pairs, criterion: str) -> None:
        seen.append((steering, early, kept))

    monkeypatch.setattr(embeddings, "refine_map", spy)
    data = pairs(50, 4)
    plain = fit_embeddings(**data, ridge=0.01)
    fit_embeddings(**data, ridge=0.01, refine="cosine")
    steering, early, kept = seen[0]
    rest = {key: value[~kept.held] for key, value in data.items()} | {"scales": plain.features.scale_values}
    e, theta = data["source"], data["theta"]
    torch.testing.assert_close(steering(e, theta), plain(e, theta))
    torch.testing.assert_close(
        early(e, theta), fit_embeddings(**rest, ridge=0.01)(e, theta), rtol=0.02, atol=0.02
    )
    assert not torch.allclose(early(e, theta), plain(e, theta), rtol=0.02, atol=0.02)
    assert torch.equal(kept.group.unique_consecutive(return_counts=True)[1], torch.full((50,), 4))


def test_bad_settings_are_named():
    data = pairs(30, 4)
    with pytest.raises(ConfigError, match=r"criterion 'contrast' is unknown; .*did you mean contrastive"):
        fit_embeddings(**data, refine="contrast")
    with pytest.raises(FitError, match="every group holds one pair"):
        fit_embeddings(**data | {"groups": None}, refine="contrastive")
    for name in ("basis", "exponential"):
        with pytest.raises(FitError, match="all pairs are of one group"):
            fit_embeddings(**data | {"groups": [1] * 120}, map=name, ridge=0.1, refine="cosine")
