"""Pictures in files of many kinds, and a cache for datasets that goes away with the test."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

LOCAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # tests that mean the Hub replace it
    monkeypatch.delenv("STEERABLE_DATA", raising=False)


@pytest.fixture
def local_data():
    if not (LOCAL / "cifar10").is_dir():
        pytest.skip(f"no real data in {LOCAL}")
    return LOCAL


@pytest.fixture
def picture():
    """A function from a seed to a smooth color picture, Pillow, 40 wide and 30 high unless told."""

    def make(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def encoded():
    """A function from a picture to its file's bytes."""

    def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def class_folder(tmp_path, picture):
    """train/ and test/ with the classes cat and dog; test/ has no cat, so that labels could shift."""
    for split, classes, count in (("train", ("cat", "dog"), 4), ("test", ("dog",), 2)):
        for k, name in enumerate(classes):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(10 * k + i).save(folder / f"{i}.png")
    return tmp_path / "set"
