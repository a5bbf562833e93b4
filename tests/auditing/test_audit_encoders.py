"""Encoders alone, their layers, and what models cost and kept."""

import io
import json
from pathlib import Path

import audit_worlds as worlds
import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import save_file

from steerable import fit
from steerable.auditing import AuditReport, audit
from steerable.auditing.plan import make_plan
from steerable.auditing.tables import ladder
from steerable.cli import main
from steerable.data import ImageSet
from steerable.encoders import Encoder, Neck, load_encoder, resnet_width
from steerable.errors import ConfigError, FitError
from steerable.model import SteerableEncoder
from steerable.transforms import Brightness, Chain

SMALL = {"views": 6, "n_images": 12, "n_pool": 6, "strengths": 1}
STAGES = ["stage0", "stage1", "stage2", "stage3", "stage4", "final"]


@pytest.fixture(scope="module")
def network() -> Encoder:
    torch.manual_seed(0)
    return load_encoder("timm/resnet10t", pretrained=False, width=4, image_size=32)


def layered(encoder: Encoder, layers: str) -> Encoder:
    return Encoder(encoder.network, **encoder.preprocessing(), layers=layers, statistics="mean+std")


def close(found: dict, wanted: dict) -> None:
    for name, value in found.items():
        assert value == (None if wanted[name] is None else pytest.approx(wanted[name], rel=1e-3, abs=1e-5)), (
            name
        )


@pytest.fixture(scope="module")
def deep(network: Encoder) -> AuditReport:
    return audit({"net": network}, worlds.images(), chain=worlds.CHAIN, depth=True, **SMALL)


def test_an_encoder_alone_is_one_without_a_map():
    alone = audit(worlds.quarters(), worlds.images(), chain=worlds.CHAIN, **SMALL)
    assert alone.rows == audit(worlds.unsteered(), worlds.images(), **SMALL).rows
    assert alone.models[0].lead == "ridge"
    assert "without a map" in alone.notes[0]
    assert "28 images that are not measured" in alone.notes[0]
    assert len(alone.examples) == 6


def test_an_encoder_alone_takes_the_chain_beside_it():
    report = audit({"alone": worlds.quarters(), "exact": worlds.exact()}, worlds.images(12), **SMALL)
    assert report.chain == worlds.CHAIN.config()
    report = audit(worlds.quarters(), worlds.images(8), **(SMALL | {"n_images": 2}))
    assert report.chain == Chain.preset("simclr").config()
    with pytest.raises(ConfigError, match="chain= and model 'exact' have different chains"):
        audit({"exact": worlds.exact()}, worlds.images(12), chain=Chain([Brightness()]))


def test_layers_are_measured_by_the_same_passes(network: Encoder, deep: AuditReport):
    shallow = audit({"net": network}, worlds.images(), chain=worlds.CHAIN, **SMALL)
    assert deep.models[0].passes == shallow.models[0].passes
    assert not shallow.depth
    for one, other in zip(deep.rows, shallow.rows, strict=True):
        assert (one.steering, one.param, one.value) == (other.steering, other.param, other.value)
        if "law_identity" not in one.figures:  # decoding and laws divide by less
            close(one.figures, other.figures)


def test_a_layer_measures_as_an_encoder_of_that_layer_does(network: Encoder, deep: AuditReport):
    alone = audit(layered(network, "stage2"), worlds.images(), chain=worlds.CHAIN, **SMALL)
    for param in ("joint", "hue", "hflip"):
        row = next(row for row in deep.layers("net", param) if row.layer == "stage2")
        wanted = alone.figures(param=param, steering="ridge")
        close(row.figures, wanted)
        assert row.dim == alone.models[0].dim
    assert [row.layer for row in deep.layers("net")] == STAGES


def test_depth_leaves_layers_and_neck_of_the_model_as_they_are(network: Encoder):
    joined = layered(network, "stage1,final")
    raw = joined.raw(worlds.images())
    model = SteerableEncoder(joined.with_neck(Neck.standardizing(raw, joined.layers)), worlds.CHAIN)
    one, other = (audit(model, worlds.images(), depth=depth, **SMALL) for depth in (True, False))
    assert {row.layer for row in one.depth} == set(STAGES)
    close(one.figures(steering="ridge"), other.figures(steering="ridge"))


def test_joined_layers_of_an_encoder_alone_are_standardized(network: Encoder):
    joined = layered(network, "all")
    report = audit(joined, worlds.images(), chain=worlds.CHAIN, **SMALL)
    plan = make_plan(40, **SMALL, generator=torch.Generator().manual_seed(0))
    neck = Neck.standardizing(joined.raw(worlds.images()[plan.ridge]), joined.layers)
    wanted = audit(SteerableEncoder(joined.with_neck(neck), worlds.CHAIN), worlds.images(), **SMALL)
    for one, other in zip(report.rows, wanted.rows, strict=True):
        close(one.figures, other.figures)


def test_networks_that_show_no_layers_are_refused():
    with pytest.raises(ConfigError, match="expected a timm network"):
        audit(worlds.exact(), worlds.images(), depth=True, **SMALL)


def test_depth_in_table_page_and_file(deep: AuditReport, tmp_path: Path):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(deep.table())
    text = console.export_text()
    assert "net, layer by layer" in text
    assert all(stage in text for stage in STAGES)
    deep.save_html(tmp_path / "deep.html")
    page = (tmp_path / "deep.html").read_text()
    told = ", ".join(f"{row.layer} {row.figures['relative_error']:.2f}" for row in deep.layers("net"))
    assert f'aria-label="Relative error by layer, all parameters together: {told}"' in page
    deep.save_json(tmp_path / "deep.json")
    assert AuditReport.from_dict(json.loads((tmp_path / "deep.json").read_text())) == deep
    older = deep.to_dict()
    del older["depth"]
    assert AuditReport.from_dict(older).depth == ()


def test_wide_embeddings_are_read_through_a_projection(monkeypatch: pytest.MonkeyPatch):
    full = audit(worlds.unsteered(), worlds.images(), **SMALL).figures(steering="ridge")
    monkeypatch.setattr("steerable.fitting.closed._UNKNOWNS", 20)  # 2 (12 + 1) are more
    projected = audit(worlds.unsteered(), worlds.images(), **SMALL).figures(steering="ridge")
    assert projected["relative_error"] != full["relative_error"]
    assert projected["relative_error"] < 0.7


def test_a_ridge_map_that_cannot_be_fitted_is_named(monkeypatch: pytest.MonkeyPatch):
    def refuse(*pairs: object, **settings: object):
        raise FitError("no room")

    monkeypatch.setattr("steerable.auditing.measurement.fit_embeddings", refuse)
    report = audit(worlds.unsteered(), worlds.images(12), **SMALL)
    assert {row.steering for row in report.rows} == {"map", "identity"}
    assert report.notes == ("model: no ridge map: no room",)
    assert "cannot be steered" in report.sentences()[1]
    report.table()


def test_what_models_cost_and_kept(tmp_path: Path):
    pixels = (worlds.images() * 255).round().to(torch.uint8)
    pixels[::2, 0] = pixels[1::2, 2] = 0  # two classes: without red and without blue
    labels = torch.arange(len(pixels)) % 2
    named = ImageSet(pixels, labels, ("blue", "red"), ("",) * len(pixels))
    fitted = fit(worlds.quarters(), worlds.images(12), worlds.CHAIN, views=2)
    fitted.record = {"passes": 36, "seconds": 1.5, "pairs": 24}
    models = {"fitted": fitted, "other": worlds.unsteered()}
    report = audit(models, named, **SMALL)
    assert report.models[0].neighbor_accuracy == 1
    assert (report.models[0].fit_passes, report.models[0].fit_seconds) == (36, 1.5)
    header, first, second = ladder(report)
    assert header[-3:] == ["kNN accuracy", "passes to fit", "seconds to fit"]
    assert first[-3:] == ["100.0%", "36", "2"]
    assert second[-2:] == ["n/a", "n/a"]
    report.save_html(tmp_path / "r.html")
    assert "passes to fit" in (tmp_path / "r.html").read_text()
    unlabeled = ImageSet(pixels, labels * 0, (), ("",) * len(pixels))
    assert audit(worlds.exact(), unlabeled, **SMALL).models[0].neighbor_accuracy is None


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    narrow = resnet_width(4)
    weights = timm.create_model("resnet10t", num_classes=0, **narrow).state_dict()
    (tmp_path / "tiny").mkdir()
    save_file(weights, tmp_path / "tiny" / "model.safetensors")
    config = {"architecture": "resnet10t", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config | {"model_args": narrow}))
    monkeypatch.chdir(tmp_path)
    options = ["--images", "photos", "--n-images", "4", "--views", "3", "--limit", "12", "--json"]
    words = ["audit", "timm/local-dir:tiny", "--chain", "photometric", "--layers", "stage1,final", "--depth"]
    assert main([*words, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in report["models"]] == ["tiny"]
    assert {row["layer"] for row in report["depth"]} == set(STAGES)
    assert {param["name"] for param in report["params"]} == {"brightness", "contrast", "saturation", "hue"}
    assert main(["audit", "elsewhere", "--layers", "all", *options]) == 2
    assert "expected timm/NAME" in capsys.readouterr().err
