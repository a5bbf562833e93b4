"""``steerable eval``: the menu, the evaluations' helps and examples, and a run of tta."""

import json
import re
from pathlib import Path

import pytest

from bundles import build, tiny
from steerable.cli import main
from steerable.cli.eval import EVALUATIONS, find_evaluation
from steerable.cli.parser import Parser


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    build(tiny(), head=False).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def failure(capsys, *words: str) -> str:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_menu_lists_every_evaluation(capsys, flag: str):
    assert main(["eval", flag]) == 0
    text = capsys.readouterr().out
    for name in EVALUATIONS:
        assert re.search(rf"^  {name} +\w+", text, re.MULTILINE)
        assert f"  steerable eval {name} " in text


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_helps_and_its_examples_parse(capsys, name: str):
    assert main(["eval", name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: steerable eval {name} MODEL")
    parser = Parser(find_evaluation(name), group="eval")
    lines = (parser.epilog or "").splitlines()[1:]
    assert lines
    for line in lines:
        words = line.partition("#")[0].partition(">")[0].split()
        assert words[:3] == ["steerable", "eval", name]
        parser.read(words[3:])
    assert {"json", "out"} <= set(parser.hints)


def test_missing_and_misspelled_names(capsys):
    assert "eval got no name; expected one of tta" in failure(capsys, "eval")
    assert "'tto' is unknown" in (line := failure(capsys, "eval", "tto"))
    assert "did you mean tta?" in line
    assert "did you mean --budget? (see steerable eval tta --help)" in failure(
        capsys, "eval", "tta", "m", "--images", "photos", "--budgte", "3"
    )


def test_tta_from_words_to_table_figures_and_picture(bundle: str, tmp_path: Path, capsys):
    words = [
        "eval", "tta", bundle, "--images", "photos", "--train", "photos:train[:60]", "--size", "16", "--limit", "60",
        "--views", "1,5", "--budget", "5", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    for word in ("model on photos:test, 60 images", "steered", "folded", "re-encoded", "ttach", "weighted"):
        assert word in out
    assert out.splitlines()[-2:] == [str(tmp_path / "out" / f"tta.{kind}") for kind in ("json", "png")]
    assert (tmp_path / "out" / "tta.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "out" / "tta.json").read_text())
    assert saved["model"]["head"] == "given"

    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out).keys() == {"model"}


def test_tta_says_what_it_cannot_use(bundle: str, capsys):
    assert "no head" in failure(
        capsys, "eval", "tta", bundle, "--images", "photos", "--size", "16", "--limit", "9"
    )
    assert "'1,x'" in failure(capsys, "eval", "tta", bundle, "--images", "photos", "--views", "1,x")
    assert "name:severity" in failure(
        capsys, "eval", "tta", bundle, "--images", "photos", "--corruption", "fog"
    )


def test_probes_from_words_to_table_and_picture(bundle: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("steerable.evaluate.minibatch.STEPS", 5)
    words = [
        "eval", "probes", bundle, "--train", "photos:train", "--images", "photos", "--size", "16", "--limit", "40",
        "--train-limit", "60", "--views", "1", "--thetas", "9",
    ]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "60 of photos:train, tested on 40 of photos:test" in out
    for word in ("plain, minibatch", "steered", "augmented", "passes/image"):
        assert word in out
    assert (tmp_path / "out" / "probes.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "out" / "probes.json").read_text())["model"]["rows"]
    assert {row["probe"]: row["passes"] for row in rows} == {
        "plain": 1, "plain, minibatch": 1, "steered": 1, "augmented": 2,
    }  # fmt: skip
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"model"}
