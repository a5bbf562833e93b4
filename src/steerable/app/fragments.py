"""Parts of the page as HTML, pictures inside; every text is escaped by the template."""

import base64
import csv
import io
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from steerable.app.gallery import Row
from steerable.app.known import Mark, Score
from steerable.app.service import Compared, file_name
from steerable.app.trust import Trust, trusted
from steerable.auditing import AuditReport, curves, tables
from steerable.auditing.plan import range_alone
from steerable.auditing.words import label, number, theta_words
from steerable.theta import Param

TEMPLATE = "fragments.html.j2"
BINS = 40
TOP = 5  # classes that are shown
_FORMULA = "=+-@\t\r"  # what a spreadsheet would run
_TITLES = {
    "distance": ("Distance to its neighbors", "1 − cosine to the fifth image of the gallery."),  # noqa: RUF001
    "entropy": ("Entropy of the steered views", "how undecided the classifier is over them, in nats."),
}


@cache
def _module() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE).module


def fragment(name: str, *args: Any, **kwargs: Any) -> str:
    """The template's macro of that name, filled."""
    return str(getattr(_module(), name)(*args, **kwargs))


def seen(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows with what the template needs to show them."""
    return [{**row, "src": _uri(row.get("thumbnail"), "jpeg"), "file": file_name(row)} for row in rows]


def picture(image: Float[Tensor, "3 h w"]) -> str:
    """An image as a data URI."""
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="JPEG", quality=88)
    return _uri(stream.getvalue(), "jpeg")


def hits_csv(rows: Sequence[Row]) -> str:
    """The hits as a CSV file in a data URI; cells that a spreadsheet would take for formulas are made text."""
    stream = io.StringIO()
    names = [name for name in (rows[0] if rows else {}) if name != "thumbnail"]
    writer = csv.writer(stream)
    writer.writerow(["place", *names])
    for place, row in enumerate(rows, start=1):
        writer.writerow([place, *(_cell(row[name]) for name in names)])
    return _uri(stream.getvalue().encode(), "csv", "text")


def audit_page(reports: Sequence[AuditReport], command: str) -> str:
    """The tab of audits."""
    return fragment("audit", [_report(report) for report in reports], command)


def views_page(score: Score, pictures: Sequence[Tensor], params: Sequence[Param]) -> str:
    """The tab of views: probabilities and the distributions of scores. pictures: of the first views."""
    classes, shown = [], []
    if score.classes:
        order = score.views.mean(0).argsort(descending=True)[:TOP].tolist()
        low, high = torch.quantile(score.views, torch.tensor([0.05, 0.95]), dim=0)
        classes = [
            {"name": score.classes[i], "plain": float(score.p[i]), "mean": float(score.views[:, i].mean()),
             "low": float(low[i]), "high": float(high[i])}
            for i in order
        ]  # fmt: skip
        for image, p, theta in zip(pictures, score.views, score.thetas, strict=False):
            top = int(p.argmax())
            words = theta_words(theta.tolist(), params)
            shown.append(
                {"src": picture(image), "name": score.classes[top], "p": float(p[top]), "words": words}
            )
    about = f"plain image → mean of {len(score.views)} steered views, one encoder pass in all"
    own = fragment(
        "section",
        "Does it belong?",
        f"how it scores among {len(score.marks[0].known)} images of the gallery; 95 % of these lie left of the dashes",
    )
    marks = "".join(fragment("histogram", _histogram(mark)) for mark in score.marks)
    return fragment("views", classes, shown, about) + own + f'<div class="histograms">{marks}</div>'


def neighbors(how: str, hits: Sequence[Row], common: Collection[str] = ()) -> str:
    """The hits of a steered ("steering") or an encoded ("encoding") query; ``common``: ids that both found."""
    about = {
        "steering": "the image was encoded once, before it was moved",
        "encoding": "the moved image, encoded anew",
    }[how]
    agree = f"; {len(common)} of {len(hits)} agree" if common and how == "encoding" else ""
    return fragment("section", f"Neighbors by {how}", about + agree) + fragment("hits", seen(hits), common)


def tiles(steer: float, true: Compared | None) -> str:
    """Figures of the steered embedding; those that need the true one are dots until it is there."""
    rows = [
        ("Cosine", "between the steered embedding and that of the transformed image"),
        ("Relative error", "share of the motion that is left after steering; 1 is no better than nothing"),
        ("Hit", "whether the steered embedding is nearest to its own view, among 50 views of this image"),
        ("Encoding took", "time to transform and encode the image"),
    ]
    values = ["…"] * 4
    if true is not None:
        rank = f"{'yes' if true.rank == 1 else 'no'}, {true.rank} of {true.views}"
        values = [number(true.cosine, 3), number(true.error), rank, f"{1000 * true.seconds:.1f} ms"]
    cells = [(name, value, about) for (name, about), value in zip(rows, values, strict=True)]
    cells.insert(3, ("Steering took", f"{1000 * steer:.1f} ms", "time to steer the embedding"))
    return fragment("tiles", cells)


def _report(report: AuditReport) -> dict[str, Any]:
    return {
        "about": f"audited on {report.counts['measured']} images of {report.source}",
        "models": [
            {
                "name": info.name,
                "sentences": report.sentences(info.name),
                "trust": [_track(trust) for trust in trusted(report, info.name).values()],
            }
            for info in report.models
        ],
        "caption": f"all parameters together; ranks among {report.views} views of one image",
        "side": tables.ladder(report) or _alone(report),
        "legend": [(curves._VARIABLES[line.color], line.name, line.dashed) for line in curves.series(report)],
        "curves": [Markup(curves.curve_svg(report, p)) for p in report.params if not p.is_switch],
    }


def _alone(report: AuditReport) -> list[list[str]]:
    """All parameters together for a single model, under each map."""
    lines = tables.joint_lines(report)
    columns = [column for column in tables.COLUMNS if column.figure in tables.LADDER]
    return [
        ["steering", *(column.heading for column in columns)],
        *([line.heading, *(number(line.figures[c.figure]) for c in columns)] for line in lines),
    ]


def _track(trust: Trust) -> dict[str, Any]:
    param = trust.param
    low, high = (0.0, 1.0) if param.is_switch else range_alone(param)
    span = (high - low) or 1.0
    left, right = (100 * (min(max(end, low), high) - low) / span for end in (trust.low, trust.high))
    return {
        "name": label(param.name),
        "left": round(left, 1),
        "width": round(right - left, 1),
        "zero": round(100 * (0 - low) / span, 1),
        "words": trust.words,
        "error": number(trust.error),
    }


def _histogram(mark: Mark) -> dict[str, Any]:
    title, about = _TITLES[mark.name]
    low = min(mark.known[0].item(), mark.value)
    high = max(torch.quantile(mark.known, 0.995).item(), mark.value, mark.limit)
    span = (high - low) or 1.0
    counts = torch.histc(mark.known, BINS, min=low, max=low + span)
    tallest = counts.max().item() or 1.0
    width = 200 / BINS
    side = "more foreign than" if mark.foreign else "farther out than"
    return {
        "title": title,
        "words": f"{about} This image: {number(mark.value, 3)}, {side} {mark.share:.0%} of the gallery"
        + ("; it does not look like one of these." if mark.foreign else "; it belongs."),
        "bars": [
            (round(i * width + 0.4, 2), width - 0.8, round(44 * c / tallest, 2))
            for i, c in enumerate(counts.tolist())
            if c
        ],
        "limit": round(200 * (mark.limit - low) / span, 1),
        "own": round(min(max(200 * (mark.value - low) / span, 3), 197), 1),
        "foreign": mark.foreign,
        "low": number(low, 3),
        "high": number(high, 3),
    }


def _uri(data: bytes | None, kind: str, family: str = "image") -> str:
    return f"data:{family}/{kind};base64,{base64.b64encode(data).decode()}" if data else ""


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple(_FORMULA) else value


def shares(theta: Mapping[str, float], params: Sequence[Param]) -> str:
    """A theta in words."""
    return theta_words([theta.get(param.name, 0.0) for param in params], params)
