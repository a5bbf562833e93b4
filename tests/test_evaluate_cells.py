"""Cells of a table: each is measured once, and gone on with where a run was cut off."""

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


def folder_of(root: Path, name: str) -> None:
    for split in ("train", "test"):
        for label, red in (("x", 0), ("y", 220)):
            (root / name / split / label).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (32, 32), (red, 9 * i, 90)).save(root / name / split / label / f"{i}.png")


@pytest.mark.slow
def test_cells_are_measured_once(tmp_path: Path, capsys):
    folder_of(tmp_path / "data", "pictures")
    folder_of(tmp_path / "data" / "transfer", "birds")
    for arm, map in (("control", "identity"), ("steerable", "basis")):
        cell = tmp_path / "runs" / "table" / f"{arm}-seed1"
        build(tiny(), map, head=False).save_pretrained(cell / "bundle")
        data = {"source": "pictures", "root": None, "size": None}
        (cell / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    words = [
        str(tmp_path / "runs"), "--data", str(tmp_path / "data"), "--cache", str(tmp_path / "cache"),
        "--grid", "2", "--only", "transfer", "retrieval",
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

    before = {path: path.read_text() for path in tmp_path.glob("runs/*/*/evaluation.json")}
    cells.main(words)
    assert capsys.readouterr().out == ""
    assert {path: path.read_text() for path in before} == before
