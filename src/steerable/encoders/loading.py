"""Encoders by name: built by timm, with its weights, and its classifier where it has one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from steerable.encoders.encoder import Encoder
from steerable.encoders.layers import FINAL
from steerable.errors import ConfigError, nearest

PREFIX = "timm/"


def load_encoder(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    stem: str | None = None,
    width: int | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    layers: str | Sequence[str] | None = None,
    statistics: str = "mean+std+grid",
) -> Encoder:
    """Build an encoder from timm, without its classifier.

    name: "timm/NAME", NAME being what ``timm.create_model`` takes: "resnet50", "hf-hub:...", "local-dir:...".
    pretrained: load the weights that the name stands for. weights: a checkpoint file to load instead.
    stem: "cifar" gives a ResNet a 3x3 stride-1 first convolution and no pooling, for small images.
    width: channels of a ResNet's first stage (timm's default is 64); the later stages double it.
    image_size: side in pixels to resize to; by default what timm says for the weights, or none with a stem.
    model_args: passed on to ``timm.create_model``.
    layers: "all", or names among stage0, stage1, ... (in order of depth) and final, separated by commas or in a
        sequence; the embedding joins statistics of these stages, and the network's own embedding for final. None
        is the latter alone. One pass gives them all.
    statistics: what a stage with c channels contributes, joined by "+": mean (c), std over space (c), grid, the
        means of its four quarters (4 c).

    Raises:
        ConfigError: an unknown name (the nearest are listed), stem, width, layer or statistic, or layers of a
            network that does not show them.
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
        layers=layers,
        statistics=statistics,
    )


def classifier_of(encoder: Encoder) -> nn.Linear | None:
    """The pretrained classifier of the network that ``encoder.spec`` names, for this encoder's embeddings (b, d).

    With layers it reads the final columns; a neck that only standardizes is undone in its weights. On the CPU.

    None where there is none to be had: a module of your own, weights that are not timm's pretrained ones, a model
    without one linear classifier on its embedding, layers without the final one, or a neck with an adapter.

    Raises:
        ConfigError: the pretrained weights cannot be reached any more.
    """
    spec, neck = encoder.spec or {}, encoder.neck
    theirs = spec.get("pretrained") and not (spec.get("weights") or spec.get("stem") or spec.get("width"))
    if not theirs or FINAL not in encoder.layers or (neck is not None and neck.adapter is not None):
        return None
    args = dict(spec.get("model_args") or {})
    network = _create(
        spec["name"].removeprefix(PREFIX), pretrained=True, checkpoint=None, args=args, embed=False
    )
    found = network.get_classifier() if hasattr(network, "get_classifier") else None  # pyright: ignore
    columns = encoder.layers[FINAL]
    if not isinstance(found, nn.Linear) or found.in_features != columns.stop - columns.start:
        return None
    weight = torch.zeros(found.out_features, encoder.dim, dtype=torch.float64)
    weight[:, columns] = found.weight.detach().double()
    bias = torch.zeros(found.out_features).double() if found.bias is None else found.bias.detach().double()
    if neck is not None:  # raw = e scale + mean
        bias = bias + weight @ neck.mean.cpu().double()
        weight = weight * neck.scale.cpu().double()
    head = nn.Linear(encoder.dim, found.out_features)
    head.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return head


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


def _create(
    name: str, *, pretrained: bool, checkpoint: str | None, args: dict[str, Any], embed: bool = True
) -> nn.Module:
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        raise ConfigError(
            f"timm has no model {name!r}; expected one of timm.list_models(): "
            f"{nearest(name, timm.list_models()) or 'choose from that list'}"
        )
    with _timm_errors(name, pretrained):
        own = {"num_classes": 0} if embed else {}
        return timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **own, **args)


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
