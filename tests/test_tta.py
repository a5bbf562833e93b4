"""Test-time augmentation on embeddings, against the dense form, ttach, and what the algebra says."""

import pytest
import torch
from torch import nn

from bundles import build, images, tiny
from steerable import tta
from steerable.errors import ConfigError, ShapeError, SteerableError, ThetaError
from steerable.maps import MAPS, SteeringMap
from steerable.model import steering_for
from steerable.transforms import Chain, Crop, HFlip, Hue, Rotate, VFlip

D, C = 12, 5
CHAIN = Chain([Crop(), HFlip(), Hue()])
LINEAR = ("identity", "shift", "basis", "low_rank")


def random_map(name: str = "basis", features: str = "linear+squares", scale: float = 0.3) -> SteeringMap:
    steering = steering_for(CHAIN, D, name, features)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in steering.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return steering


def problem(name: str = "basis", *, v: int = 7, n: int = 4, **settings) -> tuple:
    torch.manual_seed(1)
    head, e = nn.Linear(D, C), torch.randn(n, D)
    thetas = CHAIN.sample(v, generator=torch.Generator().manual_seed(2))
    return random_map(name, **settings), head, e, thetas


def dense(steering, head, e, thetas):
    return head(steering.orbit(e, thetas))


# contraction


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orbit_logits_are_those_of_the_orbit(name: str, dtype: torch.dtype):
    steering, head, e, thetas = problem(
        name, features="linear" if name in ("rotation", "exponential") else "linear+pairwise"
    )
    steering, head, e = steering.to(dtype), head.to(dtype), e.to(dtype)
    logits = tta.orbit_logits(steering, head, e, thetas)
    torch.testing.assert_close(logits, dense(steering, head, e, thetas))
    assert logits.shape == (4, 7, C)
    if name != "identity":
        assert (logits - head(e)[:, None]).abs().max() > 0.05, "the views differ"


def test_orbit_logits_pass_gradients_to_map_head_and_embedding():
    steering, head, e, thetas = problem()
    weights = (steering.weight, head.weight, e.requires_grad_())
    fast = torch.autograd.grad(tta.orbit_logits(steering, head, e, thetas).square().sum(), weights)
    slow = torch.autograd.grad(dense(steering, head, e, thetas).square().sum(), weights)
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("name", ["basis", "rotation"])
@pytest.mark.parametrize("of", tta.OF)
@pytest.mark.parametrize("how", tta.MERGES)
def test_merged_in_blocks_is_merged_at_once(monkeypatch, name: str, of: str, how: str):
    monkeypatch.setattr(
        "steerable.tta.merging.BLOCK", 3 * 4 * C
    )  # blocks of three views of seven, for logits
    steering, head, e, thetas = problem(name, features="linear")
    orbit = steering.orbit(e, thetas)
    outputs = {"embeddings": orbit, "logits": head(orbit), "probabilities": head(orbit).softmax(-1)}[of]
    if how in ("gmean", "tsharpen") and of != "probabilities":
        with pytest.raises(ConfigError, match="below 0"):
            tta.merged(steering, head, e, thetas, how, of=of)
        return
    out = tta.merge(outputs, how)
    expected = head(out) if of == "embeddings" else out
    torch.testing.assert_close(
        tta.merged(steering, head, e, thetas, how, of=of), expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("how", ["mean", "gmean", "sum", "tsharpen"])
@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_a_weight_counts_a_view_as_often(how: str, of: str):
    if how in ("gmean", "tsharpen") and of == "logits":
        return
    steering, head, e, thetas = problem()
    counts = torch.tensor([2, 0, 1, 3, 1, 0, 1])
    repeated = tta.merged(steering, head, e, thetas.repeat_interleave(counts, 0), how, of=of)
    torch.testing.assert_close(
        tta.merged(steering, head, e, thetas, how, of=of, weights=counts.float()), repeated
    )


@pytest.mark.parametrize("how", tta.MERGES)
def test_merge_is_ttachs_merger(how: str):
    Merger = pytest.importorskip("ttach.base").Merger
    outputs = torch.rand(3, 6, 4).softmax(-1)
    merger = Merger(type=how, n=6)
    try:
        for view in outputs.unbind(1):
            merger.append(view)
    except AttributeError:
        pytest.skip("this ttach has no such function")
    torch.testing.assert_close(tta.merge(outputs, how), merger.result)


# algebra


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("weighted", [False, True])
def test_fold_is_the_mean_of_logits(name: str, weighted: bool):
    steering, head, e, thetas = problem(name)
    weights = torch.rand(7) if weighted else None
    logits = dense(steering, head, e, thetas)
    expected = torch.einsum("v,bvc->bc", weights / weights.sum(), logits) if weighted else logits.mean(1)
    folded = tta.fold(steering, head, thetas, weights)
    assert isinstance(folded, nn.Linear)
    torch.testing.assert_close(folded(e), expected, atol=1e-5, rtol=1e-4)


def test_fold_of_a_map_that_is_not_linear_in_phi():
    steering, head, e, thetas = problem("exponential", features="linear")
    torch.testing.assert_close(
        tta.fold(steering, head, thetas)(e), dense(steering, head, e, thetas).mean(1), atol=1e-5, rtol=1e-4
    )


def test_first_order_features_and_centered_thetas_leave_merged_logits_plain():
    """So that a gain needs merged probabilities, higher features, or weighted views."""
    steering, head, e, thetas = problem(features="linear")
    thetas = torch.cat([thetas, -thetas])
    torch.testing.assert_close(
        tta.merged(steering, head, e, thetas, of="logits"), head(e), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(tta.fold(steering, head, thetas).weight, head.weight, atol=1e-5, rtol=1e-4)
    plain = head(e).softmax(-1)
    assert (tta.merged(steering, head, e, thetas) - plain).abs().max() > 1e-2
    squares = random_map(features="linear+squares")
    assert (tta.merged(squares, head, e, thetas, of="logits") - head(e)).abs().max() > 1e-2


def test_extreme_logits_stay_probabilities():
    steering, head, e, thetas = problem(scale=30.0)
    merged = tta.merged(steering, head, e, thetas)
    torch.testing.assert_close(merged, dense(steering, head, e, thetas).softmax(-1).mean(1))
    torch.testing.assert_close(merged.sum(1), torch.ones(4))


# views


@pytest.mark.parametrize(
    ("name", "count"),
    [("plain", 1), ("hflip", 2), ("flip", 4), ("d4", 8), ("multiscale", 5), ("five-crop", 5), ("ten-crop", 10),
     ("chain:9", 9), ("photometric:3", 3)],
)  # fmt: skip
def test_named_views_start_with_a_view_each_and_differ(name: str, count: int):
    chain = Chain([Rotate(180.0), Crop(), HFlip(), VFlip(), *Chain.preset("photometric").members])
    thetas = tta.views(name, chain)
    assert thetas.shape == (count, len(chain.params))
    assert len(thetas.unique(dim=0)) == count
    assert "crop" in name or not thetas[0].any(), "the untouched image is the first view"


def test_d4_views_are_the_symmetries_of_the_square():
    pixels = torch.rand(1, 3, 6, 6)
    chain = Chain([Rotate(180.0), HFlip()])
    made = chain.apply(pixels.expand(8, 3, 6, 6), tta.views("d4", chain))
    true = [turned for k in range(4) for turned in (pixels.rot90(k, (2, 3)), pixels.flip(3).rot90(k, (2, 3)))]
    distances = [min((view - other).abs().max() for other in made) for view in true]
    assert max(distances) < 1e-5


def test_five_crops_are_the_corners_and_the_center():
    pixels = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8) / 64
    chain = Chain([Crop()])
    made = chain.apply(pixels.expand(5, 3, 8, 8), tta.views("five-crop", chain))
    for view, (top, left) in zip(made, [(0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)], strict=True):
        rows, columns = top + 3.0, left + 3.0  # the middle of a 7 by 7 window with that corner
        assert abs(view[0].mean() - (8 * rows + columns) / 64) < 0.01


def test_draws_of_a_preset_go_into_the_columns_of_their_names():
    chain = Chain([Rotate(), *reversed(Chain.preset("photometric").members)])
    thetas = tta.views("photometric:5", chain, seed=7)
    drawn = Chain.preset("photometric").sample(4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(thetas[1:, 1:].flip(1), drawn)
    assert not thetas[:, 0].any()


@pytest.mark.parametrize("how", ["learned", "greedy"])
def test_chosen_views_are_those_that_help(how: str):
    """Embeddings were moved by one theta; the view that moves them back is found among decoys."""
    torch.manual_seed(0)
    steering, head = random_map("shift", "linear", 2.0), nn.Linear(D, C)
    with torch.no_grad():
        head.weight.mul_(4)
    clean, theta = torch.randn(400, D), CHAIN.sample(9, generator=torch.Generator().manual_seed(5))
    labels = head(clean).argmax(1)
    e = steering(clean, -theta[4])
    thetas, weights = tta.choose_views(steering, head, e, labels, theta, how=how)
    assert torch.equal(thetas[weights.argmax()], theta[4])
    assert float(weights.sum()) == pytest.approx(1)

    def score(thetas, weights):
        p = tta.merged(steering, head, e, thetas, weights=weights)
        return p.gather(1, labels[:, None]).log().mean(), (p.argmax(1) == labels).double().mean()

    plain, chosen, uniform = (
        score(torch.zeros_like(theta[:1]), None),
        score(thetas, weights),
        score(theta, None),
    )
    assert chosen[0] > max(plain[0], uniform[0])
    assert chosen[1] > plain[1] + 0.1


@pytest.mark.parametrize("how", ["learned", "greedy"])
def test_where_no_view_helps_the_untouched_one_is_left(how: str):
    torch.manual_seed(0)
    steering, head, e = random_map("shift", "linear", 30.0), nn.Linear(D, C), torch.randn(200, D)
    labels = head(e).argmax(1)
    theta = CHAIN.sample(6, generator=torch.Generator().manual_seed(5))
    thetas, weights = tta.choose_views(steering, head, e, labels, theta, how=how)
    merged = tta.merged(steering, head, e, thetas, weights=weights)
    plain = head(e).softmax(-1)
    own = labels[:, None]
    assert merged.gather(1, own).log().mean() >= plain.gather(1, own).log().mean() - 1e-6
    assert not thetas[weights.argmax()].any()


# the classifier


@pytest.mark.parametrize("name", ["basis", "rotation"])
@pytest.mark.parametrize(
    "how_of", ["mean probabilities", "max logits", "mean embeddings", "gmean probabilities"]
)
def test_a_steered_classifier_gives_merged_probabilities_and_embeddings(name: str, how_of: str):
    how, of = how_of.split()
    model = build(tiny(), name).eval()
    thetas = model.chain.sample(6, generator=torch.Generator().manual_seed(0))
    classifier = tta.SteeredClassifier(model, thetas, how=how, of=of).eval()
    with torch.no_grad():
        probabilities, e = classifier(images())
        torch.testing.assert_close(e, model.encode(images()))
        expected = tta.merged(model.steering, model.head, e, thetas, how, of=of)
    torch.testing.assert_close(probabilities, expected if of == "probabilities" else expected.softmax(-1))
    assert {"thetas", "weights"} <= set(classifier.state_dict())


def test_weights_reach_the_classifier():
    model = build(tiny()).eval()
    thetas = model.chain.sample(3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, _ = tta.SteeredClassifier(model, thetas, weights=torch.tensor([0.0, 1.0, 0.0]), how="gmean")(
            images()
        )
        e = model.encode(images())
    torch.testing.assert_close(one, model.head(model.steer(e, thetas[1])).softmax(-1))


# refusals


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (ShapeError, r"\(12,\); expected floating \(b, 12\)", lambda s, h, e, t: tta.orbit_logits(s, h, e[0], t)),
        (ShapeError, "width 3 and the map's have 12", lambda s, h, e, t: tta.merged(s, nn.Linear(3, 2), e, t)),
        (ThetaError, "one row per view", lambda s, h, e, t: tta.orbit_logits(s, h, e, t[0])),
        (ThetaError, "no views", lambda s, h, e, t: tta.merged(s, h, e, t[:0], "max")),
        (ConfigError, "did you mean gmean", lambda s, h, e, t: tta.merged(s, h, e, t, "gmeam")),
        (ConfigError, "did you mean logits", lambda s, h, e, t: tta.merged(s, h, e, t, of="logit")),
        (ConfigError, r"weights of shape \(2,\)", lambda s, h, e, t: tta.fold(s, h, t, torch.ones(2))),
        (ConfigError, "none negative", lambda s, h, e, t: tta.fold(s, h, t, -torch.ones(7))),
        (ConfigError, "leave weights out", lambda s, h, e, t: tta.merged(s, h, e, t, "max", weights=torch.ones(7))),
        (ConfigError, "below 0", lambda s, h, e, t: tta.merge(-torch.ones(1, 2, 3), "gmean")),
        (ShapeError, "stack the views", lambda s, h, e, t: tta.merge(torch.ones(2, 3))),
        (ConfigError, "did you mean greedy", lambda s, h, e, t: tta.choose_views(s, h, e, e, t, how="greddy")),
        (ShapeError, "one index below 5", lambda s, h, e, t: tta.choose_views(s, h, e, torch.tensor([5] * 4), t)),
        (ThetaError, "move rotate, which the chain lacks", lambda s, h, e, t: tta.views("d4", CHAIN)),
        (ThetaError, "move brightness, contrast", lambda s, h, e, t: tta.views("photometric:4", CHAIN)),
        (ConfigError, "did you mean multiscale", lambda s, h, e, t: tta.views("multi-scale", CHAIN)),
        (ConfigError, "'simclr:0'", lambda s, h, e, t: tta.views("simclr:0", CHAIN)),
        (ConfigError, "no head", lambda s, h, e, t: tta.SteeredClassifier(build(tiny(), head=False), t)),
    ],
)  # fmt: skip
def test_refusals(kind: type[SteerableError], message: str, call):
    with pytest.raises(kind, match=message) as caught:
        call(*problem())
    assert "\n" not in str(caught.value)
