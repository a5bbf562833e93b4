"""What the settings make of a step: shares of the embedding, projectors, prediction, and the heads that are saved."""

import dataclasses

import pytest
import torch

from steerable.errors import ConfigError
from steerable.training import DataConfig, EncoderConfig, TrainConfig, train
from steerable.training.loop import Run
from steerable.training.setup import load_splits
from steerable.transforms import build

CHAIN = [{"name": "hflip"}, {"name": "brightness", "stops": 0.7}]
TURNS = [{"name": "rotate", "degrees": [0, 270], "step": 90}]


def tiny(**changes) -> TrainConfig:
    config = TrainConfig(
        data=DataConfig(source="photos", size=16, train_limit=48, test_limit=32),
        encoder=EncoderConfig(stem="cifar", width=4),
        chain=CHAIN,
        equivariance={"relative": 0.3},
        projector=8,
        epochs=1,
        batch_size=16,
        precision="32-true",
    )
    return dataclasses.replace(config, **changes)


def first_terms(config: TrainConfig) -> tuple[Run, dict[str, torch.Tensor]]:
    run = Run(config, *load_splits(config), None)
    run.learner.train()
    return run, run.train_step(next(run.batches()))


@pytest.mark.parametrize(
    ("changes", "term"),
    [
        ({"base": "simclr", "steering": "none", "prediction": {"chain": 1.0}}, "prediction_chain"),
        (
            {"base": "simclr", "steering": "none", "prediction": {"base": 1.0}, "base_chain": TURNS},
            "prediction_base",
        ),
        (
            {
                "base": "simclr",
                "steering": "shift",
                "steering_at": "projector",
                "equivariance": {"instance": 1.0},
            },
            "instance",
        ),
        (
            {
                "base": "vicreg",
                "steering": "hypernetwork",
                "steered_share": 0.5,
                "equivariance": {"vicreg": 0.5},
            },
            "equivariance_vicreg",
        ),
    ],
    ids=["augself", "essl", "equimod", "sie"],
)
def test_the_neighbors_train_and_leave_a_bundle_with_a_map(changes, term):
    result = train(tiny(**changes))
    assert result.history[-1][term] > 0
    kept = "identity" if changes["steering"] == "none" else "basis"
    assert result.model.steering.name == kept
    assert result.model.steering.dim == result.model.encoder.dim


def test_the_weights_enter_the_loss():
    config = tiny(prediction={"chain": 0.25}, uniformity=0.5)
    _, terms = first_terms(config)
    expected = terms["supervised"] + 0.3 * terms["relative"] + 0.25 * terms["prediction_chain"]
    assert terms["loss"].item() == pytest.approx((expected + 0.5 * terms["uniformity"]).item(), rel=1e-5)


def test_a_share_parts_the_embedding_between_the_losses():
    run, _ = first_terms(tiny(steered_share=0.25))
    learner, d = run.module, run.module.encoder.dim
    assert learner.steering.dim == d // 4
    assert learner.readout.in_features == d - d // 4
    head = learner.head()
    e = torch.randn(5, d)
    assert torch.allclose(head(e), learner.readout(e[:, : d - d // 4]), atol=1e-6)
    assert (head.weight[:, d - d // 4 :] == 0).all()


def test_the_head_of_a_share_classifies_in_the_bundle():
    result = train(tiny(steered_share=0.25))
    assert result.model.head.in_features == result.model.encoder.dim
    assert 0 <= result.history[-1]["test_accuracy"] <= 1


def test_base_chain_moves_both_views_and_depends_on_seed_and_step_only(monkeypatch):
    run = Run(tiny(base_chain=TURNS), *load_splits(tiny()), None)
    seen = []
    forward = run.module.forward
    monkeypatch.setattr(run.module, "forward", lambda *a: seen.append(a) or forward(*a))
    run.learner.train()
    index = next(run.batches())
    run.train_step(index)
    both, theta, base_theta = seen[0]
    assert set(base_theta.flatten().tolist()) <= {0.0, 90.0, 180.0, 270.0}
    assert len(base_theta.unique()) > 1
    turned = build(TURNS).apply(run.train_set.float_images(index), base_theta)
    assert torch.allclose(both[: len(index)], turned, atol=1e-5)
    assert torch.allclose(both[len(index) :], build(CHAIN).apply(turned, theta), atol=1e-5)


def test_settings_come_back_from_a_dictionary():
    config = tiny(base_chain=TURNS, prediction={"base": 0.5})
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert TrainConfig.from_dict({"encoder": {"width": 8}}).encoder.width == 8
    with pytest.raises(ConfigError, match=r"encoder.widht is unknown.*width"):
        TrainConfig.from_dict({"encoder": {"widht": 8}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction": {"theta": 1.0}}, "prediction is 'theta'.*chain, base"),
        ({"prediction": {"base": 1.0}}, "no base_chain"),
        ({"steered_share": 0.0}, "steered_share is 0"),
        ({"equivariance": {"vicreq": 1.0}}, "equivariance form is 'vicreq'"),
    ],
)
def test_contradictions_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**changes).check()
