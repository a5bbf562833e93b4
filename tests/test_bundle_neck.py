"""Bundles with layers, necks and records: they come back equal, older ones load, and what does not fit is told."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from bundles import Own, build, images, own, refuse, resign, resum, same, tiny
from steerable.encoders import Encoder, Neck, load_encoder
from steerable.errors import BundleError
from steerable.model import SteerableEncoder, steering_for


def necked(encoder: Encoder, **adapter: int) -> Encoder:
    return encoder.with_neck(Neck.standardizing(encoder.raw(images()), encoder.layers, **adapter))


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[SteerableEncoder, Path]:
    model = build(necked(tiny(layers="stage0,final"), out=6))
    folder = tmp_path_factory.mktemp("kept") / "bundle"
    model.save_pretrained(folder)
    return model, folder


def test_layers_and_neck_round_trip(kept, tmp_path):
    model, folder = kept
    loaded = SteerableEncoder.from_pretrained(folder)
    same(model, loaded)
    assert (loaded.dim, loaded.encoder.raw_dim) == (6, model.encoder.raw_dim)
    assert loaded.encoder.layers == model.encoder.layers
    assert loaded.encoder.fingerprint() == model.encoder.fingerprint()
    assert all(p.requires_grad for p in loaded.encoder.neck.parameters())
    loaded.save_pretrained(tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    assert "of stage0, final (mean+std+grid): 6 numbers" in (folder / "README.md").read_text()
    assert "with a trained adapter" in (folder / "README.md").read_text()


def test_the_network_stays_timms(kept):
    model, folder = kept
    network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    final = model.encoder.layers["final"]
    with torch.no_grad():
        e = network(model.encoder.preprocess(images()))
    torch.testing.assert_close(e, model.encoder.raw(images())[:, final])
    pretrained = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert "layers" not in pretrained


@pytest.mark.parametrize("adapter", [{}, {"hidden": 5}, {"hidden": 5, "out": 4}])
def test_every_neck_on_a_module_of_ones_own(tmp_path, adapter):
    model = build(necked(own(), **adapter))
    model.save_pretrained(tmp_path)
    same(model, SteerableEncoder.from_pretrained(tmp_path, encoder=Own()))
    same(model, SteerableEncoder.from_pretrained(tmp_path, encoder=Encoder(Own(), neck=Neck(5))))


def test_a_reference_keeps_the_neck(kept, tmp_path):
    encoder = necked(load_encoder(f"timm/local-dir:{kept[1]}", layers="stage2,final"), out=3)
    model = SteerableEncoder(encoder, "simclr", steering_for("simclr", 3), record={"seconds": 2.5})
    model.save_pretrained(tmp_path, store_encoder=False)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = SteerableEncoder.from_pretrained(tmp_path)
    same(model, loaded)
    assert loaded.record == {"seconds": 2.5}
    resign(tmp_path, lambda c: c["steerable"]["encoder"]["spec"].update(layers=["stage1", "final"]))
    refuse(tmp_path, r"it has layers \['stage1', 'final'\] for \['stage2', 'final'\]; expected fingerprint")
    resign(tmp_path, lambda c: c["steerable"]["encoder"]["spec"].update(layers=None))
    refuse(tmp_path, "it has layers None for .*, statistics None for mean")


# records


def test_records_come_back_and_leave_the_fingerprint_alone(tmp_path):
    record = {"seconds": 1.5, "figures": {"mrr": [0.25, 0.5]}, "passes": 3, "note": "ä"}
    parts = own(), "photometric", None
    model, bare = SteerableEncoder(*parts, record=record), SteerableEncoder(*parts)
    assert (model.record, bare.record) == (record, {})
    assert model.fingerprint() == bare.fingerprint()
    model.save_pretrained(tmp_path / "a")
    bare.save_pretrained(tmp_path / "b")
    assert SteerableEncoder.from_pretrained(tmp_path / "a", encoder=Own()).record == record
    assert SteerableEncoder.from_pretrained(tmp_path / "b", encoder=Own()).record == {}
    for value in (object(), float("nan")):
        model.record["bad"] = value
        with pytest.raises(BundleError, match="record or a setting is not JSON"):
            model.save_pretrained(tmp_path / "c")
    assert not (tmp_path / "c").exists()


# bundles of before, and crafted ones


def test_bundles_without_the_new_entries_load(tmp_path):
    model = build(tiny())
    model.save_pretrained(tmp_path)
    resign(tmp_path, older)
    same(model, SteerableEncoder.from_pretrained(tmp_path))


def older(config: dict) -> None:
    encoder = config["steerable"]["encoder"]
    assert encoder.pop("neck") is None
    del encoder["spec"]["layers"], encoder["spec"]["statistics"]
    assert "record" not in config["steerable"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda neck: neck.update(width=7), r"weight of the neck is \(6, .* in the file and \(6, 7\)"),
        (lambda neck: neck.update(out=10**12), "adapter.bias of the neck is .* in the file and .10000000"),
        (lambda neck: neck.update(out=None), "adapter.bias of the neck is .* in the file and nothing"),
        (lambda neck: neck.update(evil=1), "cannot be rebuilt .*evil"),
        (lambda neck: neck.clear(), "cannot be rebuilt"),
    ],
)
def test_crafted_necks_are_refused(kept, tmp_path, edit, message):
    kept[0].save_pretrained(tmp_path)
    resign(tmp_path, lambda c: edit(c["steerable"]["encoder"]["neck"]))
    refuse(tmp_path, message)


def test_a_neck_of_another_encoder_is_refused(kept, tmp_path):
    kept[0].save_pretrained(tmp_path)
    path = tmp_path / "steering.safetensors"
    tensors = safetensors.torch.load_file(path)
    wrong = Neck(9, out=6).state_dict()
    safetensors.torch.save_file(tensors | {f"neck.{key}": value for key, value in wrong.items()}, path)
    resign(tmp_path, lambda c: c["steerable"]["encoder"]["neck"].update(width=9))
    resum(tmp_path, path.name)
    refuse(tmp_path, "neck takes embeddings of width 9 and the encoder gives")
    path.write_bytes(b"not tensors")
    resum(tmp_path, path.name)
    refuse(tmp_path, "steering.safetensors cannot be rebuilt")
