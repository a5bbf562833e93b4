"""Several processes are one: gradients, weights and what a run leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from processes import Job
from steerable.data import load_images
from steerable.errors import ConfigError
from steerable.training import TrainConfig, train
from steerable.training.checkpoint import load_checkpoint
from steerable.training.feeding import deal
from steerable.training.run import Run
from test_training import tiny

BASES = {
    "simclr": {"base": "simclr", "equivariance": {"squared": 0.3, "contrastive": 0.2, "vicreg": 0.1}},
    "supervised": {"accumulate": 2},
    "barlow": {
        "base": "barlow",
        "steering": "low_rank",
        "base_chain": "photometric",
        "prediction": {"base": 0.2},
    },
}


def settings(base: str) -> TrainConfig:
    return tiny(batch_size=12, projector=8, **BASES[base])


def gradients(base: str) -> dict[str, torch.Tensor]:
    """After one step at a learning rate of almost nothing: gradients, then running statistics, then the losses."""
    images = load_images("photos", size=16, limit=24)
    run = Run(settings(base), images, images.subset(range(8)), None)
    run.learner.train()
    batch = next(run.batches())
    for part in range(run.config.accumulate):
        last = part == run.config.accumulate - 1
        terms = run.backward(*run.inputs(batch, part), last=last)
    found = {f"grad {name}": p.grad for name, p in run.module.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": value.clone() for name, value in run.module.named_buffers()}
    return found | {f"term {name}": value for name, value in terms.items()}


def all_gradients(folder: Path) -> None:
    found = {base: gradients(base) for base in BASES}
    torch.save(found, folder / f"gradients-{os.environ.get('RANK', 0)}.pt")


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, torch.Tensor]]:
    return {base: gradients(base) for base in BASES}


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_on_several_processes_equal_those_on_one(size, alone, tmp_path):
    job = Job(size, tmp_path, all_gradients, tmp_path)
    assert job.wait() == [0] * size, job.error(0)
    for rank in range(size):
        found = torch.load(tmp_path / f"gradients-{rank}.pt")
        for base in BASES:
            assert found[base].keys() == alone[base].keys()
            # a bias before BatchNorm has no gradient but rounding, so that the whole gradient is the measure too
            whole = torch.cat(
                [v.flatten() for name, v in alone[base].items() if name.startswith("grad")]
            ).norm()
            for name, value in alone[base].items():
                error = (found[base][name] - value).float().norm()
                assert error <= 1e-4 * value.float().norm() + 1e-6 * whole, (base, name)


def test_a_batch_is_dealt_out_whole():
    rows = [deal(24, 2, part, 3, rank) for part in range(2) for rank in range(3)]
    assert [i for row in rows for i in range(24)[row]] == list(range(24))


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(
        ConfigError, match=r"batch_size is 16; expected a multiple of 1 processes times 3 parts"
    ):
        train(tiny(accumulate=3))


COMMAND = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_training_faults import job
from pathlib import Path
job(Path(sys.argv[3]), *sys.argv[4:5], *map(int, sys.argv[5:7]), {"timeout": 10.0})
"""


def torchrun(*words: str, **options) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*launcher, *words], env=env, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
def test_torchrun_ends_the_whole_job_when_a_process_hangs(tmp_path):
    (tmp_path / "job.py").write_text(COMMAND)
    folders = [str(Path(__file__).parent), str(Path(__file__).parent / "faults")]
    job = torchrun(str(tmp_path / "job.py"), *folders, str(tmp_path), "hang", "1", "2")
    _, said = job.communicate(timeout=300)
    assert job.returncode != 0
    assert "lost the others" in said


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_saves_and_exits_130(tmp_path):
    config = tiny(epochs=200, checkpoint_every=10_000, validate_every=200)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    words = ["-m", "steerable", "train", "--config", str(recipe), "--out", str(tmp_path / "run")]
    job = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "metrics.jsonl").exists() and job.poll() is None:
        time.sleep(0.1)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 130, said
    assert "--resume goes on from there" in said
    assert load_checkpoint(tmp_path / "run" / "checkpoints")[0]["step"] > 0
