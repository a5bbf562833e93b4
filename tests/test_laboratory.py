"""The laboratory: every table of the recipes is read, and its cells can be trained."""

import json
import sys
from pathlib import Path

import pytest

from steerable.errors import ConfigError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
tables = pytest.importorskip("tables")
sys.path.pop(0)
TABLES = sorted((ROOT / "recipes" / "tables").glob("*/*.yaml"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_table_is_read_and_has_its_controls(path, tmp_path):
    cells = tables.read_table(path, tmp_path, None)
    arms = {cell.arm for cell in cells}
    assert {"control", "uniformity"} <= arms
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert len({cell.folder for cell in cells}) == len(cells)
    passes = {(cell.config.epochs, cell.config.batch_size, cell.config.data.train_limit) for cell in cells}
    assert len(passes) == 1  # equal data, epochs and passes


TWO_STEPS = {
    "data": {"source": "photos", "size": 32, "train_limit": 8, "test_limit": 8},
    "encoder": {"image_size": 32},
    "batch_size": 4,
    "epochs": 1,
    "projector": 8,
    "refit": False,
    "precision": "32-true",
}


def arms(path: Path) -> list:
    slow = path.parent.name != "full"  # the small ones are trained in full, and often
    names = tables.yaml.safe_load(path.read_text())["arms"]
    return [
        pytest.param(
            path, arm, id=f"{path.parent.name}-{path.stem}-{arm}", marks=[pytest.mark.slow] * (slow or i > 2)
        )
        for i, arm in enumerate(names)
    ]


@pytest.mark.parametrize(("path", "arm"), [case for path in TABLES for case in arms(path)])
def test_every_arm_goes_two_steps(path, arm, tmp_path):
    cells = tables.read_table(path, tmp_path, None, TWO_STEPS)
    cell = next(cell for cell in cells if cell.arm == arm)
    cell.train()
    assert cell.trained
    row = json.loads((cell.folder / "metrics.jsonl").read_text())
    assert row["step"] == 2
    assert row["loss"] == pytest.approx(row["loss"])  # finite


def test_unknown_settings_of_a_table_are_named(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("seeds: [1]\nconfig: {epoch: 3}\narms: {control: {steering: none}}\n")
    with pytest.raises(ConfigError, match=r"epoch is unknown.*epochs"):
        tables.read_table(path, tmp_path, None)
