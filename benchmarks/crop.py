"""What is tried for the ranks of crops, beside a wider reading: another theta, and another scale of the embedding."""

from typing import TYPE_CHECKING

import torch
from frozen import COLOR, CROP
from torch import Tensor, nn

from steerable.transforms import Chain

if TYPE_CHECKING:
    from ladder import Rung


def window_of(theta: Tensor, chain: Chain) -> Tensor:
    """Theta (*, p) with the crop as the window that it shows: sides and center in the image's frame, with products."""
    names = [param.name for param in chain.params]
    zoom, aspect, x, y = (theta[..., names.index(name)] for name in CROP)
    wide, high = (-zoom - aspect / 2).exp2(), (-zoom + aspect / 2).exp2()
    sides = torch.stack([wide - 1, high - 1, x * wide, y * high], dim=-1)
    first, second = torch.triu_indices(4, 4)
    rest = [theta[..., names.index(name)] for name in ("hflip", *COLOR)]
    flipped = rest[0][..., None] * sides
    products = sides[..., first] * sides[..., second]
    return torch.cat(
        [zoom[..., None], aspect[..., None], sides, products, torch.stack(rest, -1), flipped], dim=-1
    )


def balanced(rung: "Rung") -> nn.Module:
    """The rung's embedding, each direction scaled by the root of S / (1 + S) over its noise, S = signal over noise.

    And one constant beside, ten times as long as the rest: a cosine then ranks as the distance does.
    """
    steer, _ = rung.fit()
    noise, signal, rows = torch.zeros(()), torch.zeros(()), 0
    for source, theta, target, _ in rung.ladder.frozen.pairs(rung.embed):
        with torch.no_grad():
            steered = steer(source, theta)
        noise = noise.to(target) + (target - steered).square().sum(0)
        signal = signal.to(target) + (steered - source).square().sum(0)
        rows += len(source)
    ratio = signal / noise
    scale = (ratio / (1 + ratio)).sqrt() / (noise / rows).sqrt()
    with torch.no_grad():
        power = (rung.embed(rung.ladder.frozen.plain) * scale).square().sum(1).mean().sqrt()
    return nn.Sequential(rung.embed, Balanced(scale, 10 * float(power)))


class Balanced(nn.Module):
    """Scaled columns, and one constant beside them."""

    def __init__(self, scale: Tensor, constant: float):
        super().__init__()
        self.scale, self.constant = scale, constant

    def forward(self, e: Tensor) -> Tensor:
        return torch.cat([e * self.scale, torch.full_like(e[..., :1], self.constant)], dim=-1)
