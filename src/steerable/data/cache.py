"""Where work that took long is kept between runs: folders for one process at a time, files whole or not at all."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from steerable.errors import ConfigError

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


@contextmanager
def alone_in(folder: Path, work: str) -> Iterator[None]:
    """Keep every other process out of the folder, which is made, while the context lasts.

    work: what it is for, as messages name it. The system drops the lock when a process ends, however it ends.

    Raises:
        ConfigError: another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder} is in use by another {work}; expected a folder of its own for each: choose another --out, or "
            f"wait until that {work} has ended"
        ) from None
    try:
        yield
    finally:
        lock.release()


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
