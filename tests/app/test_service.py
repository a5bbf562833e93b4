"""The service under page and API: it gives what the Python API gives, within its bounds."""

import csv
import dataclasses
import io
import threading
import time
from base64 import b64decode
from pathlib import Path

import pytest
import torch
from app_world import png

import bundles
from steerable import Index
from steerable.app import Bounds, Busy, Gallery, Service
from steerable.app.encoding import Door
from steerable.app.fragments import hits_csv
from steerable.app.trust import Trust, beyond, trusted
from steerable.auditing import AuditReport, Row
from steerable.data import decode
from steerable.data.images import as_float
from steerable.embedding import index_images, search_image
from steerable.errors import ConfigError, DataError, ShapeError, ThetaError
from steerable.metrics import relative_error
from steerable.theta import Param


def test_search_is_that_of_the_python_api(service: Service, tmp_path: Path):
    file = tmp_path / "x.png"
    file.write_bytes(png())
    theta = {"hue": 0.05, "zoom": 0.4}
    wanted = search_image(service.gallery.index, service.model, file, theta, k=7, where="label != 'cat'")
    found = service.search(service.encode([png()])[0], theta, k=7, where="label != 'cat'").hits
    assert [(row["id"], row["score"]) for row in found] == [(row["id"], row["score"]) for row in wanted]
    later = service.search(service.encode([png()])[0], theta, k=3, offset=4, where="label != 'cat'").hits
    assert [row["id"] for row in later] == [row["id"] for row in wanted[4:]]


def test_an_image_of_the_gallery_is_its_own_nearest(service: Service):
    for row in service.gallery.mixed(5):
        chosen = service.choose(row["id"])
        best = service.search(chosen.e, {}, k=1).hits[0]
        assert best["id"] == row["id"]
        assert best["score"] == pytest.approx(1, abs=1e-5)
    assert len({row["label"] for row in service.gallery.mixed(5)}) == 5


def test_figures_of_a_move_are_those_of_the_metrics(service: Service):
    chosen = service.choose(service.gallery.sample[3]["id"])
    theta = {"brightness": 0.5, "hue": 0.1}
    steered = service.search(chosen.e, theta, k=4)
    true = service.compare(chosen, theta, steered.e, k=4)
    moved = service.model.chain.apply(chosen.pixels[None], service.model.theta(**theta)[None])
    e = service.model.encode(moved)
    assert true.cosine == pytest.approx(torch.cosine_similarity(steered.e, e[0], dim=0).item(), abs=1e-6)
    assert true.error == pytest.approx(relative_error(chosen.e[None], e, steered.e[None]), rel=1e-4)
    assert [row["id"] for row in true.hits] == [row["id"] for row in service.gallery.index.search(e, 4)]
    assert 1 <= true.rank <= true.views == 50
    assert service.compare(chosen, {}, chosen.e).error is None, "nothing moved"
    assert service.compare(chosen, {}, chosen.e).rank == 1


def test_steering_runs_no_encoder(service: Service, monkeypatch: pytest.MonkeyPatch):
    chosen = service.choose(service.gallery.sample[0]["id"])
    monkeypatch.setattr(service.model.encoder, "encode", lambda *a, **k: pytest.fail("an encoder pass"))
    service.search(chosen.e, {"hue": 0.1})
    service.orbit(chosen.e[None], [{"hue": 0.1}])
    service.score(chosen.e)
    service.transformed(chosen.shown, {"hue": 0.1})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, e: s.theta({"hue": float("nan")}), ThetaError, "not finite"),
        (lambda s, e: s.theta({"zoom": 99.0}), ThetaError, "zoom is 99"),
        (lambda s, e: s.theta({"huee": 0.1}), ThetaError, "did you mean hue"),
        (lambda s, e: s.search(e, {}, k=10**9), ConfigError, "k is 1000000000"),
        (lambda s, e: s.search(e, {}, k=0), ConfigError, "k is 0"),
        (lambda s, e: s.search(e, {}, k=5, offset=-1), ConfigError, "from -1"),
        (lambda s, e: s.search(e[:2], {}), ShapeError, "shape"),
        (lambda s, e: s.search(e * float("nan"), {}), ShapeError, "finite"),
        (lambda s, e: s.search(e * 1e38, {"hue": 0.1, "brightness": 2}), ShapeError, "finite"),
        (lambda s, e: s.orbit(e[None], [{}] * 99999), ConfigError, "99999 thetas"),
        (lambda s, e: s.orbit(e[None].expand(5, -1), [{}]), ConfigError, "5 embeddings"),
        (lambda s, e: s.encode([png()] * 5), DataError, "5 images"),
        (lambda s, e: s.choose("../../etc/passwd"), DataError, "no image has the id"),
        (lambda s, e: s.choose("x" * 10_000), DataError, "no image has the id"),
    ],
)
def test_bounds(service: Service, call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call(service, service.encode([png()])[0])


def test_requests_queue_at_the_encoder_and_the_queue_is_bounded():
    door = Door(Bounds(waiting=1, wait=0.2))
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with door.turn():
            entered.set()
            leave.wait(5)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(5)
    results: list[str] = []

    def ask() -> None:
        try:
            with door.turn():
                results.append("in")
        except Busy as error:
            results.append(str(error))

    waiting = threading.Thread(target=ask)
    waiting.start()
    while not door.waiting:
        time.sleep(0.01)
    with pytest.raises(Busy, match="1 requests wait"), door.turn():
        pass
    waiting.join(5)
    assert "not free for 0.2 s" in results[0]
    leave.set()
    holder.join(5)
    with door.turn():
        pass
    assert (door.waiting, door.served, door.refused) == (0, 2, 2)


def test_pictures_come_from_below_the_folder_alone(tmp_path: Path):
    """Rows may say anything: only files inside the folder that was indexed are opened, links followed first."""
    pytest.importorskip("lancedb")
    inside, secret = tmp_path / "images", tmp_path / "secret.png"
    inside.mkdir()
    (inside / "good.png").write_bytes(png())
    secret.write_bytes(png((1, 2, 3)))
    (inside / "link.png").symlink_to(secret)
    model = bundles.build(bundles.tiny(), head=False).eval()
    index = Index.open(str(tmp_path / "db"), model=model, notes={"size": 32, "images": str(inside)})
    e = torch.randn(5, model.dim)
    paths = ["good.png", "link.png", "../secret.png", "gone.png", "\0"]
    index.add(
        e,
        id=["a", "b", "c", "d", "e"],
        path=[str(inside / path) for path in paths],
        thumbnail=[b"small"] * 5,
    )
    gallery = Gallery(index, root=inside)
    assert gallery.picture(gallery.row("a")) == png()
    assert [gallery.picture(gallery.row(name)) for name in "bcde"] == [b"small"] * 4
    assert Gallery(index).picture(gallery.row("a")) == b"small", "no folder, no files"
    assert gallery.row("a")["label"] is None
    with pytest.raises(DataError, match="no image has the id"):
        gallery.row("x' or '1'='1")


def test_an_index_on_disk_is_served_with_its_pictures(service: Service, tmp_path: Path):
    pytest.importorskip("lancedb")
    folder = tmp_path / "images" / "red"
    folder.mkdir(parents=True)
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png((60 * i, 80, 30)))
    index_images(service.model, tmp_path / "images", tmp_path / "db")
    index = Index.open(tmp_path / "db", model=service.model)
    assert index.facts["images"] == str((tmp_path / "images").resolve())
    own = Service(service.model, Gallery(index, root=Path(index.facts["images"])))
    row = own.gallery.row(own.gallery.sample[0]["id"])
    assert own.gallery.picture(row) == Path(row["path"]).read_bytes()
    chosen = own.choose(row["id"])
    assert own.search(chosen.e, {}, k=1).hits[0]["id"] == row["id"]


def test_an_empty_index_cannot_be_served():
    with pytest.raises(DataError, match="no rows"):
        Gallery(Index.open("memory"))


def test_csv_of_hits_has_no_formulas():
    rows = [{"id": "1", "label": "=cmd()", "path": "a,b", "score": 0.5, "thumbnail": b"x"}]
    data = b64decode(hits_csv(rows).partition(",")[2]).decode()
    assert list(csv.DictReader(io.StringIO(data))) == [
        {"place": "1", "id": "1", "label": "'=cmd()", "path": "a,b", "score": "0.5"}
    ]


def test_scores_tell_the_gallery_from_what_is_far_away(service: Service):
    e = service.choose(service.gallery.sample[60]["id"]).e
    own, far = ({mark.name: mark for mark in service.score(x).marks} for x in (e, -e))
    assert not own["distance"].foreign
    assert far["distance"].foreign
    assert far["distance"].value > 1
    assert (own["distance"].share, far["distance"].share) < (0.95, 1)
    score = service.score(e)
    assert score.p.sum().item() == pytest.approx(1, abs=1e-5)
    assert score.views.shape == (64, len(score.classes))
    assert set(score.classes) <= set(service.gallery.labels), "a head was fitted to the labels"


def test_trust_ends_before_the_first_level_that_fails(service: Service):
    report = service.reports[0]
    rows = [row for row in report.rows if (row.param, row.steering) != ("hue", "map") or row.value is None]
    rows = [
        _row(row, None, 1, moved=1.0) if row.param == "hue" and row.value is None else row for row in rows
    ]
    made = next(row for row in report.rows if (row.param, row.steering) == ("hue", "map"))
    for value, error in ((-0.1, 0.1), (-0.05, 0.7), (0.05, 0.2), (0.1, 0.4)):
        rows.append(_row(made, value, error))
    found = trusted(_with(report, rows), "tiny")["hue"]
    assert (found.low, found.high) == (0, pytest.approx(0.1)), "beyond a failure nothing is trusted"
    assert set(service.trust) == {param.name for param in service.model.params}


def test_beyond_names_what_is_set_too_far():
    hue = Param("hue", "turn", -0.1, 0.1, period=1, step=0.005)
    trust = {"hue": Trust(hue, -0.05, 0.1, 0.3)}
    assert beyond(trust, {"hue": 0.1, "zoom": 3}) == []
    assert beyond(trust, {"hue": -0.08})
    assert beyond(trust, {"hue": 0.0}) == []
    assert trust["hue"].words == "trusted −0.05 to 0.1 turns"  # noqa: RUF001
    flip = Param("hflip", "switch", 0, 1, period=2, step=1)
    assert beyond({"hflip": Trust(flip, 0, 0, 0.9)}, {"hflip": 1.0}) == ["hflip on"]
    assert beyond({"hflip": Trust(flip, 0, 1, 0.9, still=True)}, {"hflip": 1.0}) == []


def test_an_audit_of_another_chain_is_refused(service: Service):
    report = service.reports[0]
    own = Service(service.model, service.gallery, name="tiny")
    with pytest.raises(ConfigError, match="parameters"):
        own.learn([_with(report, report.rows, params=report.params[:3])])


def test_uploads_are_upright_and_cut_as_the_index_cuts(service: Service):
    chosen = service.upload(png(size=(60, 40)), "x.png")
    assert torch.equal(chosen.pixels, as_float(decode(png(size=(60, 40)), size=32)))
    assert chosen.id is None


def _row(row: Row, value: float | None, error: float, moved: float = 1.0) -> Row:
    figures = {**row.figures, "relative_error": error, "invariance_level": moved}
    return dataclasses.replace(row, value=value, figures=figures)


def _with(report: AuditReport, rows, **changes) -> AuditReport:
    return dataclasses.replace(report, rows=tuple(rows), **changes)
