"""Accuracy on corrupted images: figures against direct computation, the cache, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from steerable import tta
from steerable.data import ImageSet
from steerable.encoders import Encoder
from steerable.errors import ConfigError, DataError
from steerable.evaluate import ALEXNET, CORRUPTION_NAMES, corrupt, evaluate_robustness, linear_head
from steerable.evaluate import robustness as job
from steerable.evaluate.heads import GRID
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Brightness, Chain, HFlip

pytest.importorskip("imagecorruptions")
SOME = ("brightness", "contrast")  # cheap ones


class Halves(nn.Module):
    """Mean and deviation of the left and of the right half."""

    def forward(self, x):
        halves = x.chunk(2, dim=3)
        return torch.cat([f(half.flatten(1)) for half in halves for f in (mean, spread)], 1)


def mean(x):
    return x.mean(1, keepdim=True)


def spread(x):
    return x.std(1, keepdim=True)


def light(
    n: int = 60, seed: int = 0, size: int = 32, classes: tuple[str, ...] = ("dark", "light")
) -> ImageSet:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    pixels = 90 + 40 * labels.view(-1, 1, 1, 1) + 40 * torch.randn(n, 3, 2, 2, generator=g)
    pixels = nn.functional.interpolate(pixels, size).clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, labels, classes, tuple(map(str, range(n))), name="light")


def model(head: bool = True) -> SteerableEncoder:
    chain = Chain([HFlip(), Brightness(stops=0.5)])
    steering = steering_for(chain, 4)
    with torch.no_grad():
        steering.weight.add_(
            0.3 * torch.randn(steering.weight.shape, generator=torch.Generator().manual_seed(1))
        )
    linear = nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-9.0, 0, -9, 0], [9, 0, 9, 0]]))
        linear.bias.copy_(torch.tensor([7.8, -7.8]))
    encoder = Encoder(Halves(), mean=(0, 0, 0), std=(1, 1, 1))
    return SteerableEncoder(encoder, chain, steering, head=linear if head else None).eval()


def test_rows_agree_with_direct_computation(tmp_path: Path):
    told: list[tuple] = []
    own, images = model(), light()
    result = evaluate_robustness(
        own, images, corruptions=SOME, severities=(1, 5), views="chain:8", strength=1.0, seed=3, cache=tmp_path,
        progress=lambda *a: told.append(a),
    )  # fmt: skip
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert told == [(0, 5, "clean"), (1, 5, "brightness 1"), (2, 5, "brightness 5"), (3, 5, "contrast 1"),
                    (4, 5, "contrast 5")]  # fmt: skip
    seen = corrupt(images, "contrast", 5, seed=3)
    e = own.encode(seen.float_images(range(60)))
    thetas = tta.views("chain:8", own.chain, seed=3)
    with torch.no_grad():
        p = {
            "plain": own.head(e),
            "steered": own.head(own.orbit(e, thetas)).softmax(-1).mean(1),
            "folded": own.head(own.orbit(e, thetas)).mean(1),
        }
    right = {method: (output.argmax(1) == images.labels).double() for method, output in p.items()}
    rows = {
        row["method"]: row
        for row in result["rows"]
        if (row["corruption"], row["severity"]) == ("contrast", 5)
    }
    for method, hits in right.items():
        assert rows[method]["accuracy"] == pytest.approx(hits.mean().item())
        assert rows[method]["gain"] == pytest.approx((hits - right["plain"]).mean().item())
    means = {(row["corruption"], row["method"]): row for row in result["corruptions"]}
    both = [
        row["accuracy"]
        for row in result["rows"]
        if (row["corruption"], row["method"]) == ("contrast", "plain")
    ]
    assert means["contrast", "plain"]["error"] == pytest.approx(1 - sum(both) / 2)
    plain = result["summary"][0]
    errors = [means[name, "plain"]["error"] for name in SOME]
    assert plain["corruption_error"] == pytest.approx(sum(errors) / 2)
    assert plain["accuracy"] == pytest.approx(1 - sum(errors) / 2)
    assert plain["mce"] is None
    assert result["passes"] == 5 * 60
    assert 0.5 < plain["accuracy"] < plain["clean_accuracy"]

    again = evaluate_robustness(own, images, corruptions=SOME, severities=(1, 5), seed=3, cache=tmp_path)
    assert again["passes"] == 0
    assert [row["accuracy"] for row in again["rows"] if row["method"] == "plain"] == [
        row["accuracy"] for row in result["rows"] if row["method"] == "plain"
    ]


def test_the_head_is_a_probe_where_images_to_train_on_are_given():
    train, images = light(80, seed=5), light()
    result = evaluate_robustness(model(head=False), images, train=train, corruptions=(), severities=())
    own = model()
    head, _ = linear_head(own.encode(train.float_images(range(80))), train.labels, grid=GRID)
    hits = head(own.encode(images.float_images(range(60)))).argmax(1) == images.labels
    assert result["summary"][0]["clean_accuracy"] == hits.double().mean().item()
    assert result["summary"][0]["accuracy"] is None


def test_mce_is_alexnets_ratio_on_all_of_imagenet_alone(monkeypatch):
    """AlexNet itself would score 100; here a fake whose corrupted images are the clean ones."""
    monkeypatch.setattr(job, "corrupt", lambda images, *args, **kwargs: images)
    names = ("dark", "light", *(f"c{i}" for i in range(998)))
    own, images = model(), light(8, size=224, classes=names)
    with torch.no_grad():
        own.head.bias.zero_()  # so that it errs
    plain = evaluate_robustness(own, images)["summary"][0]
    error = 1 - plain["clean_accuracy"]
    assert error > 0
    expected = sum(100 * error / ALEXNET[name] * 100 for name in CORRUPTION_NAMES) / 15
    assert plain["mce"] == pytest.approx(expected)
    assert evaluate_robustness(own, images, severities=(1, 2))["summary"][0]["mce"] is None
    assert evaluate_robustness(own, light(8, size=96, classes=names))["summary"][0]["mce"] is None
    assert set(ALEXNET) == set(CORRUPTION_NAMES)


def test_robustness_refuses():
    with pytest.raises(ConfigError, match="no head"):
        evaluate_robustness(model(head=False), light())
    three = light(classes=("a", "b", "c"))
    three = ImageSet(three.images, three.labels + 1, three.classes, three.paths)
    with pytest.raises(DataError, match="3 classes and the head 2"):
        evaluate_robustness(model(), three)
    with pytest.raises(ConfigError, match="did you mean fog"):
        evaluate_robustness(model(), light(), corruptions=["fogg"])
    with pytest.raises(DataError, match="at least 32"):
        evaluate_robustness(model(), light(size=16), corruptions=["fog"])
    bare = ImageSet(light().images, 0 * light().labels, (), light().paths)
    with pytest.raises(DataError, match="has no labels"):
        evaluate_robustness(model(head=False), light(), train=bare)
