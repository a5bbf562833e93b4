"""Where work that took long is kept between runs: one folder, and files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

VARIABLE = "STEERABLE_CACHE"


def cache_root() -> Path:
    """The folder named by $STEERABLE_CACHE, else ~/.cache/steerable. All in it may be deleted at any time."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "steerable"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, and give it that name when it is on disk.

    A crash at any moment leaves the old file or none; two processes that write the same do not disturb each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remembered(path: Path | None, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in the file, or, where that is missing or damaged, a new one, which is written whole or not at all."""
    if path is None:
        return make()
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(path)
    array = make()
    write_whole(path, lambda partial: _save(partial, array))
    return array


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, numpy would add an ending to it
        np.save(file, array)
