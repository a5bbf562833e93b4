"""Checkpoints: one file, written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch

from steerable.errors import BundleError

NAMES = ("last.pt", "previous.pt")


def save_checkpoint(directory: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` as the last checkpoint and keep the one before it.

    A crash at any moment leaves at least one whole checkpoint: the new file appears under its name only when it is
    on disk.
    """
    directory.mkdir(parents=True, exist_ok=True)
    last, previous = (directory / name for name in NAMES)
    partial = directory / "partial.pt"
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
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
            return torch.load(path, map_location="cpu", weights_only=True), path
        except Exception as error:  # torch raises many kinds for a damaged file
            reasons.append(f"{path.name}: {(str(error).splitlines() or [type(error).__name__])[0][:80]}")
    if found:
        raise BundleError(
            f"no checkpoint in {directory} can be read ({'; '.join(reasons)}); expected a whole one: "
            "start again without --resume"
        )
    return None
