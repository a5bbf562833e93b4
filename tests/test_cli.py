"""The command line: help, one-line errors with exit codes, and a small run from recipe to audit."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import steerable
from steerable.cli import COMMANDS, main
from steerable.cli.main import find_command
from steerable.cli.parser import Parser
from steerable.training.config import TrainConfig

TINY = {
    "data": {"source": "photos", "size": 16, "train_limit": 64, "test_limit": 64},
    "encoder": {"name": "timm/resnet10t", "stem": "cifar", "width": 4},
    "equivariance": {"squared": 1.0},
    "epochs": 2,
    "batch_size": 32,
    "refit": False,
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def settings(*words: str) -> TrainConfig:
    """What `steerable train` would train with."""
    _, named, _ = Parser(find_command("train")).read(words)
    return named["config"]


def failure(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that the words end in."""
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("steerable: ")
    assert captured.err.count("\n") == 1
    return captured.err


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return str(path)


# settings


def test_without_words_the_settings_are_the_defaults():
    assert settings() == TrainConfig()


def test_a_recipe_sets_and_options_override(recipe: Path):
    config = settings("--config", str(recipe), "--epochs", "3", "--optimizer.lr=1e-3", "--seed", "7")
    assert (config.epochs, config.optimizer.lr, config.seed) == (3, 1e-3, 7)
    assert (config.data.train_limit, config.encoder.width) == (64, 4)
    assert config.equivariance == {"squared": 1.0}, "a recipe's weights replace the default's"


def test_a_weight_can_be_added_and_replaced(recipe: Path):
    config = settings(
        "--config", str(recipe), "--equivariance.relative", "0.3", "--equivariance.squared", "2"
    )
    assert config.equivariance == {"squared": 2.0, "relative": 0.3}


def test_none_is_a_name_where_it_is_one_and_null_elsewhere():
    config = settings("--steering", "none", "--optimizer.clip_norm", "none", "--data.size", "null")
    assert config.steering == "none"
    assert config.optimizer.clip_norm is None
    assert config.data.size is None


@pytest.mark.parametrize("flag", ["--batch_size", "--batch-size"])
def test_hyphens_and_underscores_are_one(flag: str):
    assert settings(flag, "9").batch_size == 9


@pytest.mark.parametrize("words", [("--data", "here"), ("--data=here",), ("--data.root", "here")])
def test_data_is_the_place_and_source_the_name(words: tuple[str, ...]):
    config = settings(*words, "--data.source", "uoft-cs/cifar10")
    assert (config.data.root, config.data.source) == ("here", "uoft-cs/cifar10")


def test_a_chain_can_be_listed(tmp_path: Path):
    file = written(tmp_path, "chain:\n- {name: hflip}\n- {name: hue, turns: 0.2}\n")
    assert settings("--config", file).chain == [{"name": "hflip"}, {"name": "hue", "turns": 0.2}]


# errors


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


def test_a_missing_recipe_names_its_neighbor(recipe: Path, capsys):
    line = failure(capsys, "train", "--config", str(recipe.with_name("tinny.yaml")))
    assert "does not exist" in line
    assert f"did you mean {recipe}?" in line


def test_missing_arguments_are_named(capsys):
    assert "MODEL and --images not given" in failure(capsys, "audit")


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
    command = f"{sys.executable} -m steerable train --help | true; echo ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(Path(steerable.__file__).parents[1])}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")  # 0 where the help was written before the reader left


# help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_top_help_lists_every_command(capsys, words: list[str]):
    assert main(words) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w+", text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_helps(capsys, monkeypatch, command: str, flag: str):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, flag]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: steerable {command}")
    assert f"examples:\n  steerable {command}" in text
    assert "type:" not in text
    bare = [line for line in text.splitlines() if re.fullmatch(r" +-\S+( \S+)?( +\[.*\])?", line)]
    assert [line for line in bare if len(line) < 33] == [], "every option says what it is for"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_parse(capsys, tmp_path, command: str):
    """Words of the examples in the help; recipes are stood in for by an empty one."""
    parser = Parser(find_command(command))
    stand_in = written(tmp_path, "{}")
    for line in (parser.epilog or "").splitlines()[1:]:
        words = line.partition("#")[0].partition(">")[0].split()
        assert words[:2] == ["steerable", command]
        parser.read([stand_in if word.startswith("recipes/") else word for word in words[2:]])


def test_every_setting_is_an_option(capsys):
    flags = set(Parser(find_command("train"))._option_string_actions)
    for key, value in TrainConfig().to_dict().items():
        nested = isinstance(value, dict) and key != "equivariance"
        assert {f"--{key}.{inner}" for inner in value} <= flags if nested else f"--{key}" in flags


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"steerable {steerable.__version__}\n"


# runs


def test_from_recipe_to_audit(recipe: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(), logging.getLogger("steerable")]
    handlers = [list(logger.handlers) for logger in loggers]
    assert main(["train", "--config", str(recipe), "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "runs/tiny-seed3\n"
    lines = captured.err.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("epoch")] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]
    assert "\x1b" not in captured.err, "no color codes where stderr is no terminal"
    assert [list(logger.handlers) for logger in loggers] == handlers
    assert yaml.safe_load(Path("runs/tiny-seed3/config.yaml").read_text())["seed"] == 3

    assert "holds a run already" in failure(capsys, "train", "--config", str(recipe), "--seed", "3")

    options = ["--images", "photos", "--size", "16", "--n-images", "8", "--views", "4"]
    assert main(["audit", "runs/tiny-seed3", *options, "--json", "--out", "pages/audit.html"]) == 0
    out = capsys.readouterr().out
    report = json.loads(out)
    assert out.count("\n") == 1, "nothing but the figures"
    assert [model["name"] for model in report["models"]] == ["tiny-seed3"]
    assert report["source"] == "photos:test"
    assert "<html" in Path("pages/audit.html").read_text()

    assert main(["audit", "runs/tiny-seed3", "runs/tiny-seed3/bundle", *options, "--out", "audit.json"]) == 0
    out = capsys.readouterr().out
    assert "hue" in out
    assert "\x1b" not in out
    assert out.splitlines()[-1] == "audit.json"
    both = json.loads(Path("audit.json").read_text())
    assert [model["name"] for model in both["models"]] == ["tiny-seed3", "bundle"]
