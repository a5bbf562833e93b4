"""What happens to a training job, and what it may cost."""

import errno
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from processes import Job
from steerable.data import ImageSet
from steerable.errors import BundleError, ConfigError, FitError
from steerable.model import SteerableEncoder
from steerable.training import EncoderConfig, TrainConfig, train
from steerable.training.checkpoint import load_checkpoint, save_checkpoint
from steerable.training.distributed import answered
from steerable.training.run import Run
from test_training import same, tiny, weights

STEPS = 8


def settings(**changes) -> TrainConfig:
    small = EncoderConfig(stem="cifar", width=2)
    changes = {
        "checkpoint_every": 3,
        "validate_every": 2,
        "timeout": 60.0,
        "refit": False,
        "ema": 0.9,
        **changes,
    }
    return tiny(encoder=small, **changes)


def noise() -> tuple[ImageSet, ImageSet]:
    images = torch.randint(
        0, 256, (80, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    whole = ImageSet(images, torch.arange(80) % 2, ("a", "b"), tuple(map(str, range(80))))
    return whole.subset(range(64)), whole.subset(range(64, 80))


def job(folder: Path, fault: str = "", rank: int = 0, step: int = 0, changes: dict | None = None) -> None:
    """One process of a run in ``folder`` that goes on where the last one ended; the fault meets a rank at a step."""
    own = int(os.environ.get("RANK", 0))
    honest, inputs = Run.train_step, Run.inputs

    def train_step(self, batch):
        if self.step == step and own == rank:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hang":
                time.sleep(600)
            while fault == "wait" and not (folder / "go").exists():
                (folder / "waits").touch()
                time.sleep(0.05)
        return honest(self, batch)

    def poisoned(self, batch, part=0):
        both, *rest = inputs(self, batch, part)
        return (both * float("nan") if self.step == step and own == rank else both, *rest)

    Run.train_step = train_step
    if fault == "nan":
        Run.inputs = poisoned
    train(settings(**(changes or {})), out=folder / "run", resume=True, images=noise())


def bundle(folder: Path) -> dict[str, torch.Tensor]:
    return weights(SteerableEncoder.from_pretrained(folder / "run" / "bundle"))


def survive(tmp_path: Path, kills: int) -> None:
    unbroken = Job(2, tmp_path / "unbroken", job, tmp_path / "unbroken")
    draw = random.Random(kills)
    for _ in range(kills):
        rank, step = draw.randrange(2), draw.randrange(STEPS)
        killed = Job(2, tmp_path / "killed", job, tmp_path / "killed", "kill", rank, step)
        codes = killed.wait()
        assert codes[rank] in (-signal.SIGKILL, 0), killed.error(
            rank
        )  # 0: an earlier part had that step behind it
        if codes[rank]:
            assert codes[1 - rank] == 1, codes
            assert "lost the others" in killed.error(1 - rank)
    last = Job(2, tmp_path / "killed", job, tmp_path / "killed")
    assert unbroken.wait() == [0, 0], unbroken.error(0)
    assert last.wait() == [0, 0], last.error(0)
    assert same(bundle(tmp_path / "unbroken"), bundle(tmp_path / "killed"))


def test_killed_three_times_and_resumed_gives_the_weights_of_an_unbroken_run(tmp_path):
    survive(tmp_path, 3)


@pytest.mark.slow
def test_killed_ten_times_and_resumed_gives_the_weights_of_an_unbroken_run(tmp_path):
    survive(tmp_path, 10)


def test_a_process_that_hangs_is_given_up_with_a_reason(tmp_path):
    hung = Job(2, tmp_path, job, tmp_path, "hang", 1, 2, {"timeout": 6.0})
    hung.processes[0].join(120)
    assert hung.processes[0].exitcode == 1
    assert hung.processes[1].is_alive()  # torchrun ends it when the other one has given up
    hung.kill()
    assert "FitError: process 0 of 2 lost the others" in hung.error(0)
    assert "expected an answer within 6 s (timeout)" in hung.error(0)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 6001 ms", True),
        ("NCCL communicator was aborted on rank 0.", True),
        (
            "NCCL error: remote process exited or there was a network error, ncclRemoteError: A call failed",
            True,
        ),
        ("CUDA out of memory", False),
    ],
)
def test_the_words_of_nccl_are_understood(text, lost):
    """As torch words them; no GPU is needed to read."""
    fabric = SimpleNamespace(world_size=2, global_rank=0)
    expected = pytest.raises(
        FitError if lost else RuntimeError, match="lost the others" if lost else "memory"
    )
    with expected, answered(fabric, 6.0):
        raise RuntimeError(text)


def test_what_is_not_finite_on_one_process_stops_all_with_the_reason(tmp_path):
    sick = Job(2, tmp_path, job, tmp_path, "nan", 1, 4)
    assert sick.wait() == [1, 1]
    for rank in range(2):
        assert "the loss is not finite at step 5 (loss=nan" in sick.error(rank)
    assert load_checkpoint(tmp_path / "run" / "checkpoints")[0]["step"] == 3


def test_two_runs_refuse_each_other_and_ctrl_c_saves(tmp_path):
    first = Job(1, tmp_path / "a", job, tmp_path / "a", "wait", 0, 4)
    deadline = time.monotonic() + 120
    while not (tmp_path / "a" / "waits").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ConfigError, match="in use by another run"):
        train(settings(), out=tmp_path / "a" / "run", resume=True, images=noise())
    os.kill(first.processes[0].pid, signal.SIGINT)
    (tmp_path / "a" / "go").touch()
    assert first.wait() == [130], first.error(0)
    state, _ = load_checkpoint(tmp_path / "a" / "run" / "checkpoints")
    assert state["step"] == 5  # the step in hand was done first
    resumed = train(settings(), out=tmp_path / "a" / "run", resume=True, images=noise())
    unbroken = train(settings(), images=noise())
    assert same(weights(resumed.model), weights(unbroken.model))


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    def full(_: int) -> None:
        if (tmp_path / "run" / "checkpoints" / "last.pt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("steerable.training.checkpoint.os.fsync", full)
    with pytest.raises(BundleError, match=r"step 6 cannot be written .*No space left.*--resume"):
        train(settings(), out=tmp_path / "run", images=noise())
    assert load_checkpoint(tmp_path / "run" / "checkpoints")[0]["step"] == 3
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.pt"]


def test_a_checkpoint_that_outgrows_the_disk_leaves_the_one_before(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(BundleError, match="step 2 cannot be written"):
            save_checkpoint(tmp_path, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(tmp_path)[0] == {"step": 1}


def test_a_truncated_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog):
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step})
    os.truncate(tmp_path / "last.pt", 300)
    assert load_checkpoint(tmp_path)[0] == {"step": 1}
    assert "last.pt is damaged" in caplog.text
