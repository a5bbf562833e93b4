"""Raw embeddings of images and of their views, kept on disk, so that nothing is encoded twice."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerable.data import ImageSet
from steerable.data.cache import cache_root, write_whole
from steerable.data.images import as_float
from steerable.encoders import Encoder
from steerable.transforms import Chain

Progress = Callable[[int, int, str], None]
PART = 256  # images in one file: what a kill can cost is the encoding of one part
_STRIDE = 1_000_003  # seeds of two views never meet
_LOG = logging.getLogger(__name__)


class Pair(NamedTuple):
    """A batch of pairs: source (n, d), theta (n, p), target (n, d), and image ids (n,)."""

    source: Tensor
    theta: Tensor
    target: Tensor
    ids: Tensor


class Pairs:
    """Batches of `Pair` that can be read any number of times; each image is encoded once plain, ``views`` times moved.

    encoder: its raw embeddings (before the neck) are what is stored. images: as in `steerable.fit`.
    folder: parts are kept under pairs/KEY in it; by default the cache. KEY stands for the encoder, the images, the
        chain and the seed, so that another run with any number of views goes on with what is there.

    The attribute ``neck``, None at first, is what embeddings go through on their way out; ``encoded`` counts the
    images that had to be encoded, and ``seconds`` the time that this took.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: ImageSet | Tensor,
        chain: Chain,
        *,
        views: int,
        seed: int,
        folder: str | Path | None = None,
        progress: Progress | None = None,
    ):
        self.encoder, self.chain, self.views, self.seed = encoder, chain, views, seed
        self.pixels = images.images if isinstance(images, ImageSet) else images
        self.folder = (
            (cache_root() if folder is None else Path(folder).expanduser()) / "pairs" / self._key(images)
        )
        self.progress = progress
        self.neck: nn.Module | None = None
        self.encoded, self.seconds = 0, 0.0
        self._told: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.pixels) * self.views

    def __iter__(self) -> Iterator[Pair]:
        for start in range(0, len(self.pixels), PART):
            source, _ = self._part(start, 0)
            ids = torch.arange(start, start + len(source))
            for view in range(1, self.views + 1):
                target, theta = self._part(start, view)
                yield Pair(self._through(source), theta, self._through(target), ids)

    def plain(self, most: int | None = None) -> Float[Tensor, "n d"]:
        """Embeddings of all images as they are, or of ``most`` at least, in parts spread evenly over them."""
        starts = range(0, len(self.pixels), PART)
        stride = 1 if most is None else max(1, len(starts) // -(-most // PART))
        return torch.cat([self._through(self._part(start, 0)[0]) for start in starts[::stride]])

    @property
    def passes(self) -> int:
        """Encoder passes in all, cached ones included."""
        return len(self.pixels) * (1 + self.views)

    def missing(self) -> int:
        """Encoder passes that are not in the folder yet."""
        return sum(
            min(PART, len(self.pixels) - start)
            for start in range(0, len(self.pixels), PART)
            for view in range(self.views + 1)
            if not self._path(start, view).exists()
        )

    def image_batch(self, start: int, size: int) -> Float[Tensor, "b 3 h w"]:
        """Images from ``start`` on, as the encoder takes them and where it is; bytes travel, not floats."""
        batch = self.pixels[start : start + size].to(self.encoder.mean.device)
        return as_float(batch) if batch.dtype == torch.uint8 else batch

    def thetas(self, view: int) -> Float[Tensor, "n p"]:
        """Theta of each image in that view; equal for equal seeds, whatever the number of views."""
        generator = torch.Generator().manual_seed(self.seed * _STRIDE + view)
        return self.chain.sample(len(self.pixels), generator=generator)

    def _part(self, start: int, view: int) -> tuple[Tensor, Tensor]:
        """Raw embeddings and thetas of one part in one view, from the folder or from the encoder."""
        path = self._path(start, view)
        found = self._read(path, min(PART, len(self.pixels) - start))
        if found is None:
            began = time.perf_counter()
            batch = self.image_batch(start, PART)
            theta = self.thetas(view)[start : start + len(batch)] if view else self._no_theta(len(batch))
            raw = self.encoder.raw(self.chain.apply(batch, theta) if view else batch).cpu()
            found = {"raw": raw, "theta": theta}
            write_whole(path, lambda partial: save_file(found, partial))
            self.encoded += len(raw)
            self.seconds += time.perf_counter() - began
        self._tell(start, view, len(found["raw"]))
        return found["raw"], found["theta"]

    def _read(self, path: Path, rows: int) -> dict[str, Tensor] | None:
        """The part, or None where it is not there or damaged (it is then made again)."""
        if not path.exists():
            return None
        shapes = {"raw": (rows, self.encoder.raw_dim), "theta": (rows, len(self.chain.params))}
        try:
            found = load_file(path)
            got = {name: tuple(part.shape) for name, part in found.items()}
            if got == shapes and all(part.dtype == torch.float32 for part in found.values()):
                return found
            reason = f"it holds {got}, expected {shapes} in float32"
        except (SafetensorError, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
        _LOG.warning("%s is damaged (%s); it is made again", path, reason)
        return None

    def _tell(self, start: int, view: int, rows: int) -> None:
        if self.progress is not None and (start, view) not in self._told:  # later readings encode nothing
            self._told[start, view] = rows
            self.progress(sum(self._told.values()), self.passes, "pairs of plain and transformed images")

    def _through(self, raw: Float[Tensor, "n r"]) -> Float[Tensor, "n d"]:
        """On the encoder's device, so that the fit runs there too; MPS lacks the float64 that it needs."""
        device = self.encoder.mean.device
        if self.neck is not None:
            # an encoder's own neck is where the encoder is, one made from pairs is where they were
            place = next(iter(self.neck.state_dict().values()), raw).device
            with torch.no_grad():
                raw = self.neck(raw.to(place))
        return raw.cpu() if device.type == "mps" else raw.to(device)

    def _no_theta(self, n: int) -> Float[Tensor, "n p"]:
        return torch.zeros(n, len(self.chain.params))

    def _path(self, start: int, view: int) -> Path:
        return self.folder / f"images-{start:07d}-view-{view:03d}.safetensors"

    def _key(self, images: ImageSet | Tensor) -> str:
        facts = {
            "encoder": self.encoder.raw_fingerprint(),
            "images": _fingerprint(images),
            "chain": self.chain.config(),
            "seed": self.seed,
            "part": PART,
        }
        spec = self.encoder.spec
        if len(self.pixels) and (spec is None or spec.get("model_args")):
            # equal weights may compute something else in another module: its answer is part of its name
            answer = self.encoder.raw(self.image_batch(0, 1))
            facts["answer"] = _digest("", answer)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _fingerprint(images: ImageSet | Tensor) -> str:
    if isinstance(images, ImageSet):
        return images.fingerprint
    return _digest(f"{tuple(images.shape)} {images.dtype}", images)


def _digest(head: str, values: Tensor) -> str:
    data = values.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(head.encode() + data).hexdigest()
