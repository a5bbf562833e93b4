"""Layers: one embedding from several depths of a timm network, in one pass.

A stage's feature map (b, c, h, w) enters by statistics over space; the network's own embedding enters as it is.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from steerable.errors import ConfigError, one_of

FINAL, ALL = "final", "all"


def _std(x: Tensor) -> Tensor:
    # clamped, because the root of a dead channel's zero variance has no gradient
    return x.var((2, 3), correction=0).clamp_min(1e-12).sqrt()


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "std": _std,
    "grid": lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1),  # position survives: flips and shifts move it
}


def layer_names(layers: str | Sequence[str], network: nn.Module, image: Tensor) -> tuple[str, ...]:
    """The names that ``layers`` stands for, each once, in order of depth.

    layers: "all", or names among stage0, stage1, ... and final, separated by commas or in a sequence.
    image: one normalized image (1, 3, h, w) for a trial pass.

    Raises:
        ConfigError: an unknown name, or a network that does not show its stages the way timm's do.
    """
    known = [*(f"stage{i}" for i in range(_count_stages(network, image))), FINAL]
    asked = [name.strip() for name in layers.split(",")] if isinstance(layers, str) else list(layers)
    for name in asked:
        if name not in known and asked != [ALL]:
            raise ConfigError(f"layer {name!r} is not in {type(network).__name__}; {one_of(name, known)}")
    return tuple(name for name in known if asked == [ALL] or name in asked)


def check_statistics(statistics: str) -> None:
    """Raise ConfigError unless ``statistics`` is keys of STATISTICS, each at most once, joined by "+"."""
    names = statistics.split("+")
    for name in names:
        if name not in STATISTICS or names.count(name) > 1:
            twice = " twice" if name in STATISTICS else ""
            raise ConfigError(
                f"statistics {statistics!r} hold {name!r}{twice}; {one_of(name, STATISTICS)}, each once, joined by +"
            )


def read_layers(
    network: nn.Module, x: Float[Tensor, "b 3 h w"], names: Sequence[str], statistics: str
) -> list[Float[Tensor, "b _"]]:
    """One block of columns per layer of ``names`` (as `layer_names` gives them), from one pass, in float32."""
    indices = [int(name.removeprefix("stage")) for name in names if name != FINAL]
    whole = FINAL in names  # else the pass ends with the deepest stage asked for
    out = network.forward_intermediates(  # pyright: ignore[reportCallIssue]
        x, indices=indices, output_fmt="NCHW", intermediates_only=not whole, stop_early=not whole
    )
    stages = out[1] if whole else out
    chosen = [STATISTICS[name] for name in statistics.split("+")]
    blocks = [torch.cat([statistic(stage.float()) for statistic in chosen], 1) for stage in stages]
    return [*blocks, network.forward_head(out[0]).float()] if whole else blocks  # pyright: ignore


def check_layers(blocks: Sequence[Tensor], names: Sequence[str], final: Tensor, network: nn.Module) -> None:
    """Raise ConfigError unless the last block is the embedding (1, d) that the network gives by itself.

    For a few of timm's networks the pass that shows the stages is not the whole of the ordinary one.
    """
    agree = blocks[-1].shape == final.shape and torch.allclose(blocks[-1], final, rtol=1e-3, atol=1e-4)
    if names[-1] == FINAL and not agree:
        raise ConfigError(
            f"{type(network).__name__} gives another embedding beside its stages than by itself; expected equal "
            "ones: leave 'final' out of layers, or leave layers out"
        )


def _count_stages(network: nn.Module, image: Tensor) -> int:
    name = type(network).__name__
    if not (hasattr(network, "forward_intermediates") and hasattr(network, "forward_head")):
        raise ConfigError(
            f"{name} has no forward_intermediates; expected a timm network that shows its stages: leave layers "
            "out, or choose another network"
        )
    try:
        stages = network.forward_intermediates(image, output_fmt="NCHW", intermediates_only=True)  # pyright: ignore
    except (AssertionError, TypeError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{name} does not give its stages as (b, c, h, w) ({reason}); expected a timm network that does: leave "
            "layers out, or choose another network"
        ) from error
    return len(stages)
