"""Tables of an audit: the same columns for the terminal and the page."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from steerable.auditing.measure import Figures
from steerable.auditing.report import JOINT, AuditReport, ModelInfo
from steerable.auditing.words import ignored, label, number, range_words, steering_name


class Column(NamedTuple):
    """A figure's name, its heading, and what it says, for a reader who meets it first."""

    figure: str
    heading: str
    meaning: str


COLUMNS = (
    Column(
        "invariance_level",
        "moved",
        "how far the transform moves embeddings, as a share of the spread between images",
    ),
    Column(
        "relative_error",
        "error",
        "what is left of the motion after steering; 0 is perfect, 1 no better than nothing",
    ),
    Column("relative_error_cosine", "error (unit)", "the same on embeddings of unit length"),
    Column("r2", "R²", "share of the variance of the transformed embeddings that steering explains"),
    Column("mrr", "MRR", "mean reciprocal rank of the true view among the views of the same image"),
    Column("hit_at_1", "Hit@1", "share of true views ranked first"),
    Column("hit_at_5", "Hit@5", "share of true views among the first five"),
)
DECODING = Column("decoding_r2", "decoded R²", "how well the parameter can be read from the two embeddings")
LADDER = ("relative_error", "r2", "mrr", "hit_at_1")
LAYERS = ("invariance_level", *LADDER)
LAWS = (
    Column("law_identity", "identity", "zero leaves the embedding alone"),
    Column("law_composition", "composition", "two steps are one step of their sum"),
    Column("law_inverse", "inverse", "a step back undoes a step"),
)


class Line(NamedTuple):
    """One line of a table: who, what, and the figures."""

    model: ModelInfo
    heading: str
    steering: str
    figures: Figures


def joint_lines(report: AuditReport) -> list[Line]:
    """All parameters together: a line per model and map, but none for an own map that is the identity."""
    lines = []
    for model in report.models:
        for row in report.rows:
            if (row.model, row.param) != (model.name, JOINT) or (row.steering, model.map) == (
                "map",
                "identity",
            ):
                continue
            lines.append(Line(model, steering_name(row.steering, model.map), row.steering, row.figures))
    return lines


def param_lines(report: AuditReport, model: ModelInfo) -> list[Line]:
    """One parameter at a time, under the model's leading map, or the identity where there is none."""
    steering = _leading(report, model)
    return [
        Line(
            model,
            f"{label(param.name)} ({range_words(param)})",
            steering,
            report.figures(param=param.name, model=model.name, steering=steering),
        )
        for param in report.params
    ]


def ladder(report: AuditReport) -> list[list[str]]:
    """Models side by side, header first: the leading map's joint figures, what the encoder kept, the price.

    Empty for one model of which neither is known.
    """
    known = [
        (heading, [getattr(model, name) for model in report.models], form)
        for name, heading, form in (
            ("neighbor_accuracy", "kNN accuracy", "{:.1%}"),
            ("fit_passes", "passes to fit", "{:,.0f}"),
            ("fit_seconds", "seconds to fit", "{:,.0f}"),
        )
    ]
    known = [(heading, values, form) for heading, values, form in known if any(v is not None for v in values)]
    if len(report.models) == 1 and not known:
        return []
    columns = [column for column in COLUMNS if column.figure in LADDER]
    header = [
        "model",
        "width",
        "steering",
        *(c.heading for c in columns),
        *(heading for heading, *_ in known),
    ]
    rows = []
    for place, model in enumerate(report.models):
        steering = _leading(report, model)
        figures = report.figures(model=model.name, steering=steering)
        extra = ["n/a" if v[place] is None else form.format(v[place]) for _, v, form in known]
        cells = [number(figures[column.figure]) for column in columns]
        rows.append([model.name, f"{model.dim:,}", steering_name(steering, model.map), *cells, *extra])
    return [header, *rows]


def layer_table(report: AuditReport, model: ModelInfo) -> list[list[str]]:
    """Layers in order of depth, header first: joint figures, then the error of each parameter alone.

    An error is in parentheses where the layer ignores the parameter.
    """
    columns = [column for column in COLUMNS if column.figure in LAYERS]
    header = ["layer", "width", *(c.heading for c in columns), *(label(p.name) for p in report.params)]
    errors = [report.layers(model.name, p.name) for p in report.params]
    rows = [
        [row.layer, f"{row.dim:,}", *(number(row.figures[c.figure]) for c in columns)]
        + [_alone(alone[place].figures) for alone in errors]
        for place, row in enumerate(report.layers(model.name))
    ]
    return [header, *rows] if rows else []


def _alone(figures: Figures) -> str:
    error = number(figures["relative_error"])
    return f"({error})" if ignored(figures) else error


def terminal_tables(report: AuditReport) -> Group:
    """Models side by side, the figures of each, and its layers under all parameters together."""
    side_by_side = ladder(report) if len(report.models) > 1 else []
    layers = [(model, layer_table(report, model)) for model in report.models]
    joint = 2 + len(LAYERS)
    tables = [
        _rich([row[:joint] for row in cells], f"{model.name}, layer by layer")
        for model, cells in layers
        if cells
    ]
    return Group(_figures(report), *([_rich(side_by_side, "Side by side")] if side_by_side else []), *tables)


def _rich(cells: list[list[str]], title: str, caption: str | None = None) -> Table:
    table = Table(
        title=escape(title),
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    header, *rows = cells
    for place, heading in enumerate(header):
        table.add_column(heading, justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _figures(report: AuditReport) -> Table:
    """Model by model: all parameters together under every map, then each alone. Fits 80 columns."""
    columns = (*COLUMNS, DECODING)
    title = f"Steerability on {report.source}, {report.counts['measured']} images"
    table = _rich([["", *(column.heading for column in columns)]], title, _caption(report))
    joint = joint_lines(report)
    for model in report.models:
        table.add_section()
        table.add_row(f"[bold]{escape(model.name)}[/]")
        for line in (line for line in joint if line.model == model):
            table.add_row(f" {line.heading}", *_cells(line, columns))
        lines = param_lines(report, model)
        for param, line in zip(report.params, lines, strict=True):
            table.add_row(f" {label(param.name)} alone", *_cells(line, columns))
    return table


def _leading(report: AuditReport, model: ModelInfo) -> str:
    present = {row.steering for row in report.rows if row.model == model.name}
    return model.lead if model.lead in present else "identity"


def _cells(line: Line, columns: Sequence[Column]) -> list[str]:
    return [number(line.figures.get(column.figure)) for column in columns]


def _caption(report: AuditReport) -> str:
    """What the figures depend on: pool, chance, and the range of every parameter."""
    chance = report.chance
    ranges = "; ".join(f"{label(param.name)} {range_words(param)}" for param in report.params)
    return (
        f"{report.views} views per image; by chance MRR is {number(chance['mrr'])} and Hit@1 "
        f"{number(chance['hit_at_1'])}. Ranges: {ranges}."
    )
