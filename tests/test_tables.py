"""The laboratory: every table of the recipes is read, and its cells can be trained."""

import json
import shutil
import sys
from pathlib import Path

import pytest

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


def written(folder: Path, figures: dict, scores: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps(figures) + "\n")
    rows = [{"set": name, "probe": "linear", "score": score} for name, score in scores.items()]
    means = {"linear": sum(scores.values()) / len(scores), "knn": 0.5}
    (folder / "evaluation.json").write_text(json.dumps({"transfer": {"rows": rows, "means": means}}))


def test_gains_are_paired_by_seed_over_the_better_control(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "record", lambda name, **about: about)
    path = next(path for path in TABLES if path.stem == "cifar10_supervised")
    for seed, shift in ((1, 0.0), (2, 0.1), (3, 0.2)):
        for arm, value in (("control", 0.4), ("uniformity", 0.5), ("steerable", 0.52 + shift / 10)):
            folder = tmp_path / f"small_{path.stem}" / f"{arm}-seed{seed}"
            written(folder, {"test_accuracy": value}, {"birds": value + shift})
    result = tables.collect(tables.read_table(path, tmp_path, None), "command")
    gain = result["figures"]["transfer linear, steerable"]
    assert (gain["mean"], gain["spread"]) == (pytest.approx(3.0), pytest.approx(1.0))
    rows = {row["arm"]: row for row in result["rows"]}
    assert rows["steerable"]["birds"] == "0.630 ± 0.110"
    assert tables.gain_of({"steerable": {1: {"x": 1.0}}}, "steerable", "x") is None
    shutil.rmtree(tmp_path / f"small_{path.stem}" / "uniformity-seed3")  # what is not whole is no control
    result = tables.collect(tables.read_table(path, tmp_path, None), "command")
    assert result["figures"]["transfer linear, steerable"]["mean"] == pytest.approx(13.0)


def test_unknown_settings_of_a_table_are_named(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("seeds: [1]\nconfig: {epoch: 3}\narms: {control: {steering: none}}\n")
    with pytest.raises(ConfigError, match=r"epoch is unknown.*epochs"):
        tables.read_table(path, tmp_path, None)
