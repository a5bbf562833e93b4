"""Training of steerable encoders, and of the controls that they are compared with."""

from typing import TYPE_CHECKING, Any

from steerable.training.config import DataConfig, EncoderConfig, OptimizerConfig, TrainConfig

if TYPE_CHECKING:
    from steerable.training.loop import TrainResult, train

__all__ = ["DataConfig", "EncoderConfig", "OptimizerConfig", "TrainConfig", "TrainResult", "train"]


def __getattr__(name: str) -> Any:
    # the settings load without torch, so that `steerable train --help` answers at once
    if name not in ("TrainResult", "train"):
        raise AttributeError(f"module 'steerable.training' has no attribute {name!r}")
    from steerable.training import loop

    return getattr(loop, name)
