"""What a bundle is: its files, its format number, its checksum."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from steerable.encoders import Encoder
from steerable.errors import BundleError
from steerable.maps import SteeringMap
from steerable.transforms import Chain

FORMAT = 1
CONFIG, ENCODER, STEERING, CARD = "config.json", "model.safetensors", "steering.safetensors", "README.md"
_SECTION = {
    "format": int,
    "version": str,
    "encoder": dict,
    "chain": dict,
    "steering": dict,
    "classes": list,
    "files": dict,
    "checksum": str,
}
_SECTION_LATER = {"record": dict}  # entries that bundles of before lack
_ENCODER = {"spec": dict | None, "preprocessing": dict, "fingerprint": str, "stored": bool}
_ENCODER_LATER = {"neck": dict | None}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


@dataclass(frozen=True)
class Parts:
    """What a bundle holds: the constructor's arguments of SteerableEncoder."""

    encoder: Encoder
    chain: Chain
    steering: SteeringMap
    head: nn.Linear | None
    classes: tuple[str, ...]
    record: Mapping[str, Any] = field(default_factory=dict)


def render_config(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def checksum(config: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of everything but the checksum itself."""
    section = {key: value for key, value in config["steerable"].items() if key != "checksum"}
    text = json.dumps({**config, "steerable": section}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_pickles(folder: Path) -> None:
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    if pickles:
        raise BundleError(
            f"{folder} holds {pickles[0]}, which may run code when read; expected safetensors only: remove it"
        )


def fits_schema(section: Mapping[str, Any]) -> bool:
    """Whether the section "steerable" has the entries that this format has and no others, each of its type."""
    encoder, classes = section.get("encoder"), section.get("classes")
    return (
        _has_types(section, _SECTION, _SECTION_LATER)
        and _has_types(encoder, _ENCODER, _ENCODER_LATER)
        and all(isinstance(name, str) for name in classes or ())
    )


def _has_types(value: Any, types: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    return (
        isinstance(value, dict)
        and types.keys() <= value.keys() <= {*types, *later}
        and all(isinstance(entry, {**types, **later}[key]) for key, entry in value.items())
    )
