"""What every evaluation does with its result: print tables or JSON, and leave both and a picture in a folder."""

import json as jsonlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steerable.cli.audit import _load_all
from steerable.cli.audit import _load_models as load_models

if TYPE_CHECKING:
    from rich.table import Table

    from steerable.encoders import Encoder
    from steerable.model import SteerableEncoder

__all__ = ["Sheet", "load_models", "load_with_encoders", "present"]


def load_with_encoders(places: tuple[str, ...]) -> "dict[str, SteerableEncoder | Encoder]":
    """As `load_models`, with encoders alone among them."""
    return _load_all(places, None)


class Sheet(NamedTuple):
    """One table. ``columns`` maps a row's key to (heading, format such as "{:.1%}"); absent figures show as a dash."""

    title: str
    columns: Mapping[str, tuple[str, str]]
    rows: Sequence[Mapping[str, Any]]


def present(
    name: str,
    result: Mapping[str, Any],
    sheets: Sequence[Sheet],
    *,
    notes: Sequence[str] = (),
    draw: Callable[[Any], None] | None = None,
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Print ``result`` as tables with notes below, or as one line of JSON; with ``out`` also write it there.

    result: JSON types only, numbers finite or None. draw: paints on the matplotlib figure that it is given.
    In ``out`` stand NAME.json and, where there is ``draw``, NAME.png; their paths are printed too.
    """
    text = jsonlib.dumps(result, allow_nan=False)
    if json:
        print(text)
    else:
        from rich.console import Console

        # a file or a pipe has no width that a table would have to fit
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        for sheet in sheets:
            console.print(_table(sheet))
        for note in notes:
            console.print(note, markup=False, soft_wrap=True)
    if out is not None:
        for path in _write(name, text, draw, out):
            if not json:
                print(path)


def _table(sheet: Sheet) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(sheet.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, (heading, _) in enumerate(sheet.columns.values()):
        table.add_column(escape(heading), justify="right" if place else "left", no_wrap=not place)
    for row in sheet.rows:
        table.add_row(*(escape(_cell(row.get(key), form)) for key, (_, form) in sheet.columns.items()))
    return table


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def _write(name: str, text: str, draw: Callable[[Any], None] | None, out: Path) -> list[Path]:
    out = out.expanduser()
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.json"]
    paths[0].write_text(text + "\n")
    if draw is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        draw(figure)
        paths.append(out / f"{name}.png")
        figure.savefig(paths[1], dpi=150)
    return paths
