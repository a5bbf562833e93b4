"""Every error that the library raises on purpose.

SteerableError
├── ThetaError      (ValueError)   parameters of a transform: shape, names, values
├── ShapeError      (ValueError)   images or embeddings of the wrong shape or type, or not finite
├── LawError        (ValueError)   a law (identity, composition, inverse) is asked of what does not have it
├── FitError        (ValueError)   a map cannot be fitted to, or a model trained on, what was given
├── DataError       (ValueError)   images that cannot be found or read
├── ConfigError     (ValueError)   a setting that is unknown or out of range
├── BundleError     (ValueError)   a saved model that is damaged, foreign or does not fit
└── MissingExtra    (ImportError)  an optional dependency is absent; the message is the line that installs it

A message has three parts: what was wrong with its value, what was expected, the way out; `nearest` and
`one_of` word the last two for names.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher

ENOUGH = 0.65  # likeness from which a name is worth suggesting


class SteerableError(Exception):
    """Root of the library's errors: catch this one to catch them all."""


class ThetaError(SteerableError, ValueError):
    """Parameters of a transform have a wrong shape, an unknown name or a value that is not finite."""


class ShapeError(SteerableError, ValueError):
    """Images or embeddings have a wrong shape or type, or are not finite."""


class LawError(SteerableError, ValueError):
    """A law is asked of, or declared for, something that does not have it."""


class FitError(SteerableError, ValueError):
    """A map cannot be fitted to what was given, or training left the finite numbers."""


class DataError(SteerableError, ValueError):
    """Images cannot be found or read."""


class ConfigError(SteerableError, ValueError):
    """A setting is unknown or out of range."""


class BundleError(SteerableError, ValueError):
    """A saved model is damaged, foreign, or does not fit what it is loaded into."""


class MissingExtra(SteerableError, ImportError):
    """An optional dependency is absent.

    ``MissingExtra("lightly", "train")`` prints the line that installs it.
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed, and this needs it: pip install 'steerable[{extra}]'")


def nearest(name: object, known: Iterable[str]) -> str:
    """ "did you mean X?", or "" where nothing is near. Dotted names are compared by their last part first."""
    word = str(name)
    scored = [(_alike(_leaf(word), _leaf(other)), _alike(word, other), other) for other in known]
    best = max(scored, default=(0.0, 0.0, ""))
    return f"did you mean {best[2]}?" if best[0] >= ENOUGH else ""


def one_of(name: object, known: Iterable[str]) -> str:
    """ "expected one of A, B: did you mean B?", the end of a message about a name that is not among them."""
    names = list(known)
    return f"expected one of {', '.join(names)}: {nearest(name, names) or 'choose one of these'}"


def _leaf(name: str) -> str:
    return name.lstrip("-").rsplit(".", 1)[-1].replace("-", "_")


def _alike(first: str, second: str) -> float:
    return SequenceMatcher(None, first, second, autojunk=False).ratio()
