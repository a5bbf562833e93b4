"""Small models to save, and ways to damage what was saved."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from steerable.bundle.layout import checksum, render_config
from steerable.encoders import Encoder, load_encoder
from steerable.errors import BundleError
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Chain

FILES = ("config.json", "model.safetensors", "steering.safetensors")


class Own(nn.Module):
    """A user's network, with a buffer and tied weights."""

    def __init__(self, width: int = 5):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(3, width)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.arange(width))

    def forward(self, x):
        return self.first(x.mean((2, 3))) + self.second(x.amax((2, 3))) + self.shift


def own() -> Encoder:
    return Encoder(Own(), image_size=12, mean=(1 / 3, 0.5, 0.5), std=(0.1, 0.2, 0.3), interpolation="bicubic")


def tiny(**settings) -> Encoder:
    return load_encoder("timm/resnet10t", **{"pretrained": False, "width": 4, "image_size": 32, **settings})


def build(encoder: Encoder, map: str = "basis", *, head: bool = True, seed: int = 0) -> SteerableEncoder:
    chain = Chain.preset("simclr")
    steering = steering_for(chain, encoder.dim, map)
    linear = nn.Linear(encoder.dim, 3) if head else None
    model = SteerableEncoder(
        encoder, chain, steering, head=linear, classes=("cat", "dög", "") if head else ()
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def images() -> torch.Tensor:
    return torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(5))


def same(one: SteerableEncoder, other: SteerableEncoder) -> None:
    e, thetas = one.encode(images()), one.chain.sample(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(other.encode(images()), e)
    assert torch.equal(other.orbit(e, thetas), one.orbit(e, thetas))
    assert (one.head is None) == (other.head is None)
    if one.head is not None and other.head is not None:
        assert torch.equal(other.head(e), one.head(e))
    assert other.classes == one.classes
    assert other.params == one.params
    assert other.fingerprint() == one.fingerprint()


def refuse(folder: Path, message: str, **settings) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        SteerableEncoder.from_pretrained(folder, **settings)
    assert "\n" not in str(caught.value)


def resign(folder: Path, edit: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    config["steerable"]["checksum"] = checksum(config)
    (folder / "config.json").write_text(render_config(config))


def resum(folder: Path, name: str) -> None:
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    resign(folder, lambda c: c["steerable"]["files"].update({name: digest}))
