"""The nearest known name to one that was misspelled."""

from collections.abc import Iterable
from difflib import SequenceMatcher

ENOUGH = 0.65


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean X?", or "" where nothing is near. Dotted names are compared by their last part first."""
    scored = [(_alike(_leaf(name), _leaf(other)), _alike(name, other), other) for other in known]
    best = max(scored, default=(0.0, 0.0, ""))
    return f"did you mean {best[2]}?" if best[0] >= ENOUGH else ""


def _leaf(name: str) -> str:
    return name.lstrip("-").rsplit(".", 1)[-1].replace("-", "_")


def _alike(first: str, second: str) -> float:
    return SequenceMatcher(None, first, second, autojunk=False).ratio()
