"""Bars and lines for long runs, on stderr: bars on a terminal, one plain line per epoch elsewhere."""

import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

META = ("epoch", "step", "total_steps", "images_per_second")
FIGURES = {  # figures of an epoch: name in the row, name in the line, format
    "knn_accuracy": ("kNN", "{:.1%}"),
    "test_accuracy": ("test", "{:.1%}"),
    "relative_error": ("relative error", "{:.3f}"),
    "teacher_distance": ("from teacher", "{:.3f}"),
}

_console: list[Console] = []


def stderr_console() -> Console:
    """The console on the present stderr that bars and log records share, so that neither cuts the other."""
    if not _console or _console[0].file is not sys.stderr:
        _console[:] = [Console(stderr=True, highlight=False)]
    return _console[0]


class _Bar(Progress):
    """A bar with one line of text below it."""

    below: RenderableType = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.below:
            yield self.below


class _OnTerminal:
    """A context in which a bar is shown where the console is a terminal."""

    def __init__(self, console: Console | None, *columns: TextColumn):
        self.console = console or stderr_console()
        self.bar: _Bar | None = None
        if self.console.is_terminal:
            self.bar = _Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                *columns,
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task("starting", total=None, speed="")

    def __enter__(self):  # no Self: the test run executes annotations one function at a time
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()


class TrainProgress(_OnTerminal):
    """A listener for `steerable.training.train`: loss terms, images per second, time left; a line per epoch.

    epochs: their number. label: stands before each line, for jobs that train several models.
    console: where to write; default stderr.
    """

    def __init__(self, epochs: int, *, label: str = "", console: Console | None = None):
        super().__init__(console, TextColumn("{task.fields[speed]}"))
        self.epochs = epochs
        self.label = f"{label}  " if label else ""
        self.done = 0

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take a step's or an epoch's dictionary."""
        if "epoch" in row:
            self.done = row["epoch"]
            self.console.print(Text(self.label + epoch_line(row, self.epochs)), soft_wrap=True)
            if self.bar and self.done >= self.epochs:
                self.bar.below = ""
                self.bar.update(self.task, description=f"{self.label}finishing", speed="")
        elif self.bar:
            self.bar.below = Text("  " + _terms(row), style="dim", no_wrap=True, overflow="ellipsis")
            self.bar.update(
                self.task,
                description=f"{self.label}epoch {min(self.done + 1, self.epochs)}/{self.epochs}",
                completed=row["step"],
                total=row["total_steps"],
                speed=f"{row['images_per_second']:,.0f} images/s",
            )


class PassProgress(_OnTerminal):
    """A listener for `steerable.auditing.audit`: encoder passes done, and what is being measured."""

    def __init__(self, *, console: Console | None = None):
        super().__init__(console)

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take the passes done, the passes in all, and what is being measured."""
        if self.bar:
            self.bar.update(self.task, description=what, completed=done, total=total)


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """An epoch's figures in one line; those that it lacks are left out."""
    width = len(str(epochs))
    parts = [f"epoch {row['epoch']:>{width}}/{epochs}", f"loss {row['loss']:.3f}"]
    parts += [
        f"{name} {form.format(row[key])}" for key, (name, form) in FIGURES.items() if row.get(key) is not None
    ]
    if row.get("images_per_second"):
        parts.append(f"{row['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


def _terms(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in row.items() if name not in META)
