"""The page: everything in one file, and every figure where a reader looks for it."""

import re

import audit_worlds as worlds
import pytest

from steerable.auditing import AuditReport, audit
from steerable.auditing.words import amount, number, range_words, theta_words
from steerable.errors import DataError
from steerable.model import SteerableEncoder
from steerable.theta import Param
from steerable.transforms import Chain, Contrast, Crop, HFlip

SMALL = {"views": 6, "n_images": 10, "n_pool": 4, "strengths": 2}
CHAIN = Chain([Crop(), HFlip(), Contrast()])


@pytest.fixture(scope="module")
def report() -> AuditReport:
    return audit(SteerableEncoder(worlds.quarters(), CHAIN), worlds.images(24), **SMALL)


@pytest.fixture(scope="module")
def html(report: AuditReport, tmp_path_factory: pytest.TempPathFactory) -> str:
    models = {"<exact>": worlds.exact(), "blind": worlds.invariant()}
    file = tmp_path_factory.mktemp("page") / "new" / "report.html"
    audit(models, worlds.images(24), **SMALL).save_html(file, worlds.images(24), title="Colors & flips")
    return file.read_text(encoding="utf-8")


def test_nothing_is_fetched(html: str):
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    assert not re.search(r"@import|url\(\s*[\"']?http|<script|<link|<iframe", html)
    assert set(re.findall(r'<img src="([^:]*:[^;]*)', html)) == {"data:image/png"}


def test_every_parameter_and_its_range_is_printed(report: AuditReport, tmp_path):
    report.save_html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    for param in CHAIN.params:
        assert f"<dt>{param.name.replace('_', ' ')}</dt><dd>{range_words(param)}</dd>" in text
    assert text.count("<svg role") == sum(not param.is_switch for param in CHAIN.params)
    assert "<img" not in text  # no images were given


def test_pictures_have_words(html: str):
    pictures = re.findall(r"<img [^>]*>", html)
    assert len(pictures) == 2 * 6 * (2 + 5 + 5)
    assert all(re.search(r'alt="image \d+, [^"]+"', picture) for picture in pictures)
    assert "found by both" in html
    for curve in re.findall(r"<svg role[^>]*>", html):
        assert 'aria-label="Relative error against hue' in curve


def test_names_are_escaped(html: str):
    assert "&lt;exact&gt;" in html
    assert "<exact>" not in html
    assert "<title>Colors &amp; flips</title>" in html


def test_colors_follow_the_reader(html: str):
    assert "prefers-color-scheme: dark" in html
    curve = html[html.index("<svg role") :].split("</svg>", 1)[0]
    assert "var(--s0)" in curve
    assert not re.search(r"#[0-9a-f]{6}", curve)


def test_ids_are_unique(report: AuditReport, tmp_path):
    report.save_html(tmp_path / "r.html")
    found = re.findall(r'\sid="([^"]*)"', (tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(found) == len(set(found))


def test_undefined_is_written_na(html: str):
    assert "<td>n/a</td>" in html
    assert not re.search(r">\s*(nan|inf|None)\s*<", html)


def test_other_images_are_refused(tmp_path):
    report = audit(worlds.exact(), worlds.images(24), **SMALL)
    for wrong in (worlds.images(24)[..., :8], worlds.images(2)):
        with pytest.raises(DataError, match="audited"):
            report.save_html(tmp_path / "r.html", wrong)
    assert not (tmp_path / "r.html").exists()


def test_numbers():
    assert [number(v) for v in (None, 0.123, -0.001, 1.0, 1234.5)] == ["n/a", "0.12", "0.00", "1.00", "1234"]


def test_thetas_in_words():
    hue, flip = Param("hue", "turn", -0.1, 0.1), Param("hflip", "switch", 0.0, 1.0, period=2.0, step=1.0)
    shift = Param("shift_x", "side", -1.5, 1.5)
    assert amount(1.0, Param("contrast", "stop", -1.0, 1.0)) == "+1 stop"
    assert amount(-0.05, hue) == "\N{MINUS SIGN}0.05 turns"
    assert theta_words([0.05, 1.0, 0.0], [hue, flip, shift]) == "hflip, hue +0.05 turns"
    assert theta_words([0.0, 0.0, 0.3], [hue, flip, shift]) == "shift x +0.3 of the side"
    assert theta_words([0.0, 0.0, 0.0], [hue, flip, shift]) == theta_words(None, [hue]) == "as it is"
    assert range_words(hue) == "\N{MINUS SIGN}0.1 to 0.1 turns"
