"""The main job on a tiny scale: what is trained, what is kept on disk, and what a crash may cost."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steerable.errors import BundleError, ConfigError, DataError, FitError
from steerable.model import SteerableEncoder
from steerable.training import DataConfig, EncoderConfig, OptimizerConfig, TrainConfig, loop, train
from steerable.training.checkpoint import load_checkpoint, save_checkpoint
from steerable.training.run import THETA, Run, generator_for


def tiny(**changes) -> TrainConfig:
    config = TrainConfig(
        data=DataConfig(source="photos", size=16, train_limit=64, test_limit=32),
        encoder=EncoderConfig(stem="cifar", width=4),
        equivariance={"relative": 0.3, "contrastive": 0.1},
        negatives=5,
        epochs=2,
        batch_size=16,
        precision="32-true",
        checkpoint_every=3,
    )
    return dataclasses.replace(config, **changes)


def weights(model: SteerableEncoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_its_config_metrics_bundle_and_picture(tmp_path):
    rows = []
    result = train(tiny(), out=tmp_path / "run", listener=rows.append)
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "bundle",
        "losses.png",
        "checkpoints",
    }
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2]
    assert {
        "supervised",
        "relative",
        "contrastive",
        "uniformity",
        "relative_error",
        "knn_accuracy",
        "test_accuracy",
    } <= history[0].keys()
    steps = [row for row in rows if "epoch" not in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    loaded = SteerableEncoder.from_pretrained(tmp_path / "run" / "bundle")
    assert same(weights(loaded), weights(result.model))
    assert loaded.head is not None
    assert len(loaded.classes) == loaded.head.out_features


def test_training_learns():
    result = train(tiny(epochs=6, data=DataConfig(source="photos", size=16, train_limit=256, test_limit=64)))
    first, last = result.history[0], result.history[-1]
    assert last["supervised"] < 0.8 * first["supervised"]
    assert last["relative"] < 0.9 * first["relative"]


def test_the_control_encodes_as_many_images_and_has_no_map(monkeypatch):
    passes = {}
    from steerable.encoders import Encoder

    forward = Encoder.forward
    for steering in ("basis", "none"):
        count = []

        def counted(self, images, count=count):
            if self.training:
                count.append(len(images))
            return forward(self, images)

        monkeypatch.setattr(Encoder, "forward", counted)
        result = train(tiny(steering=steering, epochs=1, refit=False))
        passes[steering] = sum(count)
    assert passes["basis"] == passes["none"] == 2 * 64
    assert result.model.steering.name == "identity"
    assert "relative" not in result.history[0]
    assert "uniformity" not in result.history[0]


def test_the_control_sees_the_same_batches_and_thetas():
    seen = {}
    for steering in ("basis", "none"):
        run = _run(tiny(steering=steering))
        index = next(run.batches())
        theta = run.chain.sample(len(index), generator=generator_for(0, THETA, 0))
        seen[steering] = (index, theta, run.module.encoder.network.state_dict()["conv1.weight"])
    assert all(torch.equal(a, b) for a, b in zip(seen["basis"], seen["none"], strict=True))


def _run(config: TrainConfig) -> loop.Run:
    return loop.Run(config, *loop.load_splits(config), None)


def test_uniformity_alone_is_the_second_control():
    result = train(tiny(steering="none", uniformity=0.05, epochs=1))
    assert "uniformity" in result.history[0]


@pytest.mark.parametrize("base", ["simclr", "vicreg", "barlow", "none"])
def test_other_bases(base):
    result = train(tiny(base=base, epochs=1, ema=0.9))
    assert result.model.head is None
    assert base == "none" or base in result.history[0]


@pytest.mark.parametrize("steering", ["shift", "low_rank", "rotation", "exponential"])
def test_other_maps(steering):
    assert train(tiny(steering=steering, epochs=1)).model.steering.name == steering


def test_squared_form():
    assert "squared" in train(tiny(equivariance={"squared": 1.0}, epochs=1)).history[0]


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not():
    a, b, c = (weights(train(tiny(seed=seed, epochs=1)).model) for seed in (1, 1, 2))
    assert same(a, b)
    assert not same(a, c)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_training import tiny
from steerable.training import train

def listener(row):
    if row.get("step") == int(sys.argv[3]) and "epoch" not in row:
        os.kill(os.getpid(), signal.SIGKILL)

train(tiny(ema=0.9), out=sys.argv[2], listener=listener)
"""


@pytest.mark.parametrize("step", [2, 6])  # before the first checkpoint, and in the middle of the second epoch
def test_kill_and_resume_equals_an_unbroken_run(tmp_path, step):
    here = Path(__file__).parent
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(here), str(tmp_path / "killed"), str(step)], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = train(tiny(ema=0.9), out=tmp_path / "killed", resume=True)
        unbroken = train(tiny(ema=0.9), out=tmp_path / "unbroken")
    finally:
        torch.set_num_threads(threads)
    assert same(weights(resumed.model), weights(unbroken.model))
    assert [row["epoch"] for row in resumed.history] == [1, 2]
    assert [r["relative_error"] for r in resumed.history] == [r["relative_error"] for r in unbroken.history]
    assert all(math.isfinite(r["relative_error"]) for r in resumed.history)


def test_a_non_finite_loss_stops_with_step_terms_and_checkpoint(tmp_path):
    config = tiny(optimizer=OptimizerConfig(lr=1e25, clip_norm=None, warmup=0), epochs=4, checkpoint_every=1)
    with pytest.raises(FitError, match=r"not finite at step \d+ \(loss=.*supervised=.*last\.pt"):
        train(config, out=tmp_path / "run")
    state, _ = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert state["step"] >= 1


class Seldom(Run):
    """Looks at the losses as seldom as on a GPU."""

    def __init__(self, *args):
        super().__init__(*args)
        self.look_every = 3


def test_losses_that_are_looked_at_seldom_are_the_same(monkeypatch):
    seen = {}
    for kind in (Run, Seldom):
        monkeypatch.setattr(loop, "Run", kind)
        rows = seen[kind] = []
        train(tiny(epochs=1), listener=rows.append)
    often, seldom = ([{**row, "images_per_second": None} for row in rows] for rows in seen.values())
    assert often == seldom


def test_a_non_finite_loss_that_is_seen_late_is_dated_to_its_step(monkeypatch):
    config = tiny(
        optimizer=OptimizerConfig(lr=1e25, clip_norm=None, warmup=0), epochs=4, checkpoint_every=100
    )
    steps = []
    for kind in (Run, Seldom):
        monkeypatch.setattr(loop, "Run", kind)
        with pytest.raises(FitError, match="not finite at step") as caught:
            train(config)
        steps.append(str(caught.value).partition("(")[0])
    assert steps[0] == steps[1]


def test_validation_may_be_seldom_but_never_misses_the_last_epoch(tmp_path):
    history = train(tiny(epochs=3, validate_every=2), out=tmp_path / "run").history
    assert ["relative_error" in row for row in history] == [False, True, True]
    assert all("relative" in row for row in history)


@pytest.mark.slow
def test_a_compiled_network_trains_alike_and_keeps_its_names():
    plain, compiled = (train(tiny(epochs=1, compile=flag)).model.state_dict() for flag in (False, True))
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=2e-2, atol=2e-3)


def test_a_directory_with_a_run_is_refused_unless_resumed(tmp_path):
    train(tiny(epochs=1), out=tmp_path / "run")
    before = (tmp_path / "run" / "bundle" / "steering.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"holds a run already.*--resume"):
        train(tiny(epochs=1), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optimizer\.lr is 0\.5 and was 0\.002"):
        train(tiny(epochs=1, optimizer=OptimizerConfig(lr=0.5)), out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "bundle" / "steering.safetensors").read_bytes() == before


def test_resuming_a_finished_run_trains_no_further(tmp_path):
    first = train(tiny(epochs=1), out=tmp_path / "run")
    again = train(
        tiny(epochs=1),
        out=tmp_path / "run",
        resume=True,
        listener=lambda row: pytest.fail("a step was taken"),
    )
    assert same(weights(first.model), weights(again.model))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    save_checkpoint(tmp_path, {"step": 2})
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:100])
    state, path = load_checkpoint(tmp_path)
    assert (state["step"], path.name) == (1, "previous.pt")
    path.write_bytes(b"")
    with pytest.raises(BundleError, match="no checkpoint"):
        load_checkpoint(tmp_path)


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_checkpoint_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Payload()}, tmp_path / "last.pt")
    with pytest.raises(BundleError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"equivariance": {"relatif": 1.0}}, "relatif"),
        ({"equivariance": {}}, "without an equivariance loss"),
        ({"steering": "none", "base": "none"}, "both none"),
        ({"chain": "simclrr"}, "simclr"),
        ({"steering": "rotation", "features": "squares"}, "features"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        train(tiny(**changes))


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="at least one batch of 128"):
        train(tiny(batch_size=128))


def test_a_source_without_a_test_split_is_parted_and_a_suffix_names_the_training_split(tmp_path):
    from PIL import Image

    for split, count in (("train", 30), ("val", 10)):
        for label in ("a", "b"):
            folder = tmp_path / "both" / split / label
            folder.mkdir(parents=True)
            for i in range(count // 2):
                Image.new("RGB", (16, 16), (8 * i, 90, 200 if label == "a" else 20)).save(
                    folder / f"{split}{i}.png"
                )
    alone = tmp_path / "both" / "train"
    train_set, test_set = loop.load_splits(tiny(data=DataConfig(source=str(alone)), batch_size=4))
    assert (len(train_set), len(test_set)) == (24, 6)
    assert not set(train_set.paths) & set(test_set.paths)
    train_set, test_set = loop.load_splits(
        tiny(data=DataConfig(source=f"{tmp_path / 'both'}:train[:20]"), batch_size=4)
    )
    assert (len(train_set), len(test_set)) == (20, 10)
    assert all("val" in path for path in test_set.paths)


def test_skipped_images_are_listed_in_the_run_directory(tmp_path):
    from PIL import Image

    for label in ("a", "b"):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (16, 16), (20 * i, 90, 200 if label == "a" else 20)).save(folder / f"{i}.jpg")
    (tmp_path / "images" / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    config = tiny(data=DataConfig(source=str(tmp_path / "images")), batch_size=8, epochs=1)
    train(config, out=tmp_path / "run")
    skipped = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert any(item["path"].endswith("broken.jpg") for item in skipped)
