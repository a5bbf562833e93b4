"""Transforms that mix neighboring pixels, or do anything that is neither a warp nor a color map."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steerable.errors import ConfigError
from steerable.theta import Laws, Param
from steerable.transforms.base import Transform, as_probability, uniform
from steerable.transforms.pixels import Plan


class Filter(Transform):
    """A transform of pixels without further structure; it runs last in a chain. A subclass gives ``act``."""

    @abstractmethod
    def act(self, images: Float[Tensor, "b 3 h w"], theta: Float[Tensor, "b p"]) -> Float[Tensor, "b 3 h w"]:
        """Transform without checks and clipping; theta has come to the images' device and type."""

    def plan(self, theta: Float[Tensor, "b p"], ratio: float) -> Plan:
        return Plan(filters=((self.act, theta),))


class Blur(Filter):
    """Gaussian blur; theta is the standard deviation as a share of the shorter side, negative counts as zero.

    Draws are uniform up to ``sigma`` for a share ``p`` of the images, zero for the others. The border is
    reflected. Deviations do not add (variances do) and detail does not come back: the identity is the one
    law.
    """

    name = "blur"
    laws = Laws.IDENTITY

    def __init__(self, sigma: float = 0.01, p: float = 0.5):
        if not isinstance(sigma, int | float) or not 0 < sigma <= 1:
            raise ConfigError(
                f"sigma is {sigma!r}; expected a share of the image's side, in (0, 1]: e.g. 0.01"
            )
        self.sigma, self.p = float(sigma), as_probability(p)
        self.params = (Param("blur", "side", 0.0, self.sigma, step=self.sigma / 20),)

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n 1"]:
        draw = uniform(n, 2, generator)
        return torch.where(draw[:, :1] < self.p, self.sigma * draw[:, 1:], 0.0)

    def act(self, images: Float[Tensor, "b 3 h w"], theta: Float[Tensor, "b 1"]) -> Float[Tensor, "b 3 h w"]:
        sigma = theta[:, 0].clamp(min=0) * min(images.shape[-2:])
        on = sigma > 0
        if images.device.type != "cpu":  # to choose some would be to wait for the device
            return torch.where(on[:, None, None, None], _blur(images, sigma), images)
        rows = on.nonzero().flatten()
        if not len(rows):
            return images
        # a warped image is transposed in memory: to products that is all one, to the copies after them it is not
        return images.contiguous().index_copy(0, rows, _blur(images[rows], sigma[rows]))


def _blur(images: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    rows, columns = (_gaussian(sigma, n) for n in images.shape[-2:])
    return rows[:, None] @ images @ columns.mT[:, None]


def _gaussian(sigma: Float[Tensor, " b"], n: int) -> Float[Tensor, "b n n"]:
    """Matrices that blur a line of n pixels, reflected at its ends; rows sum to one. sigma in pixels."""
    distance = torch.arange(1 - 2 * n, 2 * n, device=sigma.device, dtype=sigma.dtype)
    bell = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None]) ** 2)
    # Without the far tail: its numbers, too small to be stored as usual, make products 20 times slower.
    windows = F.threshold(bell, 1e-12, 0.0).unfold(1, n, 1)
    # Pixel i sees the line, and its mirror images beyond either end; window k begins at the distance k + 1 - 2n.
    weight = windows[:, n : 2 * n].flip(1) + windows[:, 2 * n : 3 * n] + windows[:, :n]
    return weight / weight.sum(dim=2, keepdim=True)
