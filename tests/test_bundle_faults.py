"""Damaged, foreign and crafted bundles: each is refused in one line, and nothing in it is run."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bundles import FILES, build, own, refuse, resign, resum, same, tiny
from steerable.errors import BundleError
from steerable.model import SteerableEncoder


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[SteerableEncoder, Path]:
    model = build(tiny())
    folder = tmp_path_factory.mktemp("kept") / "bundle"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def bundle(kept, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(kept[1], tmp_path / "bundle"))


# damage


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found(bundle, name):
    data = (bundle / name).read_bytes()
    offsets = {0, 1, 7, 8, 9, len(data) // 3, len(data) // 2, len(data) - 2, len(data) - 1}
    for offset in sorted(offsets):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[offset] ^= flip
            (bundle / name).write_bytes(damaged)
            refuse(bundle, name)
    (bundle / name).write_bytes(data)
    SteerableEncoder.from_pretrained(bundle)


def test_bytes_all_over_the_config_count(bundle, monkeypatch):
    """Many more of them, since the slow part of loading must not even be reached."""
    path, data = bundle / "config.json", (bundle / "config.json").read_bytes()
    monkeypatch.setattr(
        "steerable.bundle.reading._verify_files", lambda *_: pytest.fail("damage was not seen")
    )
    for offset in range(0, len(data), 13):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << ((offset // 13) % 8)
        path.write_bytes(damaged)
        refuse(bundle, "config.json")


def test_an_exponents_case_counts(bundle):
    """1e-05 and 1E-05 are one number; the file still is not the one that was written."""
    resign(bundle, lambda c: c["steerable"]["chain"]["members"][0].update(aspect=1e-5))
    SteerableEncoder.from_pretrained(bundle)
    path = bundle / "config.json"
    path.write_text(path.read_text().replace("1e-05", "1E-05"))
    refuse(bundle, "does not match its checksum")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_found(bundle, name, share):
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: int(len(data) * share)])
    refuse(bundle, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(bundle, name):
    (bundle / name).unlink()
    refuse(bundle, f"has no {name}")


def test_line_endings_may_change(kept, bundle):
    path = bundle / "config.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    same(kept[0], SteerableEncoder.from_pretrained(bundle))


def test_swapped_weights_are_found(bundle, tmp_path):
    build(tiny(), seed=7).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "steering.safetensors", bundle)
    refuse(bundle, "steering.safetensors does not match its checksum")


# foreign folders


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "x.pkl", "x.ckpt"])
def test_pickles_are_refused(bundle, name, kept):
    torch.save({"weight": torch.zeros(1)}, bundle / name)
    refuse(bundle, f"holds {name}, which may run code")
    with pytest.raises(BundleError, match="may run code"):
        kept[0].save_pretrained(bundle)


def test_a_pickle_under_a_safe_name_is_never_unpickled(bundle):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("code was run",)

    torch.save({"weight": Trap()}, bundle / "model.safetensors", pickle_protocol=4)
    resum(bundle, "model.safetensors")
    refuse(bundle, "its encoder cannot be rebuilt")


def test_foreign_folders(tmp_path):
    refuse(tmp_path, "has no config.json")
    for text, message in (
        ("", "is damaged"),
        ("[1, 2]", "no section 'steerable'"),
        ('{"architecture": "resnet18"}', "no section 'steerable'.*load_encoder"),
        ('{"steerable": 3}', "no section 'steerable'"),
        ('{"steerable": {}}', "format None; this version reads 1"),
        ("[" * 100_000, "is damaged"),
    ):
        (tmp_path / "config.json").write_text(text)
        refuse(tmp_path, message)
    refuse(tmp_path / "config.json", "is a file; expected a bundle's folder")
    refuse(tmp_path / "a" / "b", "is no folder, and no Hub id")


def test_foreign_files_are_not_overwritten(tmp_path, kept):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(BundleError, match=r"config.json that is no bundle's.*choose another"):
        kept[0].save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(BundleError, match="is a file; expected a folder"):
        kept[0].save_pretrained(tmp_path / "config.json")


def test_overwriting_a_bundle(bundle):
    model = build(tiny(), seed=9)
    model.save_pretrained(bundle)
    same(model, SteerableEncoder.from_pretrained(bundle))


def test_a_failed_write_leaves_no_debris(bundle, kept, monkeypatch):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("steerable.bundle.writing.os.replace", full)
    with pytest.raises(BundleError, match=r"cannot be written .*No space left"):
        build(tiny(), seed=3).save_pretrained(bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    same(kept[0], SteerableEncoder.from_pretrained(bundle))


def test_half_precision_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"torch.float16; expected float32.*model.float\(\)"):
        build(own()).half().save_pretrained(tmp_path / "b")


# configs that match their checksum and still ask for what they should not


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["steerable"].update(format=2), "format 2; this version reads 1: pip install --upgrade"),
        (lambda c: c["steerable"].update(extra=2), "other entries than format 1"),
        (lambda c: c["steerable"].update(classes=["a", 2, "c"]), "other entries"),
        (lambda c: c["steerable"].update(encoder=[]), "other entries"),
        (lambda c: c["steerable"]["encoder"].pop("spec"), "other entries"),
        (
            lambda c: c["steerable"].update(files={"../../etc/passwd": "0", "steering.safetensors": "0"}),
            "lists .*passwd",
        ),
        (lambda c: c["steerable"]["files"].pop("model.safetensors"), "lists steering.safetensors; expected"),
        (lambda c: c.update(architecture="hf-hub:someone/model"), "architecture is 'hf-hub:someone/model'"),
        (lambda c: c.pop("architecture"), "its encoder cannot be rebuilt"),
        (lambda c: c["model_args"].update(checkpoint_path="/tmp/x.pth"), "model_args hold 'checkpoint_path'"),
        (
            lambda c: c["model_args"].update(pretrained_cfg={"file": "/tmp/x"}),
            "model_args hold 'pretrained_cfg'",
        ),
        (lambda c: c["model_args"].update(pretrained=True), "model_args hold 'pretrained'"),
        (lambda c: c["model_args"].update(stem_width=8), "of the encoder is .* in the file and"),
        (
            lambda c: c["steerable"]["encoder"]["preprocessing"].update(mean=[1]),
            "its encoder cannot be rebuilt",
        ),
        (lambda c: c["steerable"]["encoder"].update(fingerprint="0" * 64), "other weights"),
        (lambda c: c["steerable"]["chain"].update(members=[{"name": "evil"}]), "its chain cannot be rebuilt"),
        (
            lambda c: c["steerable"]["chain"].update(members=[{"name": "hue"}]),
            "d=32 and p=9, .* have 32 and 1",
        ),
        (lambda c: c["steerable"]["steering"].update(name="evil"), "its map cannot be rebuilt.*evil"),
        (lambda c: c["steerable"]["steering"].update(dim=10**7), "d=10000000"),
        (lambda c: c["steerable"]["steering"].update(name="shift"), "of the map is"),
        (lambda c: c["steerable"]["steering"].pop("n_params"), "its map cannot be rebuilt"),
        (lambda c: c["steerable"].update(classes=["a"]), "its model cannot be rebuilt.*1 classes"),
    ],
)
def test_crafted_configs_are_refused(bundle, edit, message):
    resign(bundle, edit)
    refuse(bundle, message)


def test_crafted_weights_are_refused(bundle):
    path = bundle / "steering.safetensors"
    tensors = safetensors.torch.load_file(path)
    for change, message in (
        ({"head.weight": torch.zeros(3)}, "its map cannot be rebuilt"),
        ({"head.bias": torch.zeros(4)}, "bias of the head is"),
        ({"steering.extra": torch.zeros(4)}, "extra of the map is"),
        ({"steering.bias": tensors["steering.bias"].double()}, "bias of the map is .*float64"),
    ):
        safetensors.torch.save_file(tensors | change, path)
        resum(bundle, path.name)
        refuse(bundle, message)
