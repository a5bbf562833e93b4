"""The API: the service's answers as JSON, and everything that must be refused; the server lives on afterwards."""

import io
import json
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator

import httpx
import pytest
import torch
from app_world import BOUNDS, Running, png, running, text
from PIL import Image

from steerable.app import Service

TOKEN = "a-long-enough-token"


@pytest.fixture(scope="module")
def api(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def _alive(api: httpx.Client) -> Iterator[None]:
    """After each test the server answers."""
    yield
    assert api.get("/api/health").json()["status"] == "ok"


def failure(answer: httpx.Response, status: int) -> str:
    """The message of a refusal, which shows nothing of the inside."""
    assert answer.status_code == status, answer.text[:300]
    message = answer.json()["error"]
    assert "Traceback" not in answer.text
    assert "steerable/" not in answer.text, "no path of the code"
    assert "; expected" in message
    return message


def test_health_says_what_is_served(api: httpx.Client, service: Service):
    found = api.get("/api/health").json()
    assert (found["rows"], found["dim"], found["model"]) == (service.gallery.rows, service.model.dim, "tiny")
    assert [param["name"] for param in found["params"]] == [param.name for param in service.model.params]


def test_answers_are_those_of_the_python_api(api: httpx.Client, service: Service):
    e = torch.tensor(api.post("/api/encode", json={"images": [text(png())]}).json()["embeddings"])
    assert torch.equal(e, service.encode([png()]))
    thetas = [{"hue": 0.05}, {}, {"zoom": 3.0}]
    found = api.post("/api/steer", json={"embeddings": e.tolist(), "thetas": thetas}).json()
    wanted = service.model.orbit(e, torch.stack([service.model.theta(**theta) for theta in thetas]))
    assert torch.equal(torch.tensor(found["steered"]), wanted.detach())
    assert found["outside"] == [[], [], ["zoom"]]
    query = {"theta": {"hue": 0.05}, "k": 5, "where": "label != 'cat'"}
    wanted_ids = [row["id"] for row in service.search(e[0], {"hue": 0.05}, k=5, where="label != 'cat'").hits]
    for asked in ({"embedding": e[0].tolist()}, {"image": text(png())}):
        hits = api.post("/api/search", json={**query, **asked}).json()["hits"]
        assert [hit["id"] for hit in hits] == wanted_ids
    row = service.gallery.sample[0]
    hits = api.post("/api/search", json={"id": row["id"], "k": 1}).json()["hits"]
    assert hits[0]["id"] == row["id"]
    assert "thumbnail" not in hits[0]
    thumbnail = api.get(f"/api/thumbnail/{row['id']}")
    assert (thumbnail.content, thumbnail.headers["content-type"]) == (row["thumbnail"], "image/jpeg")
    score = api.post("/api/score", json={"embedding": e[0].tolist()}).json()
    assert sum(score["merged"].values()) == pytest.approx(1, abs=1e-4)
    assert score["scores"]["distance"]["score"] == pytest.approx(
        {mark.name: mark.value for mark in service.score(e[0]).marks}["distance"]
    )


def test_metrics_count(api: httpx.Client):
    before, after = (_count(api) for _ in range(2))
    assert after == before + 1
    page = api.get("/api/metrics").text
    assert "steerable_encoder_turns_total" in page
    assert 'steerable_request_seconds_bucket{route="/api/health",le="+Inf"}' in page


def _count(api: httpx.Client) -> int:
    api.get("/api/health")
    line = 'steerable_requests_total{route="/api/health",status="200"} '
    return int(
        next(row for row in api.get("/api/metrics").text.splitlines() if row.startswith(line))[len(line) :]
    )


@pytest.mark.parametrize(
    ("path", "request_", "message"),
    [
        ("search", {"id": "x", "k": 10**12}, "body.k"),
        ("search", {"id": "x", "k": 0}, "body.k"),
        ("search", {"id": "x", "k": 999, "offset": 999}, "k is 999"),
        ("search", {"id": "x", "theta": {"hue": "NaN"}}, "finite"),
        ("search", {"id": "x", "theta": {"hue": 1e999}}, "finite"),
        ("search", {"id": "x", "theta": {"huee": 1}}, "did you mean hue"),
        ("search", {"id": "x", "theta": {"zoom": 1e9}}, "zoom is 1e"),
        ("search", {"id": "x", "where": "1=1; drop table images"}, "cannot be read"),
        ("search", {"id": "x", "where": "(select count(*) from images a, images b) > 0"}, "cannot be read"),
        ("search", {"id": "x", "where": "label = 3 and and"}, "cannot be read"),
        ("search", {"id": "../../../etc/passwd"}, "no image has the id"),
        ("search", {"id": "x", "more": 1}, "Extra inputs"),
        ("search", {}, "nothing was given"),
        ("search", {"id": "x", "embedding": [1.0]}, "id and embedding|embedding and id"),
        ("search", {"embedding": [1.0]}, "shape"),
        ("search", {"embedding": [0.0] * 32}, "direction"),
        ("search", [], "body"),
        ("steer", {"embeddings": [[1.0], [1.0, 2.0]], "thetas": [{}]}, "widths 1 to 2"),
        ("steer", {"embeddings": [[1.0]] * 99, "thetas": [{}]}, "body.embeddings"),
        ("steer", {"embeddings": [[1e39] * 32], "thetas": [{}]}, "finite"),
        ("encode", {"images": ["no base64!"]}, "no base64"),
        ("encode", {"images": []}, "body.images"),
        ("score", {"image": text(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}, "no known format"),
        ("score", {"image": text(png()[:60])}, "cannot be decoded"),
        ("score", {"image": text(b"")}, "no known format"),
    ],
)
def test_refused(api: httpx.Client, service: Service, path: str, request_, message: str):
    if isinstance(request_, dict) and request_.get("id") == "x":
        request_ = {**request_, "id": service.gallery.sample[0]["id"]}
    # json.dumps and not json=: NaN and infinities go out as they are
    body = json.dumps(request_)
    answer = api.post(f"/api/{path}", content=body, headers={"content-type": "application/json"})
    assert re.search(message, failure(answer, 422))


@pytest.mark.parametrize("body", ["{", "NaN", "[" * 100_000, '{"id": "\\ud800"}', "\0", "9" * 5000])
def test_broken_json_is_refused(api: httpx.Client, body: str):
    answer = api.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "Traceback" not in answer.text


def test_a_decompression_bomb_is_refused_before_it_is_decoded(api: httpx.Client):
    side = 60_000
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100_000)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    began = time.perf_counter()
    assert "too large" in failure(api.post("/api/encode", json={"images": [text(bomb)]}), 422)
    assert time.perf_counter() - began < 5


def test_many_large_images_are_refused_together(api: httpx.Client):
    stream = io.BytesIO()
    Image.new("1", (6400, 6400)).save(stream, format="PNG")
    two = [text(stream.getvalue())] * 2
    assert "81,920,000 pixels" in failure(api.post("/api/encode", json={"images": two}), 422)


def test_formats_that_run_programs_are_refused(api: httpx.Client):
    stream = io.BytesIO()
    Image.new("RGB", (20, 20)).save(stream, format="EPS")
    assert "no known format" in failure(
        api.post("/api/encode", json={"images": [text(stream.getvalue())]}), 422
    )


def test_oversized_requests_are_refused(api: httpx.Client):
    big = b'{"images": ["' + b"A" * (BOUNDS.body + 10) + b'"]}'
    headers = {"content-type": "application/json"}
    assert "2 MB" in failure(api.post("/api/encode", content=big, headers=headers), 413)

    def parts() -> Iterator[bytes]:  # no length is told
        for start in range(0, len(big), 65_536):
            yield big[start : start + 65_536]

    assert "2 MB" in failure(api.post("/api/encode", content=parts(), headers=headers), 413)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/component_server",
        "/gradio_api/vibe-code",
        "/monitoring",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/api/thumbnail/..%2f..%2fetc%2fpasswd",
        "/api/thumbnail/%2fetc%2fpasswd",
        "/docs",
    ],
)
def test_nothing_else_is_served(server: Running, path: str):
    for method in ("GET", "POST"):  # raw: clients would tidy the path
        with socket.create_connection(("127.0.0.1", server.port), 5) as raw:
            head = "Host: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            raw.sendall(f"{method} {path} HTTP/1.1\r\n{head}".encode())
            answer = _all(raw)
        assert answer.split(b" ")[1] in (b"404", b"405", b"422", b"403"), answer[:200]
        assert b"root:" not in answer


def test_other_hosts_and_other_pages_are_refused(api: httpx.Client):
    assert "evil.example" in failure(api.get("/api/health", headers={"host": "evil.example"}), 421)
    assert "evil.example" in failure(api.get("/api/health", headers={"origin": "http://evil.example"}), 403)
    policy = api.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy, "nothing is asked of another host"


def test_slow_clients_are_hung_up_on(server: Running, api: httpx.Client):
    """A head that does not end, a body that does not end, and nothing at all."""
    starts = (
        b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"POST /api/encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"",
    )
    slow = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in starts]
    for raw, start in zip(slow, starts, strict=True):
        raw.sendall(start)
    assert api.get("/api/health").status_code == 200, "others are served meanwhile"
    answers = [_all(raw) for raw in slow]
    assert answers[0] == b""
    assert b" 408 " in answers[1]
    assert answers[2] == b""


def _all(raw: socket.socket) -> bytes:
    raw.settimeout(10)
    parts = []
    try:
        while part := raw.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    raw.close()
    return b"".join(parts)


def test_a_token_is_asked_of_everybody(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("steerable.app.guard.WRONG", 0.01)
    with running(service, token=TOKEN, hosts=None) as found, httpx.Client(base_url=found.url) as client:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": TOKEN},
            {"cookie": "steerable=x"},
        ):
            for path in ("/api/health", "/config", "/gradio_api/info", "/assets/index.js"):
                assert "token" in failure(client.get(path, headers=headers), 401)
        assert client.get("/api/health", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        page = client.get("/")
        assert (page.status_code, "<form" in page.text) == (401, True)
        wrong = client.post("/login", data={"token": "nope"})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
        right = client.post("/login", data={"token": TOKEN})
        assert (right.status_code, right.headers["location"]) == (303, "/")
        assert "HttpOnly; SameSite=Strict" in right.headers["set-cookie"]
        assert TOKEN not in right.headers["set-cookie"]
        assert client.get("/config").status_code == 200, "the cookie opens the page"


def test_a_full_queue_is_said(
    server: Running, service: Service, api: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service.door, "waiting", BOUNDS.waiting)
    answer = api.post("/api/encode", json={"images": [text(png())]})
    assert "wait for the encoder" in failure(answer, 503)
    assert answer.headers["retry-after"]
    e = [1.0] * service.model.dim
    assert api.post("/api/search", json={"embedding": e, "theta": {"hue": 0.1}}).status_code == 200, (
        "no encoder"
    )


def test_errors_inside_show_nothing(
    server: Running, service: Service, api: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret /home/me")

    monkeypatch.setattr(service.gallery, "search", broken)
    answer = api.post("/api/search", json={"embedding": [1.0] * service.model.dim})
    assert "something went wrong" in failure(answer, 500)
    assert "secret" not in answer.text


@pytest.mark.slow
def test_schemathesis_finds_no_error_of_the_server(server: Running):
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/api/openapi.json"),
        *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
        *("--max-examples", "60", "--seed", "1", "--workers", "1", "--max-response-time", "10"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert cases, done.stdout[-2000:]
    assert int(cases[1]) == int(cases[2]) > 100
