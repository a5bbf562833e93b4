"""The nearest known name to one that was misspelled."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean X?", or "" where nothing is near; dotted names are also compared by their last part."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not near:
        leaves = {full.rsplit(".", 1)[-1].lstrip("-"): full for full in reversed(names)}
        found = difflib.get_close_matches(name.rsplit(".", 1)[-1].lstrip("-"), list(leaves), n=1, cutoff=0.75)
        near = [leaves[leaf] for leaf in found]
    return f"did you mean {near[0]}?" if near else ""
