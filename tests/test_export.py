"""ONNX graphs against torch, in onnxruntime."""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch

from bundles import build, own, tiny
from steerable.cli import main
from steerable.errors import ConfigError, MissingExtra
from steerable.export import export_onnx
from steerable.model import SteerableEncoder, steering_for
from steerable.tta import views

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model() -> SteerableEncoder:
    return build(tiny(stem="cifar", image_size=None))


@pytest.fixture(scope="module")
def command(model: SteerableEncoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `steerable export` wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("onnx")
    model.save_pretrained(folder / "run" / "bundle")
    words = ["export", str(folder / "run"), "--onnx", str(folder / "out"), "--size", "16"]
    module, printed = importlib.import_module("steerable.cli.main"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(module, "COMMANDS", tuple(dict.fromkeys((*module.COMMANDS, "export"))))
        assert main([*words, "--fold-views", "chain:8"]) == 0
    return folder / "out", printed.getvalue()


@pytest.fixture(scope="module")
def folder(command: tuple[Path, str]) -> Path:
    return command[0]


def run(path: Path, *inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    named = {item.name: value.numpy() for item, value in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, named)[0])


@pytest.mark.parametrize("b", [1, 2, 5])
def test_the_graphs_answer_as_torch_does(model: SteerableEncoder, folder: Path, b: int, generator):
    images = torch.rand(b, 3, 16, 16, generator=generator)
    e = model.encode(images)
    theta = model.chain.sample(b, generator=generator)
    thetas = views("chain:8", model.chain)
    assert model.head is not None
    with torch.no_grad():
        steered, logits = model.steer(e, theta), model.head(model.orbit(e, thetas)).mean(1)
    for name, inputs, wanted in (
        ("encoder", (images,), e),
        ("map", (e, theta), steered),
        ("head", (e,), logits),
    ):
        torch.testing.assert_close(run(folder / f"{name}.onnx", *inputs), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(steered, e, atol=1e-3)


def test_what_lies_beside_says_what_the_inputs_mean(model: SteerableEncoder, folder: Path):
    about = json.loads((folder / "steerable.json").read_text())
    assert [param["name"] for param in about["params"]] == [param.name for param in model.params]
    assert about["params"][0] == {
        "name": "zoom", "unit": "octave", "low": 0.0, "high": 1.8, "period": None, "step": 0.01, "stepped": False,
    }  # fmt: skip
    assert (about["dim"], about["classes"]) == (model.dim, ["cat", "dög", ""])
    assert about["fingerprint"] == model.fingerprint()
    for graph in about["graphs"].values():
        stored = onnx.load(folder / graph["file"])
        onnx.checker.check_model(stored)
        assert graph["bytes"] == (folder / graph["file"]).stat().st_size
        assert graph["opset"] == stored.opset_import[0].version
        assert graph["error"] <= 1e-4
        session = onnxruntime.InferenceSession(folder / graph["file"])
        for said, real in (
            (graph["inputs"], session.get_inputs()),
            (graph["outputs"], session.get_outputs()),
        ):
            assert list(said) == [item.name for item in real]
            assert [axes[1:] for axes in said.values()] == [item.shape[1:] for item in real]
            assert all(isinstance(item.shape[0], str) for item in real), "the batch is free"


def test_rotations_export_without_their_parametrization(tmp_path: Path, generator):
    model = build(own(), "rotation", head=False)
    graphs = export_onnx(model, tmp_path)
    assert [graph.file for graph in graphs] == ["encoder.onnx", "map.onnx"]
    e, theta = torch.randn(4, model.dim, generator=generator), model.chain.sample(4, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(
            run(tmp_path / "map.onnx", e, theta), model.steer(e, theta), atol=1e-5, rtol=0
        )
    assert torch.nn.utils.parametrize.is_parametrized(model.steering.frame), (
        "the model itself stays as it was"
    )  # pyright: ignore


def test_windows_export(tmp_path: Path, generator):
    model = SteerableEncoder(own(), "simclr", steering_for("simclr", own().dim, features="linear+window"))
    torch.nn.init.normal_(model.steering.get_parameter("weight"), generator=generator)
    export_onnx(model, tmp_path)
    e, theta = torch.randn(4, model.dim, generator=generator), model.chain.sample(4, generator=generator)
    want = model.steer(e, theta).detach()
    torch.testing.assert_close(run(tmp_path / "map.onnx", e, theta), want, atol=1e-4, rtol=1e-4)


def test_a_graph_that_differs_is_refused_and_nothing_written(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"encoder differs from torch by .* expected at most -1e\+00"):
        export_onnx(build(own(), head=False), tmp_path / "out", tolerance=-1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "own_size"), [(None, None), (16, 32)])
def test_the_size_is_given_once(size: int | None, own_size: int | None, tmp_path: Path):
    model = build(tiny(image_size=own_size, stem=None if own_size else "cifar"), head=False)
    with pytest.raises(ConfigError, match=rf"size is {size} and the encoder's own is {own_size}"):
        export_onnx(model, tmp_path, size=size)


def test_without_onnx_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"onnxscript is not installed.*pip install 'steerable\[export\]'"):
        export_onnx(build(own()), tmp_path)


def test_sizes_and_opset_are_printed(command: tuple[Path, str]):
    folder, printed = command
    lines = printed.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        str(folder / f"{name}.onnx") for name in ("encoder", "map", "head")
    ]
    assert "images (b, 3, 16, 16)" in lines[0]
    assert "theta (b, 9)" in lines[1]
    about = json.loads((folder / "steerable.json").read_text())
    for line, graph in zip(lines, about["graphs"].values(), strict=True):
        assert f"{graph['bytes'] / 1e6:.2f}" in line.split()
        assert str(graph["opset"]) in line.split()
    assert about["head_views"] == "chain:8"
