"""Embeddings of image sets, encoded once for all evaluations of an encoder."""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.data import ImageSet
from steerable.data.cache import remembered
from steerable.encoders import Encoder
from steerable.errors import ConfigError
from steerable.model import SteerableEncoder
from steerable.transforms import Chain

BATCH = 256


class Encodings:
    """Called with images: their embeddings (n, d), float32, on the CPU, from disk where they were encoded before.

    model: a SteerableEncoder, or an encoder alone. cache: the folder whose part "embeddings" keeps one file for each
    encoder, image set (both by fingerprint) and theta; None keeps nothing. ``encoded`` counts encoder passes.
    """

    def __init__(self, model: SteerableEncoder | nn.Module, cache: Path | str | None = None):
        own = model.encoder if isinstance(model, SteerableEncoder) else model
        self.encoder = own if isinstance(own, Encoder) else Encoder(own)
        self.chain = model.chain if isinstance(model, SteerableEncoder) else None
        self.folder = None if cache is None else Path(cache).expanduser() / "embeddings" / self._key()
        self.encoded = 0

    def __call__(self, images: ImageSet, theta: Float[Tensor, " p"] | None = None) -> Float[Tensor, "n d"]:
        """theta (p,): embeddings of the images after the chain has moved all of them by it."""
        path = self.folder and self.folder / f"{self._name(images, theta)}.npy"
        return torch.from_numpy(remembered(path, lambda: self._encode(images, theta).numpy()))

    def _encode(self, images: ImageSet, theta: Tensor | None) -> Float[Tensor, "n d"]:
        parts = []
        for batch in images.batches(BATCH, device=self.encoder.mean.device):
            moved = (
                batch if theta is None else self._chain().apply(batch, theta.to(batch).expand(len(batch), -1))
            )
            parts.append(self.encoder.encode(moved).cpu())
            self.encoded += len(batch)
        return torch.cat(parts)

    def _chain(self) -> Chain:
        if self.chain is None:
            raise ConfigError(
                "an encoder alone has no chain to move images by; expected a SteerableEncoder: give one"
            )
        return self.chain

    def _name(self, images: ImageSet, theta: Tensor | None) -> str:
        if theta is None:
            return images.fingerprint[:24]
        return f"{images.fingerprint[:24]}-{_digest(f'{self._chain().config()} {theta.tolist()}')}"

    def _key(self) -> str:
        """Equal weights may compute something else in a module of the user's own: its answer is part of the name."""
        spec, answer = self.encoder.spec, ""
        if spec is None or spec.get("model_args"):
            side = self.encoder.image_size or 32
            ramp = torch.linspace(0, 1, 3 * side * side, device=self.encoder.mean.device)
            answer = str(self.encoder.encode(ramp.view(1, 3, side, side)).tolist())
        return _digest(self.encoder.fingerprint() + answer)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
