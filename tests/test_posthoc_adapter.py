"""Layers and adapters: in a world where two directions of eight move predictably, and behind small networks."""

import importlib
import logging
import re

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

import steerable
from steerable.data import photos
from steerable.encoders import Neck, load_encoder
from steerable.errors import ConfigError, FitError
from steerable.fitting import fit_embeddings
from steerable.maps import Features
from steerable.metrics import mean_reciprocal_rank, view_ranks
from steerable.posthoc import training
from steerable.posthoc.adapter import ADAPTERS, adapted
from steerable.posthoc.pairs import Pair

FIT = importlib.import_module("steerable.posthoc.fit")  # whose name the function has taken
N, VIEWS, FINAL = 200, 8, {"final": slice(0, 8)}
SETTINGS = {"map": "basis", "features": Features("linear", 2, [1.0, 1.0]), "projection": None}


def world(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """plain (n, 8), theta (n, v, 2), moved (n, v, 8): theta shifts two directions, the others get noise per view."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(5)))[0]
    plain = torch.randn(N, 8, generator=generator)
    theta = 2 * torch.rand(N, VIEWS, 2, generator=generator) - 1
    noise = torch.randn(N, VIEWS, 6, generator=generator)
    moved = plain[:, None] + torch.cat([0.5 * theta, noise], dim=-1)
    return plain @ turn, theta, moved @ turn


def batches(plain: Tensor, theta: Tensor, moved: Tensor) -> list[Pair]:
    """One view after the other, in parts of 80 images."""
    ids = torch.arange(N).split(80)
    return [Pair(plain[i], theta[i, v], moved[i, v], i) for i in ids for v in range(VIEWS)]


def neck_of(kind: str) -> Neck:
    plain, theta, moved = world(0)
    neck = Neck.standardizing(plain, FINAL)
    pairs = batches(neck(plain), theta, neck(moved))
    return adapted(neck, pairs, neck(plain), slice(0, 8), kind, views=VIEWS, settings=SETTINGS)


def mrr_behind(neck: Neck | None) -> float:
    """On images of their own, with a map fitted behind the neck."""

    def through(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        plain, theta, moved = world(seed)
        return (plain, theta, moved) if neck is None else (neck(plain), theta, neck(moved))

    steering = fit_embeddings(batches(*through(0)), **SETTINGS)
    plain, theta, moved = through(1)
    with torch.no_grad():
        return mean_reciprocal_rank(view_ranks(steering(plain, theta[:, 0]), moved, torch.zeros(N).long()))


def weight_of(neck: Neck) -> Tensor:
    assert isinstance(neck.adapter, torch.nn.Linear)
    return neck.adapter.weight


def losses(text: str) -> list[float]:
    """Held out, before and after the training."""
    return [float(number) for number in re.findall(r"held-out loss (\S+) to (\S+)", text)[-1]]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(training, "STEPS", 60)
    monkeypatch.setattr(training, "EVERY", 20)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_turn_up_what_moves_predictably(kind, short):
    before, after = mrr_behind(None), mrr_behind(neck_of(kind))
    assert before < 0.6
    assert after > 0.85


def test_the_discriminant_keeps_all_information():
    neck, (plain, _, _) = neck_of("discriminant"), world(2)
    e = neck(plain).double()
    assert torch.linalg.matrix_rank(weight_of(neck).double()) == 8
    one = torch.ones(N, 1).double()
    # what a linear probe reads: any linear function of the embedding there was is one of the embedding there is
    rows = torch.cat([e, one], 1)
    back = rows @ torch.linalg.lstsq(rows, plain.double()).solution
    torch.testing.assert_close(back, plain.double(), atol=1e-3, rtol=0)
    assert 4 < e.var(0).sum() < 16, "the mean column has a variance near one"
    leading = weight_of(neck).norm(dim=1)
    assert leading[1] > 10 * leading[2], "two directions of eight are turned up"


@pytest.mark.parametrize("kind", ADAPTERS)
def test_cosines_behind_an_adapter_rank_as_distances_do(kind, short):
    e = neck_of(kind)(world(1)[0])

    def nearest(likeness: Tensor) -> Tensor:
        return likeness.fill_diagonal_(-torch.inf).argmax(1)

    def agree(e: Tensor) -> float:
        unit = torch.nn.functional.normalize(e, dim=1)
        return float((nearest(unit @ unit.T) == nearest(-torch.cdist(e, e))).float().mean())

    assert agree(e) > 0.8 > 0.6 > agree(e - e.mean(0))


def test_without_any_motion_nothing_is_lost():
    plain, theta, _ = world(0)
    neck = Neck.standardizing(plain, FINAL)
    still = batches(neck(plain), theta, neck(plain)[:, None].expand(-1, VIEWS, -1))
    made = adapted(neck, still, neck(plain), slice(0, 8), "discriminant", views=VIEWS, settings=SETTINGS)
    assert torch.linalg.matrix_rank(weight_of(made).double()) == 8


@pytest.mark.parametrize("kind", ["linear", "hidden"])
def test_training_starts_at_the_discriminant_and_is_never_worse(kind, short, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="steerable")
    plain, _, _ = world(1)
    start = neck_of("discriminant")(plain)
    trained = neck_of(kind)(plain)
    first, best = losses(caplog.text)
    assert best < first
    assert (trained - start).abs().max() > 1e-3
    monkeypatch.setattr(training, "RATE", 30.0)  # which ruins it
    caplog.clear()
    torch.testing.assert_close(neck_of(kind)(plain), start, atol=1e-4, rtol=1e-4)
    first, best = losses(caplog.text)
    assert best == first


def test_adapters_of_wide_embeddings(short):
    """One reads the leading principal directions, fewer than there are images."""
    plain, theta, moved = world(0)
    wide = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    neck = Neck.standardizing(plain @ wide, {"final": slice(0, 30)})
    pairs = batches(neck(plain @ wide), theta, neck(moved @ wide))
    made = adapted(
        neck, pairs, neck(plain @ wide), slice(0, 30), "hidden", views=VIEWS, settings=SETTINGS, width=5
    )
    assert (made.width, made.hidden, made.out, made.dim) == (30, 10, 5, 5)


# behind networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny pretrained network with a classifier."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5)
    place = tmp_path_factory.mktemp("weights") / "tiny"
    save_for_hf(network, place, model_config={"num_classes": 5}, safe_serialization=True)
    return place


def loaded(folder, layers: str | None = None):
    return load_encoder(f"timm/local-dir:{folder}", image_size=32, layers=layers)


@pytest.mark.parametrize(
    ("layers", "adapter"),
    [(None, None), ("stage0,final", None), ("stage0,final", "discriminant"), (None, "hidden")],
)
def test_the_ladder_saves_and_loads(folder, tmp_path, short, layers, adapter):
    images, told = photos("train", size=32, n=24), []
    model = steerable.fit(
        loaded(folder, layers), images, "photometric", views=2, adapter=adapter, projection=None,
        progress=lambda *row: told.append(row),
    )  # fmt: skip
    done = [row[0] for row in told]
    assert done == sorted(set(done))
    assert told[-1][:2] == (72, 72)
    assert (model.encoder.neck is None) == (layers is None and adapter is None)
    assert (model.head is None) == (adapter is not None)
    assert model.record["adapter"] == adapter
    x = images.float_images(range(4))
    e, theta = model.encode(x), model.theta(brightness=0.3)
    if model.head is not None:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            expected = network(model.encoder.preprocess(x))
        torch.testing.assert_close(model.head(e), expected, atol=1e-3, rtol=1e-3)
    if adapter is not None:
        assert model.dim == 23
    for stored in (True, False):
        model.save_pretrained(tmp_path / str(stored), store_encoder=stored)
        again = steerable.SteerableEncoder.from_pretrained(tmp_path / str(stored))
        assert again.fingerprint() == model.fingerprint()
        assert torch.equal(again.steer(again.encode(x), theta), model.steer(e, theta))
        assert again.record == model.record


def test_a_map_of_any_family_is_fitted_behind_an_adapter(folder):
    images = photos("train", size=32, n=24)
    model = steerable.fit(
        loaded(folder), images, "photometric", views=2, adapter="discriminant", map="shift", features="auto"
    )
    assert (model.steering.name, model.steering.dim) == ("shift", 23)


def test_what_adapters_do_not_take(folder):
    images = photos("train", size=32, n=9)
    model = steerable.fit(loaded(folder, "stage0,final"), images, "photometric", views=1)
    with pytest.raises(ConfigError, match=r"the encoder has a neck already.*with_neck\(None\)"):
        steerable.fit(model.encoder, images, "photometric", adapter="linear")
    with pytest.raises(FitError, match="9 images with 4 views; expected for an adapter 10 images"):
        steerable.fit(loaded(folder), images, "photometric", adapter="linear")


def test_a_classifier_out_of_reach_costs_nothing_else(folder, monkeypatch, caplog):
    def unreachable(_):
        raise ConfigError("no network")

    monkeypatch.setattr(FIT, "classifier_of", unreachable)
    model = steerable.fit(loaded(folder), photos("train", size=32, n=9), "photometric", views=1)
    assert model.head is None
    assert "no classifier is kept: no network" in caplog.text


def test_columns_are_standardized_on_a_sample(folder, monkeypatch):
    monkeypatch.setattr("steerable.posthoc.pairs.PART", 4)
    monkeypatch.setattr(FIT, "SAMPLE", 8)
    images = photos("train", size=32, n=20)
    encoder = loaded(folder, "stage0,final")
    neck = steerable.fit(encoder, images, "photometric", views=1).encoder.neck
    read = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    expected = Neck.standardizing(encoder.raw(images.float_images(read)), encoder.layers)
    assert neck is not None
    torch.testing.assert_close(neck.mean, expected.mean)
    torch.testing.assert_close(neck.scale, expected.scale)
