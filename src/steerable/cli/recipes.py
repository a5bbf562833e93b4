"""Recipes: YAML files whose keys are a dataclass's fields, checked so that errors name the nearest key."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from steerable.errors import ConfigError, nearest


def recipe_files(words: Sequence[str]) -> Iterator[str]:
    """The files that follow --config."""
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            yield words[place + 1]
        elif word.startswith("--config="):
            yield word.partition("=")[2]


def check_recipe(file: str, config: Any) -> None:
    """Raise unless the file can be read, holds a mapping, and knows only the dataclass's fields.

    Raises:
        ConfigError
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"recipe {file} does not exist; expected a YAML file{_beside(path)}: check the path"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"recipe {file} is not text ({error.reason}); expected YAML: check the path"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"recipe {file} is broken YAML ({_place(error)}); expected key: value lines: correct it"
        ) from None
    if not isinstance(content, Mapping):
        kind = "empty" if content is None else f"a {type(content).__name__}"
        raise ConfigError(
            f"recipe {file} is {kind}; expected a mapping of settings, such as `epochs: 3`: correct it"
        )
    for key in _unknown(content, config):
        known = list(_keys(config))
        hint = nearest(key, known) or f"known keys are {', '.join(_siblings(key, known))}"
        raise ConfigError(f"unknown key {key!r} in {file}; {hint}")


def _unknown(content: Mapping[Any, Any], config: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(config)
    known = {item.name for item in dataclasses.fields(config)}
    for key, value in content.items():
        if key not in known:
            yield f"{prefix}{key}"
        elif dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                fields = ", ".join(item.name for item in dataclasses.fields(hints[key]))
                raise ConfigError(
                    f"{prefix}{key} is {value!r}; expected a mapping with keys of {fields}: correct it"
                )
            yield from _unknown(value, hints[key], f"{prefix}{key}.")


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(config)
    for item in dataclasses.fields(config):
        yield f"{prefix}{item.name}"
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")


def _siblings(key: str, known: Sequence[str]) -> list[str]:
    parent = key.rpartition(".")[0]
    return [name for name in known if name.rpartition(".")[0] == parent]


def _beside(path: Path) -> str:
    """The recipe of the nearest name in the missing one's folder, or some of those that are there."""
    found = {other.stem: str(other) for other in sorted(path.parent.glob("*.y*ml"))}
    if path.stem in found or not found:
        return f" (did you mean {found[path.stem]}?)" if found else ""
    hint = nearest(path.stem, found)
    name = hint.removeprefix("did you mean ").removesuffix("?")
    return f" (did you mean {found[name]}?)" if hint else f" such as {', '.join(list(found.values())[:4])}"


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "unreadable"
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)
