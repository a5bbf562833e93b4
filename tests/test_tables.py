"""The laboratory: every table of the recipes is read, and its cells can be trained."""

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
