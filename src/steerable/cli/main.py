"""From the command line's words to one call, and from errors to one line and an exit code.

0 is success, 1 an error of ours, 2 an error in what was given, 130 an interruption, 141 a closed pipe.
"""

import importlib
import inspect
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from steerable import __version__
from steerable.cli.eval import eval_help, find_evaluation
from steerable.cli.parser import Parser
from steerable.cli.session import session
from steerable.errors import ConfigError, SteerableError, nearest

COMMANDS = ("demo", "train", "fit", "audit", "eval", "embed", "index", "search", "serve", "export")
GENERAL = {"-v": "--verbose", "--verbose": "--verbose", "--debug": "--debug"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. ``argv`` defaults to the process's arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        _run(words)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # the reader has gone; without this the interpreter complains once more while it shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except SteerableError as error:
        return _fail(f"error: {' '.join(str(error).split())}", 2, debug)
    except Exception as error:
        kind = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return _fail(f"internal error: {kind} (run again with --debug and report it)", 1, debug)


def find_command(name: str) -> Callable[..., Any]:
    """The function of a command.

    Raises:
        ConfigError: no such command (the nearest one is suggested).
    """
    if name not in COMMANDS:
        raise ConfigError(
            f"{name!r} is not a command; expected one of {', '.join(COMMANDS)}: {nearest(name, COMMANDS)}"
        )
    return getattr(importlib.import_module(f"steerable.cli.{name}"), name)


def top_help() -> str:
    """What ``steerable --help`` shows: every command with the first line of its docstring."""
    width = max(len(name) for name in COMMANDS) + 2
    lines = [f"  {name:<{width}}{_summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: steerable COMMAND [options]",
            "",
            *textwrap.wrap(_package_summary(), min(100, shutil.get_terminal_size().columns - 2)),
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help     show this, or with a command its options, and exit",
            "  --version      show the version and exit",
            "  -v, --verbose  log more to stderr",
            "  --debug        show the traceback of an error",
            "",
            "`steerable COMMAND --help` says what a command takes, with examples.",
        ]
    )


def _run(words: list[str]) -> None:
    general = []
    while words and words[0] in GENERAL:
        general.append(GENERAL[words.pop(0)])
    if not words or words[0] in ("-h", "--help", "help"):
        print(top_help())
    elif words[0] == "--version":
        print(f"steerable {__version__}")
    elif words[0].startswith("-"):
        raise ConfigError(
            f"{words[0]} stands before the command; expected COMMAND [options]: see steerable --help"
        )
    else:
        command, group = find_command(words.pop(0)), ""
        if command.__name__ == "eval":
            if words[:1] in (["-h"], ["--help"]):
                print(eval_help())
                return
            command, group = find_evaluation(words.pop(0) if words else ""), "eval"
        _run_command(Parser(command, group=group), [*words, *general])


def _run_command(parser: Parser, words: list[str]) -> None:
    if "-h" in words or "--help" in words:
        print(parser.format_help(), end="")
        return
    positional, named, general = parser.read(words)
    with session(verbose=general["verbose"]):
        parser.command(*positional, **named)


def _summary(name: str) -> str:
    return (inspect.getdoc(find_command(name)) or "").splitlines()[0].rstrip(".")


def _package_summary() -> str:
    import steerable

    return (steerable.__doc__ or "").splitlines()[0]


def _fail(line: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"steerable: {line}", file=sys.stderr)
    return code
