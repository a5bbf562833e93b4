"""Bundles: what is saved comes back equal, also through plain timm and through the Hub."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from bundles import FILES, Own, build, images, own, refuse, resign, same, tiny
from steerable.encoders import Encoder, load_encoder, small_stem
from steerable.errors import BundleError
from steerable.maps import MAPS
from steerable.model import SteerableEncoder, steering_for


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[SteerableEncoder, Path]:
    model = build(tiny())
    folder = tmp_path_factory.mktemp("kept") / "bundle"
    model.save_pretrained(folder)
    return model, folder


# round trips


@pytest.mark.parametrize(
    "make",
    [
        tiny,
        lambda: tiny(stem="cifar", image_size=None),
        lambda: load_encoder(
            "timm/vit_tiny_patch16_224",
            pretrained=False,
            image_size=32,
            model_args={"img_size": 32, "depth": 1},
        ),
    ],
    ids=["resnet", "cifar stem", "vit"],
)
def test_timm_round_trip(tmp_path, make):
    model = build(make())
    model.save_pretrained(tmp_path / "one")
    loaded = SteerableEncoder.from_pretrained(tmp_path / "one")
    assert not any(part.training for part in loaded.modules())
    same(model, loaded)
    loaded.save_pretrained(tmp_path / "two")
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize("map", MAPS)
def test_every_map_round_trips(tmp_path, map):
    model = build(own(), map, head=map != "identity")
    model.save_pretrained(tmp_path / "bundle")
    same(model, SteerableEncoder.from_pretrained(str(tmp_path / "bundle"), encoder=Own()))


def test_own_module_must_be_given(tmp_path):
    model = build(own())
    model.save_pretrained(tmp_path / "b")
    refuse(tmp_path / "b", r"module of your own.*encoder=YourModule\(\)")
    refuse(tmp_path / "b", r"first.bias of the encoder is \(5,\).* in the file and \(6,\)", encoder=Own(6))
    refuse(tmp_path / "b", "bias of the encoder is nothing in the file", encoder=nn.Linear(3, 5))
    same(model, SteerableEncoder.from_pretrained(tmp_path / "b", encoder=Encoder(Own())))
    with pytest.raises(BundleError, match=r"which no name leads back to.*store_encoder=True"):
        model.save_pretrained(tmp_path / "c", store_encoder=False)


def test_reference_only(tmp_path, kept):
    weights = f"timm/local-dir:{kept[1]}"
    model = build_untrained(load_encoder(weights))
    folder = tmp_path / "reference"
    model.save_pretrained(folder)
    model.save_pretrained(folder, store_encoder=False)  # over a bundle that stored it
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "steering.safetensors",
    ]
    same(model, SteerableEncoder.from_pretrained(folder))
    same(model, SteerableEncoder.from_pretrained(folder, encoder=load_encoder(weights)))
    refuse(folder, "not the one that the bundle was made with: it has other weights", encoder=tiny().network)

    resign(folder, lambda c: c["steerable"]["encoder"]["spec"].update(image_size=48))
    refuse(folder, "it has image_size 48 for 32; expected fingerprint")

    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    with pytest.raises(BundleError, match=r"no longer those that .* stands for"):
        model.save_pretrained(tmp_path / "no", store_encoder=False)
    assert not (tmp_path / "no").exists()


def build_untrained(encoder: Encoder) -> SteerableEncoder:
    return SteerableEncoder(encoder, "simclr", steering_for("simclr", encoder.dim))


def test_encoder_loads_in_plain_timm(kept):
    model, folder = kept
    network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(network)
    assert config["input_size"] == (3, 32, 32)
    assert config["crop_pct"] == 1.0
    with torch.no_grad():
        torch.testing.assert_close(network(model.encoder.preprocess(images())), model.encode(images()))
    again = load_encoder(f"timm/local-dir:{folder}")
    assert again.preprocessing() == model.encoder.preprocessing()
    assert torch.equal(again.encode(images()), model.encode(images()))


def test_card_says_how_to_load(tmp_path):
    model = build(tiny(stem="cifar", image_size=None))
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: steerable\n")
    assert "| hue | turn | -0.1 | 0.1 | 1 |" in card
    code = card.split("```python")[2].split("```")[0]
    assert "small_stem" in code
    names = {"config": json.loads((tmp_path / "config.json").read_text()), "small_stem": small_stem}
    exec(code.replace("FOLDER", str(tmp_path)), names)
    with torch.no_grad():
        e = names["network"].eval()(model.encoder.preprocess(images()))
    torch.testing.assert_close(e, model.encode(images()))


def test_own_card_is_kept_and_ours_is_renewed(tmp_path):
    model = build(own())
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(card.replace("# A steerable", "# Outdated"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    SteerableEncoder.from_pretrained(tmp_path, encoder=Own())


# the Hub


def test_push_to_hub_uploads_a_bundle(monkeypatch, kept, tmp_path):
    seen = {}

    class Api:
        def __init__(self, token=None):
            seen["token"] = token

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, folder_path, repo_id, **_):
            seen["repo"] = repo_id
            seen["names"] = sorted(path.name for path in Path(folder_path).iterdir())
            same(kept[0], SteerableEncoder.from_pretrained(folder_path))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert kept[0].push_to_hub("moving", token="t") == "https://hub/commit"
    assert seen == {"token": "t", "repo": "me/moving", "names": ["README.md", *FILES]}
    assert kept[0].save_pretrained(tmp_path / "named", push_to_hub=True) == "https://hub/commit"
    assert seen["repo"] == "me/named"


def test_from_the_hub(monkeypatch, kept):
    def snapshot(repo_id, *, allow_patterns, **hub):
        assert repo_id == "me/moving"
        assert hub == {"revision": "v1"}
        assert set(allow_patterns) == {"README.md", *FILES}, "no pickle, no code comes down"
        return str(kept[1])

    monkeypatch.setattr("steerable.bundle.reading.snapshot_download", snapshot)
    same(kept[0], SteerableEncoder.from_pretrained("me/moving", revision="v1"))


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def snapshot(*_, **__):
        raise ConnectionError("no route\nto the Hub")

    monkeypatch.setattr("steerable.bundle.reading.snapshot_download", snapshot)
    refuse(Path("me/moving"), r"me/moving is no folder here, and the Hub does not give it \(no route\)")
