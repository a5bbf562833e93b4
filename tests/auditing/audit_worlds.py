"""Encoders with known answers: mean colors of the four quarters, which hue and flip act on exactly."""

import torch
from torch import Tensor, nn

from steerable.encoders import Encoder
from steerable.maps import SteeringMap
from steerable.model import SteerableEncoder
from steerable.transforms import Chain, HFlip, Hue

CHAIN = Chain([Hue(0.1), HFlip()])
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class TurnMap(SteeringMap):
    """The true action: hue turns the color of each quarter, a flip exchanges left and right quarters."""

    name = "turn"

    def matrix(self, theta: Tensor) -> Tensor:
        flat = theta.reshape(-1, 2)
        color = Hue().affine(flat[:, :1])[:, :3, :3]
        swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        on = (flat[:, 1] > 0.5).float()[:, None, None]
        place = torch.eye(2) + on * (swap - torch.eye(2))
        quarters = torch.einsum("ij,nkl->nikjl", torch.eye(2), place).reshape(-1, 4, 4)
        whole = torch.einsum("nij,nkl->nikjl", color, quarters).reshape(-1, 12, 12)
        return whole.reshape(*theta.shape[:-1], 12, 12)


def quarters() -> Encoder:
    """(b, 12): the mean color of each quarter."""
    return Encoder(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), mean=MEAN, std=STD)


class _Luma(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64) / 1.0
        return torch.einsum("bchw,c->bhw", images.double(), luma).amax(dim=(1, 2))[:, None].repeat(1, 3)


def blind() -> Encoder:
    """(b, 3): the brightest luma, which neither hue nor a flip changes."""
    return Encoder(_Luma(), mean=MEAN, std=STD)


def images(n: int = 40) -> Tensor:
    """(n, 3, 16, 16), far enough from black and white that no hue is clipped."""
    draw = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    fine = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    coarse = nn.functional.interpolate(draw, 16)
    return 0.35 + 0.2 * coarse + 0.1 * fine


def exact() -> SteerableEncoder:
    """Its map predicts every motion."""
    return SteerableEncoder(quarters(), CHAIN, TurnMap(12, 2))


def unsteered() -> SteerableEncoder:
    """The same encoder with the identity."""
    return SteerableEncoder(quarters(), CHAIN)


def invariant() -> SteerableEncoder:
    """An encoder that the chain does not move."""
    return SteerableEncoder(blind(), CHAIN)
