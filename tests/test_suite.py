"""The suite of all evaluations: what is left out, what the few figures are taken from, and what is shared on disk."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bundles import build, tiny
from steerable.data import ImageSet
from steerable.evaluate import evaluate_steerability, evaluation_suite, headlines


def pictures(n: int = 60, seed: int = 0, labeled: bool = True) -> ImageSet:
    g = torch.Generator().manual_seed(seed)
    pixels = (255 * torch.rand(n, 3, 4, 4, generator=g)).to(torch.uint8).float()
    pixels = nn.functional.interpolate(pixels, 32, mode="bilinear").to(torch.uint8)
    labels = torch.arange(n) % 3 if labeled else torch.zeros(n, dtype=torch.int64)
    return ImageSet(
        pixels, labels, ("a", "b", "c") if labeled else (), tuple(map(str, range(n))), name="pictures"
    )


def test_what_lacks_its_data_is_left_out():
    bare, whole = build(tiny(), head=False), build(tiny())
    train = pictures(seed=1)
    parts = {"train": train, "test": pictures()}
    assert list(evaluation_suite(bare, pictures())) == ["steerability", "retrieval"]
    assert list(evaluation_suite(whole, pictures())) == ["robustness", "steerability", "tta", "retrieval"]
    assert list(evaluation_suite(whole, pictures(labeled=False), train=train)) == [
        "steerability",
        "ood",
        "retrieval",
    ]
    everything = ["transfer", "robustness", "steerability", "tta", "ood", "retrieval"]
    assert list(evaluation_suite(bare, pictures(), train=train, sets={"s": parts})) == everything


def test_evaluations_share_their_embeddings(tmp_path: Path, monkeypatch):
    pytest.importorskip("imagecorruptions")
    pytest.importorskip("pytorch_ood")
    monkeypatch.setattr("steerable.evaluate.suite.CORRUPTION_NAMES", ("contrast",))
    model, train = build(tiny(), head=False), pictures(80, seed=1)
    suite = evaluation_suite(model, pictures(70), train=train, cache=tmp_path)
    assert suite["robustness"]()["passes"] == 80 + 6 * 70  # of train, and clean and at five severities
    assert suite["robustness"]()["passes"] == 0
    monkeypatch.setattr(
        "steerable.evaluate.encoding.Encodings._encode", lambda *args: pytest.fail("encoded again")
    )
    figures = headlines({"ood": suite["ood"]()})
    assert figures.keys() == {"OOD AUROC, best single pass", "OOD AUROC, best steered"}


def test_headlines_are_the_figures_of_the_results():
    row = {"relative_error": 0.2, "r2": 0.7, "mrr": 0.6, "hit_at_1": 0.5}
    true = [
        {"method": "re-encoded", "gain": 0.01, "steered_gain": 0.02},
        {"method": "re-encoded", "gain": 0.03, "steered_gain": 0.01},
        {"method": "steered", "gain": 0.9},
    ]
    found = headlines(
        {
            "transfer": {"means": {"linear": 0.4, "knn": 0.3}},
            "robustness": {
                "summary": [{"clean_accuracy": 0.9, "accuracy": a} for a in (0.5, 0.6, 0.55)]
            },
            "steerability": {
                "rows": [
                    {"lead": False, "param": "joint", "relative_error": 9.0}, {"lead": True, "param": "joint", **row}
                ]
            },
            "tta": {"rows": true},
            "retrieval": {
                "hidden": [{"value": 0.1, "steered_hit1": 0.0}, {"value": None, "steered_hit1": 0.8}]
            },
        }
    )  # fmt: skip
    assert found == {
        "transfer, linear": 0.4, "transfer, kNN": 0.3, "clean accuracy": 0.9, "corrupted accuracy": 0.5,
        "corrupted accuracy, steered views": 0.6, "relative error": 0.2, "R2": 0.7, "MRR": 0.6, "Hit@1": 0.5,
        "best gain of re-encoded views": 0.03, "gain of the same views, steered": 0.01, "found first, steered": 0.8,
    }  # fmt: skip
    assert headlines({}) == {}


def test_steerability_is_the_audits_and_knows_each_models_leading_map():
    models = {"with": build(tiny(), head=False), "without": build(tiny(), "identity", head=False)}
    result = evaluate_steerability(models, pictures(24), views=4, n_images=6)
    joint = {(row["model"], row["map"]): row for row in result["rows"] if row["param"] == "joint"}
    assert joint["with", "map"]["lead"]
    assert not joint["with", "ridge"]["lead"]
    assert joint["without", "ridge"]["lead"]
    assert joint["without", "identity"]["relative_error"] == pytest.approx(1)
    hue = next(
        row for row in result["rows"] if (row["model"], row["map"], row["param"]) == ("with", "map", "hue")
    )
    assert {"law_identity", "law_composition", "law_inverse", "decoding_r2", "mrr"} <= hue.keys()
    assert hue["law_identity"] == pytest.approx(0, abs=1e-5)
    assert result["ranges"]["hue"] == [-0.1, 0.1]
