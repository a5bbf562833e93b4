"""The command line: ``main`` finds the command, parses, calls it, and turns errors into one line.

A command is one typed function in a module of its own name. Its docstring is its help and its annotations are
its options (see `steerable.cli.parser`). To add one, write it and name it in ``COMMANDS``.
"""

from steerable.cli.main import COMMANDS, main

__all__ = ["COMMANDS", "main"]
