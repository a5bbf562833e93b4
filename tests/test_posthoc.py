"""Maps for a frozen encoder, fitted over images."""

import logging

import pytest
import torch
from torch import nn

import steerable
from steerable import metrics
from steerable.data import photos
from steerable.encoders import Encoder, load_encoder
from steerable.errors import ConfigError, ShapeError
from steerable.posthoc.fit import verdict
from steerable.transforms import Brightness, Chain, Saturation


class MeanColor(nn.Module):
    """An embedding that brightness moves by a known linear action: the mean color, and its log."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        color = images.mean((2, 3))
        return torch.cat([color, color.clamp_min(1e-3).log()], dim=1)


def encoder() -> Encoder:
    return Encoder(MeanColor(), mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    # dark enough that nothing clips when it is brightened
    return 0.5 * photos("train", size=16, n=200).float_images(range(200))


def test_fit_steers_held_out_images(images):
    chain = Chain([Brightness(stops=0.5)])
    model = steerable.fit(encoder(), images[:150], chain, map="shift", views=2)
    held = images[150:]
    theta = chain.sample(len(held), generator=torch.Generator().manual_seed(1))
    source, target = model.encode(held), model.encode(chain.apply(held, theta))
    # in log coordinates brightness is a shift, exactly
    log = slice(3, 6)
    error = metrics.relative_error(source[:, log], target[:, log], model.steer(source, theta)[:, log])
    assert error < 0.01


@pytest.mark.parametrize("map", ["shift", "basis", "exponential"])
def test_the_held_out_error_is_recorded_and_told(images, map, caplog):
    chain = Chain([Brightness(stops=0.5)])
    with caplog.at_level(logging.INFO, logger="steerable"):
        model = steerable.fit(encoder(), images[:150], chain, map=map, views=2)
    held = images[150:]
    theta = chain.sample(len(held), generator=torch.Generator().manual_seed(1))
    source, target = model.encode(held), model.encode(chain.apply(held, theta))
    with torch.no_grad():
        error = metrics.relative_error(source, target, model.steer(source, theta))
    assert model.record["held_out_error"] == pytest.approx(error, abs=0.05)
    assert f"on held-out images {model.record['held_out_error']:.0%} of the motion is left" in caplog.text


class Fingerprint(nn.Module):
    """An embedding that no map predicts: waves of the pixels, too fast to follow."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (3000 * images.mean((2, 3))).sin()


def test_a_poor_fit_names_the_way_out(images, caplog):
    chain = Chain([Brightness(stops=0.5)])
    with caplog.at_level(logging.INFO, logger="steerable"):
        model = steerable.fit(Encoder(Fingerprint()), images[:100], chain, views=2)
    assert model.record["held_out_error"] > 0.5
    assert "--adapter discriminant" in caplog.text
    assert "--layers" not in caplog.text
    loaded = load_encoder("timm/resnet10t", pretrained=False, width=4, image_size=32)
    assert "--layers all" in verdict(0.9, loaded, None)
    assert "--layers" not in verdict(0.9, loaded.with_neck(None), "discriminant")


def test_fit_leaves_the_encoder_as_it_was_and_declares_the_chain_s_laws():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    chain = Chain([Saturation(stops=0.5)])
    model = steerable.fit(network, photos("train", size=16, n=60), chain, views=1)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(own in has for own, has in zip(model.steering.param_laws, chain.param_laws, strict=True))


def test_equal_seeds_fit_equal_maps(images):
    a, b, c = (
        steerable.fit(encoder(), images[:80], "photometric", views=1, seed=s).steering.state_dict()
        for s in (0, 0, 1)
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_progress_counts_every_pass(images):
    told = []
    steerable.fit(encoder(), images[:100], "photometric", views=3, progress=lambda *row: told.append(row))
    assert [row[0] for row in told] == sorted(row[0] for row in told)
    assert told[-1][:2] == (400, 400)


def test_bad_input_is_refused(images):
    with pytest.raises(ConfigError, match="views is 0"):
        steerable.fit(encoder(), images, views=0)
    with pytest.raises(ShapeError, match=r"NaN|finite"):
        steerable.fit(encoder(), images[:10] * float("nan"))
    with pytest.raises(ConfigError, match="basis"):
        steerable.fit(encoder(), images, map="bases")
