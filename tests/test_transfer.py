"""Transfer: probes on the embeddings of several sets, and the cache that saves encoding them twice."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from steerable.data import ImageSet
from steerable.encoders import Encoder
from steerable.errors import ConfigError, DataError
from steerable.evaluate import evaluate_transfer, load_parts, probe
from steerable.evaluate.encoding import Encodings
from steerable.metrics import knn_accuracy
from steerable.model import SteerableEncoder
from steerable.transforms import Brightness, Chain

GRID = (1e-2, 1.0, 1e2)


class Quadrants(nn.Module):
    """Mean colors of four quadrants; counts the images that pass."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.scale * nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def squares(n: int, seed: int, name: str = "", classes: int = 4) -> ImageSet:
    """The quadrant that is bright tells the class; so noisy that some cannot be told."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    small = torch.full((n, 1, 4), 100.0)
    small[torch.arange(n), 0, labels] += 40
    small = small.view(n, 1, 2, 2) + 25 * torch.randn(n, 3, 2, 2, generator=g)
    pixels = nn.functional.interpolate(small, 8).clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, labels, tuple("abcdefgh"[:classes]), tuple(map(str, range(n))), name=name)


def parts(seed: int = 0, **extra: ImageSet) -> dict[str, ImageSet]:
    return {"train": squares(150, seed), "test": squares(80, seed + 1), **extra}


def encoder() -> Encoder:
    return Encoder(Quadrants(), mean=(0, 0, 0), std=(1, 1, 1))


def test_rows_are_the_probe_and_the_neighbors_of_each_set():
    told = []
    sets = {"squares": parts(), "pet-flowers": lambda: parts(5)}
    result = evaluate_transfer(encoder(), sets, grid=GRID, progress=lambda *a: told.append(a))
    json.dumps(result, allow_nan=False)
    assert [(row["set"], row["probe"], row["metric"]) for row in result["rows"]] == [
        ("squares", "linear", "accuracy"), ("squares", "knn", "accuracy"),
        ("pet-flowers", "linear", "per_class"), ("pet-flowers", "knn", "per_class"),
    ]  # fmt: skip
    assert told == [(0, 2, "squares"), (1, 2, "pet-flowers")]
    e, y, test, y_test = (
        part
        for images in parts().values()
        for part in (encoder().encode(images.float_images(range(len(images)))), images.labels)
    )
    linear, knn = result["rows"][:2]
    expected = probe(e, y, test, y_test, grid=GRID)
    assert (linear["accuracy"], linear["per_class"], linear["c"]) == (
        expected.accuracy, pytest.approx(expected.per_class), expected.c
    )  # fmt: skip
    assert knn["accuracy"] == knn_accuracy(e, y, test, y_test)
    assert 0.5 < knn["accuracy"] < 1
    assert 0.5 < linear["accuracy"] < 1
    flowers = [row["per_class"] for row in result["rows"][::2]]
    assert result["means"]["linear"] == pytest.approx((linear["accuracy"] + flowers[1]) / 2)


def test_validation_images_choose_the_strength_and_are_fitted_too():
    """Lying validation images make the weakest probe the best, which answers with one class."""
    lying = squares(60, 3)
    lying = ImageSet(lying.images, (lying.labels + 1) % 4, lying.classes, lying.paths)
    result = evaluate_transfer(encoder(), {"s": parts(validation=lying)}, grid=(1e-6, 1e2))
    row = result["rows"][0]
    assert (row["c"], row["n_train"]) == (1e-6, 210)
    assert evaluate_transfer(encoder(), {"s": parts()}, grid=(1e-6, 1e2))["rows"][0]["c"] == 1e2


def test_a_second_probe_costs_no_encoding(tmp_path: Path):
    first = evaluate_transfer(encoder(), {"s": parts()}, grid=GRID, cache=tmp_path)
    again = evaluate_transfer(encoder(), {"renamed": parts()}, grid=GRID, cache=tmp_path)
    assert (first["passes"], again["passes"]) == (230, 0)
    assert [row["score"] for row in again["rows"]] == [row["score"] for row in first["rows"]]
    other = Encoder(Quadrants(2.0), mean=(0, 0, 0), std=(1, 1, 1))
    assert evaluate_transfer(other, {"s": parts()}, grid=GRID, cache=tmp_path)["passes"] == 230


def test_the_cache_tells_thetas_and_foreign_modules_apart(tmp_path: Path):
    model = SteerableEncoder(encoder(), Chain([Brightness(stops=1.0)]))
    encode, images = Encodings(model, tmp_path), squares(20, 0)
    plain, dark = encode(images), encode(images, torch.tensor([-1.0]))
    torch.testing.assert_close(dark, plain / 2)
    assert encode.encoded == 40
    again = Encodings(model, tmp_path)
    assert torch.equal(again(images, torch.tensor([-1.0])), dark)
    assert torch.equal(Encodings(model.encoder, tmp_path)(images), plain)
    assert again.encoded == 0
    (kept,) = tmp_path.glob("embeddings/*/*-*.npy")
    kept.write_bytes(b"cut off")
    assert torch.equal(again(images, torch.tensor([-1.0])), dark)
    assert again.encoded == 20

    class Squared(Quadrants):
        def forward(self, x):
            return super().forward(x) ** 2

    squared = Encoder(Squared(), mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(Encodings(squared, tmp_path)(images), plain**2)
    with pytest.raises(ConfigError, match="no chain"):
        again.__class__(model.encoder)(images, torch.tensor([-1.0]))


def test_transfer_refuses():
    with pytest.raises(ConfigError, match="no data sets"):
        evaluate_transfer(encoder(), {})
    with pytest.raises(DataError, match="no test images"):
        evaluate_transfer(encoder(), {"s": {"train": squares(9, 0)}})
    with pytest.raises(DataError, match="other ones than train's"):
        evaluate_transfer(encoder(), {"s": parts() | {"test": squares(9, 0, classes=3)}})


def test_splits_are_found_by_their_names(tmp_path: Path):
    from PIL import Image

    def fill(folder: Path, n: int) -> None:
        for label in ("x", "y"):
            (folder / label).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (i, n, 0)).save(folder / label / f"{i}.png")

    fill(tmp_path / "three" / "train", 4)
    fill(tmp_path / "three" / "val", 3)
    fill(tmp_path / "three" / "testing", 2)
    found = load_parts(str(tmp_path / "three"), size=8)
    assert {part: len(images) for part, images in found.items()} == {"train": 8, "validation": 6, "test": 4}
    fill(tmp_path / "flat", 10)
    found = load_parts(str(tmp_path / "flat"), size=8)
    assert {part: len(images) for part, images in found.items()} == {"train": 16, "test": 4}
    fill(tmp_path / "two" / "train", 4)
    fill(tmp_path / "two" / "valid", 3)
    found = load_parts(str(tmp_path / "two"), size=8)
    assert {part: len(images) for part, images in found.items()} == {"train": 8, "test": 6}
    with pytest.raises(DataError, match="names a split"):
        load_parts("photos:train")
