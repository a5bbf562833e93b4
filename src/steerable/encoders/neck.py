"""Necks: what stands between a frozen network's raw embedding and the embedding that is steered."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.errors import ConfigError, FitError, ShapeError

CONSTANT = 1e-6  # a column that varies by less, relative to its mean, is rounding and nothing else


class Neck(nn.Module):
    """Standardize raw embeddings (*, d0), then adapt them, if asked: ``adapter((raw - mean) / scale)`` (*, d).

    width: d0. hidden: units of one hidden layer with GELU, or None for none. out: width d of the result; with
    ``hidden`` alone it is d0. Neither: there is no adapter, and the neck only standardizes.

    ``mean`` and ``scale`` (d0,) are buffers, 0 and 1 until `standardizing` or loading sets them.

    Raises:
        ConfigError: a width below 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, *, hidden: int | None = None, out: int | None = None):
        super().__init__()
        for name, value in (("width", width), ("hidden", hidden), ("out", out)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} of the neck is {value}; expected at least 1: correct it")
        self.width, self.hidden, self.out = width, hidden, out
        self.dim = width if out is None else out
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.adapter: nn.Module | None = None
        if hidden is not None:
            self.adapter = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, self.dim))
        elif out is not None:
            self.adapter = nn.Linear(width, out)

    @classmethod
    def standardizing(
        cls,
        raw: Tensor,
        layers: Mapping[str, slice],
        *,
        hidden: int | None = None,
        out: int | None = None,
    ) -> "Neck":  # not Self, which beartype cannot check
        """A neck for embeddings like these: columns centered, layers balanced.

        raw: (n, d0) sample, n >= 2. layers: `Encoder.layers`, the columns of each layer.

        A column of a layer with w of the d0 columns, one of l layers, is divided by its standard deviation times
        sqrt(w l / d0): every layer then has the same total variance d0 / l, and the mean column has variance 1.
        Columns that are constant in the sample are centered only.

        Raises:
            ShapeError: raw is not (n, d0), or the layers do not cover its columns.
            FitError: fewer than two rows, or values that are not finite.
        """
        if raw.ndim != 2 or sum(part.stop - part.start for part in layers.values()) != raw.shape[1]:
            raise ShapeError(
                f"raw embeddings have shape {tuple(raw.shape)}; expected (n, d0) with the columns of the layers "
                f"{', '.join(layers)}: give what Encoder.raw returns, and Encoder.layers"
            )
        if len(raw) < 2 or not bool(raw.isfinite().all()):
            raise FitError(
                f"{len(raw)} raw embeddings, {int((~raw.isfinite()).sum())} of their values not finite; expected "
                "two or more finite ones to standardize by: give more images"
            )
        std, mean = torch.std_mean(raw.double(), 0, correction=0)
        for part in layers.values():
            std[part] *= ((part.stop - part.start) * len(layers) / raw.shape[1]) ** 0.5
        neck = cls(raw.shape[1], hidden=hidden, out=out).to(raw.device)
        neck.mean.copy_(mean)
        neck.scale.copy_(torch.where(std <= CONSTANT * mean.abs(), 1.0, std))
        return neck

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Neck":
        """A neck of this config's shape; its tensors are loaded by the caller."""
        return cls(**config)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        return {"width": self.width, "hidden": self.hidden, "out": self.out}

    def forward(self, raw: Float[Tensor, "*batch d0"]) -> Float[Tensor, "*batch d"]:
        e = (raw - self.mean) / self.scale
        return e if self.adapter is None else self.adapter(e)
