"""The example scripts run, at sizes that take seconds, and show what they say."""

import math
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)


def test_every_example_is_tested_here():
    tested = {
        "classify_with_views", "fit_embeddings_from_anywhere", "search_by_color", "steer_an_embedding",
        "train_on_photos",
    }  # fmt: skip
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_a_fitted_map_beats_doing_nothing():
    error = load("steer_an_embedding")["main"](n=600, size=16)
    assert error < 0.6


def test_more_features_fit_a_curved_world_better():
    errors = load("fit_embeddings_from_anywhere")["main"](n=2000)
    assert errors["linear"] < 0.05
    assert errors["linear+squares"] < errors["linear"] / 5


def test_steered_views_are_classified_beside_their_controls():
    accuracy = load("classify_with_views")["main"](n=300, size=16, views=20)
    assert accuracy["no views"] > 0.3, "ten classes"
    assert accuracy["chosen views, steered"] > accuracy["no views"] - 0.06
    assert len(accuracy) == 6


def test_a_steered_query_finds_the_recolored_image():
    found = load("search_by_color")["main"](n=400, size=16)
    assert found["steered"] > 2 * found["unsteered"]


def test_control_and_steerable_encoder_are_trained_and_audited(tmp_path: Path):
    page = tmp_path / "report.html"
    report = load("train_on_photos")["main"](epochs=1, size=16, width=4, images=128, views=5, out=page)
    assert [model.name for model in report.models] == ["control", "steerable"]
    assert report.figures(model="control", steering="identity")["relative_error"] == pytest.approx(1)
    for model in ("control", "steerable"):
        figures = report.figures(model=model, steering="ridge")
        assert all(value is None or math.isfinite(value) for value in figures.values())
    assert page.stat().st_size > 10_000
