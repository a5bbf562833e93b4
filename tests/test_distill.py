"""Fine-tuning near a frozen teacher: what is kept, what may move, and what a run leaves."""

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from torchvision.transforms.functional import to_pil_image

from steerable.data import ImageSet
from steerable.encoders import Encoder
from steerable.errors import ConfigError
from steerable.model import SteerableEncoder
from steerable.training import DataConfig, EncoderConfig, OptimizerConfig, TrainConfig, directory, loop, train
from steerable.training.checkpoint import load_checkpoint
from steerable.training.objective import Objective, Views

CLASSES = 7
ARGS = {"channels": [4, 8, 8, 12], "stem_type": "deep", "stem_width": 4}


def draw(folder: Path, n: int) -> None:
    """Random pictures of 4 x 4 tiles; one in five is held out of training."""
    folder.mkdir(parents=True)
    for i in range(n):
        tiles = torch.rand(3, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
        to_pil_image(tiles).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with a classifier, and with BatchNorm statistics that no batch here would give."""
    torch.manual_seed(3)
    network = timm.create_model("resnet10t", num_classes=CLASSES, **ARGS)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("distill") / "teacher"
    draw(folder.parent / "images" / "a", 40)
    draw(folder.parent / "images" / "b", 40)
    save_for_hf(
        network, folder, model_config={"num_classes": CLASSES}, model_args=ARGS, safe_serialization=True
    )
    return folder


def config(weights: Path, **changes) -> TrainConfig:
    settings = TrainConfig(
        data=DataConfig(source=str(weights.parent / "images"), size=32),
        encoder=EncoderConfig(f"timm/local-dir:{weights}", pretrained=True, image_size=32),
        base="distill",
        optimizer=OptimizerConfig(lr=3e-3, warmup=0.0),
        epochs=2,
        batch_size=16,
        precision="32-true",
        checkpoint_every=3,
        refit=False,
    )
    return dataclasses.replace(settings, **changes)


def prepared(settings: TrainConfig) -> loop.Run:
    run = loop.Run(settings, *loop.load_splits(settings), None)
    run.learner.train()
    return run


def teacher_of(weights: Path) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{weights}", pretrained=True).eval()


def test_the_distance_is_the_formula_and_starts_at_zero(weights: Path):
    run = prepared(config(weights))
    index = next(run.batches())
    assert run.train_step(index)["distill"] < 1e-9
    network = teacher_of(weights)
    with torch.no_grad():
        images = run.train_set.float_images(index)
        normalized = run.module.encoder.preprocess(images)
        teacher = network.forward_head(network.forward_features(normalized), pre_logits=True)
        student = run.module.encoder(images)
    expected = (student - teacher).square().sum(1).mean() / teacher.var(0, correction=0).sum()
    terms = Objective(run.config)(
        Views(torch.cat([student, student]), student, student, None, student), run.feed.goals[index]
    )
    assert expected > 1e-4  # one step has moved it
    assert terms["distill"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["loss"] == terms["distill"]


def test_statistics_of_norms_stay_and_weights_learn(weights: Path):
    trained = train(config(weights, epochs=1)).model.encoder.network.state_dict()
    before = teacher_of(weights).state_dict()
    statistics = [name for name in trained if "running" in name or "num_batches" in name]
    assert statistics
    assert all(torch.equal(trained[name], before[name]) for name in statistics)
    learned = [name for name in trained if name not in statistics]
    assert not any(torch.equal(trained[name], before[name]) for name in learned)


def test_the_distance_keeps_the_student_near(weights: Path):
    near, free = (train(config(weights, base=base, uniformity=0.0)) for base in ("distill", "none"))
    with torch.no_grad():
        run = prepared(config(weights))
        free_e = free.model.encode(run.test_set.float_images(range(16)))
        away = (free_e - run.teacher).square().sum() / (run.teacher - run.teacher.mean(0)).square().sum()
    kept = near.history[-1]["teacher_distance"]
    assert 0 < kept < 0.1 * away
    assert (
        near.history[-1]["relative_error"] < near.history[0]["relative_error"]
    )  # and yet views can be predicted


def test_the_teacher_sees_each_image_once(weights: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    encode = Encoder.encode
    monkeypatch.setattr(loop, "validate", lambda *_: {})
    monkeypatch.setattr(
        Encoder, "encode", lambda self, images: (seen.append(len(images)), encode(self, images))[1]
    )
    train(config(weights, epochs=3))
    assert sum(seen) == 64 + 16


def test_an_unlabeled_folder_is_enough(weights: Path, tmp_path: Path):
    draw(tmp_path / "images", 20)
    data = DataConfig(source=str(tmp_path / "images"), size=32)
    row = train(config(weights, data=data, batch_size=8, epochs=1)).history[0]
    assert row.keys() >= {"distill", "relative", "relative_error", "teacher_distance"}
    assert "knn_accuracy" not in row


def test_labels_of_the_test_images_alone_are_not_used(weights: Path):
    run = prepared(config(weights))
    bare: ImageSet = dataclasses.replace(run.train_set, labels=torch.zeros(64, dtype=torch.int64), classes=())
    assert "knn_accuracy" in loop.validate(run.module, run.chain, run.train_set, run.test_set)
    assert "knn_accuracy" not in loop.validate(run.module, run.chain, bare, run.test_set)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_bit_for_bit_without_a_teacher_on_disk(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(directory, "_picture", lambda *_: None)  # slow, and seen in test_training

    def listener(row):
        if row["step"] == 6 and "epoch" not in row:
            raise Interrupted

    settings = config(weights, ema=0.9, refit=True)
    with pytest.raises(Interrupted):
        train(settings, out=tmp_path / "run", listener=listener)
    state, _ = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert 0 < state["step"] < 8
    assert {name.partition(".")[0] for name in state["learner"]} == {"encoder", "steering"}
    resumed = train(settings, out=tmp_path / "run", resume=True)
    unbroken = train(settings)
    a, b = resumed.model.state_dict(), unbroken.model.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    drop = {
        "images_per_second",
        "distill",
        "relative",
        "loss",
    }  # means over the part of the epoch that was run
    for mine, theirs in zip(resumed.history, unbroken.history, strict=True):
        assert {k: v for k, v in mine.items() if k not in drop} == {
            k: v for k, v in theirs.items() if k not in drop
        }


def test_the_bundle_keeps_the_classifier_and_says_what_it_cost(weights: Path, tmp_path: Path):
    result = train(config(weights, epochs=1, optimizer=OptimizerConfig(lr=0.0)), out=tmp_path / "run")
    model = SteerableEncoder.from_pretrained(tmp_path / "run" / "bundle")
    network = teacher_of(weights)
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.head is not None
    with torch.no_grad():
        logits = model.head(model.encode(images))
        torch.testing.assert_close(logits, network(model.encoder.preprocess(images)), rtol=1e-4, atol=1e-5)
    assert model.classes == ()
    record = model.record
    assert (record["images"], record["steps"], record["passes"]) == (64, 4, 2 * 64 + 64 + 16)
    assert record["seconds"] > 0
    assert record["last_epoch"]["relative_error"] == result.history[-1]["relative_error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": EncoderConfig("timm/resnet10t")}, "random weights.*--encoder.pretrained true"),
        ({"steering": "none"}, "without steering.*starts at zero"),
    ],
)
def test_nothing_to_keep_or_to_train_is_refused(weights: Path, changes: dict, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        train(config(weights, **changes))
    assert "\n" not in str(error.value)


def test_uniformity_is_off_unless_asked_for(weights: Path):
    assert config(weights).uniformity_weight == 0
    config(weights, steering="none", uniformity=0.05).check()
    assert config(weights, base="none").uniformity_weight == 0.05
