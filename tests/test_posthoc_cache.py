"""What a fit keeps on disk: kills, growth, damage, who shares, the plan, and refusals before anything is encoded."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import steerable
from steerable.cli import main
from steerable.data import ImageSet, photos
from steerable.data.cache import cache_root, write_whole
from steerable.encoders import Encoder
from steerable.errors import ConfigError, FitError, SteerableError
from steerable.posthoc import pairs as kept
from steerable.transforms import Chain, Hue, Saturation

CHAIN = Chain([Saturation(stops=0.5), Hue(turns=0.1)])
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
import steerable
from steerable.data import photos
from steerable.encoders import Encoder
from steerable.posthoc import pairs

torch.set_num_threads(1)
pairs.PART = 8
folder, slow = Path(sys.argv[1]), [0.0]

class Slow(torch.nn.Module):
    def forward(self, images):
        time.sleep(slow[0])
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)

def run(cache):
    images = photos("train", size=16, n=48)
    model = steerable.fit(Encoder(Slow()), images, "photometric", views=3, cache=folder / cache)
    torch.save((model.steering.state_dict(), model.record), folder / f"{cache}.pt")

def parts():
    return len(list((folder / "killed").glob("pairs/*/images-*")))

seen, draw = [], random.Random(int(sys.argv[2]))
for attempt in range(5):
    child = os.fork()
    if child == 0:
        slow[0] = 0.02
        run("killed")
        os._exit(0)
    while parts() < 2 + 4 * attempt:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    seen.append((parts(), os.waitstatus_to_exitcode(status)))
run("killed")
run("whole")
print(json.dumps(seen))
"""


class Counted(nn.Module):
    """Mean and deviation of each color; counts the images that it met."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return self.gain * torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)


class Other(Counted):
    """The same weights, and another answer."""

    def forward(self, images):
        return super().forward(images).flip(1)


def encoder(network: nn.Module | None = None) -> Encoder:
    return Encoder(Counted() if network is None else network, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def few(monkeypatch) -> ImageSet:
    """20 photos, in parts of 8."""
    monkeypatch.setattr(kept, "PART", 8)
    return photos("train", size=16, n=20)


def weights(model: steerable.SteerableEncoder) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in model.steering.state_dict().values()])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_five_kills_change_nothing(tmp_path, seed):
    told = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), str(seed)], capture_output=True, text=True, check=True
    )
    seen = json.loads(told.stdout)
    assert [code for _, code in seen] == [-9] * 5
    counts = [count for count, _ in seen]
    assert counts == sorted(counts)
    assert 2 <= counts[0] < counts[-1] < 24, "the kills fell between the first part and the last"
    (killed, record), (whole, unbroken) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("killed", "whole")
    )
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[key], whole[key]) for key in whole)
    assert (record["passes_new"], unbroken["passes_new"]) == (192 - 8 * counts[-1], 192)


def test_more_views_encode_only_the_new_ones(few, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="steerable")
    first = steerable.fit(encoder(), few, CHAIN, views=1, cache=tmp_path)
    network = Counted()
    caplog.clear()
    second = steerable.fit(wrapped := encoder(network), few, CHAIN, views=3, cache=tmp_path)
    assert (first.record["passes"], first.record["passes_new"]) == (40, 40)
    assert (second.record["passes"], second.record["passes_new"]) == (80, 40)
    assert second.record.items() >= {"images": 20, "views": 3, "pairs": 60, "made_by": "fit"}.items()
    assert second.record["seconds"] >= 0
    plan, price = caplog.messages[0], caplog.messages[-2]
    assert plan.startswith(
        "plan: 20 images x (1 plain + 3 views) = 80 encoder passes, 40 of them cached; about 0 s"
    )
    assert "60 pairs" in price
    assert "80 encoder passes, 40 of them new" in price
    caplog.clear()
    met = network.seen
    third = steerable.fit(wrapped, few, CHAIN, views=3, cache=tmp_path)
    assert "80 of them cached; nothing left to encode" in caplog.messages[0]
    assert network.seen - met == 1, "one image, by which a module of one's own is known again"
    assert torch.equal(weights(second), weights(third))
    whole = steerable.fit(encoder(), few, CHAIN, views=3, cache=tmp_path / "else")
    assert torch.equal(weights(second), weights(whole))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return bytes(255 - byte for byte in data[:40]) + data[40:]


def retyped(data: bytes) -> bytes:
    return data.replace(b'"F32"', b'"I32"', 1)


def reshaped(data: bytes) -> bytes:
    return data.replace(b"[8,6]", b"[6,8]", 1)


@pytest.mark.parametrize("harm", [cut, flipped, retyped, reshaped, lambda data: b""])
def test_a_damaged_part_is_made_again(few, tmp_path, caplog, harm: Callable[[bytes], bytes]):
    first = steerable.fit(encoder(), few, CHAIN, views=2, cache=tmp_path)
    path = sorted(tmp_path.glob("pairs/*/*"))[1]
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    assert path.read_bytes() != whole
    second = steerable.fit(encoder(), few, CHAIN, views=2, cache=tmp_path)
    assert second.record["passes_new"] == 8
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path} is damaged" in caplog.text
    assert path.read_bytes() == whole
    assert torch.equal(weights(first), weights(second))


def test_only_equal_work_is_shared(few, tmp_path):
    def folder(network=None, images=few, chain=CHAIN, seed=0) -> Path:
        return kept.Pairs(encoder(network), images, chain, views=1, seed=seed, folder=tmp_path).folder

    floats = few.float_images(range(20))
    others = [
        folder(Counted(2.0)),
        folder(Other()),
        folder(images=few.subset(range(19))),
        folder(images=floats),
        folder(images=floats.flip(3)),
        folder(chain=Chain([Hue(turns=0.1), Saturation(stops=0.4)])),
        folder(seed=1),
    ]
    assert len({folder(), *others}) == 1 + len(others)
    assert folder() == folder(images=few.subset(range(20)))
    assert folder(images=floats) == folder(images=floats.clone())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"memory": 1e-6}, FitError, "normal equations .* need"),
        ({"memory": 1e-6, "map": "rotation"}, FitError, "keeps its pairs"),
        ({"memory": 2e-5, "refine": "cosine", "views": 300}, FitError, "keeps its pairs, .*memory=2e-05"),
        (
            {"memory": 2e-5, "adapter": "linear", "views": 300},
            FitError,
            "adapter keeps its pairs, .*raise memory",
        ),
        (
            {"adapter": "linear", "views": 1},
            FitError,
            "20 images with 1 views; expected for an adapter 10 images",
        ),
        ({"adapter": "discriminat"}, ConfigError, "did you mean discriminant?"),
        ({"ridge": -1.0}, ConfigError, "ridge is -1"),
        ({"refine": "cosin"}, ConfigError, "did you mean cosine?"),
        ({"map": "bases"}, ConfigError, "did you mean basis?"),
        ({"features": "liner"}, ConfigError, "did you mean linear?"),
    ],
)
def test_refused_before_anything_is_encoded(few, tmp_path, settings, error: type[SteerableError], message):
    network = Counted()
    given = encoder(network)
    met = network.seen
    with pytest.raises(error, match=message):
        steerable.fit(given, few, CHAIN, **{"views": 2, "cache": tmp_path, **settings})
    assert network.seen - met <= 1, "at most the image by which a module of one's own is known"
    assert not list(tmp_path.iterdir())


def test_a_single_image_is_refused(few):
    with pytest.raises(FitError, match="there are 1 images; expected 2 at least"):
        steerable.fit(encoder(), few.subset([0]), CHAIN)


def test_an_interrupted_command_says_what_is_kept(few, tmp_path, monkeypatch, capsys):
    class Interrupted(Counted):
        def forward(self, images):
            if self.seen > 40:
                raise KeyboardInterrupt
            return super().forward(images)

    words = [
        "fit",
        "--encoder",
        "mine",
        "--images",
        "photos",
        "--limit",
        "20",
        "--size",
        "16",
        "--chain",
        "photometric",
    ]
    words += ["--views", "2", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("steerable.cli.fit._encoder", lambda *_: encoder(Interrupted()))
    assert main(words) == 130
    said = capsys.readouterr()
    assert said.err.splitlines()[0].startswith("steerable: info: plan: 20 images x (1 plain + 2 views)")
    *_, line, last = said.err.splitlines()
    assert f"8 new encoder passes are kept in {tmp_path / 'cache'}" in line
    assert last == "steerable: interrupted"
    assert said.out == ""
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("steerable.cli.fit._encoder", lambda *_: encoder())
    assert main([*words, "--projection", "none"]) == 0
    said = capsys.readouterr()
    assert "60 encoder passes, 52 of them new" in said.err.splitlines()[-2]
    assert said.out == f"{tmp_path / 'out'}\n"
    assert (
        steerable.SteerableEncoder.from_pretrained(tmp_path / "out", encoder=Counted()).record["passes"] == 60
    )


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x"
    write_whole(path, lambda partial: partial.write_bytes(b"old"))

    def half(partial: Path) -> None:
        partial.write_bytes(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, half)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.setenv("STEERABLE_CACHE", "~/x")
    assert cache_root() == Path.home() / "x"
    monkeypatch.delenv("STEERABLE_CACHE")
    assert cache_root() == Path.home() / ".cache" / "steerable"
