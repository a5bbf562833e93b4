"""Cells of a table: measured once, gone on with, and summed up against the better control."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from bundles import build, tiny

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
cells = pytest.importorskip("evaluate_cells")
sys.path.pop(0)


def test_gains_are_paired_over_the_better_control_of_each_figure():
    measured = {
        "control": {1: {"a": 0.5, "relative error": 0.4}, 2: {"a": 0.6, "relative error": 0.4}},
        "uniformity": {
            1: {"a": 0.6, "relative error": 0.5},
            2: {"a": 0.7, "relative error": 0.5},
            3: {"a": 0.0},
        },
        "steerable": {
            1: {"a": 0.7, "relative error": 0.3},
            2: {"a": 0.6, "relative error": 0.2},
            4: {"a": 0.9},
        },
    }
    assert cells.gains(measured, "steerable", "a") == pytest.approx([0.1, -0.1])  # over uniformity
    assert cells.gains(measured, "steerable", "relative error") == pytest.approx([-0.1, -0.2])  # over control
    assert cells.gains(measured, "steerable", "b") == []
    rows = {(row["arm"], row["value"]): row for row in cells.table(measured)}
    assert rows["control", "mean"]["a"] == pytest.approx(0.55)
    assert rows["steerable", "gain"]["seeds"] == 2
    assert rows["steerable", "gain"]["a"] == pytest.approx(0)
    assert rows["steerable", "gain's spread"]["a"] == pytest.approx(0.02**0.5)
    assert ("uniformity", "gain") not in rows


def folder_of(root: Path, name: str) -> None:
    for split in ("train", "test"):
        for label, red in (("x", 0), ("y", 220)):
            (root / name / split / label).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (32, 32), (red, 9 * i, 90)).save(root / name / split / label / f"{i}.png")


@pytest.mark.slow
def test_cells_are_measured_once_and_tabled(tmp_path: Path, capsys):
    folder_of(tmp_path / "data", "pictures")
    folder_of(tmp_path / "data" / "transfer", "birds")
    for arm, map in (("control", "identity"), ("steerable", "basis")):
        cell = tmp_path / "runs" / "table" / f"{arm}-seed1"
        build(tiny(), map, head=False).save_pretrained(cell / "bundle")
        data = {"source": "pictures", "root": None, "size": None}
        (cell / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    words = [
        str(tmp_path / "runs"), "--data", str(tmp_path / "data"), "--cache", str(tmp_path / "cache"),
        "--results", str(tmp_path / "results"), "--grid", "2", "--only", "transfer", "retrieval",
    ]  # fmt: skip
    theirs = tmp_path / "runs" / "table" / "control-seed1" / "evaluation.json"
    theirs.write_text(json.dumps({"ood": {"scores": [{"kind": "steered", "corruptions": 0.7}]}}))
    cells.main(words)
    assert capsys.readouterr().out.count("birds") == 0
    found = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/evaluation.json")
    }
    assert found["control-seed1"]["ood"], "what another machine measured stays"
    for results in found.values():
        assert {"transfer", "retrieval", "measured"} <= results.keys()
        assert [row["set"] for row in results["transfer"]["rows"]] == ["birds", "birds"]
    moved = [row["steered_hit1"] for row in found["control-seed1"]["retrieval"]["hidden"]]
    assert moved != [row["unsteered_hit1"] for row in found["control-seed1"]["retrieval"]["hidden"]]
    summed = json.loads((tmp_path / "results" / "table_table.json").read_text())
    rows = {(row["arm"], row["value"]): row for row in summed["rows"]}
    both = [found[f"{arm}-seed1"]["transfer"]["means"]["linear"] for arm in ("steerable", "control")]
    assert rows["steerable", "gain"]["transfer, linear"] == pytest.approx(both[0] - both[1])
    assert rows["control", "mean"]["OOD AUROC, best steered"] == 0.7

    before = {path: path.read_text() for path in tmp_path.glob("runs/*/*/evaluation.json")}
    cells.main(words)
    assert capsys.readouterr().out == ""
    assert {path: path.read_text() for path in before} == before
