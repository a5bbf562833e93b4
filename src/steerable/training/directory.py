"""The run directory: config.yaml, metrics.jsonl, skipped.json, checkpoints/, bundle/, losses.png."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from steerable.data.cache import alone_in
from steerable.errors import ConfigError
from steerable.training.config import TrainConfig

if TYPE_CHECKING:
    from steerable.training.loop import TrainResult


FREE = ("timeout", "validate_every", "checkpoint_every", "data.workers")  # a resumed run may change them


def check_directory(out: str | Path | None, config: TrainConfig, *, resume: bool) -> None:
    """Raise where the run directory holds a run that may not go on.

    Raises:
        ConfigError: the directory holds a run and ``resume`` is not set, or holds one with other settings.
    """
    if out is None or not (path := Path(out) / "config.yaml").exists():
        return
    if not resume:
        raise ConfigError(
            f"{out} holds a run already; expected a new directory: choose another --out, or add --resume"
        )
    _check_same(yaml.safe_load(path.read_text()), config.to_dict(), path)


@contextmanager
def open_directory(
    out: str | Path | None, config: TrainConfig, *, skipped: Sequence[Any] = ()
) -> Iterator[Path | None]:
    """The run directory, with the settings and what was skipped in it, for this process alone while the context lasts.

    Raises:
        ConfigError: another process is at work in it.
    """
    if out is None:
        yield None
        return
    directory = Path(out)
    with alone_in(directory, "run"):
        (directory / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        if skipped:
            listed = json.dumps([item._asdict() for item in skipped], indent=1)
            (directory / "skipped.json").write_text(listed)
        yield directory


def _check_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    flat_before, flat_now = _flat(before), _flat(json.loads(json.dumps(now)))
    differing = [key for key in flat_now if key not in FREE and flat_before.get(key) != flat_now[key]]
    if differing:
        key = differing[0]
        raise ConfigError(
            f"{key} is {flat_now[key]!r} and was {flat_before.get(key)!r} in {path}; expected the settings of the run "
            "that is resumed: give the same recipe and overrides, or choose another --out"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def save_results(directory: Path, result: "TrainResult") -> None:
    """Write the bundle and the picture of the losses."""
    result.model.save_pretrained(directory / "bundle")
    _picture(result.history, directory / "losses.png")


def _picture(history: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure  # no pyplot: a library opens no windows and keeps no global figure

    meta = {"epoch", "step", "images_per_second"}
    names = [name for name in dict.fromkeys(key for row in history for key in row) if name not in meta]
    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        rows_with = [row for row in history if name in row]
        axis.plot(
            [row["epoch"] for row in rows_with],
            [row[name] for row in rows_with],
            marker="o",
            ms=3,
            color="#1b6ca8",
        )
        axis.set_title(name.replace("_", " "), loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("epoch", fontsize=8)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)
