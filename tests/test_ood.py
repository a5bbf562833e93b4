"""Detectors on embeddings: against dense formulas, against pytorch-ood, and on what they are for."""

import math
import warnings

import pytest
import torch
from torch import nn

from steerable.errors import ConfigError, FitError, MissingExtra, ShapeError, ThetaError
from steerable.maps import MAPS
from steerable.metrics import ood_figures
from steerable.ood import (
    BASELINES,
    ORBIT_SCORES,
    Combination,
    MotionShare,
    OrbitContrast,
    OrbitScore,
    OverOrbit,
    SteeringResidual,
    baseline,
    detectors,
    threshold,
)

D, P, C = 6, 3, 4


def steering(name: str = "basis"):
    map = MAPS[name](dim=D, n_params=P)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in map.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return map


def world(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings around one center per class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    return 4 * torch.eye(C, D)[y] + 0.5 * torch.randn(n, D, generator=generator), y


@pytest.fixture
def head() -> nn.Linear:
    head = nn.Linear(D, C)
    with torch.no_grad():
        head.weight.copy_(torch.eye(C, D))
        head.bias.copy_(torch.linspace(-0.1, 0.1, C))
    return head


@pytest.fixture
def thetas(generator) -> torch.Tensor:
    return torch.randn(5, P, generator=generator)


# figures


def test_figures_agree_with_pytorch_ood(generator):
    metrics = pytest.importorskip("pytorch_ood.metrics")
    known, foreign = torch.randn(400, generator=generator), 1 + torch.randn(300, generator=generator)
    labels = torch.cat([torch.zeros(400), -torch.ones(300)]).int()
    theirs = metrics.OODMetrics().update(torch.cat([known, foreign]), labels).compute()
    own = ood_figures(known, foreign)
    assert own["auroc"] == pytest.approx(theirs["AUROC"])
    assert own["fpr95_ood_positive"] == pytest.approx(theirs["FPR95TPR"])
    # they use trapezoids, we average precision
    assert own["aupr_in"] == pytest.approx(theirs["AUPR-IN"], abs=2e-3)
    assert own["aupr_out"] == pytest.approx(theirs["AUPR-OUT"], abs=2e-3)
    flipped = metrics.FPRAtTPR(0.95).update(-torch.cat([known, foreign]), -1 - labels).compute()
    assert own["fpr95_id_positive"] == pytest.approx(flipped["FPR95TPR"])


def test_the_two_conventions_by_hand():
    known, foreign = torch.arange(20.0), torch.tensor([0.5, *[30.0] * 19])
    figures = ood_figures(known, foreign)
    assert figures["fpr95_ood_positive"] == 0.0  # 19 of 20 foreign reach 30, no known does
    assert figures["fpr95_id_positive"] == 0.05  # 19 of 20 known stay within 18, one foreign too
    ties = ood_figures(torch.zeros(10), torch.zeros(10))
    assert ties["auroc"] == 0.5
    assert ties["fpr95_ood_positive"] == ties["fpr95_id_positive"] == 1.0


# orbit scores


@pytest.mark.parametrize("map", ["basis", "low_rank", "shift", "rotation", "identity"])
@pytest.mark.parametrize("score", ORBIT_SCORES)
def test_orbit_scores_are_those_of_the_dense_orbit(map, score, head, thetas, monkeypatch):
    monkeypatch.setattr(detectors, "_NUMBERS", 100)  # several chunks
    e, y = world(30)
    detector = OrbitScore(steering(map), head, thetas, score=score).fit_features(e, y)
    with torch.no_grad():
        logits = head(detector.steering.orbit(e, thetas))
    assert torch.allclose(detector.predict_features(e), detector.predict_logits(logits), atol=1e-5)


def test_scores_by_hand():
    sure, torn = torch.tensor([20.0, 0.0]), torch.tensor([0.0, 0.0])
    same = torch.stack([sure, sure])[None]
    opposite = torch.stack([sure, sure.flip(0)])[None]
    half = torch.stack([torn, torn])[None]
    ln2 = math.log(2)
    wanted = {  # same, opposite, half
        "confidence": (0, 0.5, 0.5),
        "entropy": (0, ln2, ln2),
        "mean_entropy": (0, 0, ln2),
        "mutual_information": (0, ln2, 0),
        "spread": (0, 10, 0),
        "energy": (-20, -20, -ln2),
        "max_logit": (-20, -20, 0),
    }
    for name, values in wanted.items():
        got = [ORBIT_SCORES[name](logits).item() for logits in (same, opposite, half)]
        assert got == pytest.approx(values, abs=1e-5), name
    assert ORBIT_SCORES["disagreement"](torch.stack([sure, sure, sure, sure.flip(0)])[None]).item() == 0.25


def test_the_plain_view_alone_gives_msp_and_entropy(head):
    e, y = world(50)
    zero = torch.zeros(1, P)
    for score, name, shift in (("confidence", "msp", 1), ("entropy", "entropy", 0), ("energy", "energy", 0)):
        own = OrbitScore(steering(), head, zero, score=score).predict_features(e)
        theirs = baseline(name, head).fit_features(e, y).predict_features(e)
        assert torch.allclose(own, theirs + shift, atol=1e-5)


def test_orbit_score_refusals(head, thetas):
    with pytest.raises(ConfigError, match="did you mean entropy"):
        OrbitScore(steering(), head, thetas, score="entropi")
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 6\)"):
        OrbitScore(steering(), head, thetas).predict_features(torch.zeros(3, 5))
    with pytest.raises(ThetaError, match="3 coordinates"):
        OrbitScore(steering(), head, thetas[:, :2]).predict_features(torch.zeros(3, D))


# baselines and detectors over the orbit


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_part_clusters_from_noise(name, head):
    (e, y), (known, _) = world(400), world(200, seed=1)
    foreign = 1.5 * torch.randn(200, D, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        detector = baseline(name, head).fit_features(e, y)
        figures = ood_figures(detector.predict_features(known), detector.predict_features(foreign))
    assert figures["auroc"] > 0.7


def test_an_unknown_baseline_and_an_absent_package(head, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean mahalanobis"):
        baseline("mahalanobi", head)
    monkeypatch.setitem(__import__("sys").modules, "pytorch_ood", None)
    with pytest.raises(MissingExtra, match=r"steerable\[eval\]"):
        baseline("msp", head)


def test_over_orbit_is_the_mean_over_a_steered_bank(head, thetas, monkeypatch):
    monkeypatch.setattr(detectors, "_NUMBERS", 200)
    (e, y), (query, _) = world(80), world(7, seed=1)
    map = steering()
    got = OverOrbit(baseline("knn", head), map, thetas).fit_features(e, y).predict_features(query)
    unit = nn.functional.normalize
    with torch.no_grad():
        bank, views = unit(map.orbit(e, thetas).flatten(0, 1), dim=-1), unit(map.orbit(query, thetas), dim=-1)
    distance = torch.cdist(views, bank.expand(7, -1, -1)).kthvalue(50, dim=-1).values
    assert torch.allclose(got, distance.mean(1), atol=1e-4)


def test_the_contrast_is_the_ratio_of_two_fits(head, thetas):
    (e, y), (query, _) = world(80), world(7, seed=1)
    map = steering()
    got = OrbitContrast(baseline("mahalanobis", head), map, thetas, weight=1.5).fit_features(e, y)
    with torch.no_grad():
        bank = map.orbit(e, thetas).flatten(0, 1)
    parts = [
        baseline("mahalanobis", head).fit_features(*data).predict_features(query)
        for data in ((e, y), (bank, y.repeat_interleave(len(thetas))))
    ]
    assert torch.allclose(got.predict_features(query), 1.5 * parts[0].log() - parts[1].log(), atol=1e-4)


def test_the_contrast_favors_the_directions_of_motion(head):
    """Foreign images off by as much along the motion as others across it: the first are told better."""
    map = MAPS["shift"](dim=D, n_params=1)
    with torch.no_grad():
        map.bias.zero_()
        map.bias[0, 4] = 1.0
    (e, y), (known, _) = world(400), world(300, seed=1)
    thetas = torch.tensor([[-2.0], [2.0]])
    contrast = OrbitContrast(baseline("mahalanobis", head), map, thetas).fit_features(e, y)
    single = baseline("mahalanobis", head).fit_features(e, y)
    along, across = known.clone(), known.clone()
    along[:, 4] += 1.0
    across[:, 5] += 1.0

    def auroc(detector, foreign: torch.Tensor) -> float:
        return ood_figures(detector.predict_features(known), detector.predict_features(foreign))["auroc"]

    assert auroc(contrast, along) > auroc(single, along) + 0.05
    assert auroc(contrast, along) > auroc(contrast, across) + 0.1
    assert abs(auroc(single, along) - auroc(single, across)) < 0.06


def test_ours_run_inside_pytorch_ood(head, thetas):
    api = pytest.importorskip("pytorch_ood.api")
    metrics = pytest.importorskip("pytorch_ood.metrics")

    class Steered(api.FeaturesDetector):
        """All that it takes to hand one of ours to that package."""

        def __init__(self, encoder, inner):
            self.encoder, self.inner = encoder, inner
            self.fit_features, self.predict_features = inner.fit_features, inner.predict_features

        def predict(self, x):
            return self.predict_features(self.encoder(x))

    e, y = world(200)
    detector = Steered(nn.Identity(), OverOrbit(baseline("mahalanobis", head), steering(), thetas))
    detector.fit_features(e, y)
    x = torch.cat([e, 3 * torch.randn(100, D, generator=torch.Generator().manual_seed(5))])
    labels = torch.cat([y, -torch.ones(100).long()])
    result = metrics.OODMetrics().update(detector(x), labels).compute()
    assert result["AUROC"] > 0.9


# the residual


def encoded(n: int, thetas: torch.Tensor, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views as the map says, up to noise that is wide in the first coordinate only."""
    e, y = world(n, seed)
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(n, len(thetas), D, generator=generator) * torch.tensor([1.0, *[0.01] * (D - 1)])
    with torch.no_grad():
        return torch.cat([e[:, None], steering().orbit(e, thetas) + noise * rough + 0.3], 1), y


def test_the_residual_is_a_mahalanobis_distance(thetas):
    (train, y), (x, _) = encoded(5000, thetas, 1.0, 0), encoded(9, thetas, 1.0, 1)
    detector = SteeringResidual(steering(), thetas).fit_features(train, y)
    residual = detector.residual(train).double()
    mean = residual.mean(0)
    rest = (residual - mean).flatten(0, 1)
    precision = torch.linalg.inv(rest.T @ rest / len(rest))
    new = detector.residual(x).double() - mean
    wanted = torch.einsum("bvi,ij,bvj->bv", new, precision, new).mean(1) / D
    got = detector.predict_features(x).double()
    assert torch.corrcoef(torch.stack([got, wanted]))[0, 1] > 0.99  # but for the shrinkage
    plain = SteeringResidual(steering(), thetas, norm="plain")
    assert torch.allclose(plain.predict_features(x), plain.residual(x).square().mean((1, 2)))


def test_the_residual_sees_what_a_length_does_not(thetas):
    (train, y), (known, _) = encoded(300, thetas, 1.0, 0), encoded(200, thetas, 1.0, 1)
    foreign = known.clone()
    foreign[:, 1:, 1:] += 0.1  # ten deviations in the narrow coordinates, little beside the wide one
    aurocs = {}
    for norm in ("mahalanobis", "plain"):
        detector = SteeringResidual(steering(), thetas, norm=norm).fit_features(train, y)
        figures = ood_figures(detector.predict_features(known), detector.predict_features(foreign))
        aurocs[norm] = figures["auroc"]
    assert aurocs["mahalanobis"] > 0.95
    assert aurocs["plain"] < 0.7


def test_foreign_labels_stay_out_of_the_residuals_fit(thetas):
    x, y = encoded(100, thetas, 1.0, 0)
    dirty = x.clone()
    dirty[::5] += 100
    mask = torch.where(torch.arange(100) % 5 == 0, -1, y)
    clean = SteeringResidual(steering(), thetas).fit_features(x[mask >= 0])
    got = SteeringResidual(steering(), thetas).fit_features(dirty, mask)
    assert torch.allclose(got.predict_features(x), clean.predict_features(x))


def test_residual_refusals(thetas):
    x, _ = encoded(4, thetas, 1.0, 0)
    detector = SteeringResidual(steering(), thetas)
    with pytest.raises(ShapeError, match=r"shape \(4, 3, 6\); expected \(b, 6, 6\)"):
        detector.fit_features(x[:, :3])
    with pytest.raises(FitError, match="call fit_features first"):
        detector.predict_features(x)
    with pytest.raises(FitError, match="1 in-distribution images"):
        detector.fit_features(x[:1])
    with pytest.raises(ConfigError, match=r"norm is 'plane'.*did you mean plain"):
        SteeringResidual(steering(), thetas, norm="plane")


# calibration


def test_threshold_keeps_its_share(generator):
    scores = torch.randn(1000, generator=generator)
    for keep in (0.5, 0.95, 1.0):
        assert (scores <= threshold(scores, keep=keep)).float().mean() == pytest.approx(keep, abs=1.5e-3)
    with pytest.raises(ConfigError, match="keep is 95"):
        threshold(scores, keep=95)


@pytest.mark.parametrize("rule", ["mean_z", "fisher", "max"])
def test_combinations_gain_from_independent_scores_and_ignore_units(rule, generator):
    def draw(n: int, shift: float) -> dict[str, torch.Tensor]:
        return {name: shift + torch.randn(n, generator=generator) for name in "abcd"}

    validation, known, foreign = draw(2000, 0), draw(500, 0), draw(500, 1)
    combination = Combination(rule).fit(validation)
    together = ood_figures(combination.combine(known), combination.combine(foreign))["auroc"]
    assert together > ood_figures(known["a"], foreign["a"])["auroc"] + (0.02 if rule == "max" else 0.1)

    def scaled(scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: 1000 * values + 5 if name == "a" else values for name, values in scores.items()}

    again = Combination(rule).fit(scaled(validation)).combine(scaled(foreign))
    assert torch.allclose(again, combination.combine(foreign), atol=1e-3)


@pytest.mark.parametrize("rule", ["mean_z", "fisher", "max"])
def test_far_scores_stay_ordered(rule, generator):
    combination = Combination(rule).fit({"a": torch.randn(100, generator=generator)})
    far = combination.combine({"a": torch.linspace(-4, 30, 200)})
    assert (far.diff() >= 0).all()
    assert (far[-100:].diff() > 0).all()


def test_combination_refusals(generator):
    with pytest.raises(ConfigError, match=r"rule is 'fischer'.*did you mean fisher"):
        Combination("fischer")
    with pytest.raises(FitError, match="b does not vary"):
        Combination().fit({"a": torch.randn(5, generator=generator), "b": torch.ones(5)})
    with pytest.raises(FitError, match="there are no scores"):
        Combination().fit({})
    fitted = Combination().fit({"a": torch.randn(5, generator=generator)})
    with pytest.raises(ConfigError, match="scores are b; expected a"):
        fitted.combine({"b": torch.zeros(2)})


# motion share


@pytest.mark.parametrize("features", ["linear", "linear+squares"])
def test_the_share_is_that_of_the_dense_formula(features, monkeypatch):
    monkeypatch.setattr(detectors, "_NUMBERS", 50)  # several chunks
    map = MAPS["basis"](dim=D, n_params=P, features=features)
    with torch.no_grad():
        map.weight.copy_(torch.randn(map.weight.shape, generator=torch.Generator().manual_seed(1)))
    e, y = world(60)
    got = MotionShare(map).fit_features(e, y).predict_features(e)
    white = torch.linalg.inv(torch.linalg.cholesky(torch.cov(e.T, correction=0).double())).float()
    w = (e - e.mean(0)) @ white.T
    motion = map.moves(e)[:, :P].detach() @ white.T  # squares do not move it at zero
    for i in range(len(e)):
        q = torch.linalg.solve(motion[i] @ motion[i].T + torch.eye(P), motion[i] @ w[i])
        rest = w[i] - q @ motion[i]
        assert got[i].item() == pytest.approx(1 - (rest @ rest / (w[i] @ w[i])).item(), abs=2e-2)


def test_the_share_finds_what_has_been_moved_and_not_what_is_merely_far():
    map = MAPS["shift"](dim=D, n_params=1)
    with torch.no_grad():
        map.bias.copy_(3 * torch.eye(D)[:1])
    known, y = world(400)
    detector = MotionShare(map).fit_features(known, y)
    fresh, _ = world(200, seed=1)
    score = detector.predict_features
    assert ood_figures(score(fresh), score(map(fresh, torch.tensor([2.0]))))["auroc"] > 0.9
    assert ood_figures(score(fresh), score(fresh + 6 * torch.eye(D)[-1]))["auroc"] < 0.5


def test_the_share_wants_a_fit_and_two_images():
    with pytest.raises(FitError, match="no covariance"):
        MotionShare(steering()).predict_features(world(3)[0])
    with pytest.raises(FitError, match="1 in-distribution"):
        MotionShare(steering()).fit_features(world(2)[0], torch.tensor([0, -1]))
