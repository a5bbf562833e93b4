"""Steered search with figures: exact maps must equal the ceiling, and ranks a plain count."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bundles import build, tiny
from steerable.cli import main
from steerable.data import ImageSet, photos
from steerable.encoders import Encoder
from steerable.errors import ConfigError, DataError
from steerable.evaluate.retrieval import KINDS, _ranks, attributes_of, evaluate_retrieval
from steerable.metrics import view_ranks
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Chain, HFlip, Hue, Saturation

SIDE = 8


@pytest.fixture(scope="module")
def muted() -> ImageSet:
    """40 photographs whose colors stay clear of clipping."""
    images = photos("test", size=SIDE).subset(range(0, 400, 10))
    return ImageSet(images.images // 4 + 96, images.labels, images.classes, images.paths, name="muted")


@pytest.fixture(scope="module")
def exact() -> SteerableEncoder:
    """Pixels as embeddings: a flip and one level of saturation are matrices on them, and the map holds these."""
    chain = Chain([HFlip(), Saturation((0.0, 1.0))])
    encoder = Encoder(nn.Flatten(), image_size=SIDE, mean=(0, 0, 0), std=(1, 1, 1))
    steering = steering_for(chain, encoder.dim, "basis")
    rows = torch.eye(SIDE)
    flip = torch.kron(torch.eye(3 * SIDE), rows.flip(0))
    gray = torch.ones(3, 1) @ torch.tensor([[0.299, 0.587, 0.114]])
    double = torch.kron(2 * torch.eye(3) - gray, torch.eye(SIDE * SIDE))
    with torch.no_grad():
        steering.weight.copy_(torch.stack([flip, double]) - torch.eye(encoder.dim))
    return SteerableEncoder(encoder, chain, steering)


def row(rows: list[dict], param: str) -> dict:
    return next(row for row in rows if row["param"] == param)


def test_an_exact_map_reaches_the_ceiling(exact, muted):
    steps: list[tuple[int, int, str]] = []
    result = evaluate_retrieval(
        exact, muted, queries=20, strengths=1, k=5, progress=lambda *step: steps.append(step)
    )
    assert (result["source"], result["gallery"], result["queries"]) == ("muted", 40, 20)
    assert steps[-1][:2] == (40 + 20 * (1 + 2 * 3),) * 2, (
        "gallery, queries, and both versions for three thetas"
    )
    for param in ("hflip", "saturation"):
        figures = row(result["hidden"], param)
        for figure in ("hit1", "hit5", "mrr", "hit1_kept", "mrr_kept"):
            assert figures[f"steered_{figure}"] == pytest.approx(figures[f"reencoded_{figure}"])
    flip = row(result["hidden"], "hflip")
    assert flip["steered_hit1"] == 1
    assert flip["unsteered_hit1"] < 1
    assert flip["gain_hit1"] == pytest.approx(1 - flip["unsteered_hit1"])
    assert flip["unsteered_hit1_kept"] == 0, "a plain query finds its own image first"
    assert [figures["param"] for figures in result["attributes"]] == ["saturation"]
    (color,) = result["attributes"]
    assert color["value"] == 1.0
    assert color["steered_match"] == pytest.approx(color["reencoded_match"])
    assert color["steered_move"] == pytest.approx(color["reencoded_move"], abs=1e-4)
    assert color["steered_move"] > 0
    json.dumps(result, allow_nan=False)


def test_the_identity_map_gains_nothing(exact, muted):
    plain = SteerableEncoder(exact.encoder, exact.chain)
    for figures in evaluate_retrieval(plain, muted, queries=10)["hidden"]:
        assert figures["steered_mrr"] == figures["unsteered_mrr"]
        assert (figures["gain_hit1"], figures["se_hit1"]) == (0, 0)


def test_values_are_pooled(exact, muted):
    rows = evaluate_retrieval(exact, muted, queries=10, strengths=3)["hidden"]
    values = [figures for figures in rows if figures["param"] == "saturation"]
    assert [figures["value"] for figures in values] == [None, *(pytest.approx(i / 3) for i in (1, 2, 3))]
    for kind in KINDS:
        mean = sum(figures[f"{kind}_mrr"] for figures in values[1:]) / 3
        assert values[0][f"{kind}_mrr"] == pytest.approx(mean)


def test_ranks_are_a_count(generator):
    cosines = (torch.randn(6, 9, generator=generator) * 2).round() / 4
    own, chosen = cosines[:, 4].clone(), torch.tensor([0, 2, 4, 4, 8, 1])
    found = _ranks(cosines, own, chosen)
    for b in range(6):
        others = [float(c) for n, c in enumerate(cosines[b]) if n != chosen[b]]
        for pool, rank in ((others, found[""][b]), (cosines[b].tolist(), found["_kept"][b])):
            ahead = sum(c > own[b] for c in pool)
            tied = sum(c == own[b] for c in pool)
            assert rank == 1 + ahead + tied // 2
    angles = torch.randn(1, 5, 3, generator=generator)
    query = torch.randn(1, 3, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(query[:, None], angles, dim=-1)
    kept = _ranks(cosine[:, :4], cosine[:, 4], torch.tensor([0]))["_kept"]
    assert kept == view_ranks(query, angles, torch.tensor([4])), "the project's own rank"


def test_attributes_follow_their_transforms(images):
    muted = 0.4 + 0.2 * images
    before = attributes_of(muted)
    turned = attributes_of(Chain([Hue()]).apply(muted, torch.full((len(muted), 1), 0.25)))
    i, q = before["hue"].T
    assert torch.allclose(turned["hue"].abs(), torch.stack([q, i], 1).abs(), atol=2e-3), "a quarter turn"
    assert torch.allclose(turned["brightness"], before["brightness"], atol=1e-4)
    stronger = attributes_of(Chain([Saturation()]).apply(muted, torch.full((len(muted), 1), 0.5)))
    assert torch.allclose(stronger["saturation"], before["saturation"] * 2**0.5, atol=1e-4)


def test_settings_that_measure_nothing_are_refused(exact, muted):
    with pytest.raises(ConfigError, match="k is 0"):
        evaluate_retrieval(exact, muted, k=0)
    with pytest.raises(DataError, match="make no gallery"):
        evaluate_retrieval(exact, muted.subset([3]))


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    build(tiny(), head=False).save_pretrained(tmp_path / "bundle")
    words = ["eval", "retrieval", str(tmp_path / "bundle"), "--images", "photos", "--gallery", "40"]
    assert main([*words, "--queries", "8", "--strengths", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "8 queries, gallery of 40 (photos:test)" in out
    assert "saturation" in out
    written = json.loads((tmp_path / "retrieval.json").read_text())
    assert written["bundle"]["gallery"] == 40
    assert (tmp_path / "retrieval.png").stat().st_size > 5000
