"""`steerable serve`: what it needs, what it refuses, and what it makes where something is missing."""

import json
import sys
from pathlib import Path

import pytest

import bundles
from steerable.app.server import checked_token, is_loopback
from steerable.app.start import start
from steerable.auditing import audit
from steerable.cli import main
from steerable.cli.main import find_command
from steerable.cli.parser import Parser
from steerable.data import photos
from steerable.embedding import index_images
from steerable.errors import ConfigError


def test_without_the_extra_it_prints_the_line_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("steerable.app.start.start", lambda *a, **k: pytest.fail("work before the check"))
    assert main(["serve"]) == 2
    assert "pip install 'steerable[app]'" in capsys.readouterr().err


def test_other_hosts_need_a_token(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STEERABLE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*STEERABLE_TOKEN"):
        checked_token("0.0.0.0", None)
    with pytest.raises(ConfigError, match="5 characters"):
        checked_token("0.0.0.0", "short")
    with pytest.raises(ConfigError, match="plain"):
        checked_token("127.0.0.1", "ä" * 20)
    assert checked_token("127.0.0.1", None) is None
    assert checked_token("::1", None) is None
    monkeypatch.setenv("STEERABLE_TOKEN", "from-the-environment")
    assert checked_token("0.0.0.0", None) == "from-the-environment"
    assert checked_token("0.0.0.0", "from-the-command-line") == "from-the-command-line"


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.3", False),
        ("me.org", False),
    ],
)
def test_loopback(host: str, here: bool):
    assert is_loopback(host) == here


def test_model_and_gallery_may_be_left_out():
    parser = Parser(find_command("serve"))
    assert parser.read([])[0] == [None, None]
    assert parser.read(["m"])[0] == ["m", None]
    positional, named, _ = parser.read(["m", "db", "--audit", "a.json", "b.json", "--port", "80"])
    assert positional == ["m", "db"]
    assert (named["port"], named["audit"]) == (80, [Path("a.json"), Path("b.json")])
    assert "[MODEL] [DB]" in parser.format_help()


def test_a_bundle_with_its_index_and_its_audit(tmp_path: Path):
    pytest.importorskip("lancedb")
    model = bundles.build(bundles.tiny()).eval()
    model.save_pretrained(tmp_path / "m")
    images = photos(size=32, n=50)
    report = audit({"m": model}, images.images[:16], views=4, n_images=8, n_pool=4, strengths=2)
    report.save_json(tmp_path / "m" / "audit.json")
    index_images(model, images, tmp_path / "db")
    started = start(str(tmp_path / "m"), str(tmp_path / "db"))
    service = started.service
    assert service.gallery.rows == 50
    assert service.name == "m"
    assert service.reports[0].to_dict() == report.to_dict()
    assert set(service.trust) == {param.name for param in model.params}
    assert service.known is not None
    assert service.known.classes == model.classes, "the bundle's own head"
    row = service.gallery.sample[0]
    assert service.gallery.picture(row) == row["thumbnail"], "an index of a data set has no folder"
    (tmp_path / "bad.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ConfigError, match=r"bad\.json cannot be read as an audit"):
        start(str(tmp_path / "m"), str(tmp_path / "db"), audits=[tmp_path / "bad.json"])


@pytest.mark.slow
def test_without_anything_a_map_is_fitted_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", "steerable"):
        started = start(limit=200)
    assert "fitting a map to photographs" in caplog.text
    service = started.service
    assert service.gallery.rows > 190
    assert any(trust.high > 0 and not trust.still for trust in service.trust.values()), "it can be steered"
    chosen = service.choose(service.gallery.sample[0]["id"])
    assert service.search(chosen.e, {"hue": 0.05}, k=3).hits
