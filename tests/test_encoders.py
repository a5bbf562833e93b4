"""Encoders: preprocessing, widths, stems, fingerprints, and errors that suggest what was meant."""

from pathlib import Path

import pytest
import torch
from torch import nn

from steerable.encoders import Encoder, check_pixels, evaluating, load_encoder, resnet_width, small_stem
from steerable.errors import ConfigError, ShapeError

WEIGHTS = Path(__file__).parents[2] / "shared/data/weights/mobilenetv2_100"


class Colors(nn.Module):
    """The mean color of what reaches the network, so that preprocessing can be read off."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x):
        self.seen = x.detach()
        return x.mean((2, 3)) * self.gain


@pytest.fixture(scope="module")
def small() -> Encoder:
    return load_encoder("timm/resnet10t", pretrained=False, stem="cifar", width=8)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


# preprocessing


def test_images_are_normalized_and_kept_in_size():
    encoder = Encoder(Colors(), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.5))
    images = noise(2, 3, 9, 7)
    e = encoder(images)
    expected = (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.5])[
        :, None, None
    ]
    torch.testing.assert_close(encoder.network.seen, expected)
    torch.testing.assert_close(e, expected.mean((2, 3)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("h", "w"), [(40, 64), (64, 40), (17, 33), (8, 8)])
def test_resizing_takes_the_short_side_and_the_center(interpolation, h, w):
    encoder = Encoder(
        Colors(), image_size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation=interpolation
    )
    ramp = torch.linspace(0, 1, w).expand(h, w) if w >= h else torch.linspace(0, 1, h)[:, None].expand(h, w)
    encoder(ramp.expand(1, 3, h, w))
    seen = encoder.network.seen
    assert seen.shape == (1, 3, 16, 16)
    assert seen.mean().item() == pytest.approx(0.5, abs=0.02), "the crop is not centered"
    kept = min(h, w) / max(h, w)  # the ramp runs along the long side
    assert (seen.max() - seen.min()).item() == pytest.approx(kept, abs=0.08)
    assert seen.min() >= 0
    assert seen.max() <= 1


def test_resizing_is_antialiased():
    encoder = Encoder(Colors(), image_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    stripes = (torch.arange(60) % 2).float().expand(1, 3, 60, 60)
    encoder(stripes)
    assert encoder.network.seen.std() < 0.02, "stripes finer than a pixel turn gray"


def test_width_is_read_without_touching_the_network():
    network = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert Encoder(network).dim == 7
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("network", [nn.Conv2d(3, 4, 3), nn.Flatten(0)])
def test_networks_must_return_one_row_per_image(network):
    with pytest.raises(ShapeError, match=r"expected \(1, d\): pool its features, or .*num_classes=0"):
        Encoder(network)


# encode


def test_encode_is_forward_in_evaluation_mode(small):
    images = noise(3, 3, 16, 16)
    small.train()
    e = small.encode(images, batch_size=2)
    assert small.training
    assert small.network.layer1.training
    with evaluating(small), torch.no_grad():
        torch.testing.assert_close(e, small(images))


def test_pixels_are_checked():
    check_pixels(noise(2, 3, 4, 4))
    check_pixels(torch.zeros(0, 3, 4, 4))
    for value, message in (
        (float("nan"), "1 pixel values in 1 of 2"),
        (2.0, "divide by 255"),
        (-1.0, "normalizes"),
    ):
        images = noise(2, 3, 4, 4)
        images[1, 2, 3, 3] = value
        with pytest.raises(ShapeError, match=message):
            check_pixels(images)


# timm


def test_stem_and_width(small):
    assert small.dim == 64, "eight times the width"
    assert small.image_size is None
    network = small.network
    assert network.conv1.weight.shape == (8, 3, 3, 3)
    assert network.conv1.stride == (1, 1)
    with torch.no_grad():
        stem = network.maxpool(network.act1(network.bn1(network.conv1(noise(1, 3, 32, 32)))))
    assert stem.shape[-2:] == (32, 32), "the stem keeps the resolution"


def test_width_keeps_timms_own_stem_working():
    network = load_encoder("timm/resnet10t", pretrained=False, width=4, image_size=32)
    assert network.dim == 32
    assert resnet_width(4)["channels"] == [4, 8, 16, 32]


def test_image_size_and_model_args_are_passed():
    encoder = load_encoder(
        "timm/vit_tiny_patch16_224", pretrained=False, image_size=32, model_args={"img_size": 32, "depth": 1}
    )
    assert encoder.dim == 192
    assert encoder.image_size == 32
    assert len(encoder.network.blocks) == 1
    assert encoder.encode(noise(1, 3, 50, 40)).shape == (1, 192)


def test_spec_builds_the_encoder_again(small):
    again = load_encoder(**small.spec)
    assert again.dim == small.dim
    again.network.load_state_dict(small.network.state_dict())
    assert again.fingerprint() == small.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet18"}, "'resnet18' has no known source; expected timm/NAME"),
        ({"name": "timm/resnet18x"}, "no model 'resnet18x'; .*did you mean resnet18"),
        ({"name": "timm/zzzzzzzz"}, "no model 'zzzzzzzz'; .*choose from that list"),
        ({"name": "timm/resnet10t", "width": 5}, "width is 5; expected an even number"),
        ({"name": "timm/resnet10t", "width": 0}, "width is 0; expected an even number"),
        ({"name": "timm/resnet10t", "width": 4, "stem": "tiny"}, "stem is 'tiny'; expected 'cifar'"),
        ({"name": "timm/test_vit", "stem": "cifar"}, "fits timm's ResNets, not VisionTransformer"),
        ({"name": "timm/local-dir:/no/such/folder"}, "timm could not build .*local-dir"),
        ({"name": "timm/resnet10t", "model_args": {"widht": 3}}, "timm could not build 'resnet10t'.*widht"),
    ],
)
def test_what_cannot_be_built_is_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_encoder(**{"pretrained": False, **arguments})
    assert "\n" not in str(caught.value)


def test_weights_from_a_file(tmp_path, small):
    path = tmp_path / "weights.pth"
    torch.save(small.network.state_dict(), path)
    again = load_encoder("timm/resnet10t", weights=str(path), stem="cifar", width=8)
    assert again.fingerprint() == small.fingerprint()
    with pytest.raises(ConfigError, match=r"none\.pth"):
        load_encoder("timm/resnet10t", weights=str(tmp_path / "none.pth"), stem="cifar", width=8)


def test_small_stem_needs_a_resnet():
    with pytest.raises(ConfigError, match="not Linear: leave stem out"):
        small_stem(nn.Linear(2, 2))


# fingerprints


def test_fingerprint_tells_weights_and_preprocessing():
    def make(**settings) -> Encoder:
        return Encoder(Colors(), **settings)

    base = make().fingerprint()
    assert make().fingerprint() == base, "it depends on values, not on objects"
    assert make().train().fingerprint() == base
    for settings in (
        {"image_size": 8},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (1.0, 1.0, 1.0)},
        {"interpolation": "bicubic"},
    ):
        assert make(**settings).fingerprint() != base, settings
    changed = make()
    with torch.no_grad():
        changed.network.gain[0] += 1e-6
    assert changed.fingerprint() != base


def test_preprocessing_survives_json_exactly():
    encoder = Encoder(Colors(), mean=(1 / 3, 0.485, 2 / 7), std=(0.229, 1 / 9, 1e-3))
    again = Encoder(Colors(), **encoder.preprocessing())
    assert torch.equal(again.mean, encoder.mean)
    assert torch.equal(again.std, encoder.std)
    assert encoder.preprocessing()["mean"][1] == 0.485, "short numbers stay short"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared/data")
def test_local_weights():
    encoder = load_encoder(f"timm/local-dir:{WEIGHTS}")
    assert encoder.dim == 1280
    assert encoder.image_size == 224
    assert encoder.preprocessing()["mean"] == encoder.preprocessing()["std"] == [0.5, 0.5, 0.5]
    assert encoder.name == f"timm/local-dir:{WEIGHTS}"
    assert encoder.fingerprint() == load_encoder(f"timm/local-dir:{WEIGHTS}").fingerprint()
    e = encoder.encode(noise(2, 3, 64, 48))
    assert e.shape == (2, 1280)
    assert e.std() > 0
