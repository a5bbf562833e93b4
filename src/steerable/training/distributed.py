"""Several processes as one: their start, the whole batch's views on each of them, BatchNorm over all of them.

Each process encodes its share of the batch; then every one has the views of the whole batch, with gradients, and
computes the same loss. So every term, also one that needs all pairs or a ratio of sums, means on n processes what it
means on one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steerable.errors import ConfigError, FitError, MissingExtra
from steerable.training.config import TrainConfig
from steerable.training.setup import precision_for

_SIGNS_OF_LOSS = (
    "timed out",
    "timeout",
    "connection closed",
    "connection reset",
    "broken pipe",
    "connection refused",
    "nccl communicator was aborted",
    "ncclremoteerror",
)


def launch(config: TrainConfig) -> Any:
    """Fabric on one device, or on those that ``torchrun`` or ``fabric run`` started this process for.

    Raises:
        MissingExtra: no lightning.
        ConfigError: the batch cannot be dealt out evenly.
    """
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise MissingExtra("lightning", "train") from error
    size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if config.batch_size % (size * config.accumulate):
        raise ConfigError(
            f"batch_size is {config.batch_size}; expected a multiple of {size} processes times {config.accumulate} "
            "parts (accumulate), between which it is dealt out: change one of them"
        )
    where: dict[str, Any] = {"devices": 1}
    if size > 1:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        strategy = DDPStrategy(timeout=timedelta(seconds=config.timeout), gradient_as_bucket_view=True)
        where = {"devices": local, "num_nodes": size // local, "strategy": strategy}
    fabric = Fabric(accelerator="auto", precision=precision_for(config.precision), **where)  # pyright: ignore
    fabric.launch()
    return fabric


class _Gather(torch.autograd.Function):
    """(b, ...) of every process, in order: (world * b, ...). The gradient sums over the processes that used it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_plain(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(value: Any, b: int) -> Any:
    """The views of the whole batch from those of this process's b items, in the order of processes, with gradients.

    value: tensors (b, ...), or (2b, ...) with sources first, in dataclasses, dictionaries and tuples. One exchange
    serves all of them.
    """
    found: list[Tensor] = []
    _visit(value, lambda x: found.append(x) or x)
    rows = [x.unflatten(0, (-1, b)).transpose(0, 1).flatten(1).float() for x in found]
    whole = _Gather.apply(torch.cat(rows, 1))
    parts = iter(whole.split([row.shape[1] for row in rows], 1))  # pyright: ignore[reportOptionalMemberAccess]

    def restore(x: Tensor) -> Tensor:
        each = next(parts).unflatten(1, (len(x) // b, *x.shape[1:]))
        return each.transpose(0, 1).flatten(0, 1).to(x.dtype)

    return _visit(value, restore)


def gather_plain(x: Tensor) -> Tensor:
    """(b, ...) of every process, in order, without gradients."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _visit(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_visit(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _visit(item, change) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _visit(getattr(value, f.name), change) for f in fields(value)})
    return value


def synchronize(module: nn.Module) -> None:
    """BatchNorm over the batches of all processes, in place; names of weights stay.

    Statistics of a share would be another loss than that of the whole batch. On a GPU torch's own does it.
    """
    from timm.layers.norm_act import convert_sync_batchnorm

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, WholeBatchNorm | nn.SyncBatchNorm):
                on_gpu = child.weight is not None and child.weight.is_cuda
                setattr(parent, name, convert_sync_batchnorm(child) if on_gpu else WholeBatchNorm(child))


class WholeBatchNorm(_BatchNorm):
    """BatchNorm over all processes where torch has none, on CPUs; with the activation that timm puts into its own."""

    def __init__(self, own: _BatchNorm):
        super().__init__(own.num_features, own.eps, own.momentum, own.affine, own.track_running_stats)
        self.weight, self.bias = own.weight, own.bias
        for name, buffer in own.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.drop, self.act = getattr(own, "drop", nn.Identity()), getattr(own, "act", nn.Identity())
        self.train(own.training)

    def _check_input_dim(self, input: Tensor) -> None:
        return None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return self.act(self.drop(super().forward(input)))
        axes = [0, *range(2, input.ndim)]
        x = input.float()
        var, mean = torch.var_mean(x, axes, correction=0)
        var, mean = _Gather.apply(torch.stack([var, mean])[None]).unbind(1)  # pyright: ignore
        center = mean.mean(0)
        spread = (var + (mean - center).square()).mean(
            0
        )  # equal shares: the mean of the parts is that of the whole
        self._keep(center.detach(), spread.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        shape = (1, -1, *[1] * (input.ndim - 2))
        scale = (spread + self.eps).rsqrt() * self.weight
        out = (x - center.view(shape)) * scale.view(shape) + self.bias.view(shape)
        return self.act(self.drop(out.to(input.dtype)))

    def _keep(self, mean: Tensor, var: Tensor, n: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * (n / max(1, n - 1)), share)


@contextmanager
def answered(fabric: Any, timeout: float) -> Iterator[None]:
    """Within it, another process that is gone or hangs ends this one with a reason.

    Raises:
        FitError
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if fabric.world_size == 1 or not any(sign in text.lower() for sign in _SIGNS_OF_LOSS):
            raise
        raise FitError(
            f"process {fabric.global_rank} of {fabric.world_size} lost the others ({text.splitlines()[0][:120]}); "
            f"expected an answer within {timeout:g} s (timeout): see what the others say, then start all again with "
            "--resume"
        ) from error
