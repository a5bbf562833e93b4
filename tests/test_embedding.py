"""From images to an index and from an image to its answers, in Python and on the command line; bad pictures."""

import hashlib
import html
import importlib
import io
import json
import logging
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundles import build, tiny
from steerable.cli import main
from steerable.data import ImageSet, decode, photos
from steerable.data.images import as_float
from steerable.embedding import Indexed, index_images, search_image
from steerable.errors import BundleError, ConfigError, DataError, ThetaError
from steerable.model import SteerableEncoder
from steerable.retrieval import Index

pytest.importorskip("lancedb")
COMMANDS = ("index", "search")


@pytest.fixture(scope="module")
def model() -> SteerableEncoder:
    return build(tiny(), head=False)


@pytest.fixture(scope="module")
def pictures() -> ImageSet:
    return photos("test", size=32).subset(range(0, 120, 4))


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sound, odd and broken pictures."""
    folder = tmp_path_factory.mktemp("zoo")
    Image.fromarray(noise(0, 40, 50, 3)).save(folder / "plain.jpg")
    Image.fromarray(noise(1, 40, 50, 4), "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(2, 40, 50).astype(np.uint16) * 257).save(folder / "deep.png")
    frames = [Image.fromarray(noise(seed, 40, 50, 3)) for seed in (3, 4)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(5, 40, 50, 3)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(noise(6, 1, 1, 3)).save(folder / "one.png")
    (folder / "bomb.png").write_bytes(png_claiming(20_000, 20_000))
    (folder / "cut.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("not a picture")
    (folder / "copy.jpg").write_bytes((folder / "plain.jpg").read_bytes())
    return folder


SOUND = {"plain.jpg", "cmyk.jpg", "deep.png", "animated.gif", "turned.jpg"}
BROKEN = {"one.png", "bomb.png", "cut.jpg", "text.png"}


def test_images_are_found_again_by_what_steering_says(model, pictures, tmp_path: Path):
    done = index_images(model, pictures, tmp_path / "db", place="here")
    n = len(pictures)
    assert done == Indexed(n, 0, (), n, None)
    index = Index.open(tmp_path / "db", model=model)
    assert (index.facts["model"], index.facts["size"]) == ("here", 32)
    e = model.encode(as_float(pictures.images))
    hits = index.search(e[7], n)
    cosines = torch.nn.functional.cosine_similarity(e, e[7:8])
    assert hits[0]["path"] == pictures.paths[7]
    scores = torch.tensor([hit["score"] for hit in hits])
    own = dict(zip(pictures.paths, cosines.tolist(), strict=True))
    # values and not places, since an untrained network gives near ties: each image has its own, and the best come first
    torch.testing.assert_close(scores, torch.tensor([own[hit["path"]] for hit in hits]), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, cosines.sort(descending=True).values, atol=1e-5, rtol=0)
    first = hits[0]
    assert (first["label"], first["width"], first["height"]) == (
        pictures.classes[int(pictures.labels[7])],
        32,
        32,
    )
    small = decode(first["thumbnail"]).float()
    assert (small - pictures.images[7]).abs().mean() < 12, "its own picture, but for JPEG"

    stream = io.BytesIO()
    Image.fromarray(pictures.images[7].permute(1, 2, 0).numpy()).save(stream, "PNG")
    found = search_image(index, model, stream.getvalue(), {"hue": 0.05, "zoom": 1}, k=4, where="width = 32")
    wanted = index.search(model.steer(e[7:8], model.theta(hue=0.05, zoom=1)), 4)
    assert [hit["id"] for hit in found] == [hit["id"] for hit in wanted]
    assert found != search_image(index, model, stream.getvalue(), {}, k=4), "steering changes the answer"


def test_only_what_is_new_is_encoded(model, pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoded: list[int] = []
    encode = SteerableEncoder.encode
    monkeypatch.setattr(
        SteerableEncoder, "encode", lambda self, x, **kw: (encoded.append(len(x)), encode(self, x, **kw))[1]
    )
    index_images(model, pictures.subset(range(10)), tmp_path / "db")
    told: list[tuple[int, int, str]] = []
    again = index_images(model, pictures, tmp_path / "db", progress=lambda *step: told.append(step))
    n = len(pictures)
    assert (again.added, again.known, again.total) == (n - 10, 10, n)
    assert encoded == [10, n - 10]
    assert told[-1] == (n, n, "images")
    assert index_images(model, pictures, tmp_path / "db", limit=12).known == 12


def test_another_model_or_size_is_refused(model, pictures, tmp_path: Path):
    index_images(model, pictures.subset([0, 1]), tmp_path / "db")
    with pytest.raises(BundleError, match="expected the same encoder"):
        index_images(build(tiny(), head=False, seed=1), pictures, tmp_path / "db")
    with pytest.raises(ConfigError, match=r"size is 48 and the index at .* has 32"):
        index_images(model, pictures, tmp_path / "db", size=48)


def test_odd_pictures_are_handled_and_broken_ones_named(model, zoo: Path, tmp_path: Path, caplog):
    with caplog.at_level(logging.WARNING, "steerable"):
        done = index_images(model, str(zoo), tmp_path / "db")
    assert (done.added, done.known) == (len(SOUND), 1), "the copy is the same image"
    assert {Path(path).name for path, _ in done.skipped} == BROKEN
    reasons = {Path(path).name: reason for path, reason in done.skipped}
    assert "1x1 pixels" in reasons["one.png"]
    assert "is too large; expected at most 64,000,000 pixels" in reasons["bomb.png"]
    assert all("\n" not in reason for reason in reasons.values())
    assert sum(record.message.startswith("skipped ") for record in caplog.records) == len(BROKEN)
    rows = {
        Path(hit["path"]).name: hit for hit in Index.open(tmp_path / "db").search(torch.ones(model.dim), 20)
    }
    assert set(rows) - {"copy.jpg"} | {"plain.jpg"} == SOUND
    assert (rows["turned.jpg"]["width"], rows["turned.jpg"]["height"]) == (40, 50)
    assert (rows["deep.png"]["width"], rows["deep.png"]["height"]) == (50, 40)
    sides = {tuple(decode(hit["thumbnail"]).shape) for hit in rows.values()}
    assert sides == {(3, 96, 96)}, "made from the file, not from the 32 pixels that are encoded"
    assert rows["cmyk.jpg"]["id"] == hashlib.sha256((zoo / "cmyk.jpg").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", sorted(SOUND | BROKEN))
def test_a_query_of_any_kind_is_answered_or_refused_in_one_line(model, zoo: Path, name: str):
    index = Index.open()
    index.add(torch.eye(model.dim))
    if name in SOUND:
        assert len(search_image(index, model, zoo / name, {}, k=3)) == 3
        return
    with pytest.raises(DataError, match=re.escape(name)) as caught:
        search_image(index, model, zoo / name, {})
    assert "\n" not in str(caught.value)


def test_queries_beyond_the_range_are_warned_of(model, zoo: Path, caplog):
    index = Index.open()
    index.add(torch.eye(model.dim))
    with caplog.at_level(logging.WARNING, "steerable"):
        search_image(index, model, zoo / "plain.jpg", {"hue": 0.1, "zoom": 1.8})
        assert caplog.records == []
        search_image(index, model, zoo / "plain.jpg", {"hue": 0.2, "zoom": 1})
    assert [record.getMessage() for record in caplog.records] == [
        "hue = 0.2 is outside -0.1 to 0.1 turns, where the map was fitted: the answer is a guess"
    ]
    with pytest.raises(ThetaError, match="rotate is not a parameter"):
        search_image(index, model, zoo / "plain.jpg", {"rotate": 5})


def test_images_of_several_sizes_want_a_size(zoo: Path, tmp_path: Path):
    own = build(tiny(image_size=None, stem="cifar"), head=False)
    with pytest.raises(DataError, match=r"several sizes .* give size"):
        index_images(own, str(zoo), tmp_path / "db")
    assert index_images(own, str(zoo), tmp_path / "db2", size=24).added == len(SOUND)
    assert Index.open(tmp_path / "db2").facts["size"] == 24


# the command line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """main(words) -> exit code, stdout, stderr, with the two commands known."""
    module = importlib.import_module("steerable.cli.main")
    missing = tuple(name for name in COMMANDS if name not in module.COMMANDS)
    monkeypatch.setattr(module, "COMMANDS", module.COMMANDS + missing)

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_index_and_search_on_the_command_line(model, zoo: Path, tmp_path: Path, run):
    model.save_pretrained(tmp_path / "run" / "bundle")
    words = ("index", tmp_path / "run", "--images", zoo, "--out", tmp_path / "db")
    code, out, _ = run(*words)
    assert (code, out) == (0, f"5 added, 1 there already, 4 skipped; 5 in {tmp_path / 'db'}\n")
    assert run(*words)[1].startswith("0 added, 6 there already, 4 skipped; 5 in ")

    query = ("search", tmp_path / "db", "--image", zoo / "plain.jpg", "--hue", "0.3", "--zoom", "1")
    code, out, err = run(*query, "--html", tmp_path / "pages" / "out.html")
    assert code == 0
    assert len(out.splitlines()) == 1 + 5 + 1
    assert err == (
        "steerable: warning: hue = 0.3 is outside -0.1 to 0.1 turns, where the map was fitted: the answer is a guess\n"
    )
    page = (tmp_path / "pages" / "out.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert "zoom +1, hue +0.3" in html.unescape(page)

    code, out, _ = run(*query, "--json", "--where", "height = 50")
    found = json.loads(out)
    assert [Path(row["path"]).name for row in found["results"]] == ["turned.jpg"]
    assert found["theta"] == {"hue": 0.3, "zoom": 1.0}

    (tmp_path / "run").rename(tmp_path / "moved")
    code, _, err = run(*query)
    assert code == 2
    assert err.startswith("steerable: error: ")
    assert err.count("\n") == 1
    assert run(*query, "--model", tmp_path / "moved")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rotate", "5"), "rotate is not a parameter of this chain"),
        (("--where", "colour = 1"), "where is 'colour = 1'"),
        (("--model", "OTHER"), "expected the same encoder"),
    ],
)
def test_wrong_searches_are_one_line(model, pictures, zoo: Path, tmp_path: Path, run, words, message: str):
    model.save_pretrained(tmp_path / "bundle")
    build(tiny(), head=False, seed=2).save_pretrained(tmp_path / "OTHER")
    index_images(model, pictures, tmp_path / "db", place=str(tmp_path / "bundle"))
    given = [tmp_path / word if word == "OTHER" else word for word in words]
    code, out, err = run("search", tmp_path / "db", "--image", zoo / "plain.jpg", *given)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_searching_nothing_is_one_line(tmp_path: Path, zoo: Path, run):
    code, _, err = run("search", tmp_path / "none", "--image", zoo / "plain.jpg")
    assert code == 2
    assert "expected a gallery of steerable index" in err
    assert not (tmp_path / "none").exists()
