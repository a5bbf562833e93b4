"""Where an audit's encoder passes happen: several models on the same views, passes and seconds counted."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from steerable.data.images import as_float
from steerable.model import SteerableEncoder
from steerable.transforms import Chain

Progress = Callable[[int, int, str], None]
Embeddings = dict[str, Tensor]

BATCH = 256


class Bench:
    """Models side by side, and the images (n, 3, h, w), uint8 or in [0, 1], that they are measured on.

    A view is rendered once and encoded by each model. total: passes per model that are expected.
    """

    def __init__(
        self,
        models: Mapping[str, SteerableEncoder],
        chain: Chain,
        pixels: Tensor,
        total: int,
        progress: Progress | None,
    ):
        self.models = models
        self.chain = chain
        self.pixels = pixels
        self.total = total
        self.progress = progress
        self.passes = 0
        self.seconds = dict.fromkeys(models, 0.0)
        self._device = next(iter(models.values())).device

    def encode(
        self, what: str, rows: Int64[Tensor, " n"], theta: Float[Tensor, "n p"] | None = None
    ) -> Embeddings:
        """Embeddings (n, d) by model of the images at ``rows``, plain or each under its theta."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.models}
        for start in range(0, len(rows), BATCH):
            with self.timed(*self.models):
                batch = self._images(rows[start : start + BATCH])
                if theta is not None:
                    batch = self.chain.apply(batch, theta[start : start + BATCH])
            for name, model in self.models.items():
                with self.timed(name):
                    parts[name].append(model.encode(batch, batch_size=BATCH))
            self.passes += len(batch)
            if self.progress is not None:
                self.progress(self.passes * len(parts), self.total * len(parts), what)
        return {name: torch.cat(part) for name, part in parts.items()}

    def encode_views(self, what: str, rows: Int64[Tensor, " n"], theta: Float[Tensor, "n v p"]) -> Embeddings:
        """Embeddings (n, v, d) by model of v views of each image."""
        n, v, _ = theta.shape
        flat = self.encode(what, rows.repeat_interleave(v), theta.flatten(0, 1))
        return {name: e.unflatten(0, (n, v)) for name, e in flat.items()}

    @contextmanager
    def timed(self, *names: str) -> Iterator[None]:
        """Share the seconds that pass inside among these models."""
        began = time.perf_counter()
        yield
        for name in names:
            self.seconds[name] += (time.perf_counter() - began) / len(names)

    def _images(self, rows: Int64[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        batch = self.pixels[rows]
        batch = as_float(batch) if batch.dtype == torch.uint8 else batch.float()
        return batch.to(self._device)
