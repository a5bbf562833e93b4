"""The optimizer of a run, how its learning rate goes, and the average of its weights."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from steerable.training.config import OptimizerConfig
from steerable.training.objective import Learner


def schedule(total: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate by step: linear up over the share ``warmup`` of all steps, then cosine to zero."""
    warm = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    return factor


def build_optimizer(learner: Learner, config: OptimizerConfig, *, fused: bool) -> torch.optim.Optimizer:
    """Parameters in three groups: matrices, vectors, the steering map.

    fused: one kernel for all parameters; not with float16, whose scaler clips gradients in a step of its own.
    """
    steering = list(learner.steering.parameters()) if learner.steering is not None else []
    others = [
        p for name, p in learner.named_parameters() if not name.startswith("steering.") and p.requires_grad
    ]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay, "lr": config.lr},
        # decay would pull norms' gains to zero, and the map to the identity, which is a choice of its own
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "lr": config.lr},
        {"params": steering, "weight_decay": 0.0, "lr": config.lr * config.steering_lr},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, fused=fused)


class Average(AveragedModel):
    """A moving average of weights and buffers that waits for no device; torch's own reads its counter at each step."""

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, *, first: bool = False) -> None:
        """One step of the average; ``first`` copies the weights as they are."""
        kept, new = (
            list(itertools.chain(each.parameters(), each.buffers())) for each in (self.module, model)
        )
        floats = [i for i, value in enumerate(kept) if value.is_floating_point()]
        share = 1.0 if first else 1 - self.decay
        torch._foreach_lerp_([kept[i] for i in floats], [new[i] for i in floats], share)  # pyright: ignore
        for i in set(range(len(kept))) - set(floats):  # BatchNorm's counters
            kept[i].copy_(new[i])
        self.n_averaged += 1
