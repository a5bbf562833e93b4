"""Probes and their steered form, and the evaluation of test-time augmentation."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from steerable import tta
from steerable.data import ImageSet
from steerable.encoders import Encoder
from steerable.errors import ConfigError, DataError, ShapeError
from steerable.evaluate import evaluate_probes, evaluate_tta, linear_head, probe
from steerable.evaluate.minibatch import augmented, minibatch_head, steered
from steerable.evaluate.tta import calibration_error
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Brightness, Chain, HFlip

GRID = (1e-2, 1.0, 1e2)


def blobs(n: int = 300, d: int = 6, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    centers = 2 * torch.randn(classes, d, generator=torch.Generator().manual_seed(9))
    return 5 + 3 * (centers[labels] + torch.randn(n, d, generator=g)), labels


# probes


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_head_is_scikit_learns_classifier_on_raw_embeddings(classes: int, monkeypatch):
    monkeypatch.setattr("steerable.evaluate.probing.TOLERANCE", 1e-6)
    x, y = blobs(classes=classes)
    head, c = linear_head(x, y, grid=GRID)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=3000, tol=1e-8))
    expected = model.fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    np.testing.assert_allclose(head(x).softmax(1).numpy(), expected, atol=5e-4)


def test_the_path_of_strengths_ends_where_a_fresh_start_does(monkeypatch):
    monkeypatch.setattr("steerable.evaluate.probing.TOLERANCE", 1e-6)
    x, y = blobs()
    warm, c = linear_head(x, y, grid=(10.0, 1e-4, 1e-2, 1.0))
    fresh, _ = linear_head(x, y, grid=[c])
    torch.testing.assert_close(warm(x).softmax(1), fresh(x).softmax(1), atol=5e-4, rtol=0)


def test_held_out_rows_choose_the_strength():
    """A weak probe answers with the larger class; where held-out features lie, that is the best it can do."""
    y = (torch.arange(200) % 5 > 2).long()
    x = (2.0 * y - 1)[:, None].repeat(1, 2)
    held_out = torch.arange(150, 200)
    assert linear_head(x, y, grid=(1e-6, 1e2), held_out=held_out)[1] == 1e2
    x[held_out] *= -1
    assert linear_head(x, y, grid=(1e-6, 1e2), held_out=held_out)[1] == 1e-6
    with pytest.raises(ShapeError, match="pair them up"):
        linear_head(x, y[:-1], held_out=held_out)


def test_labels_that_do_not_occur_are_never_chosen():
    x, y = blobs(classes=2)
    head, _ = linear_head(x, 3 * y, grid=GRID)
    assert head.out_features == 4
    assert set(head(x).argmax(1).tolist()) == {0, 3}


def test_the_minibatch_solver_finds_the_closed_solvers_optimum(monkeypatch):
    monkeypatch.setattr("steerable.evaluate.minibatch.STEPS", 600)
    x, y = blobs(classes=3)
    closed, c = linear_head(x, y, grid=[1e-2])
    ours, same = minibatch_head(x, y, lambda i, _: x[i], grid=[1e-2])
    assert same == c
    assert (ours(x).softmax(1) - closed(x).softmax(1)).abs().max() < 0.01


def test_strengths_side_by_side_are_strengths_alone(monkeypatch):
    monkeypatch.setattr("steerable.evaluate.minibatch.STEPS", 50)
    x, y = blobs(60)
    val = {c: minibatch_head(x, y, lambda i, _: x[i], grid=[c])[0].weight for c in (1e-3, 1.0)}
    assert val[1e-3].norm() < 0.5 * val[1.0].norm()
    head, c = minibatch_head(x, y, lambda i, _: x[i], grid=list(val))
    torch.testing.assert_close(head.weight, val[c])


def test_draws_keep_half_and_move_half():
    e = torch.randn(20, 4)
    steering = steering_for(Chain([Brightness()]), 4, "shift")
    steering.bias.data.fill_(1.0)
    rows = torch.randperm(20)[:10]
    drawn = steered(e, steering, torch.tensor([[0.7]]))(rows, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn[:5], e[rows[:5]])
    torch.testing.assert_close(drawn[5:], steering(e[rows[5:]], torch.tensor([0.7])))
    views = torch.stack([e + 1, e + 2], 1)
    moves = [augmented(e, views)(rows, torch.Generator().manual_seed(seed)) - e[rows] for seed in range(4)]
    assert not any(move[:5].any() for move in moves)
    assert set(torch.stack(moves)[:, 5:].round().flatten().tolist()) == {1.0, 2.0}


def test_a_steered_probe_ignores_what_the_map_moves(monkeypatch):
    """The second number tells the class in training, where the light is constant, and only the light in testing."""
    monkeypatch.setattr("steerable.evaluate.minibatch.STEPS", 300)
    g = torch.Generator().manual_seed(0)
    steering = steering_for(Chain([Brightness(stops=4.0)]), 2, "shift")
    steering.bias.data.copy_(torch.tensor([[0.0, 4.0]]))  # brightness is the second coordinate
    y, y_test = torch.randint(2, (400,), generator=g), torch.randint(2, (400,), generator=g)
    train = torch.stack([y + 0.5 * torch.randn(400, generator=g), y + 0.1 * torch.randn(400, generator=g)], 1)
    test = torch.stack(
        [y_test + 0.5 * torch.randn(400, generator=g), 8 * torch.rand(400, generator=g) - 4], 1
    )
    thetas = Chain([Brightness(stops=4.0)]).sample(200, generator=g)
    plain = probe(train, y, test, y_test, grid=GRID).accuracy
    moved = probe(train, y, test, y_test, grid=GRID, steering=steering, thetas=thetas).accuracy
    assert moved > plain + 0.1


@pytest.mark.parametrize("kind", ["labels", "class", "width"])
def test_probes_refuse(kind: str):
    x, y = blobs(30)
    wrong = {"labels": (x, y[:-1], x, y), "class": (x, 0 * y, x, y), "width": (x, y, x[:, :2], y)}[kind]
    with pytest.raises(ShapeError, match=r"pair them up|at least 2"):
        probe(*wrong, grid=GRID)


# models of pixels


class Means(nn.Module):
    """Mean color of the left and of the right half: flips swap them, brightness scales them."""

    def forward(self, x):
        half = x.shape[-1] // 2
        return torch.cat([x[..., :half].mean((2, 3)), x[..., half:].mean((2, 3))], 1)


def light(n: int = 120, seed: int = 0) -> ImageSet:
    """Dark and bright images, with noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=g)
    pixels = 90 + 60 * labels.view(-1, 1, 1, 1) + 30 * torch.randn(n, 3, 1, 2, generator=g)
    pixels = (pixels.repeat_interleave(8, 2).repeat_interleave(4, 3)).clamp(0, 255)
    return ImageSet(
        pixels.to(torch.uint8), labels, ("dark", "bright"), tuple(map(str, range(n))), name="light"
    )


def swapping_model(head: bool = True) -> SteerableEncoder:
    """Its map knows the flip exactly; brightness it does not know."""
    chain = Chain([HFlip(), Brightness(stops=0.1)])
    steering = steering_for(chain, 6)
    swap = torch.eye(6).roll(3, 0)
    steering.weight.data[0] = swap - torch.eye(6)
    linear = nn.Linear(6, 2)
    with torch.no_grad():
        linear.weight.copy_(10 * torch.tensor([[-1.0, -1, -1, -0.5, -0.5, -0.5], [1, 1, 1, 0.5, 0.5, 0.5]]))
        linear.bias.copy_(linear.weight.sum(1) * -0.47)
    encoder = Encoder(Means(), mean=(0, 0, 0), std=(1, 1, 1))
    return SteerableEncoder(
        encoder, chain, steering, head=linear if head else None, classes=("d", "b") if head else ()
    ).eval()


def rows_of(result: dict, method: str, name: str) -> list[dict]:
    return [row for row in result["rows"] if (row["method"], row["set"]) == (method, name)]


def test_evaluate_tta_agrees_with_direct_computation():
    model, images, told = swapping_model(), light(), []
    result = evaluate_tta(model, images, counts=(1, 4), budget=60.0, progress=lambda *a: told.append(a))
    json.dumps(result, allow_nan=False)
    assert result["notes"] == []
    x, y = images.float_images(range(len(images))), images.labels
    plain = model.head(model.encode(x)).softmax(1)
    both = (plain + model.head(model.encode(x.flip(3))).softmax(1)) / 2
    (first,) = rows_of(result, "plain", "1")
    assert first["accuracy"] == (plain.argmax(1) == y).double().mean()
    assert first["log_likelihood"] == pytest.approx(plain[range(len(y)), y].log().mean().item(), abs=1e-5)
    assert (first["gain"], first["ratio"]) == (0, 1)
    difference = (both.argmax(1) == y).double() - (plain.argmax(1) == y).double()
    for method in ("steered", "re-encoded", "ttach"):
        row = next(row for row in rows_of(result, method, "hflip") if row["merge"] == "mean of probabilities")
        assert row["n"] == len(images)
        assert row["gain"] == pytest.approx(difference.mean().item())
        assert row["gain_se"] == pytest.approx(difference.std(correction=0).item() / len(y) ** 0.5)
        if method != "steered":
            assert row["steered_gain"] == row["gain"]
    folded = tta.fold(model.steering, model.head, tta.views("hflip", model.chain))
    (row,) = rows_of(result, "folded", "hflip")
    assert row["accuracy"] == (folded(model.encode(x)).argmax(1) == y).double().mean()
    assert {row["n"] for row in result["rows"] if row["method"] in ("chosen", "weighted")} == {60}
    assert told[-1][0] == told[-1][1], "all passes that were announced are done"
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_the_recovered_share_is_told_where_the_true_gain_is_clear():
    images = light(2000, seed=1)
    result = evaluate_tta(swapping_model(), images, counts=(1,), budget=60.0)
    (true,) = rows_of(result, "re-encoded", "hflip")
    assert true["gain"] > 2 * true["gain_se"]
    assert true["recovered"] == pytest.approx(1.0)
    unsteered = swapping_model()
    unsteered.steering.weight.data.zero_()
    (true,) = rows_of(evaluate_tta(unsteered, images, counts=(1,), budget=60.0), "re-encoded", "hflip")
    assert true["recovered"] == 0


def test_what_the_budget_forbids_is_noted():
    result = evaluate_tta(swapping_model(), light(), counts=(1, 1000), budget=1e-3)
    assert not rows_of(result, "re-encoded", "1000")
    assert any("re-encoded 1000 was not measured" in note for note in result["notes"])


def test_calibration_error_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]])
    labels = torch.tensor([0, 1, 1, 1])
    # of 15 bins, 0.9 falls twice in one, 0.6 and 0.65 in one
    expected = (abs(1.8 - 1) + abs(1.25 - 2)) / 4
    assert calibration_error(p, labels) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0


def test_evaluate_tta_refuses():
    with pytest.raises(ConfigError, match="no head"):
        evaluate_tta(swapping_model(head=False), light())
    images = light(8)
    bare = ImageSet(images.images, 0 * images.labels, (), images.paths)
    with pytest.raises(DataError, match="0 classes"):
        evaluate_tta(swapping_model(), bare)


def test_evaluate_probes_has_its_controls(monkeypatch):
    monkeypatch.setattr("steerable.evaluate.minibatch.STEPS", 10)
    told = []
    result = evaluate_probes(
        swapping_model(), light(60), light(40, seed=2), views=2, grid=GRID, progress=lambda *a: told.append(a)
    )
    json.dumps(result, allow_nan=False)
    assert [row["probe"] for row in result["rows"]] == ["plain", "plain, minibatch", "steered", "augmented"]
    assert [row["passes"] for row in result["rows"]] == [1, 1, 1, 3]
    assert told[-1][:2] == (220, 220)
    assert all(0.5 < row["accuracy"] <= 1 for row in result["rows"])
