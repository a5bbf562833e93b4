"""The corruptions: groups, seeds that hold, the cache, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from steerable.data import ImageSet
from steerable.data.cache import cache_root
from steerable.errors import ConfigError, DataError, MissingExtra
from steerable.evaluate import corruptions
from steerable.evaluate.corruptions import CORRUPTION_NAMES, CORRUPTIONS, corrupt

pytest.importorskip("imagecorruptions")

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
          "elastic_transform")  # fmt: skip

# every corruption at one severity, as a digest of pixels: printed by another process
PROGRAM = """
import hashlib, torch
from steerable.data import ImageSet
from steerable.evaluate.corruptions import CORRUPTION_NAMES, corrupt
pixels = torch.randint(0, 256, (2, 3, 32, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
images = ImageSet(pixels, torch.zeros(2, dtype=torch.int64), (), ("a", "b"))
for name in CORRUPTION_NAMES:
    print(name, hashlib.sha256(corrupt(images, name, 3).images.numpy().tobytes()).hexdigest())
"""


def make(n: int = 4, side: int = 32, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % 2
    return ImageSet(pixels, labels, ("a", "b"), tuple(map(str, range(n))), name="made")


def test_the_groups_are_the_packages():
    from imagecorruptions import get_corruption_names

    assert {group: list(names) for group, names in CORRUPTIONS.items()} == {
        group: get_corruption_names(group) for group in ("noise", "blur", "weather", "digital")
    }
    assert list(CORRUPTION_NAMES) == get_corruption_names("common")


def test_two_processes_agree(capsys):
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    lines = other.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(CORRUPTION_NAMES)
    assert len({line.split()[1] for line in lines}) == 15
    exec(PROGRAM)
    assert capsys.readouterr().out == other.stdout


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_and_subsets(name: str):
    images = make()
    whole = corrupt(images, name, 3, seed=1)
    assert torch.equal(corrupt(images.subset([3, 1]), name, 3, seed=1).images, whole.images[[3, 1]])
    assert not torch.equal(corrupt(images, name, 3, seed=2).images, whole.images)


@pytest.mark.parametrize("name", CORRUPTION_NAMES)
def test_severity_moves_the_pixels_further(name: str):
    images = corrupt(make(2, 40), "defocus_blur", 3)  # smooth, so that every corruption shows
    one, five = (corrupt(images, name, severity) for severity in (1, 5))
    assert one.images.shape == images.images.shape
    assert one.images.dtype == torch.uint8
    assert torch.equal(one.labels, images.labels)
    assert one.paths == images.paths
    assert one.name.endswith(f"{name} 1")
    away = [(x.images.float() - images.images.float()).abs().mean() for x in (one, five)]
    # a picture of frost is drawn anew for each severity
    assert away[0] > 0
    assert away[1] > (0 if name == "frost" else away[0])


def test_full_size_photographs_and_oblong_ones():
    images = ImageSet(
        torch.randint(0, 256, (1, 3, 224, 160), dtype=torch.uint8), torch.zeros(1).long(), (), ("x",)
    )
    for name in CORRUPTION_NAMES:
        if name != "zoom_blur":  # slow
            assert corrupt(images, name, 5).images.shape == (1, 3, 224, 160)


def test_the_callers_generator_is_left_alone(capsys):
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    corrupt(make(1), "gaussian_noise", 1)
    corrupt(make(1, 33), "zoom_blur", 1)
    assert np.random.rand() == expected
    assert capsys.readouterr().out == ""


def test_cache_is_used_and_damage_is_repaired(tmp_path, monkeypatch):
    images = make()
    made = corrupt(images, "snow", 2, cache=tmp_path)
    (file,) = tmp_path.rglob("*.npy")
    assert file.name == "snow-2.npy"
    assert not list(tmp_path.rglob("*.part"))

    calls = []
    draw = corruptions._corrupted
    monkeypatch.setattr(corruptions, "_corrupted", lambda *args: calls.append(args) or draw(*args))
    assert torch.equal(corrupt(images, "snow", 2, cache=tmp_path).images, made.images)
    assert not calls
    corrupt(images, "snow", 2, seed=1, cache=tmp_path)
    corrupt(images.subset([0]), "snow", 2, cache=tmp_path)
    assert len(calls) == 2
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    file.write_bytes(file.read_bytes()[:-5])
    assert torch.equal(corrupt(images, "snow", 2, cache=tmp_path).images, made.images)
    assert len(calls) == 3
    assert np.array_equal(np.load(file), made.images.numpy())


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        corrupt(make(1), "contrast", 1, cache=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_refusals(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="did you mean gaussian_noise"):
        corrupt(make(1), "gaussian_nois", 1)
    with pytest.raises(ConfigError, match="severity is 6"):
        corrupt(make(1), "fog", 6)
    with pytest.raises(DataError, match="31 x 31; the corruptions expected at least 32"):
        corrupt(make(1, 31), "fog", 1)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(MissingExtra, match=r"steerable\[eval\]"):
        corrupt(make(1), "fog", 1)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("STEERABLE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("STEERABLE_CACHE")
    assert cache_root().name == "steerable"
    assert cache_root().is_absolute()
