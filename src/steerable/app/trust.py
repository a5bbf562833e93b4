"""How far each parameter can be trusted, from an audit: the range in which steering predicts most of the motion."""

from typing import NamedTuple

from steerable.auditing import AuditReport
from steerable.auditing.plan import range_alone
from steerable.auditing.words import PREDICTED, amount, ignored, label, span
from steerable.theta import Param


class Trust(NamedTuple):
    """Values of one coordinate, from ``low`` to ``high`` around zero, at which the error was acceptable.

    error: over the whole range; None where it is not defined. still: whether the embedding hardly moves.
    """

    param: Param
    low: float
    high: float
    error: float | None
    still: bool = False

    def covers(self, value: float) -> bool:
        """Whether the value lies inside, by half a slider's step."""
        slack = 0.5 * self.param.step if not self.param.is_switch else 0.0
        return self.low - slack <= value <= self.high + slack

    @property
    def words(self) -> str:
        """For the line under a slider."""
        if self.still:
            return "hardly moves the embedding"
        if self.low == self.high == 0:
            return "not trusted"
        if self.param.is_switch:
            return "trusted"
        if round(self.low, 6) == -round(self.high, 6):
            return f"trusted ±{amount(self.high, self.param, sign=False)}"
        return f"trusted {span(self.low, self.high, self.param)}"


def trusted(report: AuditReport, model: str) -> dict[str, Trust]:
    """By name of the parameter; all coordinates of the report.

    From zero outward on each side, up to the last measured level before the first at which half of the motion or more
    is left. Raises ConfigError for a model that was not audited.
    """
    lead = next((info.lead for info in report.models if info.name == model), "map")
    return {param.name: _trust(report, model, lead, param) for param in report.params}


def _trust(report: AuditReport, model: str, lead: str, param: Param) -> Trust:
    figures = report.figures(param=param.name, model=model, steering=lead)
    error = figures["relative_error"]
    still = ignored(report.figures(param=param.name, model=model, steering="identity"))
    low, high = (param.low, param.high) if param.is_switch else range_alone(param)
    if still:
        return Trust(param, low, high, error, still=True)
    levels = [
        (row.value or 0.0, row.figures["relative_error"])
        for row in report.curve(param.name, model=model, steering=lead)
    ]
    above = _reach([(value, e) for value, e in levels if value > 0])
    below = _reach([(-value, e) for value, e in reversed(levels) if value < 0])
    return Trust(param, -below, above, error)


def _reach(levels: list[tuple[float, float | None]]) -> float:
    """The farthest level, in order from zero, before one fails."""
    reach = 0.0
    for value, error in levels:
        if error is not None and error >= PREDICTED:
            break
        reach = value
    return reach


def beyond(trust: dict[str, Trust], theta: dict[str, float]) -> list[str]:
    """Words for each coordinate that is set beyond what can be trusted."""
    return [
        f"{label(name)} {amount(value, trust[name].param)}"
        for name, value in theta.items()
        if name in trust and value and not trust[name].covers(value)
    ]
