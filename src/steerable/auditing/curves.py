"""Curves of error and motion, against strength and against depth: SVGs colored by the page's style sheet."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from steerable.auditing.plan import range_alone
from steerable.auditing.report import JOINT, AuditReport, ModelInfo
from steerable.auditing.words import ignored, label, number
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


class Panels:
    """A figure of two panels, error above and motion below; `svg` holds it once the block that drew has ended.

    size: in inches. log: of the motion.
    """

    def __init__(self, name: str, size: tuple[float, float], description: str, *, log: bool = False):
        self.name, self.size, self.description, self.log = name, size, description, log
        self.error: Any = None
        self.motion: Any = None
        self.svg = ""

    @contextmanager
    def drawing(self) -> Iterator["Panels"]:
        """Draw inside: then axes are set and the SVG is made."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(
            {"svg.fonttype": "none", "svg.hashsalt": self.name, "font.size": 9, "text.color": INK}
        ):
            figure = Figure(figsize=self.size)
            frame = {
                "left": (0.52 if self.log else 0.46) / self.size[0],
                "right": 0.97,
                "bottom": 0.46 / self.size[1],
                "top": 0.97,
            }
            self.error, self.motion = figure.subplots(
                2, 1, sharex=True, height_ratios=(3, 1), gridspec_kw={**frame, "hspace": 0.13}
            )
            yield self
            self._finish()
            stream = io.StringIO()
            plain = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(stream, format="svg", transparent=True, metadata=plain)
        self.svg = _inline(stream.getvalue(), self.description)

    def _finish(self) -> None:
        top = max([1.15, *(v for line in self.error.lines for v in line.get_ydata() if v == v)])
        self.error.set_ylim(0, min(top * 1.05, HIGHEST))
        self.error.axhline(1, color=SOFT, linestyle=(0, (5, 3)), linewidth=1)
        self.error.set_ylabel("error")
        self.motion.set_ylabel("moved")
        if self.log:
            self.motion.set_yscale("log", nonpositive="mask")
            self.motion.minorticks_off()
            self.motion.yaxis.set_major_formatter("{x:g}")
        else:
            self.motion.set_ylim(bottom=0)
            self.motion.locator_params(axis="y", nbins=2)
        for axes in (self.error, self.motion):
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(colors=SOFT, length=0, labelsize=8)
            axes.yaxis.label.set_color(SOFT)
            axes.xaxis.label.set_color(INK)
            for side, spine in axes.spines.items():
                spine.set_visible(side == "bottom")
                spine.set_color(GRID)


def curve_svg(report: AuditReport, param: Param) -> str:
    """Relative error above and motion below, against the value of one coordinate."""
    low, high = range_alone(param)
    pad = 0.05 * (high - low)
    with Panels(param.name, (3.7, 2.9), _description(report, param)).drawing() as panels:
        for item in series(report):
            _draw(panels.error, panels.motion, report, param, item)
        unit = "share of the side" if param.unit == "side" else f"{param.unit}s"
        panels.motion.set_xlabel(f"{label(param.name)}, {unit}")
        panels.motion.set_xlim(low - pad, high + pad)
        for axes in (panels.error, panels.motion):
            axes.locator_params(axis="x", nbins=5)
            if low < 0 < high:
                axes.axvline(0, color=GRID, linewidth=0.8)
    return panels.svg


class DepthLine(NamedTuple):
    """One line of the legend of depth: a parameter, or all together."""

    param: str
    name: str
    place: int

    @property
    def color(self) -> str:
        return INK if self.param == JOINT else SERIES[self.place % len(SERIES)]

    @property
    def dashed(self) -> bool:
        """Colors come round; the second round is dashed."""
        return self.place >= len(SERIES)


def depth_lines(report: AuditReport) -> list[DepthLine]:
    """All parameters together, then each alone."""
    alone = [DepthLine(param.name, label(param.name), i) for i, param in enumerate(report.params)]
    return [DepthLine(JOINT, "all together", 0), *alone]


def depth_svg(report: AuditReport, model: str) -> str:
    """Relative error above and motion below, against the depth of the layer; a line per parameter."""
    layers = list(dict.fromkeys(row.layer for row in report.depth if row.model == model))
    joint = [number(row.figures["relative_error"]) for row in report.layers(model)]
    told = ", ".join(f"{layer} {error}" for layer, error in zip(layers, joint, strict=True))
    described = f"Relative error by layer, all parameters together: {told}"
    with Panels(model, (4.3, 3.6), described, log=True).drawing() as panels:
        for line in depth_lines(report):
            style = {
                "color": line.color,
                "linewidth": 2.8 if line.param == JOINT else 1.3,
                "linestyle": (0, (2, 1.5)) if line.dashed else "-",
                "marker": "o",
                "markersize": 4 if line.param == JOINT else 2.5,
                "zorder": 3 if line.param == JOINT else 2,
            }
            rows = [row.figures for row in report.layers(model, line.param)]
            errors = [None if ignored(figures) else figures["relative_error"] for figures in rows]
            panels.error.plot([_or_nan(error) for error in errors], **style)
            panels.motion.plot([_or_nan(figures["invariance_level"]) for figures in rows], **style)
        panels.motion.set_xticks(range(len(layers)), [layer.removeprefix("stage") for layer in layers])
        panels.motion.set_xlabel("stage of the network")
    return panels.svg


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
