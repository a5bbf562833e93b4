"""The training loop: steps, schedule, evaluation, checkpoints."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steerable.data import ImageSet
from steerable.encoders import classifier_of
from steerable.errors import FitError, MissingExtra
from steerable.model import SteerableEncoder, steering_for
from steerable.training.checkpoint import load_checkpoint, save_checkpoint
from steerable.training.config import TrainConfig
from steerable.training.objective import Learner, Objective
from steerable.training.optimizer import build_optimizer, schedule
from steerable.training.setup import build_learner, load_splits, precision_for
from steerable.training.validation import encode_all, refit, validate
from steerable.transforms import Chain, build

log = logging.getLogger("steerable")
Listener = Callable[[dict[str, Any]], None]


@dataclass
class TrainResult:
    """What a run leaves."""

    model: SteerableEncoder
    directory: Path | None
    history: list[dict[str, Any]] = field(default_factory=list)
    """one row per epoch: loss terms, images per second, validation figures"""


def generator_for(seed: int, *purpose: int) -> torch.Generator:
    """A CPU generator of the seed and the purpose only, so that a resumed run draws what it would have drawn."""
    state = np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


ORDER, THETA, WEIGHTS = range(3)  # purposes of the random streams


class Run:
    """The state of one training run, and its steps."""

    def __init__(self, config: TrainConfig, train_set: ImageSet, test_set: ImageSet, directory: Path | None):
        self.began = time.perf_counter()
        self.config, self.train_set, self.test_set, self.directory = config, train_set, test_set, directory
        self.chain: Chain = build(config.chain)
        self.fabric = _fabric(config)
        torch.manual_seed(generator_for(config.seed, WEIGHTS).initial_seed())
        learner = build_learner(config, self.chain, len(train_set.classes))
        learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = build_optimizer(learner, config.optimizer, fused=config.precision != "16-mixed")
        self.learner, self.optimizer = self.fabric.setup(learner, optimizer)
        self.module: Learner = learner
        self.ema = (
            AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            if config.ema
            else None
        )
        self.steps_per_epoch = len(train_set) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.scheduler = LambdaLR(self.optimizer, schedule(self.total_steps, config.optimizer.warmup))
        self.objective = Objective(config, distributed=self.fabric.world_size > 1)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        # the whole set lives on the device as bytes, so that a step waits for no transfer
        self.images = train_set.images.to(self.fabric.device)
        self.goals, self.teacher = self._goals()

    def _goals(self) -> tuple[Tensor, Tensor | None]:
        """What the base loss aims at, by training image; and the teacher's embeddings of the test images in distill.

        The teacher is the network as the run starts. It sees each image untransformed, so that one pass serves all
        epochs; it is in no checkpoint: a resumed run starts from the same weights and asks it again.
        """
        if self.config.base != "distill":
            return self.train_set.labels.to(self.fabric.device), None
        log.info("the teacher encodes %d images", len(self.train_set) + len(self.test_set))
        return encode_all(self.module, self.train_set), encode_all(self.module, self.test_set)

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def averaged(self) -> Learner:
        """The weights to evaluate and to save."""
        return self.ema.module if self.ema is not None else self.module  # pyright: ignore[reportReturnType]

    def batches(self) -> Iterator[Tensor]:
        """Indices of the rest of the present epoch's batches; the order depends on seed and epoch only."""
        order = torch.randperm(
            len(self.train_set), generator=generator_for(self.config.seed, ORDER, self.epoch)
        )
        size = self.config.batch_size
        for i in range(self.step % self.steps_per_epoch, self.steps_per_epoch):
            yield order[i * size : (i + 1) * size].to(self.fabric.device)

    def train_step(self, index: Tensor) -> dict[str, Tensor]:
        """One optimizer step; returns the terms of the loss."""
        images = self.images[index].float() / 255
        theta = self.chain.sample(len(index), generator=generator_for(self.config.seed, THETA, self.step))
        theta = theta.to(self.fabric.device, non_blocking=True)
        both = torch.cat([images, self.chain.apply(images, theta)]).contiguous(
            memory_format=torch.channels_last
        )
        terms = self.objective(self.learner(both, theta), self.goals[index])
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(terms["loss"])
        if self.config.optimizer.clip_norm:
            self.fabric.clip_gradients(
                self.learner,
                self.optimizer,
                max_norm=self.config.optimizer.clip_norm,
                error_if_nonfinite=False,
            )
        self.optimizer.step()
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.module)
        self.step += 1
        return {name: term.detach() for name, term in terms.items()}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors and plain containers."""
        return {
            "step": self.step,
            "config": self.config.to_dict(),
            "learner": self.module.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "torch_rng": torch.get_rng_state(),
            "seconds": time.perf_counter() - self.began,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step, self.history = state["step"], state["history"]
        torch.set_rng_state(state["torch_rng"])
        self.began -= state["seconds"]

    def save(self) -> None:
        if self.directory is not None:
            save_checkpoint(self.directory / "checkpoints", self.state())

    def model(self) -> SteerableEncoder:
        """The present (averaged) weights as a SteerableEncoder on the CPU."""
        import copy

        learner = copy.deepcopy(self.averaged).cpu().eval()
        steering = learner.steering or steering_for(self.chain, learner.encoder.dim, "identity")
        if isinstance(learner.readout, nn.Linear):
            head, classes = learner.readout, self.train_set.classes
        else:  # who stays near the teacher can be read by the teacher's classifier
            head, classes = classifier_of(learner.encoder) if self.config.base == "distill" else None, ()
        return SteerableEncoder(learner.encoder, self.chain, steering, head=head, classes=classes)

    def record(self) -> dict[str, Any]:
        """What the run has cost, and the figures of its last epoch (before the map is fitted once more).

        seconds: everything, of all parts of a resumed run; passes: images encoded in steps and by the teacher.
        """
        n, batch = len(self.train_set), self.config.batch_size
        taught = n + len(self.test_set) if self.teacher is not None else 0
        figures = {k: v for k, v in self.history[-1].items() if isinstance(v, float) and math.isfinite(v)}
        return {
            "made_by": "train",
            "base": self.config.base,
            "images": n,
            "epochs": self.config.epochs,
            "steps": self.step,
            "passes": 2 * batch * self.step + taught,
            "seconds": round(time.perf_counter() - self.began, 1),
            "last_epoch": figures,
        }


def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> TrainResult:
    """Train a steerable encoder, or with ``steering="none"`` the invariant control at equal compute.

    out: run directory; gets config.yaml, metrics.jsonl, checkpoints, the bundle and losses.png. None keeps nothing.
    resume: go on from the last checkpoint in ``out``; on the CPU the result equals that of an unbroken run bit for bit.
    listener: called with a dictionary after each step ("loss", "step", "images_per_second", ...) and each epoch.

    Raises:
        ConfigError: contradictory settings, or ``out`` holds another run.
        DataError: no images, or fewer than one batch.
        FitError: a loss that is not finite; names the step, the terms and the last good checkpoint.
        MissingExtra: the [train] extra is not installed.
    """
    from steerable.training.directory import check_directory, open_directory, save_results

    config.check()
    check_directory(out, config, resume=resume)
    train_set, test_set = load_splits(config)
    run = Run(config, train_set, test_set, None)
    # only now, so that a wrong setting leaves no directory behind
    directory = run.directory = open_directory(out, config, skipped=train_set.skipped + test_set.skipped)
    if directory is not None and resume and (found := load_checkpoint(directory / "checkpoints")):
        run.restore(found[0])
        log.info("resumed from %s at step %d", found[1], run.step)
    while run.step < run.total_steps:
        row = _epoch(run, listener)
        run.history.append(row)
        if directory is not None:
            _append_metrics(directory / "metrics.jsonl", run.history)
        run.save()
        if listener:
            listener(row)
    model = run.model()
    if config.refit and config.steering in ("basis", "shift", "low_rank"):
        model = refit(model, train_set, config)
    model.record = run.record()
    result = TrainResult(model, directory, run.history)
    if directory is not None:
        save_results(directory, result)
    return result


def _epoch(run: Run, listener: Listener | None) -> dict[str, Any]:
    """The rest of the present epoch, then its validation."""
    epoch, run_config = run.epoch, run.config
    sums: dict[str, float] = {}
    steps, began = 0, time.perf_counter()
    run.learner.train()
    for index in run.batches():
        terms = {name: value.item() for name, value in run.train_step(index).items()}
        _check_finite(run, terms)
        steps += 1
        sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
        speed = steps * run_config.batch_size / (time.perf_counter() - began)
        if listener:
            listener({"step": run.step, "total_steps": run.total_steps, "images_per_second": speed, **terms})
        if run.step % run_config.checkpoint_every == 0:
            run.save()
    means = {name: value / steps for name, value in sums.items()}
    row = {"epoch": epoch + 1, "step": run.step, "images_per_second": speed if steps else None, **means}
    return {**row, **validate(run.averaged, run.chain, run.train_set, run.test_set, run.teacher)}


def _check_finite(run: Run, terms: dict[str, float]) -> None:
    if all(math.isfinite(value) for value in terms.values()):
        return
    checkpoint = run.directory / "checkpoints" / "last.pt" if run.directory else None
    last = (
        f"the last good checkpoint is {checkpoint}"
        if checkpoint and checkpoint.exists()
        else "there is no checkpoint yet"
    )
    listed = ", ".join(f"{name}={value:.4g}" for name, value in terms.items())
    raise FitError(
        f"the loss is not finite at step {run.step} ({listed}); expected finite terms, and {last}: "
        "lower optimizer.lr, set optimizer.clip_norm, or use precision 32-true, then --resume"
    )


def _append_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """Rewrite all rows: a resumed run must not repeat the rows that it does again."""
    path.write_text("".join(json.dumps(row) + "\n" for row in history))


def _fabric(config: TrainConfig) -> Any:
    try:
        from lightning.fabric import Fabric
    except ImportError as error:
        raise MissingExtra("lightning", "train") from error
    fabric = Fabric(accelerator="auto", devices=1, precision=precision_for(config.precision))  # pyright: ignore[reportArgumentType]
    fabric.launch()
    return fabric
