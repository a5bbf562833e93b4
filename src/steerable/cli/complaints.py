"""Errors of the parsers below, said in one line: what was wrong, what was expected, the way out."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steerable.cli.recipes import recipe_files
from steerable.cli.wording import described
from steerable.errors import ConfigError, nearest

if TYPE_CHECKING:
    from steerable.cli.parser import Parser

_UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.+)", re.IGNORECASE)
_TYPE = re.compile(r"Parser key \"(?P<key>[^\"]+)\":")
_VALUE = re.compile(r"(?:Got value|Given value): (?P<value>.*)")
_NO_VALUE = re.compile(r"argument (?P<flag>\S+?):? expected (?P<count>.+?) argument")
_MISSING = re.compile(
    r"required: (?P<names>.+)|Key \"(?P<key>[^\"]+)\" is required|Option \"(?P<option>[^\"]+)\" is required"
)


def complaint(message: str, parser: "Parser") -> ConfigError:
    """The error to raise for a message of argparse or jsonargparse while ``parser`` read its words."""
    prog, hints = parser.prog, parser.hints
    if found := _UNKNOWN.search(message):
        return _unknown(found["words"].split(), parser)
    if found := _MISSING.search(message):
        shown = {
            a.dest: a.option_strings[-1] if a.option_strings else str(a.metavar) for a in parser._actions
        }
        names = next(filter(None, found.groups())).split(", ")
        missing = " and ".join(shown.get(name, name) for name in names)
        return ConfigError(f"{missing} not given; expected on the command line: see {prog} --help")
    if found := _NO_VALUE.search(message):
        key = found["flag"].split("/")[-1].lstrip("-")
        wanted = described(hints[key]).removesuffix(" or null") if key in hints else "a value"
        return ConfigError(f"{found['flag']} has no value; expected {wanted}: see {prog} --help")
    if (found := _TYPE.search(message)) and found["key"] in hints:
        return _wrong_type(found["key"], message, parser)
    return ConfigError(f"{' '.join(message.split())}: see {prog} --help")


def _unknown(given: Sequence[str], parser: "Parser") -> ConfigError:
    prog = parser.prog
    word = next((word for word in given if word.startswith("-")), given[0])
    flag = word.partition("=")[0]
    several = next((str(action.metavar) for action in parser._actions if action.nargs == "+"), None)
    if not flag.startswith("-") and several:
        return ConfigError(
            f"{flag!r} stands after options; expected each {several} before them: see {prog} --help"
        )
    if not flag.startswith("-"):
        return ConfigError(
            f"{flag!r} is one word too many for {prog}; expected options (--name value): see {prog} --help"
        )
    hint = nearest(flag, parser._option_string_actions) or "expected one of those that its help lists"
    return ConfigError(f"{flag} is not an option of {prog}; {hint} (see {prog} --help)")


def _wrong_type(key: str, message: str, parser: "Parser") -> ConfigError:
    found = _VALUE.search(message)
    value = repr(found["value"].strip()) if found else "unusable"
    flags = [word.partition("=")[0] for word in parser.words if word.startswith("--")]
    given = [flag for flag in flags if flag[2:] == key or flag[2:].startswith(f"{key}.")]
    files = list(recipe_files(parser.words))
    where = f" in {files[-1]}" if files and not given else ""
    name = given[-1] if given else (key if where or key.isupper() else f"--{key}")
    wanted = described(parser.hints[key])
    return ConfigError(
        f"{name} is {value}{where}; expected {wanted}: correct it, or see {parser.prog} --help"
    )
