"""Checkpoints: one file, written whole or not at all."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from steerable.errors import BundleError

log = logging.getLogger("steerable")

NAMES = ("last.pt", "previous.pt")


def save_checkpoint(directory: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` as the last checkpoint and keep the one before it.

    A crash at any moment leaves at least one whole checkpoint: the new file appears under its name only when it is
    on disk.

    Raises:
        BundleError: there is no room for it, or the directory refuses it; the checkpoints before it are as they were.
    """
    last, previous = (directory / name for name in NAMES)
    partial = directory / "partial.pt"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer hides the system's error in its own
        partial.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0][:120]
        before = f"{last} holds the one before" if last.exists() else "there is none before it"
        raise BundleError(
            f"the checkpoint of step {state.get('step')} cannot be written to {directory} ({reason}); expected room "
            f"for it, and {before}: free some, then go on with --resume"
        ) from error
    if last.exists():
        os.replace(last, previous)
    os.replace(partial, last)
    return last


def load_checkpoint(directory: Path) -> tuple[dict[str, Any], Path] | None:
    """The newest checkpoint that can be read, and its path; None where there is none at all.

    Tensors and plain containers only: nothing in the file is executed.

    Raises:
        BundleError: there are checkpoints and none can be read.
    """
    found = [directory / name for name in NAMES if (directory / name).exists()]
    reasons = []
    for path in found:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            reasons.append(f"{path.name}: {(str(error).splitlines() or [type(error).__name__])[0][:80]}")
        else:
            if reasons:
                log.warning("%s is damaged (%s): the one before is used", directory / NAMES[0], reasons[0])
            return state, path
    if found:
        raise BundleError(
            f"no checkpoint in {directory} can be read ({'; '.join(reasons)}); expected a whole one: "
            "start again without --resume"
        )
    return None
