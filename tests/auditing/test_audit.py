"""Audits of encoders whose answers are known."""

import dataclasses
import io
import json

import audit_worlds as worlds
import pytest
import torch
from rich.console import Console

from steerable.auditing import AuditReport, audit
from steerable.data import ImageSet
from steerable.errors import ConfigError, DataError, ShapeError, SteerableError
from steerable.model import SteerableEncoder
from steerable.transforms import Brightness, Chain

SMALL = {"views": 12, "n_images": 20, "n_pool": 8, "strengths": 2}


@pytest.fixture(scope="module")
def report() -> AuditReport:
    models = {"exact": worlds.exact(), "unsteered": worlds.unsteered(), "blind": worlds.invariant()}
    return audit(models, worlds.images(), **SMALL)


@pytest.mark.parametrize("param", ["joint", "hue", "hflip"])
def test_the_true_map_predicts_everything(report: AuditReport, param: str):
    figures = report.figures(param=param, model="exact")
    assert figures["relative_error"] < 1e-6
    assert figures["relative_error_cosine"] < 1e-6
    assert figures["r2"] > 1 - 1e-5
    assert figures["invariance_level"] > 0.05
    if param != "hflip":
        assert figures["mrr"] > 0.98
        assert figures["hit_at_1"] > 0.95


def test_a_switch_has_no_ranks(report: AuditReport):
    figures = report.figures(param="hflip", model="exact")
    assert {figures[name] for name in ("mrr", "hit_at_1", "hit_at_5")} == {None}


@pytest.mark.parametrize("param", ["joint", "hue", "hflip"])
@pytest.mark.parametrize("steering", ["map", "identity"])
def test_no_steering_scores_one_exactly(report: AuditReport, param: str, steering: str):
    figures = report.figures(param=param, model="unsteered", steering=steering)
    assert figures["relative_error"] == 1
    assert figures["relative_error_cosine"] == 1


def test_no_steering_ranks_as_guessing_does(report: AuditReport):
    assert report.figures(model="unsteered")["mrr"] < report.chance["mrr"] + 0.15


def test_ridge_finds_what_a_first_order_map_can_do(report: AuditReport):
    figures = report.figures(model="unsteered", steering="ridge")
    assert figures["relative_error"] < 0.15  # not quite zero: hue and flip meet in products, and hue turns
    assert figures == pytest.approx(report.figures(model="exact", steering="ridge"), rel=1e-3)


@pytest.mark.parametrize("param", ["joint", "hue", "hflip"])
def test_an_invariant_encoder_does_not_move(report: AuditReport, param: str):
    figures = report.figures(param=param, model="blind")
    assert figures["invariance_level"] < 1e-6


def test_a_parameter_is_decoded_only_where_it_shows(report: AuditReport):
    bright = SteerableEncoder(worlds.quarters(), Chain([Brightness((-1.0, 0.0))]))
    seen = audit(bright, worlds.images(), **SMALL).figures(param="brightness")["decoding_r2"]
    assert seen is not None
    assert seen > 0.8
    unseen = report.figures(param="hflip", model="blind")["decoding_r2"]
    assert unseen is not None
    assert unseen < 0.1


def test_laws_of_the_true_map(report: AuditReport):
    for param in ("hue", "hflip"):
        figures = report.figures(param=param, model="exact")
        assert figures["law_identity"] < 1e-6
        assert figures["law_composition"] < 1e-5
        assert figures["law_inverse"] < 1e-5


def test_curves_go_from_weak_to_strong_on_both_sides(report: AuditReport):
    rows = report.curve("hue", model="unsteered", steering="map")
    assert [row.value for row in rows] == pytest.approx([-0.1, -0.05, 0.05, 0.1])
    moved = [row.figures["invariance_level"] for row in rows]
    assert moved[0] > moved[1]
    assert moved[3] > moved[2]
    assert [row.value for row in report.curve("hflip", model="unsteered", steering="map")] == [1]


def test_models_meet_the_same_views(report: AuditReport):
    alone = audit(worlds.unsteered(), worlds.images(), **SMALL)
    assert [row.figures for row in alone.rows] == [
        row.figures for row in report.rows if row.model == "unsteered"
    ]
    other = audit(worlds.unsteered(), worlds.images(), **SMALL, seed=1)
    assert other.figures() != alone.figures()


def test_passes_are_counted_and_announced():
    calls: list[tuple[int, int, str]] = []
    models = {"a": worlds.exact(), "b": worlds.unsteered()}
    report = audit(models, worlds.images(), **SMALL, progress=lambda *call: calls.append(call))
    done, total, _ = calls[-1]
    assert done == total == sum(model.passes for model in report.models)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert {"hue", "hflip"} <= {call[2] for call in calls}


def test_bytes_and_image_sets_are_taken():
    pixels = (worlds.images(12) * 255).round().to(torch.uint8)
    named = ImageSet(pixels, torch.zeros(12, dtype=torch.int64), (), ("",) * 12, name="squares")
    first, second = audit(worlds.exact(), named, **SMALL), audit(worlds.exact(), pixels, **SMALL)
    assert first.source == "squares"
    assert first.rows == second.rows


def test_neighbors_of_the_true_map_agree(report: AuditReport):
    examples = [example for example in report.examples if example.model == "exact"]
    assert len(examples) == 6
    for example in examples:
        assert example.steered == example.true
        assert example.view.image not in {view.image for view in example.true}


def test_json_round_trip(report: AuditReport, tmp_path):
    file = tmp_path / "deep" / "audit.json"
    report.save_json(file)

    def refuse(token: str):
        raise AssertionError(f"{token} is not JSON")

    data = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    assert AuditReport.from_dict(data) == report
    blind = [r for r in data["rows"] if (r["model"], r["param"], r["value"]) == ("blind", "hue", None)]
    assert blind[0]["figures"]["relative_error"] is None


@pytest.mark.parametrize(
    "spoil", [lambda d: d.pop("format"), lambda d: d.pop("rows"), lambda d: d.update(x=1)]
)
def test_a_foreign_file_is_refused(report: AuditReport, spoil):
    data = report.to_dict()
    spoil(data)
    with pytest.raises(DataError, match="save_json"):
        AuditReport.from_dict(data)


def test_table_shows_every_model_and_parameter(report: AuditReport):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for word in ("exact", "unsteered", "blind", "hue", "hflip", "identity (control)", "n/a", "12 views"):
        assert word in text
    assert "nan" not in text.lower()


def test_sentences(report: AuditReport):
    ignores, steers, distrust = report.sentences("exact")
    assert "none of the 2" in ignores
    assert "hue and hflip" in steers
    assert "predicted" in distrust
    assert "hue and hflip" in report.sentences("blind")[0]
    with pytest.raises(ConfigError, match="'blond'"):
        report.sentences("blond")


def test_a_lost_figure_is_an_error(report: AuditReport):
    with pytest.raises(ConfigError, match="'zoom'"):
        report.figures(param="zoom")


@pytest.mark.parametrize(
    ("images", "settings", "error"),
    [
        (worlds.images(3), {}, DataError),
        (worlds.images(8)[0], {}, ShapeError),
        (worlds.images(8) * float("nan"), {}, ShapeError),
        (worlds.images(8) * 255, {}, ShapeError),
        (worlds.images(8), {"views": 1}, ConfigError),
        (worlds.images(8), {"strengths": 0}, ConfigError),
    ],
)
def test_bad_input(images, settings: dict, error: type[SteerableError]):
    with pytest.raises(error, match="expected") as caught:
        audit(worlds.exact(), images, **(SMALL | settings))
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_compared():
    other = SteerableEncoder(worlds.quarters(), Chain([Brightness()]))
    with pytest.raises(ConfigError, match="different chains"):
        audit({"a": worlds.exact(), "b": other}, worlds.images())
    with pytest.raises(ConfigError, match="no models"):
        audit({}, worlds.images())


def test_the_report_is_frozen(report: AuditReport):
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.seed = 2  # pyright: ignore
