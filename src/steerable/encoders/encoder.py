"""The encoder: a network with its preprocessing, its layers and its neck."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.encoders.layers import FINAL, check_layers, check_statistics, layer_names, read_layers
from steerable.encoders.neck import Neck
from steerable.encoders.pixels import check_pixels, resize_crop
from steerable.errors import ShapeError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Micro-batches on a CPU: activations that stay in the cache are worth a factor of 1.7 (MobileNetV2 at 224, 4 against
# 16 images a thread).
CPU_PIXELS = 4 * 224 * 224  # per thread
CPU_IMAGES = 4  # at least


class Encoder(nn.Module):
    """A network with its preprocessing: ``forward(images (b, 3, h, w) in [0, 1]) -> e (b, d)`` in float32.

    network: any module that maps normalized images to (b, d).
    image_size: side in pixels that images are resized to (short side, then center crop), or None to take
        images as they come.
    mean, std: per channel, in units of [0, 1].
    spec: JSON-able arguments of ``load_encoder`` that build the network again; None for a module of your own.
    layers, statistics: as in `load_encoder`; None is the network's own output.
    neck: applied to the raw embedding (b, d0); it moves to the network's device.

    ``raw_dim`` (d0) and ``layers``, the columns of each layer within the raw embedding in order of depth, are
    read from a dry forward of one image. ``dim`` is d, the width after the neck.

    Raises:
        ShapeError: the network does not return (b, d), or the neck takes another width.
        ConfigError: unknown layers or statistics, or a network that cannot show its layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        image_size: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bilinear",
        spec: Mapping[str, Any] | None = None,
        layers: str | Sequence[str] | None = None,
        statistics: str = "mean+std+grid",
        neck: Neck | None = None,
    ):
        super().__init__()
        self.network = network
        self.image_size = image_size
        self.interpolation = "bicubic" if interpolation == "bicubic" else "bilinear"
        parameter = next(network.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(tuple(values), dtype=torch.float32, device=device).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        check_statistics(statistics)
        self.statistics = statistics
        self.layers = self._dry_forward(layers)
        self.raw_dim = list(self.layers.values())[-1].stop
        if neck is not None and neck.width != self.raw_dim:
            raise ShapeError(
                f"the neck takes embeddings of width {neck.width} and the encoder gives {self.raw_dim}; expected "
                "equal widths: build the neck for this encoder's layers"
            )
        self.neck = neck.to(device) if neck is not None else None
        self.dim = neck.dim if neck is not None else self.raw_dim
        chosen = None if self.layers.keys() == {FINAL} else list(self.layers)
        self.spec = {**spec, "layers": chosen, "statistics": statistics} if spec else None

    @property
    def name(self) -> str:
        """The name it was loaded by, or the class of the user's own module."""
        return self.spec["name"] if self.spec else type(self.network).__name__

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        e = self._forward_raw(images)
        return e if self.neck is None else self.neck(e)

    def encode(self, images: Tensor, *, batch_size: int = 256) -> Float[Tensor, "b d"]:
        """Embeddings (b, d), float32, not normalized, on the encoder's device; no gradients, evaluation mode.

        images: (b, 3, h, w), floating RGB in [0, 1], on any device; at most ``batch_size`` of them travel at a
            time, on a CPU fewer where they are large.

        Raises:
            ShapeError: another shape or type, values outside [0, 1], or values that are not finite.
        """
        return self._in_batches(self.forward, self.dim, images, batch_size)

    def raw(self, images: Tensor, *, batch_size: int = 256) -> Float[Tensor, "b d0"]:
        """Embeddings (b, d0) as `encode` gives them, but before the neck."""
        return self._in_batches(self._forward_raw, self.raw_dim, images, batch_size)

    def with_neck(self, neck: Neck | None) -> "Encoder":
        """An encoder with this neck in place of the present one; it shares the network."""
        return Encoder(self.network, **self.settings(), spec=self.spec, neck=neck)

    def preprocess(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s t"]:
        """Resize the short side to ``image_size`` and crop the center where needed, then normalize."""
        size = self.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = resize_crop(images, size, self.interpolation)
        return (images - self.mean) / self.std

    def fingerprint(self) -> str:
        """sha256 of weights, preprocessing, layers and neck: equal fingerprints give equal embeddings."""
        raw = self.raw_fingerprint()
        if self.neck is None:
            return raw
        return digest_of({"raw": raw, "neck": self.neck.config()}, sorted(self.neck.state_dict().items()))

    def raw_fingerprint(self) -> str:
        """sha256 of everything but the neck: equal ones give equal raw embeddings."""
        return digest_of(self.settings(), sorted(self.network.state_dict().items()))

    def preprocessing(self) -> dict[str, Any]:
        """What happens before the network, JSON-able."""
        return {
            "image_size": self.image_size,
            "mean": _decimals(self.mean),
            "std": _decimals(self.std),
            "interpolation": self.interpolation,
        }

    def settings(self) -> dict[str, Any]:
        """What happens around the network: preprocessing, and layers with their statistics where there are any."""
        names = list(self.layers)
        layers = {} if names == [FINAL] else {"layers": names, "statistics": self.statistics}
        return self.preprocessing() | layers

    def _forward_raw(self, images: Tensor) -> Tensor:
        x = self.preprocess(images)
        if self.layers.keys() == {FINAL}:
            return self.network(x).float()
        return torch.cat(read_layers(self.network, x, list(self.layers), self.statistics), 1)

    def _in_batches(
        self, encode: Callable[[Tensor], Tensor], dim: int, images: Tensor, batch_size: int
    ) -> Tensor:
        check_pixels(images)
        device = self.mean.device
        if len(images) == 0:
            return torch.zeros(0, dim, device=device)
        form = torch.preserve_format
        if device.type == "cpu":
            h, w = (self.image_size or side for side in images.shape[-2:])
            batch_size = min(batch_size, max(CPU_IMAGES, torch.get_num_threads() * CPU_PIXELS // (h * w)))
            if type(self.network).__module__.startswith("timm."):  # others may not bear it: view(b, -1) fails
                form = torch.channels_last
        with evaluating(self), torch.no_grad():
            parts = images.split(batch_size)
            return torch.cat([encode(part.to(self.mean, memory_format=form)) for part in parts])

    def _dry_forward(self, layers: str | Sequence[str] | None) -> dict[str, slice]:
        size = self.image_size or 32
        # not of one color: an embedding that is zero would agree with any other
        image = torch.linspace(-1, 1, 3 * size * size, device=self.mean.device).view(1, 3, size, size)
        with (
            evaluating(self.network),
            torch.no_grad(),
        ):  # so that the image does not enter BatchNorm's statistics
            e = self.network(image)
            if not isinstance(e, Tensor) or e.ndim != 2:
                got = tuple(e.shape) if isinstance(e, Tensor) else type(e).__name__
                raise ShapeError(
                    f"the network returns {got} for one image; expected (1, d): pool its features, or build a "
                    "timm model with num_classes=0"
                )
            names = (FINAL,) if layers is None else layer_names(layers, self.network, image)
            if names == (FINAL,):
                return {FINAL: slice(0, e.shape[1])}
            blocks = read_layers(self.network, image, names, self.statistics)
            check_layers(blocks, names, e, self.network)
        ends = torch.tensor([block.shape[1] for block in blocks]).cumsum(0).tolist()
        return {name: slice(end - b.shape[1], end) for name, b, end in zip(names, blocks, ends, strict=True)}


def _decimals(values: Tensor) -> list[float]:
    """The shortest decimals that give the same float32 again: 0.485, not 0.4850000143."""
    return [float(str(value)) for value in values.flatten().float().cpu().numpy()]


def digest_of(settings: Mapping[str, Any], weights: Iterable[tuple[str, Tensor]]) -> str:
    """sha256, in hex, of JSON-able settings and of named weights in the order given: names, types, shapes, bytes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in weights:
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module and all its parts in evaluation mode; each part's own mode comes back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
