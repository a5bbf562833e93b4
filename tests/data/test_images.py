"""ImageSet."""

import pytest
import torch

from steerable.data import ImageSet, Skipped
from steerable.errors import DataError


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (7, 3, 8, 9), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    names = tuple(f"{i}.png" for i in range(7))
    return ImageSet(pixels, labels, ("a", "b", "c"), names, (Skipped("x.png", "broken"),), "toy")


def test_subset_keeps_rows_together(images):
    part = images.subset([5, 0])
    assert torch.equal(part.images, images.images[[5, 0]])
    assert part.labels.tolist() == [2, 0]
    assert part.paths == ("5.png", "0.png")
    assert (part.classes, part.name, part.skipped) == (("a", "b", "c"), "toy", ())


def test_subset_by_mask(images):
    mask = images.labels == 1
    assert images.subset(mask).paths == ("1.png", "4.png")
    assert torch.equal(images.float_images(mask), images.float_images([1, 4]))


def test_batches_cover_everything_in_order_as_unit_floats(images):
    batches = list(images.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    together = torch.cat(batches)
    assert together.dtype == torch.float32
    assert torch.equal((together * 255).round().to(torch.uint8), images.images)
    assert torch.equal(together, images.float_images(range(7)))
    assert float(together.min()) >= 0
    assert float(together.max()) <= 1


def test_batches_leave_the_stored_images_alone(images):
    before = images.images.clone()
    next(iter(images.batches(7))).mul_(0)
    assert torch.equal(images.images, before)


def test_batch_size_is_checked_at_the_call(images):
    with pytest.raises(DataError, match="batch_size is 0"):
        images.batches(0)


def test_fingerprint_sees_pixels_labels_and_shape_only(images):
    def rebuilt(pixels=images.images, labels=images.labels, name="other"):
        return ImageSet(pixels, labels, images.classes, tuple("1234567"), name=name)

    assert rebuilt().fingerprint == images.fingerprint
    assert len(images.fingerprint) == 64
    pixels = images.images.clone()
    pixels[3, 1, 4, 4] ^= 1
    assert rebuilt(pixels).fingerprint != images.fingerprint
    assert rebuilt(labels=images.labels.flip(0)).fingerprint != images.fingerprint
    assert rebuilt(images.images.reshape(7, 3, 9, 8)).fingerprint != images.fingerprint
    strided = images.images.to(memory_format=torch.channels_last)
    assert rebuilt(strided).fingerprint == images.fingerprint


def test_labeled(images):
    assert images.labeled
    assert not ImageSet(images.images, torch.zeros(7, dtype=torch.int64), (), images.paths).labeled


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": torch.zeros(7, 3, 8, 8)}, r"torch\.float32"),
        ({"images": torch.zeros(7, 1, 8, 8, dtype=torch.uint8)}, r"\(7, 1, 8, 8\)"),
        ({"labels": torch.zeros(6, dtype=torch.int64)}, r"labels \(6,\)"),
        ({"labels": torch.zeros(7)}, r"float32 labels"),
        ({"labels": torch.full((7,), 3)}, "from 3 to 3"),
        ({"labels": torch.full((7,), -1)}, "from -1 to -1"),
        ({"paths": ("one",)}, "1 paths"),
    ],
)
def test_parts_that_do_not_fit(images, change, match):
    parts = {
        "images": images.images,
        "labels": images.labels,
        "classes": images.classes,
        "paths": images.paths,
    }
    with pytest.raises(DataError, match=match):
        ImageSet(**(parts | change))
