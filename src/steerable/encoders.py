"""Encoders: images (b, 3, h, w) in [0, 1] to embeddings (b, d), preprocessing included.

Any timm name works, with its own resizing, mean and standard deviation; so does any ``nn.Module``.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data import resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from steerable.errors import ConfigError, ShapeError, nearest
from steerable.transforms.base import check_images

PREFIX = "timm/"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RANGE_SLACK = 1e-3  # how far pixel values may leave [0, 1]: rounding of half precision and of resizing


class Encoder(nn.Module):
    """A network with its preprocessing: ``forward(images (b, 3, h, w) in [0, 1]) -> e (b, d)`` in float32.

    network: any module that maps normalized images to (b, d).
    image_size: side in pixels that images are resized to (short side, then center crop), or None to take
        images as they come.
    mean, std: per channel, in units of [0, 1].
    spec: JSON-able arguments of ``load_encoder`` that build the network again; None for a module of your own.

    ``dim`` is read from a dry forward of one image.
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
    ):
        super().__init__()
        self.network = network
        self.image_size = image_size
        self.interpolation = "bicubic" if interpolation == "bicubic" else "bilinear"
        self.spec = dict(spec) if spec else None
        self.register_buffer(
            "mean", torch.tensor(tuple(mean), dtype=torch.float32).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(tuple(std), dtype=torch.float32).view(1, 3, 1, 1), persistent=False
        )
        self.dim = self._dry_forward()

    @property
    def name(self) -> str:
        """The name it was loaded by, or the class of the user's own module."""
        return self.spec["name"] if self.spec else type(self.network).__name__

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.network(self.preprocess(images)).float()

    def encode(self, images: Tensor, *, batch_size: int = 256) -> Float[Tensor, "b d"]:
        """Embeddings (b, d), float32, not normalized, on the encoder's device; no gradients, evaluation mode.

        images: (b, 3, h, w), floating RGB in [0, 1], on any device; ``batch_size`` of them travel at a time.

        Raises:
            ShapeError: another shape or type, values outside [0, 1], or values that are not finite.
        """
        check_pixels(images)
        if len(images) == 0:
            return torch.zeros(0, self.dim, device=self.mean.device)
        with evaluating(self), torch.no_grad():
            return torch.cat([self(part.to(self.mean)) for part in images.split(batch_size)])

    def preprocess(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s t"]:
        """Resize the short side to ``image_size`` and crop the center where needed, then normalize."""
        size = self.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = _resize_crop(images, size, self.interpolation)
        return (images - self.mean) / self.std

    def fingerprint(self) -> str:
        """sha256 of the weights and the preprocessing: equal fingerprints give equal embeddings."""
        return digest_of(self.preprocessing(), sorted(self.network.state_dict().items()))

    def preprocessing(self) -> dict[str, Any]:
        """What happens before the network, JSON-able."""
        return {
            "image_size": self.image_size,
            "mean": _decimals(self.mean),
            "std": _decimals(self.std),
            "interpolation": self.interpolation,
        }

    def _dry_forward(self) -> int:
        parameter = next(self.network.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        size = self.image_size or 32
        training = self.network.training
        self.network.eval()  # so that the dry image does not enter BatchNorm's statistics
        try:
            with torch.no_grad():
                e = self.network(torch.zeros(1, 3, size, size, device=device))
        finally:
            self.network.train(training)
        if not isinstance(e, Tensor) or e.ndim != 2:
            got = tuple(e.shape) if isinstance(e, Tensor) else type(e).__name__
            raise ShapeError(
                f"the network returns {got} for one image; expected (1, d): pool its features, or build a "
                "timm model with num_classes=0"
            )
        return e.shape[1]


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


def load_encoder(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    stem: str | None = None,
    width: int | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Encoder:
    """Build an encoder from timm, without its classifier.

    name: "timm/NAME", NAME being what ``timm.create_model`` takes: "resnet50", "hf-hub:...", "local-dir:...".
    pretrained: load the weights that the name stands for. weights: a checkpoint file to load instead.
    stem: "cifar" gives a ResNet a 3x3 stride-1 first convolution and no pooling, for small images.
    width: channels of a ResNet's first stage (timm's default is 64); the later stages double it.
    image_size: side in pixels to resize to; by default what timm says for the weights, or none with a stem.
    model_args: passed on to ``timm.create_model``.

    Raises:
        ConfigError: an unknown name (the nearest are listed), stem or width.
    """
    spec = {
        "name": name, "pretrained": pretrained, "weights": weights, "stem": stem, "width": width,
        "image_size": image_size, "model_args": dict(model_args or {}),
    }  # fmt: skip
    if not name.startswith(PREFIX):
        raise ConfigError(
            f"encoder {name!r} has no known source; expected timm/NAME: list them with timm.list_models()"
        )
    args = dict(model_args or {})
    if width is not None:
        args |= resnet_width(width)
    network = _create(
        name.removeprefix(PREFIX),
        pretrained=pretrained and weights is None,
        checkpoint=None if stem else weights,
        args=args,
    )
    if stem is not None:
        network = small_stem(network, stem)
        if weights is not None:
            with _timm_errors(f"{name} with {weights}", pretrained):
                timm.models.load_checkpoint(network, weights)  # pyright: ignore[reportPrivateImportUsage]
    data = resolve_model_data_config(network)
    size = image_size if image_size is not None else (None if stem else data["input_size"][-1])
    return Encoder(
        network,
        image_size=size,
        mean=data["mean"],
        std=data["std"],
        interpolation=data["interpolation"],
        spec=spec,
    )


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


def check_pixels(images: Tensor) -> None:
    """Raise ShapeError unless images are (b, 3, h, w), floating, finite and within [0, 1]."""
    if isinstance(images, Tensor) and images.ndim == 3:
        raise ShapeError(
            f"images have shape {tuple(images.shape)}; expected (b, 3, h, w): add the batch axis with "
            "images[None]"
        )
    check_images(images)
    if images.numel() == 0:
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low - low == 0 and high - high == 0):  # NaN and infinity fail this, without a second pass
        bad = ~torch.isfinite(images)
        raise ShapeError(
            f"{int(bad.sum())} pixel values in {int(bad.flatten(1).any(1).sum())} of {len(images)} images "
            "are NaN or infinite; expected finite values in [0, 1]: drop those images"
        )
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        hint = (
            "divide by 255"
            if low >= 0 and high <= 255
            else "give images before mean and std: the encoder normalizes"
        )
        raise ShapeError(f"pixel values range from {low:.4g} to {high:.4g}; expected [0, 1]: {hint}")


def small_stem(network: nn.Module, stem: str = "cifar") -> nn.Module:
    """Give a timm ResNet the stem for small images, in place: a 3x3 stride-1 convolution and no pooling."""
    if stem != "cifar":
        raise ConfigError(f"stem is {stem!r}; expected 'cifar' or none: correct it")
    if not (hasattr(network, "conv1") and hasattr(network, "maxpool") and hasattr(network, "bn1")):
        raise ConfigError(
            f"stem 'cifar' fits timm's ResNets, not {type(network).__name__}: leave stem out, or choose a "
            "ResNet"
        )
    channels: int = network.bn1.num_features  # pyright: ignore
    network.conv1 = nn.Conv2d(3, channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def resnet_width(width: int) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that give a ResNet's first stage this many channels."""
    if width < 2 or width % 2:
        raise ConfigError(f"width is {width}; expected an even number of at least 2: correct it")
    # timm ties the stem's output to 64 channels except for the "deep" stem, where it is twice stem_width
    return {
        "channels": [width, 2 * width, 4 * width, 8 * width],
        "stem_type": "deep",
        "stem_width": width // 2,
    }


def _create(name: str, *, pretrained: bool, checkpoint: str | None, args: dict[str, Any]) -> nn.Module:
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        raise ConfigError(
            f"timm has no model {name!r}; expected one of timm.list_models(): "
            f"{nearest(name, timm.list_models()) or 'choose from that list'}"
        )
    with _timm_errors(name, pretrained):
        return timm.create_model(
            name, pretrained=pretrained, num_classes=0, checkpoint_path=checkpoint, **args
        )


@contextmanager
def _timm_errors(name: str, pretrained: bool) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, TypeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"timm could not build {name!r} (pretrained={pretrained}): {reason}; expected a model that timm "
            "can create and weights that it can reach: check the name, or give --weights FILE or "
            "local-dir:PATH"
        ) from error


def _resize_crop(images: Tensor, size: int, mode: str) -> Tensor:
    h, w = images.shape[-2:]
    short = min(h, w)
    target = (round(h * size / short), round(w * size / short))
    images = F.interpolate(images, target, mode=mode, antialias=True, align_corners=False)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return images[..., top : top + size, left : left + size].clamp(0, 1)
