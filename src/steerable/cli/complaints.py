"""Errors of the parsers below, said in one line: what was wrong, what was expected, the way out."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from steerable.cli.recipes import recipe_files
from steerable.cli.suggestions import nearest
from steerable.cli.wording import described
from steerable.errors import ConfigError

_UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.+)", re.IGNORECASE)
_TYPE = re.compile(r"Parser key \"(?P<key>[^\"]+)\":")
_VALUE = re.compile(r"(?:Got value|Given value): (?P<value>.*)")
_NO_VALUE = re.compile(r"argument (?P<flag>\S+?):? expected (?P<count>.+?) argument")
_MISSING = re.compile(
    r"required: (?P<names>.+)|Key \"(?P<key>[^\"]+)\" is required|Option \"(?P<option>[^\"]+)\" is required"
)


def complaint(
    message: str, prog: str, hints: Mapping[str, Any], flags: Sequence[str], words: Sequence[str]
) -> ConfigError:
    """The error to raise for a message of argparse or jsonargparse.

    hints: types by key. flags: the options that there are. words: what was given.
    """
    if found := _UNKNOWN.search(message):
        return _unknown(found["words"].split(), prog, flags)
    if found := _MISSING.search(message):
        names = next(filter(None, found.groups())).split(", ")
        shown = [f"--{name.replace('_', '-')}" if f"--{name}" in flags else name.upper() for name in names]
        return ConfigError(
            f"{' and '.join(shown)} not given; expected on the command line: see {prog} --help"
        )
    if found := _NO_VALUE.search(message):
        key = found["flag"].split("/")[-1].lstrip("-")
        wanted = described(hints[key]).removesuffix(" or null") if key in hints else "a value"
        return ConfigError(f"{found['flag']} has no value; expected {wanted}: see {prog} --help")
    if (found := _TYPE.search(message)) and found["key"] in hints:
        return _wrong_type(found["key"], message, prog, hints, words)
    return ConfigError(f"{' '.join(message.split())}: see {prog} --help")


def _unknown(given: Sequence[str], prog: str, flags: Sequence[str]) -> ConfigError:
    word = next((word for word in given if word.startswith("-")), given[0])
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return ConfigError(
            f"{flag!r} is one word too many for {prog}; expected options (--name value): see {prog} --help"
        )
    hint = nearest(flag, flags) or "expected one of those that its help lists"
    return ConfigError(f"{flag} is not an option of {prog}; {hint} (see {prog} --help)")


def _wrong_type(
    key: str, message: str, prog: str, hints: Mapping[str, Any], words: Sequence[str]
) -> ConfigError:
    found = _VALUE.search(message)
    value = repr(found["value"].strip()) if found else "unusable"
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    given = [flag for flag in flags if flag[2:] == key or flag[2:].startswith(f"{key}.")]
    files = list(recipe_files(words))
    where = f" in {files[-1]}" if files and not given else ""
    name = given[-1] if given else (key if where or key.isupper() else f"--{key}")
    return ConfigError(
        f"{name} is {value}{where}; expected {described(hints[key])}: correct it, or see {prog} --help"
    )
