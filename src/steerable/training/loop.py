"""The training loop: steps, schedule, evaluation, checkpoints."""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from steerable.data import ImageSet
from steerable.errors import FitError
from steerable.model import SteerableEncoder
from steerable.training.checkpoint import load_checkpoint
from steerable.training.config import TrainConfig
from steerable.training.directory import check_directory, open_directory, save_results
from steerable.training.distributed import answered
from steerable.training.run import Run
from steerable.training.setup import eager, fast_math, load_splits
from steerable.training.validation import refit, validate

log = logging.getLogger("steerable")
Listener = Callable[[dict[str, Any]], None]


@dataclass
class TrainResult:
    """What a run leaves."""

    model: SteerableEncoder
    directory: Path | None
    history: list[dict[str, Any]] = field(default_factory=list)
    """one row per epoch: loss terms, images per second, validation figures"""


def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
    images: tuple[ImageSet, ImageSet] | None = None,
) -> TrainResult:
    """Train a steerable encoder, or with ``steering="none"`` the invariant control at equal compute.

    out: run directory; gets config.yaml, metrics.jsonl, checkpoints, the bundle and losses.png. None keeps nothing.
    resume: go on from the last checkpoint in ``out``; on the CPU the result equals that of an unbroken run bit for bit.
    listener: called with a dictionary for each step ("loss", "step", "images_per_second", ...) and each epoch; on a GPU
        the steps come 20 at a time, because to look at a loss is to wait for it.
    images: training and test images that are loaded already, in place of ``config.data``.

    Raises:
        ConfigError: contradictory settings, or ``out`` holds another run.
        DataError: no images, or fewer than one batch.
        FitError: a loss that is not finite; names the step, the terms and the last good checkpoint.
        MissingExtra: the [train] extra is not installed.
    """
    config.check()
    check_directory(out, config, resume=resume)
    train_set, test_set = load_splits(config) if images is None else images
    run = Run(config, train_set, test_set, None)
    first = run.fabric.global_rank == 0  # it alone writes and tells
    # only now, so that a wrong setting leaves no directory behind
    opened = open_directory(out if first else None, config, skipped=train_set.skipped + test_set.skipped)
    with opened as directory, answered(run.fabric, config.timeout), interruptible() as asked:
        run.directory = directory
        if out is not None and resume and (found := load_checkpoint(Path(out) / "checkpoints")):
            run.restore(found[0])
            log.info("resumed from %s at step %d", found[1], run.step)
        return _finish(run, _epochs(run, listener if first else None, asked))


def _epochs(run: Run, listener: Listener | None, asked: Callable[[], bool]) -> list[dict[str, Any]]:
    """Train to the end; returns a row per epoch."""
    while run.step < run.total_steps:
        row = _epoch(run, listener, asked)
        run.history.append(row)
        if run.directory is not None:
            _append_metrics(run.directory / "metrics.jsonl", run.history)
        if not run.epoch % run.config.validate_every or run.step == run.total_steps:
            run.save()
        if listener:
            listener(row)
    return run.history


def _finish(run: Run, history: list[dict[str, Any]]) -> TrainResult:
    """The map fitted once more, and what the directory keeps."""
    config, model = run.config, run.model()
    if config.refit and model.steering.name in ("basis", "shift", "low_rank"):
        model = refit(model.to(run.fabric.device), run.train_set, config).cpu()
    model.record = run.record()
    result = TrainResult(model, run.directory, history)
    if run.directory is not None:
        save_results(run.directory, result)
    return result


def _epoch(run: Run, listener: Listener | None, asked: Callable[[], bool]) -> dict[str, Any]:
    """The rest of the present epoch, then its validation."""
    epoch, config = run.epoch, run.config
    seen = Seen(run.step, time.perf_counter())
    run.learner.train()
    with fast_math(run.fabric.device, config.precision):
        for batch in run.batches():
            seen.pending.append(run.train_step(batch))
            stopping = asked()
            saving = stopping or run.step % config.checkpoint_every == 0
            if saving or len(seen.pending) == run.look_every:
                _look(run, seen, listener)
            if saving:
                run.save()
            if stopping:
                log.info("stopped at step %d; --resume goes on from there", run.step)
                raise KeyboardInterrupt
        _look(run, seen, listener)
    steps = run.step - seen.first
    means = {name: value / steps for name, value in seen.sums.items()}
    row = {"epoch": epoch + 1, "step": run.step, "images_per_second": seen.speed, **means}
    if (epoch + 1) % config.validate_every and run.step < run.total_steps:
        return row
    with eager():
        return {**row, **validate(run.averaged, run.chain, run.train_set, run.test_set, run.teacher)}


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is kept until the step in hand is done, so that what is saved is whole; a second one ends at once."""
    pressed: list[int] = []

    def keep(number: int, _: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread alone
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, keep)
    try:
        yield lambda: bool(pressed)
    except RuntimeError as error:
        if pressed:  # another process has gone first
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Seen:
    """What an epoch's steps gave: their terms, still on the device, and the sums of those that were looked at."""

    first: int
    """steps done before"""
    began: float
    pending: list[dict[str, Tensor]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    speed: float | None = None
    """images per second"""


def _look(run: Run, seen: Seen, listener: Listener | None) -> None:
    """Fetch the terms of the pending steps (a GPU is waited for here only), check them and tell the listener."""
    if not seen.pending:
        return
    names = list(seen.pending[0])
    values = torch.stack([torch.stack([term.float() for term in terms.values()]) for terms in seen.pending])
    rows = [dict(zip(names, row, strict=True)) for row in values.tolist()]
    seen.pending.clear()
    seen.speed = (run.step - seen.first) * run.config.batch_size / (time.perf_counter() - seen.began)
    for step, terms in enumerate(rows, run.step - len(rows) + 1):
        _check_finite(run, step, terms)
        seen.sums = {name: seen.sums.get(name, 0.0) + value for name, value in terms.items()}
        if listener:
            about = {"step": step, "total_steps": run.total_steps, "images_per_second": seen.speed}
            listener({**about, **terms})


def _check_finite(run: Run, step: int, terms: dict[str, float]) -> None:
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
        f"the loss is not finite at step {step} ({listed}); expected finite terms, and {last}: "
        "lower optimizer.lr, set optimizer.clip_norm, or use precision 32-true, then --resume"
    )


def _append_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """Rewrite all rows: a resumed run must not repeat the rows that it does again."""
    path.write_text("".join(json.dumps(row) + "\n" for row in history))
