"""Necks, classifiers and the way that images travel: against the formulas, plain timm, and the plain forward."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from steerable.encoders import Encoder, Neck, classifier_of, evaluating, load_encoder
from steerable.errors import ConfigError, FitError, ShapeError

WEIGHTS = Path(__file__).parents[2] / "shared/data/weights/mobilenetv2_100"
LAYERS = {"stage0": slice(0, 6), "final": slice(6, 10)}


def sample(n: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 10, generator=generator) * torch.logspace(-4, 3, 10) + 5


def small(**settings) -> Encoder:
    torch.manual_seed(0)
    return load_encoder("timm/test_resnet", pretrained=False, image_size=32, **settings)


def noise(n: int, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


# the neck


def test_standardizing_centers_and_balances():
    raw = sample()
    e = Neck.standardizing(raw, LAYERS)(raw).double()
    torch.testing.assert_close(e.mean(0), torch.zeros(10).double(), atol=1e-3, rtol=0)
    variances = e.var(0, correction=0)
    for part in LAYERS.values():
        torch.testing.assert_close(variances[part].sum().item(), 5.0, atol=0.02, rtol=0)
        torch.testing.assert_close(
            variances[part], variances[part].mean().expand_as(variances[part]), atol=0.01, rtol=0
        )
    alone = Neck.standardizing(raw, {"final": slice(0, 10)})
    torch.testing.assert_close(alone.scale.double(), raw.double().std(0, correction=0))


def test_constant_columns_are_only_centered():
    raw = sample()
    raw[:, 2], raw[:, 7] = 0.0, 3.0
    raw[::2, 7] += 3e-7  # rounding
    neck = Neck.standardizing(raw, LAYERS)
    assert neck.scale[2] == neck.scale[7] == 1
    e = neck(raw)
    assert e.isfinite().all()
    assert e[:, [2, 7]].abs().max() < 1e-6


def test_what_cannot_be_standardized():
    with pytest.raises(ShapeError, match=r"shape \(3, 9\); expected \(n, d0\).*stage0, final"):
        Neck.standardizing(torch.rand(3, 9), LAYERS)
    with pytest.raises(FitError, match="1 raw embeddings, 0 of"):
        Neck.standardizing(sample(1), LAYERS)
    with pytest.raises(FitError, match="3 raw embeddings, 10 of"):
        Neck.standardizing(torch.cat([sample(2), torch.full((1, 10), torch.nan)]), LAYERS)
    with pytest.raises(ConfigError, match="hidden of the neck is 0; expected at least 1"):
        Neck(4, hidden=0)


@pytest.mark.parametrize(
    ("settings", "dim", "tensors"),
    [({}, 10, 2), ({"out": 4}, 4, 4), ({"hidden": 7}, 10, 6), ({"hidden": 7, "out": 3}, 3, 6)],
)
def test_adapters_and_their_configs(settings, dim, tensors):
    neck = Neck.standardizing(sample(), LAYERS, **settings)
    again = Neck.from_config(neck.config())
    assert len(neck.state_dict()) == tensors
    again.load_state_dict(neck.state_dict())
    raw = sample(6).view(2, 3, 10)
    assert neck(raw).shape == (2, 3, dim)
    assert torch.equal(again(raw), neck(raw))
    assert neck.dim == dim
    e = (raw - neck.mean) / neck.scale
    if "hidden" in settings:
        first, _, second = neck.adapter
        e = nn.functional.gelu(e @ first.weight.T + first.bias) @ second.weight.T + second.bias
    elif settings:
        e = e @ neck.adapter.weight.T + neck.adapter.bias
    torch.testing.assert_close(neck(raw), e)


def test_an_encoder_with_a_neck():
    plain = small(layers="stage0,final")
    images = noise(5)
    raw = plain.raw(images)
    assert torch.equal(raw, plain.encode(images))
    neck = Neck.standardizing(raw, plain.layers, out=4)
    encoder = plain.with_neck(neck)
    assert encoder.network is plain.network
    assert (plain.neck, plain.dim) == (None, plain.raw_dim)
    assert (encoder.dim, encoder.raw_dim, encoder.layers) == (4, plain.dim, plain.layers)
    torch.testing.assert_close(encoder.encode(images), neck(raw).detach())
    assert torch.equal(encoder.raw(images), raw)
    assert encoder.encode(images[:0]).shape == (0, 4)
    assert encoder.raw(images[:0]).shape == (0, plain.dim)
    encoder(images).sum().backward()
    assert neck.adapter.weight.grad.abs().sum() > 0
    with pytest.raises(ShapeError, match="neck takes embeddings of width 3 and the encoder gives"):
        plain.with_neck(Neck(3))


def test_fingerprints_with_a_neck():
    plain = small()
    encoder = plain.with_neck(Neck(plain.dim, out=plain.dim))
    prints = [plain.fingerprint(), encoder.fingerprint(), plain.with_neck(Neck(plain.dim)).fingerprint()]
    with torch.no_grad():
        encoder.neck.adapter.bias[0] += 1
    prints.append(encoder.fingerprint())
    encoder.neck.mean[0] += 1
    prints.append(encoder.fingerprint())
    assert len(set(prints)) == 5
    assert encoder.raw_fingerprint() == plain.raw_fingerprint() == plain.fingerprint()
    assert encoder.with_neck(None).fingerprint() == plain.fingerprint()


# the classifier


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared/data")
def test_classifier_gives_timms_logits():
    name = f"timm/local-dir:{WEIGHTS}"
    images = noise(3, 64)
    plain = load_encoder(name, image_size=64)
    settings = plain.settings() | {"spec": plain.spec}
    deep = Encoder(plain.network, layers="stage1,stage4,final", **settings)
    whole = timm.create_model(name.removeprefix("timm/"), pretrained=True).eval()
    with torch.no_grad():
        expected = whole(plain.preprocess(images))
    for encoder in (
        plain,
        deep,
        deep.with_neck(Neck.standardizing(deep.raw(images), deep.layers)),
    ):
        head = classifier_of(encoder)
        with torch.no_grad():
            torch.testing.assert_close(head(encoder.encode(images)), expected, atol=1e-3, rtol=1e-3)
    assert classifier_of(deep.with_neck(Neck(deep.dim, out=deep.dim))) is None
    assert classifier_of(Encoder(plain.network, layers="stage1", **settings)) is None


def test_no_classifier_is_none(tmp_path):
    assert classifier_of(small()) is None, "random weights classify nothing"
    assert classifier_of(Encoder(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))) is None
    encoder = small()
    torch.save(encoder.network.state_dict(), tmp_path / "w.pth")
    assert (
        classifier_of(load_encoder("timm/test_resnet", weights=str(tmp_path / "w.pth"), image_size=32))
        is None
    )


# how images travel on a CPU


class Flat(nn.Module):
    """Bears no other memory format, and counts what comes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, stride=32)
        self.sizes: list[int] = []

    def forward(self, x):
        self.sizes.append(len(x))
        x = self.conv(x)
        return x.view(len(x), -1)


def test_large_images_travel_in_small_batches():
    encoder = Encoder(Flat())
    seen = encoder.network.sizes  # the tests run on one thread
    for n, side, sizes in (
        (10, 224, [4, 4, 2]),
        (5, 448, [4, 1]),
        (40, 112, [16, 16, 8]),
        (200, 32, [196, 4]),
    ):
        seen.clear()
        encoder.encode(torch.zeros(1, 3, 1, 1).expand(n, 3, side, side))
        assert seen == sizes
    seen.clear()
    encoder.encode(noise(30), batch_size=20)
    assert seen == [20, 10]
    encoder.image_size = 224  # what counts is the size in the network
    seen.clear()
    encoder.encode(noise(5))
    assert seen == [4, 1]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_channels_last_changes_nothing_but_rounding(name):
    encoder = load_encoder(f"timm/{name}", pretrained=False, image_size=64)
    images, seen = noise(3, 64), []
    encoder.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with evaluating(encoder), torch.no_grad():
        expected = encoder(images)
    torch.testing.assert_close(encoder.encode(images), expected, rtol=1e-4, atol=1e-5)
    assert not seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[1].is_contiguous(memory_format=torch.channels_last)
    assert all(p.is_contiguous() for p in encoder.parameters()), "the module's own format stays"
    assert images.is_contiguous()
