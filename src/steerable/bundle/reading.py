"""Reading bundles: every file is checked before it is parsed, and every failure is a BundleError."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn

from steerable.bundle.layout import (
    CARD,
    CONFIG,
    ENCODER,
    FORMAT,
    STEERING,
    Parts,
    checksum,
    fits_schema,
    refuse_pickles,
    render_config,
)
from steerable.encoders import Encoder, Neck, load_encoder, small_stem
from steerable.errors import BundleError
from steerable.maps import SteeringMap
from steerable.maps import build as build_map
from steerable.transforms import build as build_chain

_LOADING_ARGS = ("checkpoint_path", "cache_dir", "features_only", "pretrained")  # beginnings; timm would load


def read_bundle(folder: Path, *, encoder: nn.Module | None = None) -> Parts:
    """Check every file, then rebuild the parts, on the CPU.

    encoder: the network to load into (a user's own module), or the one to use where the bundle stores none.

    Raises:
        BundleError: damaged, foreign, of a newer format, or not fitting ``encoder``.
    """
    config = _read_config(folder)
    section = config["steerable"]
    _verify_files(folder, section)
    with rebuilding(folder, "encoder"):
        rebuilt = _read_encoder(folder, config, encoder)
    _verify_encoder(folder, section["encoder"], rebuilt)
    with rebuilding(folder, STEERING):
        tensors = safetensors.torch.load_file(folder / STEERING)
        if section["encoder"].get("neck") is not None:
            rebuilt = rebuilt.with_neck(_read_neck(folder, section["encoder"]["neck"], tensors))
    with rebuilding(folder, "chain"):
        chain = build_chain(section["chain"])
    with rebuilding(folder, "map"):
        steering, head = _read_steering(folder, section, tensors, rebuilt.dim, len(chain.params))
    return Parts(rebuilt, chain, steering, head, tuple(section["classes"]), section.get("record", {}))


def locate(source: str | Path, **hub: Any) -> Path:
    """The folder itself, or a snapshot of a Hub repository (config, safetensors and card only).

    hub: passed to ``huggingface_hub.snapshot_download`` (revision, token, cache_dir, local_files_only, ...).

    Raises:
        BundleError: neither a folder nor a repository that can be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BundleError(f"{source} is a file; expected a bundle's folder: give {path.parent}")
    try:
        validate_repo_id(str(source))
        found = snapshot_download(str(source), allow_patterns=[CONFIG, ENCODER, STEERING, CARD], **hub)
    except HFValidationError as error:
        raise BundleError(
            f"{source} is no folder, and no Hub id; expected one of them: check the path"
        ) from error
    except Exception as error:  # the Hub's client raises its own, httpx's and the system's
        raise BundleError(
            f"{source} is no folder here, and the Hub does not give it ({_reason(error)}); expected a "
            "bundle: check the name, the network and the token"
        ) from error
    return Path(found)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise BundleError(
            f"{folder} has no {CONFIG}; expected a folder that save_pretrained wrote: check the path"
        )
    refuse_pickles(folder)
    try:
        text = path.read_bytes().decode().replace("\r\n", "\n")
        config = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} is damaged ({_reason(error)}); expected JSON: fetch or save the bundle again"
        ) from error
    section = config.get("steerable") if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise BundleError(
            f"{path} has no section 'steerable'; expected a folder that save_pretrained wrote: for a timm "
            f"model use load_encoder('timm/local-dir:{folder}')"
        )
    if section.get("format") != FORMAT:
        raise BundleError(
            f"{path} has format {section.get('format')!r}; this version reads {FORMAT}: pip install "
            "--upgrade steerable"
        )
    # The text itself is compared too: 1e5 and 1E5 are one number, and still a flipped byte.
    if section.get("checksum") != checksum(config) or text != render_config(config):
        raise BundleError(
            f"{path} does not match its checksum; expected it as written: fetch or save the bundle again"
        )
    if not fits_schema(section):
        raise BundleError(f"{path} has other entries than format {FORMAT} has: save the bundle again")
    return config


def _verify_files(folder: Path, section: Mapping[str, Any]) -> None:
    files, stored = section["files"], section["encoder"]["stored"]
    if set(files) != ({STEERING, ENCODER} if stored else {STEERING}):
        raise BundleError(
            f"{folder}: {CONFIG} lists {', '.join(files)}; expected {STEERING}, and {ENCODER} where the "
            "encoder is stored: save the bundle again"
        )
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(
                f"{folder} has no {name}; expected it beside {CONFIG}: fetch or save the bundle again"
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise BundleError(
                f"{path} does not match its checksum; it is damaged or not this bundle's: fetch or save it "
                "again"
            )


@contextmanager
def rebuilding(folder: Path, what: str) -> Iterator[None]:
    """Any error within is a BundleError without."""
    try:
        yield
    except BundleError:
        raise
    except Exception as error:  # a config that matches its checksum may still ask for anything
        raise BundleError(
            f"{folder}: its {what} cannot be rebuilt ({_reason(error)}); expected what this version of "
            "steerable and timm can build: upgrade them, or save the bundle again"
        ) from error


def _verify_encoder(folder: Path, section: Mapping[str, Any], encoder: Encoder) -> None:
    if encoder.raw_fingerprint() == section["fingerprint"]:
        return
    now, then = encoder.settings(), section["preprocessing"]
    differing = [
        f"{key} {now.get(key)} for {then.get(key)}"
        for key in sorted(now | then)
        if now.get(key) != then.get(key)
    ]
    raise BundleError(
        f"{folder}: the encoder {encoder.name} is not the one that the bundle was made with: it has "
        f"{', '.join(differing) or 'other weights'}; expected fingerprint {section['fingerprint'][:12]}: "
        "give that encoder with encoder=, or save the bundle with its encoder"
    )


def _read_encoder(folder: Path, config: Mapping[str, Any], given: nn.Module | None) -> Encoder:
    section = config["steerable"]["encoder"]
    spec, stored = section["spec"], section["stored"]
    if given is None and spec is None:
        raise BundleError(
            f"{folder} was made with a module of your own, which is not code in the bundle; expected that "
            "module: use from_pretrained(..., encoder=YourModule())"
        )
    if given is None and not stored:
        return load_encoder(**spec)
    if given is not None:
        network = given.network if isinstance(given, Encoder) else given
    else:
        network = _build_network(config, spec.get("stem"))
    if stored:
        _load(network, safetensors.torch.load_file(folder / ENCODER), folder, "encoder")
    return Encoder(network, **section["preprocessing"], spec=spec)


def _build_network(config: Mapping[str, Any], stem: str | None) -> nn.Module:
    """timm's registry builds it, without weights: nothing is fetched, no file is opened."""
    architecture, args = config["architecture"], dict(config.get("model_args", {}))
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise BundleError(
            f"the bundle's architecture is {architecture!r}; expected one that timm has: upgrade timm"
        )
    for key in args:
        if key.startswith(_LOADING_ARGS):
            raise BundleError(
                f"the bundle's model_args hold {key!r}; expected settings of the network only: do not trust "
                "it"
            )
    args |= {"num_classes": 0}
    source = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict")
    cfg = {key: value for key, value in config["pretrained_cfg"].items() if key not in source}
    cfg["architecture"] = architecture
    network = timm.create_model(architecture, pretrained=False, pretrained_cfg=cfg, **args)
    return network if stem is None else small_stem(network, stem)


def _read_neck(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Neck:
    with torch.device("meta"):  # no memory is taken before the sizes are known to be those of the file
        neck = Neck.from_config(config)
    _load(neck, _named(tensors, "neck."), folder, "neck", assign=True)
    return neck


def _read_steering(
    folder: Path, section: Mapping[str, Any], tensors: Mapping[str, Tensor], dim: int, n_params: int
) -> tuple[SteeringMap, nn.Linear | None]:
    settings = section["steering"]
    if (settings["dim"], settings["n_params"]) != (dim, n_params):  # before memory is taken for it
        raise BundleError(
            f"{folder}: the map is for d={settings['dim']} and p={settings['n_params']}, encoder and chain "
            f"have {dim} and {n_params}; expected equal sizes: save the bundle again"
        )
    steering = build_map(settings)
    _load(steering, _named(tensors, "steering."), folder, "map")
    weights = _named(tensors, "head.")
    if not weights:
        return steering, None
    classes, width = weights["weight"].shape
    head = nn.Linear(width, classes, bias="bias" in weights)
    _load(head, weights, folder, "head")
    return steering, head


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _load(
    module: nn.Module, tensors: Mapping[str, Tensor], folder: Path, what: str, *, assign: bool = False
) -> None:
    """load_state_dict, where names, shapes and types must all agree."""
    own = module.state_dict()
    for key in sorted(own.keys() | tensors.keys()):
        mine, stored = (
            f"{tuple(side[key].shape)} {side[key].dtype}" if key in side else "nothing"
            for side in (own, tensors)
        )
        if mine != stored:
            raise BundleError(
                f"{folder}: {key} of the {what} is {stored} in the file and {mine} in the module; expected "
                "the same: use the module that was saved"
            )
    module.load_state_dict(dict(tensors), assign=assign)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
