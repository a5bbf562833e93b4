"""The closed-form refit at the end of training: wide embeddings, maps that are better already, refusals."""

import logging

import pytest
import torch
from torch import nn

from steerable import metrics
from steerable.data import ImageSet
from steerable.encoders import Encoder
from steerable.maps import BasisMap
from steerable.model import SteerableEncoder, steering_for
from steerable.training import TrainConfig
from steerable.training.validation import refit

CONFIG = TrainConfig(chain="simclr", steering="basis", features="linear+squares")
WIDTH = 300  # 18 basis functions of 301 columns: more than the closed form takes whole


def model_of(width: int) -> SteerableEncoder:
    torch.manual_seed(0)
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.Tanh()), image_size=8)
    return SteerableEncoder(encoder, "simclr", steering_for("simclr", width, "basis", CONFIG.features))


def images(n: int) -> ImageSet:
    pixels = torch.randint(
        0, 256, (n, 3, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    tiles = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return ImageSet(tiles, torch.zeros(n, dtype=torch.int64), (), tuple(map(str, range(n))))


def error_on(model: SteerableEncoder, held_out: ImageSet) -> float:
    pairs = model.pairs(held_out.batches(100), generator=torch.Generator().manual_seed(9))
    source, theta, target, _ = next(pairs)
    return metrics.relative_error(source, target, model.steer(source, theta).detach())


@pytest.fixture(scope="module")
def refitted() -> SteerableEncoder:
    return refit(model_of(WIDTH), images(150), CONFIG)


def test_a_wide_embedding_is_read_through_a_projection(refitted: SteerableEncoder):
    steering = refitted.steering
    assert isinstance(steering, BasisMap)
    assert steering.inner is not None
    assert steering.inner < WIDTH
    assert steering.param_laws == model_of(WIDTH).steering.param_laws
    assert error_on(refitted, images(250).subset(range(150, 250))) < 0.8  # images that no fit has seen


def test_a_narrow_embedding_is_read_whole():
    steering = refit(model_of(20), images(60), CONFIG).steering
    assert isinstance(steering, BasisMap)
    assert steering.inner is None


def test_the_trained_map_stays_where_it_is_as_good(refitted: SteerableEncoder):
    assert refit(refitted, images(150), CONFIG) is refitted


def test_a_refused_fit_costs_nothing_that_was_trained(caplog: pytest.LogCaptureFixture):
    model = model_of(20)
    with caplog.at_level(logging.WARNING, "steerable"):
        assert refit(model, images(1), CONFIG) is model
    assert "the map stays as it was trained" in caplog.text
