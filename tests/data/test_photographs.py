"""The embedded photographs: disjoint splits, equal on every run, a task to be learned."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from steerable.data import photos
from steerable.data.photographs import PHOTOGRAPHS, _photograph, block_grid
from steerable.errors import DataError

GOLDEN_PATHS = ("galaxies#0,218,216", "coffee#140,312,56", "motorcycle#131,422,62")
GOLDEN_FINGERPRINT = "0fdc83a13f21c556"


@pytest.fixture(scope="module")
def both():
    return photos("train"), photos("test")


def boxes(images):
    for path in images.paths:
        name, _, place = path.partition("#")
        left, top, side = map(int, place.split(","))
        yield name, left, top, side


def test_default_sizes_and_balance(both):
    for images, count in zip(both, (2000, 500), strict=True):
        assert images.images.shape == (count, 3, 32, 32)
        assert images.labels.bincount().tolist() == [count // 10] * 10
        assert images.classes == tuple(PHOTOGRAPHS)


def test_splits_share_no_pixel(both):
    seen = {name: np.zeros(_photograph(name).shape[:2], dtype=np.uint8) for name in PHOTOGRAPHS}
    for bit, images in enumerate(both, start=1):
        for name, left, top, side in boxes(images):
            seen[name][top : top + side, left : left + side] |= bit
    for name, mask in seen.items():
        assert not (mask == 3).any(), name
        # the test would also pass on patches of nothing: both splits cover a good part of the photograph
        assert (mask == 1).mean() > 0.4, name
        assert (mask == 2).mean() > 0.1, name


def test_patches_are_what_their_names_say(both):
    train, _ = both
    for row, (name, left, top, side) in list(enumerate(boxes(train)))[:50]:
        assert train.classes[train.labels[row]] == name
        crop = Image.fromarray(_photograph(name)[top : top + side, left : left + side])
        again = np.array(crop.resize((32, 32), Image.Resampling.BICUBIC))
        assert torch.equal(train.images[row].permute(1, 2, 0), torch.from_numpy(again))


def test_blocks_do_not_overlap_and_test_blocks_are_spread():
    grid = block_grid(640, 427)
    cover = np.zeros((427, 640), dtype=int)
    for left, top, right, bottom in grid["train"] + grid["test"]:
        cover[top:bottom, left:right] += 1
    assert cover.max() == 1
    assert len({top for _, top, _, _ in grid["test"]}) == 4
    assert 0.15 < len(grid["test"]) / len(grid["train"] + grid["test"]) < 0.25


def test_equal_seeds_give_equal_bytes_and_others_do_not(both):
    again = photos("test")
    assert again.fingerprint == both[1].fingerprint
    assert again.paths == both[1].paths
    assert photos("train", n=50, seed=1).fingerprint != photos("train", n=50).fingerprint
    assert photos("train", n=50).fingerprint != photos("test", n=50).fingerprint


def test_patches_are_the_ones_that_results_were_measured_on():
    images = photos("test", n=40)
    assert images.paths[:3] == GOLDEN_PATHS
    # pictures from PNG only: JPEG decoders may differ in the last bit
    exact = [
        i for i, path in enumerate(images.paths) if path.split("#")[0] in ("astronaut", "coffee", "tissue")
    ]
    assert images.subset(exact).fingerprint.startswith(GOLDEN_FINGERPRINT)


def test_task_can_be_learned_but_mean_color_does_not_solve_it(both):
    train, test = both
    colors = [images.images.float().mean((2, 3)).numpy() for images in both]
    spread = [images.images.float().std((2, 3)).numpy() for images in both]

    def score(a, b):
        return KNeighborsClassifier(5).fit(a, train.labels.numpy()).score(b, test.labels.numpy())

    by_color = score(*colors)
    by_both = score(*(np.concatenate(pair, axis=1) for pair in zip(colors, spread, strict=True)))
    assert 0.4 < by_color < 0.8
    assert by_both > by_color + 0.03


def test_sizes_and_counts():
    images = photos("test", size=64, n=7, seed=3)
    assert images.images.shape == (7, 3, 64, 64)
    assert images.images.float().std((1, 2, 3)).min() > 4


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"split": "val"}, "no split 'val'"),
        ({"n": 0}, "n is 0"),
        ({"size": 4}, "size is 4"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(DataError, match=match):
        photos(**arguments)


def test_wheel_without_photographs(monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "cat", ("skimage", "data/gone.png"))
    _photograph.cache_clear()
    with pytest.raises(DataError, match=r"data/gone\.png is not inside the installed skimage"):
        photos("test", n=20)
    _photograph.cache_clear()


@pytest.mark.slow  # a fresh interpreter imports torch
def test_photos_need_neither_datasets_nor_the_photographs_packages():
    code = (
        "import sys; from steerable.data import load_images; load_images('photos:test', limit=5);"
        "sys.exit(','.join({'datasets', 'skimage', 'sklearn', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
