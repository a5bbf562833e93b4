"""Writing bundles: every file whole or not at all, config.json last."""

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor

from steerable.bundle.card import MARK, render_card
from steerable.bundle.layout import (
    CARD,
    CONFIG,
    ENCODER,
    FORMAT,
    STEERING,
    Parts,
    checksum,
    refuse_pickles,
    render_config,
)
from steerable.encoders import Encoder, load_encoder, resnet_width
from steerable.errors import BundleError


def write_bundle(folder: Path, parts: Parts, *, store_encoder: bool = True) -> None:
    """Write a bundle; each file appears whole or not at all, config.json last.

    Raises:
        BundleError: the folder holds something else, or the encoder cannot be stored as asked.
    """
    _require_writable(folder)
    files = {STEERING: _serialize(_steering_tensors(parts), "map, head or neck")}
    if store_encoder:
        files[ENCODER] = _serialize(parts.encoder.network.state_dict(), "encoder")
    else:
        _require_reference(parts.encoder)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    config = _config(parts, sums, stored=store_encoder)
    if not (folder / CARD).exists() or MARK in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
        files[CARD] = render_card(parts, config).encode()
    files[CONFIG] = render_config(config).encode()
    try:
        _write(folder, files)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be written ({error}); expected a folder with room and permission: choose "
            "another one"
        ) from error


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write_atomic(folder / name, data)
    if ENCODER not in files:
        (folder / ENCODER).unlink(missing_ok=True)  # an earlier bundle's: it no longer belongs to this config


def _require_writable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise BundleError(
            f"{folder} is a file; expected a folder to write the bundle to: choose another name"
        )
    if (folder / CONFIG).exists() and not _is_bundle(folder / CONFIG):
        raise BundleError(
            f"{folder} holds a {CONFIG} that is no bundle's; expected an empty folder: choose another one"
        )
    refuse_pickles(folder)


def _is_bundle(path: Path) -> bool:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and isinstance(config.get("steerable"), dict)


def _require_reference(encoder: Encoder) -> None:
    if encoder.spec is None:
        raise BundleError(
            f"the encoder {encoder.name} is a module of your own, which no name leads back to; expected a "
            "timm encoder where none is stored: use store_encoder=True"
        )
    if load_encoder(**encoder.spec).raw_fingerprint() != encoder.raw_fingerprint():
        raise BundleError(
            f"the encoder's weights are no longer those that {encoder.name} stands for; expected them "
            "unchanged where none are stored: use store_encoder=True"
        )


def _steering_tensors(parts: Parts) -> dict[str, Tensor]:
    modules = {"steering": parts.steering, "head": parts.head, "neck": parts.encoder.neck}
    return {
        f"{name}.{key}": value
        for name, module in modules.items()
        if module is not None
        for key, value in module.state_dict().items()
    }


def _serialize(tensors: Mapping[str, Tensor], what: str) -> bytes:
    for key, value in tensors.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise BundleError(
                f"{key} of the {what} is {value.dtype}; expected float32 in a bundle: call model.float() "
                "first"
            )
    # Cloned, because safetensors refuses tensors that share memory: tied weights are stored twice.
    own = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return safetensors.torch.save(own, metadata={"format": "pt"})


def _config(parts: Parts, files: Mapping[str, str], *, stored: bool) -> dict[str, Any]:
    encoder = parts.encoder
    config = _timm_config(encoder) if stored and encoder.spec is not None else {}
    config["steerable"] = {
        "format": FORMAT,
        "version": _version(),
        "encoder": {
            "spec": encoder.spec,
            "preprocessing": encoder.settings(),
            "fingerprint": encoder.raw_fingerprint(),  # the neck lies in the bundle, under a checksum
            "stored": stored,
            "neck": encoder.neck.config() if encoder.neck is not None else None,
        },
        "chain": parts.chain.config(),
        "steering": parts.steering.config(),
        "classes": list(parts.classes),
        "files": dict(files),
        **({"record": dict(parts.record)} if parts.record else {}),
    }
    try:
        config = json.loads(json.dumps(config, allow_nan=False))  # tuples to lists, as they will be read
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"the record or a setting is not JSON ({error}); expected finite numbers, text, lists and "
            "dictionaries: convert what is not"
        ) from error
    config["steerable"]["checksum"] = checksum(config)
    return config


def _timm_config(encoder: Encoder) -> dict[str, Any]:
    """timm's own Hub config, with this encoder's preprocessing in place of the checkpoint's."""
    spec = encoder.spec or {}
    args = dict(spec.get("model_args") or {}) | (resnet_width(spec["width"]) if spec.get("width") else {})
    args |= {"num_classes": 0}  # so that the arguments alone rebuild the network
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CONFIG
        try:
            # a Path, which older releases of timm want, though newer ones declare a string
            save_config_for_hf(encoder.network, path, model_args=args)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"timm cannot describe {encoder.name} ({error}); expected model_args that JSON can hold: "
                "change them, or wrap the network with Encoder(network) as a module of your own"
            ) from error
        config = json.loads(path.read_text())
    ours = encoder.preprocessing() | {"crop_pct": 1.0}
    size = ours.pop("image_size")
    ours |= {} if size is None else {"input_size": [3, size, size]}
    for_testing = ("test_input_size", "test_crop_pct", "test_pool_size")
    kept = {key: value for key, value in config["pretrained_cfg"].items() if key not in for_testing}
    return config | {"pretrained_cfg": kept | ours}


def _write_atomic(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _version() -> str:
    try:
        return importlib.metadata.version("steerable")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
