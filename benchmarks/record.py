"""Results as JSON, each with what is needed to produce it again.

    results/NAME.json = {name, claim, command, commit, date, versions, device, threads, seeds, rows, figures}

``figures`` are the few numbers that the README shows, each {"mean", "spread", "unit"} over the seeds (spread
is null where there was one run); ``rows`` are all the others, one flat mapping per row of a table in
docs/results.md.
"""

import json
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

RESULTS = Path(__file__).parent.parent / "results"
PACKAGES = ("steerable", "torch", "torchvision", "timm", "numpy", "lightning", "lightly", "kornia")


def record(
    name: str,
    *,
    command: str,
    rows: Iterable[Mapping[str, Any]],
    figures: Mapping[str, Mapping[str, Any]],
    claim: str = "",
    seeds: Sequence[int] = (),
    device: str | None = None,
    path: Path | str | None = None,
) -> Path:
    """Write results/NAME.json (or ``path``) and return its path; numbers that are not finite become null.

    Args:
        command: what was typed to get these numbers.
        rows: flat mappings, one per row of a table.
        figures: name -> {"mean", "spread", "unit"}; see `figure`.
        claim: one sentence, what the numbers are to show.
        seeds: of the runs behind the figures.
        device: default is the first CUDA device's name, or the processor's.
    """
    result = {
        "name": name,
        "claim": claim,
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": device or device_name(),
        "threads": torch.get_num_threads(),
        "seeds": list(seeds),
        "rows": [dict(row) for row in rows],
        "figures": {key: dict(value) for key, value in figures.items()},
    }
    path = RESULTS / f"{name}.json" if path is None else Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(result), indent=2, allow_nan=False) + "\n")
    return path


def figure(values: Sequence[float], unit: str = "") -> dict[str, Any]:
    """Mean and spread (standard deviation over runs, n - 1; null for one run) of one number."""
    return {"mean": mean(values), "spread": stdev(values) if len(values) > 1 else None, "unit": unit}


def commit() -> str:
    """The commit of this working tree, "+dirty" where tracked files differ from it; "unknown" without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that bear on a figure, those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The first CUDA device, or the processor's model."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return cpu_name()


def cpu_name() -> str:
    """The processor's model, for runs that stay on the CPU whatever else there is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu ({models[0] if models else platform.processor() or platform.machine()})"


def _git(*arguments: str) -> str:
    found = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
