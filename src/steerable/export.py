"""Models as ONNX graphs: the encoder with its preprocessing, the map, and the folded head."""

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from steerable.errors import ConfigError, MissingExtra
from steerable.maps import build
from steerable.model import SteerableEncoder
from steerable.tta import fold, views

TOLERANCE = 1e-4
CONFIG = "steerable.json"
OPSET = 20
_BATCHES = (1, 3)  # batches that each graph is compared on; it is traced with another
_EXPORT_WARNINGS = (r".*The axis name: b will not be used.*", r".*copyreg.*", r".*isinstance\(treespec.*")


@dataclass(frozen=True)
class Graph:
    """One ONNX file: axes of each input and output by name, and its largest difference from torch.

    error: max |onnx - torch| over max(1, max |torch|), on random inputs.
    """

    file: str
    inputs: dict[str, list[str | int]]
    outputs: dict[str, list[str | int]]
    bytes: int
    opset: int
    error: float


def export_onnx(
    model: SteerableEncoder,
    folder: str | Path,
    *,
    size: int | None = None,
    fold_views: str = "chain:32",
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> tuple[Graph, ...]:
    """Write encoder.onnx, map.onnx and, where the model has a head, head.onnx, each checked in onnxruntime.

    encoder: images (b, 3, s, s), RGB in [0, 1], -> e (b, d); normalization is inside, and s is the encoder's size,
    to which images are resized and cropped before. map: (e (b, d), theta (b, p)) -> steered (b, d). head: e -> logits
    (b, c), the mean of the logits of ``fold_views`` (a name as in `steerable.tta.views`) as one layer;
    "chain:1" is the head itself. b is free in all. steerable.json beside them says what the inputs mean.

    size: s, for encoders that take images as they come. tolerance: the largest error that is let pass.

    Raises:
        ConfigError: no size; a graph that cannot be exported or differs by more than ``tolerance``: no file is
            written then.
        MissingExtra: without onnx, onnxscript and onnxruntime.
    """
    side = model.encoder.image_size or size
    if side is None or size not in (None, side):
        raise ConfigError(
            f"size is {size} and the encoder's own is {model.encoder.image_size}; expected exactly one side in pixels, "
            "since a graph has it fixed: give --size for encoders that have none, and leave it out for others"
        )
    folder = Path(folder).expanduser()
    made = {}
    for name, (module, inputs, outputs) in _parts(model, side, fold_views, seed).items():
        made[name] = _exported(name, module, inputs, outputs, tolerance)
    folder.mkdir(parents=True, exist_ok=True)
    for graph, data in made.values():
        (folder / graph.file).write_bytes(data)
    graphs = {name: graph for name, (graph, _) in made.items()}
    about = _about(model, fold_views if model.head is not None else None, graphs)
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n")
    return tuple(graphs.values())


def _parts(
    model: SteerableEncoder, side: int, fold_views: str, seed: int
) -> dict[str, tuple[nn.Module, dict[str, tuple[int, ...]], str]]:
    """Module, shapes of its inputs without b, and the name of its output."""
    encoder = copy.deepcopy(model.encoder).cpu().eval().requires_grad_(False)
    parts: dict[str, tuple[nn.Module, dict[str, tuple[int, ...]], str]] = {
        "encoder": (encoder, {"images": (3, side, side)}, "e"),
        "map": (_plain_map(model), {"e": (model.dim,), "theta": (len(model.params),)}, "steered"),
    }
    if model.head is not None:
        thetas = views(fold_views, model.chain, seed=seed).to(model.device)
        head = fold(model.steering, model.head, thetas).cpu().eval().requires_grad_(False)
        parts["head"] = (head, {"e": (model.dim,)}, "logits")
    return parts


def _plain_map(model: SteerableEncoder) -> nn.Module:
    """The map with its parametrized weights as numbers: what makes them (a linear solve) is not in ONNX."""
    steering = build(model.steering.config())  # not a copy, which would share its class with the original
    steering.load_state_dict(model.steering.state_dict())
    for module in list(steering.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # pyright: ignore
                parametrize.remove_parametrizations(module, name)
    return steering.eval().requires_grad_(False)


def _exported(
    name: str, module: nn.Module, shapes: dict[str, tuple[int, ...]], output: str, tolerance: float
) -> tuple[Graph, bytes]:
    """The graph and its file's content."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra(str(error.name), "export") from None
    batch = torch.export.Dim("b", min=1)
    generator = torch.Generator().manual_seed(0)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(_inputs(shapes, 2, generator).values()),
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in shapes),
                input_names=list(shapes),
                output_names=[output],
                opset_version=OPSET,
                verbose=False,
            )
        proto = program.model_proto if program is not None else None
        data = proto.SerializeToString() if proto is not None else b""
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exporter's, onnxscript's and the runtime's errors share no base
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ConfigError(
            f"the {name} cannot be exported ({type(error).__name__}: {reason}); expected operations that ONNX "
            "has: use another network or map"
        ) from error
    error = max(_difference(module, session, _inputs(shapes, b, generator)) for b in _BATCHES)
    if not error <= tolerance:
        raise ConfigError(
            f"the exported {name} differs from torch by {error:.1e}; expected at most {tolerance:.0e}: "
            "report it with the names of the network and the map, or raise tolerance"
        )
    width = session.get_outputs()[0].shape[1]
    axes: dict[str, list[str | int]] = {key: ["b", *shape] for key, shape in shapes.items()}
    return Graph(f"{name}.onnx", axes, {output: ["b", width]}, len(data), OPSET, error), data


def _inputs(shapes: dict[str, tuple[int, ...]], b: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random, and of both signs but for images."""
    draw = {"images": torch.rand}
    return {
        name: draw.get(name, torch.randn)(b, *shape, generator=generator) for name, shape in shapes.items()
    }


def _difference(module: nn.Module, session: Any, inputs: dict[str, Tensor]) -> float:
    with torch.no_grad():
        wanted = module(*inputs.values())
    # an input that has no part in the result, such as the identity map's theta, is not in the graph
    used = {item.name for item in session.get_inputs()}
    found = session.run(None, {key: value.numpy() for key, value in inputs.items() if key in used})
    return ((torch.from_numpy(found[0]) - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _EXPORT_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _about(model: SteerableEncoder, fold_views: str | None, graphs: dict[str, Graph]) -> dict[str, Any]:
    return {
        "encoder": model.encoder.name,
        "fingerprint": model.fingerprint(),
        "dim": model.dim,
        "params": [asdict(param) for param in model.params],
        "preprocessing": "resize the short side, crop the center, RGB in [0, 1]; normalization is in the graph",
        "classes": list(model.classes),
        "head_views": fold_views,
        "graphs": {name: asdict(graph) for name, graph in graphs.items()},
    }
