"""Errors of the command line: one line on stderr that says the way out, and the exit code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import steerable
from steerable.cli import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch):
    """What should have failed and did not leaves its run directory here."""
    monkeypatch.chdir(tmp_path)


def failure(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that the words end in."""
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("steerable: ")
    assert captured.err.count("\n") == 1
    return captured.err


def written(tmp_path: Path, text: str, name: str = "x.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("epoch: 3", "epoch", "did you mean epochs?"),
        ("optimizer: {lrr: 3}", "optimizer.lrr", "did you mean optimizer.lr?"),
        ("data: {sorce: photos}", "data.sorce", "did you mean data.source?"),
        ("lr: 3", "lr", "did you mean optimizer.lr?"),
        ("out: runs", "out", "known keys are data, encoder, chain"),
        ("data: {zzz: 1}", "data.zzz", "known keys are data.source, data.size"),
    ],
)
def test_unknown_keys_suggest_the_nearest(tmp_path, capsys, text: str, key: str, near: str):
    file = written(tmp_path, text)
    line = failure(capsys, "train", "--config", file)
    assert f"unknown key {key!r} in {file}" in line
    assert near in line


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["train", "--epoch", "3"], "--epoch is not an option of steerable train; did you mean --epochs?"),
        (["train", "--optimizer.lrr=3"], "did you mean --optimizer.lr?"),
        (["train", "--lr", "3"], "did you mean --optimizer.lr?"),
        (["audit", "m", "--images", "photos", "--n-image", "3"], "did you mean --n-images?"),
        (["trian"], "'trian' is not a command; expected one of"),
        (["trian"], "did you mean train?"),
        (["--epochs", "3"], "stands before the command"),
        (["train", "photos"], "'photos' is one word too many"),
        (
            ["audit", "a", "--images", "photos", "b"],
            "'b' stands after options; expected each MODEL before them",
        ),
    ],
)
def test_unknown_words_suggest_the_nearest(capsys, words: list[str], near: str):
    assert near in failure(capsys, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "abc"], "--epochs is 'abc'; expected a whole number"),
        (["--seed", "1.5"], "--seed is '1.5'; expected a whole number"),
        (["--optimizer.lr", "fast"], "--optimizer.lr is 'fast'; expected a number"),
        (["--refit", "perhaps"], "--refit is 'perhaps'; expected true or false"),
        (["--steering", "nine"], "expected one of none, shift, basis"),
        (["--data.size", "x"], "--data.size is 'x'; expected a whole number or null"),
        (["--equivariance.relative", "x"], "--equivariance.relative is 'x'; expected a number"),
        (["--epochs"], "--epochs has no value; expected a whole number"),
        (["--chain", "simlcr"], "did you mean simclr?"),
        (["--chain", "[{name: hflop}]"], "did you mean hflip?"),
    ],
)
def test_wrong_values_name_the_option_and_the_type(capsys, words: list[str], said: str):
    assert said in failure(capsys, "train", *words)


def test_wrong_values_in_a_recipe_name_the_file(tmp_path, capsys):
    file = written(tmp_path, "optimizer: {lr: fast}")
    assert f"optimizer.lr is 'fast' in {file}; expected a number" in failure(
        capsys, "train", "--config", file
    )


def test_an_unknown_form_is_named(capsys):
    assert "equivariance form is 'relativ'" in failure(capsys, "train", "--equivariance.relativ", "1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: [1", "broken YAML (line 1"),
        ("", "is empty; expected a mapping"),
        ("- 1", "is a list; expected a mapping"),
        ("data: photos", "data is 'photos'; expected a mapping"),
    ],
)
def test_broken_recipes(tmp_path, capsys, text: str, said: str):
    assert said in failure(capsys, "train", "--config", written(tmp_path, text))


def test_a_missing_recipe_names_its_neighbor(tmp_path, capsys):
    there = written(tmp_path, "epochs: 1", "tiny.yaml")
    line = failure(capsys, "train", "--config", str(tmp_path / "tinny.yaml"))
    assert "does not exist" in line
    assert f"did you mean {there}?" in line


def test_missing_arguments_are_named(capsys):
    assert re.search(
        r"MODEL( and --images)? not given", failure(capsys, "audit")
    )  # jsonargparse's versions differ
    assert "--images not given" in failure(capsys, "audit", "m")


def test_missing_data_and_models_are_one_line(tmp_path, capsys):
    assert "does not exist" in failure(capsys, "train", "--data", str(tmp_path / "nowhere"))
    assert "nowhere" in failure(capsys, "audit", str(tmp_path / "nowhere"), "--images", "photos")


def test_a_strange_name_for_the_page_is_refused_before_the_work(capsys):
    assert "expected a name ending in .html or .json" in failure(
        capsys, "audit", "m", "--images", "photos", "--out", "page.pdf"
    )


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(capsys, place: int):
    words = ["train", "--epochs", "abc"]
    words.insert(place, "--debug")
    assert main(words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_errors_that_are_not_ours(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("steerable.training.loop.train", broken)
    line = failure(capsys, "train", code=1)
    assert "internal error: RuntimeError: two lines (run again with --debug" in line


def test_an_interruption_is_130(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("steerable.training.loop.train", interrupted)
    assert "interrupted" in failure(capsys, "train", code=130)


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONPATH": str(Path(steerable.__file__).parents[1])}
    command = [sys.executable, "-m", "steerable", "train", "--help"]
    done = subprocess.run(command, env=env, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
