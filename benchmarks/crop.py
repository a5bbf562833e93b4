"""What is tried for the ranks of crops, beside a wider reading: another scale of the embedding."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ladder import Rung


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
