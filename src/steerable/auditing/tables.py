"""Tables of an audit: the same columns for the terminal and the page."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from steerable.auditing.measure import Figures
from steerable.auditing.report import JOINT, AuditReport, ModelInfo
from steerable.auditing.words import label, number, range_words, steering_name


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
    present = {row.steering for row in report.rows if row.model == model.name}
    steering = model.lead if model.lead in present else "identity"
    return [
        Line(
            model,
            f"{label(param.name)} ({range_words(param)})",
            steering,
            report.figures(param=param.name, model=model.name, steering=steering),
        )
        for param in report.params
    ]


def terminal_table(report: AuditReport) -> Table:
    """Model by model: all parameters together under every map, then each alone. Fits 80 columns."""
    columns = (*COLUMNS, DECODING)
    table = Table(
        title=f"Steerability on {report.source}, {report.counts['measured']} images",
        caption=_caption(report),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right")
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
