"""Words for types, placeholders and defaults, and the layout of the help."""

import argparse
import shutil
import textwrap
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

WIDTH = 100


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs as written, options in a wide column, aliases in place of what they stand for."""

    def __init__(self, prog: str, **kwargs: Any):
        width = min(WIDTH, shutil.get_terminal_size().columns - 2)
        super().__init__(prog, max_help_position=34, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        text = super()._format_action_invocation(action).replace("--data.root", "--data")
        return text.partition(", --chain+")[0]  # jsonargparse's form for appending to a list

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return "\n\n".join(textwrap.fill(part, width) for part in text.split("\n\n"))


def usage(prog: str, actions: Iterable[argparse.Action]) -> str:
    """One line with what must be given; the rest is [options]."""
    words = [prog]
    options = []
    for action in actions:
        if not action.option_strings:
            name = str(action.metavar)
            words.append({"+": f"{name} [{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name))
        elif action.required:
            options.append(f"{action.option_strings[-1]} {action.metavar}")
        elif action.dest == "config":
            options.append("[--config FILE]")
    return " ".join([*words, *options, "[options]"]).replace("%", "%%")


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, None left out; otherwise the type alone."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return tuple(part for part in parts if part is not type(None))


def optional(hint: Any) -> bool:
    """True where null is legal."""
    return hint is not Any and type(None) in get_args(hint)


def metavar_for(name: str, hint: Any) -> str:
    """A placeholder that tells the type: N, X, PATH, the choices, or the option's own name."""
    first = members(hint)[0]
    if get_origin(first) is Literal:
        return "{" + ",".join(map(str, get_args(first))) + "}"
    if get_origin(first) is dict:
        return "YAML"
    short = {int: "N", float: "X", bool: "{true,false}", Path: "PATH"}
    return short.get(first) or name.upper()


def described(hint: Any) -> str:
    """A type in words, for errors."""
    text = " or ".join(dict.fromkeys(_described_one(part) for part in members(hint)))
    return f"{text} or null" if optional(hint) else text


def _described_one(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is dict:
        value = get_args(hint)[1]
        return "a mapping" if value is Any else f"{described(value)} by name"
    if origin is list:
        return "a list"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(hint) or getattr(hint, "__name__", str(hint))


def shown_default(value: Any) -> str:
    """What follows an option's help where the default says something."""
    if value is None or value in ({}, "", []):
        return ""
    if isinstance(value, dict):
        value = "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f" [{text}]".replace("%", "%%")
