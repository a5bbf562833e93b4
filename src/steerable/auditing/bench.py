"""Where an audit's encoder passes happen: several models on the same views, passes and seconds counted."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from steerable.data.images import as_float
from steerable.encoders import Encoder, Neck
from steerable.encoders.layers import FINAL
from steerable.model import SteerableEncoder
from steerable.transforms import Chain

Progress = Callable[[int, int, str], None]
Raw = dict[str, Tensor]

BATCH = 256
DEPTH_STATISTICS = "mean+std"


class Tap:
    """An embedding (n, d) read off a model's raw one (n, d0): some columns, then a neck.

    layer: None for the model's own embedding, else the layer that is looked at alone.
    """

    def __init__(self, model: str, layer: str | None, layers: Mapping[str, slice], neck: Neck | None):
        self.model, self.layer = model, layer
        self.columns = torch.cat([torch.arange(part.start, part.stop) for part in layers.values()])
        ends = torch.tensor([part.stop - part.start for part in layers.values()]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        self.layers = {name: slice(*part) for name, *part in zip(layers, starts, ends, strict=True)}
        self.neck = neck

    def __call__(self, raw: Raw) -> Float[Tensor, "*n d"]:
        whole = raw[self.model]
        e = whole if len(self.columns) == whole.shape[-1] else whole[..., self.columns]
        return e if self.neck is None else self.neck(e)

    def standardize(self, raw: Raw) -> None:
        """Center the columns and give each layer the same variance, as these embeddings tell."""
        self.neck = None
        self.neck = Neck.standardizing(self(raw), self.layers)


class Bench:
    """Models side by side, and the images (n, 3, h, w), uint8 or in [0, 1], that they are measured on.

    A view is rendered once and encoded by each model. total: passes per model that are expected. depth: encode
    all layers of the networks in the same pass.

    Raises:
        ConfigError: depth, and a network that does not show its layers.
    """

    def __init__(
        self,
        models: Mapping[str, SteerableEncoder],
        chain: Chain,
        pixels: Tensor,
        total: int,
        progress: Progress | None,
        *,
        depth: bool = False,
    ):
        self.models = models
        self.chain = chain
        self.pixels = pixels
        self.total = total
        self.progress = progress
        self.passes = 0
        self.seconds = dict.fromkeys(models, 0.0)
        self.encoders = {name: _deep(m.encoder) if depth else m.encoder for name, m in models.items()}
        self._device = next(iter(models.values())).device

    def taps(self) -> list[Tap]:
        """The embedding of every model, then (depth) every layer of each network."""
        own, layers = [], []
        for name, model in self.models.items():
            known = self.encoders[name].layers
            own.append(
                Tap(name, None, {part: known[part] for part in model.encoder.layers}, model.encoder.neck)
            )
            if self.encoders[name] is not model.encoder:
                layers += [Tap(name, part, {part: columns}, None) for part, columns in known.items()]
        return own + layers

    def encode(self, what: str, rows: Int64[Tensor, " n"], theta: Float[Tensor, "n p"] | None = None) -> Raw:
        """Raw embeddings (n, d0) by model of the images at ``rows``, plain or each under its theta."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.models}
        for start in range(0, len(rows), BATCH):
            with self.timed(*self.models):
                batch = self._images(rows[start : start + BATCH])
                if theta is not None:
                    batch = self.chain.apply(batch, theta[start : start + BATCH])
            for name, encoder in self.encoders.items():
                with self.timed(name):
                    parts[name].append(encoder.raw(batch, batch_size=BATCH))
            self.passes += len(batch)
            if self.progress is not None:
                self.progress(self.passes * len(parts), self.total * len(parts), what)
        return {name: torch.cat(part) for name, part in parts.items()}

    def encode_views(self, what: str, rows: Int64[Tensor, " n"], theta: Float[Tensor, "n v p"]) -> Raw:
        """Raw embeddings (n, v, d0) by model of v views of each image."""
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


def _deep(encoder: Encoder) -> Encoder:
    """The same network with all its layers in the raw embedding, the encoder's own columns among them."""
    statistics = DEPTH_STATISTICS if encoder.layers.keys() == {FINAL} else encoder.statistics
    return Encoder(encoder.network, **encoder.preprocessing(), layers="all", statistics=statistics)
