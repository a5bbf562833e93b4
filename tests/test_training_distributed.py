"""Several processes are one: gradients, weights and what a run leaves."""

from pathlib import Path

import pytest
import torch

from processes import Job
from steerable.data import load_images
from steerable.training import TrainConfig
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
    import os

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
