"""The command line: settings, help, and a small run from recipe to audit. Errors: test_cli_errors.py."""

import json
import logging
import re
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
