"""Audits in plain words: thetas, ranges, numbers, and the three sentences."""

from collections.abc import Sequence

from steerable.auditing.measure import Figures
from steerable.auditing.plan import range_alone
from steerable.auditing.report import AuditReport, Row
from steerable.theta import Param

IGNORED = 0.02  # an invariance level below this: the transform moves an embedding by hardly more than noise
PREDICTED = 0.5  # a relative error below this: steering takes away more than half of the motion
SPELLED_OUT = 5  # coordinates of a theta that are put into words
UNDEFINED = "n/a"

_UNITS = {
    "degree": ("°", ""),
    "octave": (" octave", "s"),
    "stop": (" stop", "s"),
    "turn": (" turn", "s"),
    "side": (" of the side", ""),
}
_STEERING = {"map": "own map", "ridge": "ridge map afterwards", "identity": "identity (control)"}


def number(value: float | None, digits: int = 2) -> str:
    """A figure for a table; "n/a" where it is not defined."""
    if value is None:
        return UNDEFINED
    text = f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.0f}"
    return text if float(text) else text.lstrip("-")  # no minus before a zero


def label(param: str) -> str:
    """A parameter's name as words."""
    return param.replace("_", " ")


def steering_name(steering: str, map_name: str) -> str:
    """What a row's steering is, in words."""
    return f"own map ({map_name})" if steering == "map" else _STEERING[steering]


def amount(value: float, param: Param, *, sign: bool = True) -> str:
    """A value of a coordinate with its unit: "+0.35 stops", "on" for a switch."""
    if param.is_switch:
        return "on" if value > 0.5 else "off"
    unit, plural = _UNITS.get(param.unit, (f" {param.unit}", "s"))
    text = f"{value:+.2g}" if sign else f"{value:.2g}"
    return f"{text.replace('-', '−')}{unit}{'' if abs(value) == 1 else plural}"  # noqa: RUF001


def range_words(param: Param) -> str:
    """The range in which a coordinate was measured alone."""
    if param.is_switch:
        return "on"
    return span(*range_alone(param), param)


def span(low: float, high: float, param: Param) -> str:
    """A range with its unit: "−0.7 to 0.7 stops"."""  # noqa: RUF002
    return f"{low:.2g} to {amount(high, param, sign=False)}".replace("-", "−")  # noqa: RUF001


def theta_words(theta: Sequence[float] | None, params: Sequence[Param]) -> str:
    """A theta as words: its largest coordinates, as shares of their ranges, first; nothing that is zero."""
    if theta is None:
        return "as it is"
    pairs = [(abs(value) / param.scale, value, param) for value, param in zip(theta, params, strict=True)]
    changed = sorted((pair for pair in pairs if pair[0] >= 0.02), key=lambda pair: -pair[0])
    parts = [
        label(param.name) if param.is_switch else f"{label(param.name)} {amount(value, param)}"
        for _, value, param in changed[:SPELLED_OUT]
    ]
    more = len(changed) - len(parts)
    return (", ".join(parts) + (f" and {more} smaller" if more else "")) or "as it is"


def ignored(figures: Figures) -> bool:
    """Whether the embedding hardly moves, so that an error says nothing."""
    moved = figures["invariance_level"]
    return moved is None or moved < IGNORED


def verdict(report: AuditReport, model: str) -> tuple[str, str, str]:
    """Three sentences on one model: ignored, predictable, not to trust."""
    report.figures(model=model, steering="identity")  # an unknown model is an error that says so
    info = next(info for info in report.models if info.name == model)
    still, predicted, rest = [], [], []
    for param in report.params:
        figures = report.figures(param=param.name, model=model, steering="identity")
        if ignored(figures):
            still.append(param)
            continue
        error = _lead_error(report, model, info.lead, param)
        (predicted if error is not None and error < PREDICTED else rest).append(param)
    reached = [f"{label(p.name)}{_up_to(report, model, info.lead, p)}" for p in predicted]
    tool = (
        "its own map"
        if info.lead == "map"
        else f"a ridge map fitted to {report.counts['ridge']} other images"
    )
    distrusted = [label(p.name) for p in rest]
    if len(rest) == len(report.params) > 1:
        distrusted = [f"any of the {len(rest)} parameters"]
    return (
        _sentence(
            [label(p.name) for p in still],
            f"It ignores {{}}: the motion stays under {IGNORED:.0%} of the spread between images.",
            f"It ignores none of the {len(report.params)} parameters.",
        ),
        _sentence(
            reached,
            f"With {tool} it can be steered in {{}}: more than half of the motion is predicted.",
            f"With {tool} it cannot be steered in any single parameter: half of the motion or more is left.",
        ),
        _sentence(
            distrusted,
            "Do not trust steering in {}: embeddings move, and half of the motion or more is not predicted.",
            "Whatever moves it is predicted.",
        ),
    )


def _sentence(words: Sequence[str], some: str, none: str) -> str:
    if not words:
        return none
    *first, last = words
    return some.format(f"{', '.join(first)} and {last}" if first else last)


def _lead_error(report: AuditReport, model: str, lead: str, param: Param) -> float | None:
    steered = {row.steering for row in report.rows if row.model == model}
    if lead not in steered:
        return None
    return report.figures(param=param.name, model=model, steering=lead)["relative_error"]


def _up_to(report: AuditReport, model: str, lead: str, param: Param) -> str:
    """How far from zero every measured level stays predicted; nothing where that is the whole range."""
    if param.is_switch:
        return ""
    levels = report.curve(param.name, model=model, steering=lead)
    fails = [row for row in levels if not _predicted(row)]
    if not fails:
        return ""
    worst = min(abs(row.value or 0.0) for row in fails)
    below = [abs(row.value or 0.0) for row in levels if abs(row.value or 0.0) < worst]
    return f" (up to {amount(max(below), param, sign=False)})" if below else ""


def _predicted(row: Row) -> bool:
    error = row.figures["relative_error"]
    return error is None or error < PREDICTED
