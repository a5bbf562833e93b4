"""The model card: how to load the bundle, and what its theta means."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from steerable.bundle.layout import ENCODER, Parts
from steerable.theta import Param

MARK = (
    "<!-- Written by steerable, and written anew with the bundle. Delete this line to keep your own text. -->"
)

_LOAD = """```python
from steerable import SteerableEncoder

model = SteerableEncoder.from_pretrained("FOLDER_OR_HUB_ID"{extra})
e = model.encode(images)  # (b, 3, h, w) in [0, 1] -> (b, {dim})
moved = model.steer(e, model.theta({first}))
```"""

_TIMM = """The encoder alone, in plain timm (its config's `pretrained_cfg` holds the preprocessing):

```python
import timm

network = timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)
```"""

_TIMM_STEM = """The encoder alone, in plain timm, after the stem for small images:

```python
import timm
from steerable.encoders import small_stem

network = small_stem(timm.create_model("{architecture}", **config["model_args"]), "{stem}")
timm.models.load_checkpoint(network, "FOLDER/{weights}")
```

where `config` is the parsed `config.json`."""


def render_card(parts: Parts, config: Mapping[str, Any]) -> str:
    """The text of README.md for a bundle with this config."""
    data = ModelCardData(library_name="steerable", tags=["steerable", "image-feature-extraction"])
    own = parts.encoder.spec is None
    extra = ", encoder=YourModule()" if own else ""
    first = f"{parts.chain.params[0].name}={parts.chain.params[0].high:g}"
    blocks = [
        f"---\n{data.to_yaml()}\n---",
        MARK,
        f"# A steerable encoder on {parts.encoder.name}",
        _facts(parts),
        "## Use",
        _LOAD.format(extra=extra, dim=parts.encoder.dim, first=first),
        *([_timm_text(parts, config)] if not own and config["steerable"]["encoder"]["stored"] else []),
        "## Parameters",
        "Zero is the untouched image. The map was made for these ranges; beyond them it extrapolates.",
        _table(parts.chain.params),
    ]
    return "\n\n".join(blocks) + "\n"


def _facts(parts: Parts) -> str:
    classes = f" Head: {parts.head.out_features} classes." if parts.head is not None else ""
    encoder = parts.encoder
    layers = f" of {', '.join(encoder.layers)} ({encoder.statistics})" if len(encoder.layers) > 1 else ""
    adapter = encoder.neck is not None and encoder.neck.adapter is not None
    neck = f" Neck: standardizing{', with a trained adapter' * adapter}." if encoder.neck is not None else ""
    return (
        f"Embedding{layers}: {encoder.dim} numbers, float32, not normalized.{neck} Map: {parts.steering.name}, "
        f"features {parts.steering.features.expansion}.{classes}"
    )


def _timm_text(parts: Parts, config: Mapping[str, Any]) -> str:
    stem = (parts.encoder.spec or {}).get("stem")
    if stem is None:
        return _TIMM
    return _TIMM_STEM.format(architecture=config["architecture"], stem=stem, weights=ENCODER)


def _table(params: tuple[Param, ...]) -> str:
    head = ["| parameter | unit | from | to | period |", "|---|---|---|---|---|"]
    periods = ["" if param.period is None else f"{param.period:g}" for param in params]
    rows = [
        f"| {param.name} | {param.unit} | {param.low:g} | {param.high:g} | {period} |"
        for param, period in zip(params, periods, strict=True)
    ]
    return "\n".join(head + rows)
