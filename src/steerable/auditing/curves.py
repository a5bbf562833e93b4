"""Curves of error and motion against strength: one SVG per parameter, colored by the page's style sheet."""

import io
import re
from typing import Any, NamedTuple

from steerable.auditing.plan import range_alone
from steerable.auditing.report import AuditReport, ModelInfo
from steerable.auditing.words import label, number
from steerable.theta import Param

# The page replaces these by variables, so that one picture serves light and dark.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
INK, SOFT, GRID = "#101010", "#707070", "#d0d0d0"
_VARIABLES = {color: f"var(--s{i})" for i, color in enumerate(SERIES)} | {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--line)",
}
_MARKERS = "os^Dv*"
HIGHEST = 2.0  # larger errors leave the panel: beyond nothing there is little to tell


class Series(NamedTuple):
    """One line of the legend."""

    name: str
    model: ModelInfo
    steering: str
    place: int

    @property
    def color(self) -> str:
        return SERIES[self.place % len(SERIES)]

    @property
    def dashed(self) -> bool:
        """A ridge map beside a model's own is dashed in the model's color."""
        return self.steering != self.model.lead


def series(report: AuditReport) -> list[Series]:
    """Each model's own map and the ridge map; the identity is the dashed line at 1."""
    found = []
    present = {(row.model, row.steering) for row in report.rows}
    for place, model in enumerate(report.models):
        for steering, words in (("map", f"own map ({model.map})"), ("ridge", "ridge map")):
            if (model.name, steering) in present and (steering, model.map) != ("map", "identity"):
                found.append(Series(f"{model.name}: {words}", model, steering, place))
    return found


def curve_svg(report: AuditReport, param: Param) -> str:
    """Relative error above and motion below, against the value of one coordinate."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": param.name, "font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(3.7, 2.9))
        frame = {"left": 0.125, "right": 0.97, "bottom": 0.16, "top": 0.97, "hspace": 0.13}
        error, motion = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1), gridspec_kw=frame)
        for item in series(report):
            _draw(error, motion, report, param, item)
        _finish(error, motion, param)
        stream = io.StringIO()
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    return _inline(stream.getvalue(), _description(report, param))


def _draw(error: Any, motion: Any, report: AuditReport, param: Param, item: Series) -> None:
    rows = report.curve(param.name, model=item.model.name, steering=item.steering)
    # at zero nothing moves and the error is not defined: the line is broken there
    halves = ([row for row in rows if (row.value or 0) < 0], [row for row in rows if (row.value or 0) > 0])
    style = {
        "color": item.color,
        "marker": _MARKERS[item.place % len(_MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.6,
        "linestyle": (0, (2, 1.5)) if item.dashed else "-",
    }
    for half in halves:
        values = [row.value for row in half]
        errors = [_or_nan(row.figures["relative_error"]) for row in half]
        error.plot(values, errors, **style)
        if not item.dashed:
            motion.plot(values, [_or_nan(row.figures["invariance_level"]) for row in half], **style)


def _finish(error: Any, motion: Any, param: Param) -> None:
    low, high = range_alone(param)
    top = max([1.15, *(v for line in error.lines for v in line.get_ydata() if v == v)])
    error.set_ylim(0, min(top * 1.05, HIGHEST))
    error.axhline(1, color=SOFT, linestyle=(0, (5, 3)), linewidth=1)
    error.set_ylabel("error")
    motion.set_ylim(bottom=0)
    motion.set_ylabel("moved")
    motion.set_xlabel(
        f"{label(param.name)}, {param.unit}s"
        if param.unit != "side"
        else f"{label(param.name)}, share of the side"
    )
    motion.locator_params(axis="y", nbins=2)
    pad = 0.05 * (high - low)
    motion.set_xlim(low - pad, high + pad)
    for axes in (error, motion):
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(colors=SOFT, length=0, labelsize=8)
        axes.yaxis.label.set_color(SOFT)
        axes.xaxis.label.set_color(INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(GRID)
    if low < 0 < high:
        for axes in (error, motion):
            axes.axvline(0, color=GRID, linewidth=0.8)


def _description(report: AuditReport, param: Param) -> str:
    """What the curve shows, for those who do not see it."""
    parts = []
    for item in series(report):
        figures = report.figures(param=param.name, model=item.model.name, steering=item.steering)
        parts.append(f"{item.name} {number(figures['relative_error'])}")
    return f"Relative error against {label(param.name)}; over the whole range: {'; '.join(parts)}; identity 1"


def _inline(svg: str, description: str) -> str:
    """Cut down to what goes inside a page: colors as variables, no id that two pictures would share."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z.0-9]+_[^"]*"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    escaped = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escaped}"', 1).strip()


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
