"""``evaluate_ood`` and ``steerable eval ood`` on a small model whose foreign images are easy to tell."""

import json

import pytest
import torch
from torch import nn

from steerable.cli import main
from steerable.data import ImageSet
from steerable.errors import ConfigError, DataError
from steerable.evaluate.ood import evaluate_ood
from steerable.metrics import ood_figures
from steerable.model import SteerableEncoder, steering_for
from steerable.ood import BASELINES, ORBIT_SCORES
from steerable.posthoc import fit
from steerable.transforms import Chain

pytest.importorskip("pytorch_ood")
pytest.importorskip("imagecorruptions")


class Colors(nn.Module):
    """Mean and deviation of each channel, and of the differences of neighboring pixels: noise shows there."""

    def forward(self, images):
        edges = images.diff(dim=-1)
        return 4 * torch.cat([images.mean((2, 3)), images.std((2, 3)), edges.std((2, 3))], dim=1)


def smooth(n: int, seed: int, name: str, classes: bool = True) -> ImageSet:
    """Smooth pictures, reddish or bluish by class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2 if classes else torch.zeros(n, dtype=torch.int64)
    small = 0.6 * torch.rand(n, 3, 4, 4, generator=generator)
    small[torch.arange(n), 2 * (torch.arange(n) % 2)] += 0.1  # classes overlap
    pixels = (255 * nn.functional.interpolate(small, 32, mode="bilinear")).byte()
    names = ("red", "blue") if classes else ()
    return ImageSet(pixels, labels, names, tuple(map(str, range(n))), name=name)


def noise(n: int) -> ImageSet:
    generator = torch.Generator().manual_seed(9)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.zeros(n, dtype=torch.int64), (), tuple(map(str, range(n))), name="noise")


@pytest.fixture(scope="module")
def model() -> SteerableEncoder:
    chain = Chain.preset("photometric")
    encoder = SteerableEncoder(Colors(), chain, steering_for(chain, 9)).encoder
    return fit(encoder, smooth(80, 5, "fit").float_images(range(80)), chain, seed=0)


@pytest.fixture(scope="module")
def result(model, tmp_path_factory) -> dict:
    return evaluate_ood(
        model, smooth(200, 1, "test"), {"like": smooth(60, 2, "like"), "noise": noise(60)},
        train=smooth(120, 0, "train"), near=["like"], corruptions=["pixelate", "jpeg_compression"],
        severities=[1, 5], views=6, encoded=4, cache=tmp_path_factory.mktemp("cache"),
    )  # fmt: skip


def test_every_score_stands_in_every_group(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    names = [row["score"] for row in result["scores"]]
    assert len(set(names)) == len(names)
    assert {*BASELINES, *(f"steered {score.replace('_', ' ')}" for score in ORBIT_SCORES)} <= set(names)
    places = [(row["group"], row["set"], row["severity"]) for row in result["rows"] if row["score"] == "msp"]
    assert places == [
        ("near", "like", None), ("far", "noise", None), ("corruptions", "pixelate", None),
        ("corruptions", "all", 1), ("corruptions", "all", None), ("corruptions", "all", 5),
        ("corruptions", "jpeg_compression", None),
    ]  # fmt: skip
    assert len(result["rows"]) == len(places) * len(names)
    assert result["settings"]["n_validation"] == 60
    assert result["settings"]["n_known"] == 140
    assert result["settings"]["own_head"] is False


def test_foreign_images_are_told_and_like_ones_are_not(result):
    rows = {row["score"]: row for row in result["scores"]}
    for name in (
        "mahalanobis",
        "knn",
        "steered mahalanobis",
        "steered contrast",
        "steered share",
        "residual of 1 view",
    ):
        assert rows[name]["far"] > 0.9, name
        assert 0.35 < rows[name]["near"] < 0.65, name
    flagged = {row["score"]: row["flagged"] for row in result["rows"] if row["set"] == "noise"}
    alike = {row["score"]: row["flagged"] for row in result["rows"] if row["set"] == "like"}
    assert flagged["mahalanobis"] == 1.0
    assert alike["mahalanobis"] < 0.2  # 5 % in expectation


def test_severity_shows_and_pooling_is_the_mean(result):
    rows = {
        (row["set"], row["severity"]): row["auroc"]
        for row in result["rows"]
        if row["score"] == "mahalanobis" and row["group"] == "corruptions"
    }
    assert rows["all", 5] > rows["all", 1]
    parts = [rows["pixelate", None], rows["jpeg_compression", None]]
    assert rows["all", None] == pytest.approx(sum(parts) / 2)  # sets of one size: AUROC is linear in them
    assert rows["all", None] == pytest.approx((rows["all", 1] + rows["all", 5]) / 2)


def test_costs_count_encoder_passes(result):
    rows = {row["score"]: row for row in result["scores"]}
    assert rows["msp"]["passes"] == rows["steered entropy"]["passes"] == 1
    assert rows["encoded entropy"]["passes"] == 5
    assert rows["residual of 1 view"]["passes"] == 2
    assert rows["encoded entropy"]["milliseconds"] > rows["msp"]["milliseconds"] > 0
    combined = [row for row in result["scores"] if row["kind"] == "combined"]
    assert combined
    assert all(row["far"] > 0.9 for row in combined)


def test_a_second_run_takes_everything_from_the_cache(model, tmp_path, monkeypatch):
    def run() -> dict:
        return evaluate_ood(
            model, smooth(200, 1, "test"), {}, train=smooth(120, 0, "train"), corruptions=["fog"],
            severities=[3], views=4, encoded=1, cache=tmp_path,
        )  # fmt: skip

    first = run()
    monkeypatch.setattr(
        "steerable.evaluate.encoding.Encodings._encode", lambda *args: pytest.fail("encoded again")
    )
    assert run()["rows"] == first["rows"]


def test_figures_are_those_of_the_scores_alone(model):
    """MSP of the whole job against MSP by hand, on the measured part."""
    known, far = smooth(100, 1, "test"), noise(60)
    head = nn.Linear(9, 2)
    own = SteerableEncoder(model.encoder, model.chain, model.steering, head=head)
    result = evaluate_ood(own, known, {"far": far}, train=smooth(120, 0, "train"), encoded=0, views=4, seed=3)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))[30:]
    with torch.no_grad():
        scores = [
            -head(own.encode(x)).softmax(1).amax(1)
            for x in (known.float_images(order), far.float_images(range(60)))
        ]
    (row,) = (row for row in result["rows"] if row["score"] == "msp")
    assert row["auroc"] == pytest.approx(ood_figures(*scores)["auroc"], abs=1e-6)
    assert result["settings"]["own_head"] is True
    assert not any(name["kind"] in ("encoded", "residual") for name in result["scores"])


def test_refusals(model):
    known, train, far = smooth(100, 1, "test"), smooth(120, 0, "train"), noise(60)
    with pytest.raises(ConfigError, match="nothing foreign"):
        evaluate_ood(model, known, {}, train=train)
    with pytest.raises(ConfigError, match=r"near set 'nois' is not among.*did you mean noise"):
        evaluate_ood(model, known, {"noise": far}, train=train, near=["nois"])
    with pytest.raises(DataError, match="has no labels"):
        evaluate_ood(model, known, {"noise": far}, train=smooth(120, 0, "train", classes=False))
    with pytest.raises(DataError, match="100 of 100 known images are among the training images"):
        evaluate_ood(model, train.subset(range(100)), {"noise": far}, train=train)
    with pytest.raises(DataError, match="noise has 10 images; expected at least 60"):
        evaluate_ood(model, known, {"noise": noise(10)}, train=train)


# the command


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from bundles import tiny

    encoder = tiny()
    chain = Chain.preset("photometric")
    folder = tmp_path_factory.mktemp("bundle")
    SteerableEncoder(encoder, chain, steering_for(chain, encoder.dim)).save_pretrained(folder)
    return folder


def test_the_command_prints_tables_and_leaves_files(bundle, tmp_path, monkeypatch, capsys):
    sets = {"known:train": smooth(120, 0, "train"), "known": smooth(100, 1, "known"), "far": noise(60)}
    monkeypatch.setattr("steerable.data.splits", lambda source, root=None: ("train", "test"))
    monkeypatch.setattr(
        "steerable.data.load_images",
        lambda place, split, **other: sets.get(f"{place}:{split}", sets[place]),
    )
    words = ["eval", "ood", str(bundle), "--id", "known", "--ood", "far", "--encoded", "1", "--views", "4"]
    words += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "mahalanobis" in out
    assert "FPR95 OOD+" in out
    assert {path.name for path in tmp_path.glob("ood.*")} == {"ood.json", "ood.png"}
    assert main([*words, "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out).values()
    assert figures["settings"]["foreign"] == {"far": 60}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--id", "photos", "--severities", "1,9", "--corruptions"], "--severities is '1,9'"),
        (["--ood", "photos"], "--id"),
    ],
)
def test_the_commands_refusals(words, message, bundle, capsys):
    assert main(["eval", "ood", str(bundle), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
