"""``steerable eval``: the menu, the evaluations' helps and examples, and a run of tta."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

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
    assert "eval got no name; expected one of transfer" in failure(capsys, "eval")
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


def folders(root: Path, *names: str) -> Path:
    """Data sets of 2 x 6 images to train and to test on, in the folder for transfer."""
    for name in names:
        for split, label in product(("train", "test"), ("x", "y")):
            folder = root / "transfer" / name / split / label
            folder.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (32, 32), (20 * i, 200 * (label == "x"), 5)).save(folder / f"{i}.png")
    return root


def test_transfer_from_words_to_table_figures_and_picture(bundle: str, tmp_path: Path, capsys):
    data, out = folders(tmp_path / "data", "birds", "flowers"), tmp_path / "out"
    words = ["eval", "transfer", bundle, "--data", str(data), "--grid", "3", "--size", "16"]
    assert main([*words, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for word in ("linear probe", "kNN", "birds", "top-1", "flowers", "per class", "mean"):
        assert word in text
    assert text.splitlines()[-2:] == [str(out / f"transfer.{kind}") for kind in ("json", "png")]
    saved = json.loads((out / "transfer.json").read_text())["model"]
    assert {row["set"] for row in saved["rows"]} == {"birds", "flowers"}
    assert len(saved["settings"]["grid"]) == 3
    assert main([*words, "--sets", f"{data}/transfer/birds", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["model"]
    assert [row["score"] for row in again["rows"]] == [
        row["score"] for row in saved["rows"] if row["set"] == "birds"
    ]
    assert again["passes"] == 0, "embeddings were kept"
    assert "did you mean birds?" in failure(capsys, *words, "--sets", "bird")
    assert "no data sets are named" in failure(capsys, "eval", "transfer", bundle)
    assert "grid has 99 values" in failure(capsys, *words[:-4], "--grid", "99")


def test_robustness_from_words_to_table_figures_and_picture(bundle: str, tmp_path: Path, capsys):
    pytest.importorskip("imagecorruptions")
    words = [
        "eval", "robustness", bundle, "--images", "photos", "--train", "photos", "--train-limit", "60", "--limit", "40",
        "--corruptions", "brightness,contrast", "--severities", "1,5", "--views", "chain:4",
    ]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    for word in ("40 images of photos:test", "clean", "mCE", "steered", "folded", "brightness"):
        assert word in text
    saved = json.loads((tmp_path / "out" / "robustness.json").read_text())["model"]
    assert (saved["settings"]["train"], len(saved["rows"])) == ("photos:train", 15)
    assert (tmp_path / "out" / "robustness.png").exists()
    assert "--severities is '0'" in failure(capsys, *words, "--severities", "0")


def test_steerability_from_words_to_table_figures_and_picture(bundle: str, tmp_path: Path, capsys):
    words = [
        "eval",
        "steerability",
        bundle,
        "--images",
        "photos",
        "--limit",
        "24",
        "--n-images",
        "8",
        "--views",
        "4",
    ]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    for word in (
        "all parameters together",
        "ridge",
        "identity",
        "one parameter at a time",
        "hue",
        "composition",
    ):
        assert word in text
    saved = json.loads((tmp_path / "out" / "steerability.json").read_text())["model"]
    assert {row["map"] for row in saved["rows"]} == {"map", "ridge", "identity"}
    assert {"joint", "zoom", "hue"} <= {row["param"] for row in saved["rows"]}
    assert (tmp_path / "out" / "steerability.png").exists()


@pytest.mark.slow
def test_all_measures_what_has_its_data(bundle: str, tmp_path: Path, capsys, monkeypatch):
    pytest.importorskip("imagecorruptions")
    pytest.importorskip("pytorch_ood")
    for name, value in {"CORRUPTION_NAMES": ("brightness",), "COUNTS": (1, 4), "RANKED": 6}.items():
        monkeypatch.setattr(f"steerable.evaluate.suite.{name}", value)
    out = tmp_path / "out"
    words = [
        "eval", "all", bundle, "--images", "photos", "--limit", "70", "--train-limit", "80", "--budget", "0.5",
        "--out", str(out),
    ]  # fmt: skip
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == str(out / "index.html")
    assert "transfer of model was left out" in text
    names = ("robustness", "steerability", "tta", "ood", "retrieval")
    page = (out / "index.html").read_text()
    for name in names:
        assert f'src="{name}.png"' in page
        assert (out / f"{name}.png").exists()
    rows = {row["figure"]: row["model"] for row in json.loads((out / "all.json").read_text())["rows"]}
    saved = {name: json.loads((out / f"{name}.json").read_text())["model"] for name in names}
    assert rows["corrupted accuracy"] == saved["robustness"]["summary"][0]["accuracy"]
    assert rows["relative error"] == saved["steerability"]["rows"][0]["relative_error"]

    sets = str(folders(tmp_path / "data", "birds") / "transfer" / "birds")
    assert main([*words, "--sets", sets, "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert json.loads(printed).keys() == {"transfer", *names, "all"}


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
