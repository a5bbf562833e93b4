"""``steerable eval``: a command that has commands of its own, one typed function each in `cli.evaluations`."""

import importlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any

from steerable.cli.parser import Parser
from steerable.errors import ConfigError, one_of

EVALUATIONS = ("transfer", "robustness", "ood", "tta", "retrieval", "steerability", "probes", "all")


def eval(name: Annotated[str, "NAME"]) -> None:
    """Measure what steering is worth on a task.

    Each evaluation prints a table, or with --json its figures, and with --out leaves both and a picture in a
    folder. Every figure stands beside its controls.

    Args:
        name: the evaluation
    """
    what = f"evaluation {name!r} is unknown" if name else "eval got no name"
    raise ConfigError(f"{what}; {one_of(name, EVALUATIONS)}")


def find_evaluation(name: str) -> Callable[..., Any]:
    """The function of an evaluation.

    Raises:
        ConfigError: no such evaluation (the nearest one is suggested).
    """
    if name not in EVALUATIONS:
        eval(name)
    return getattr(importlib.import_module(f"steerable.cli.evaluations.{name}"), name)


def eval_help() -> str:
    """What ``steerable eval --help`` shows: every evaluation with its first line and first example."""
    doc = inspect.getdoc(eval) or ""
    parsers = [Parser(find_evaluation(name), group="eval") for name in EVALUATIONS]
    width = max(map(len, EVALUATIONS), default=0) + 2
    return "\n".join(
        [
            "usage: steerable eval NAME MODEL [MODEL ...] [options]",
            "",
            doc.partition("\n\nArgs:")[0],
            "",
            "evaluations:",
            *(
                f"  {name:<{width}}{(parser.description or '').splitlines()[0].rstrip('.')}"
                for name, parser in zip(EVALUATIONS, parsers, strict=True)
            ),
            "",
            "examples:",
            *((parser.epilog or "").splitlines()[1] for parser in parsers),
            "",
            "`steerable eval NAME --help` says what an evaluation takes.",
        ]
    )
