"""Geometry: exact cases, directions, matrices, windows, and the warp against a slow twin."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerable.transforms import Crop, HFlip, Rotate, VFlip
from steerable.transforms.pixels import warp


@pytest.fixture
def images():
    return torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3, 4])
def test_quarter_turns_go_counter_clockwise(images, quarters):
    turned = Rotate().apply(images, torch.full((4, 1), 90.0 * quarters))
    torch.testing.assert_close(turned, torch.rot90(images, quarters, dims=(2, 3)), atol=1e-5, rtol=0)


def test_half_turn_of_an_oblong_image():
    images = torch.rand(1, 3, 10, 24, generator=torch.Generator().manual_seed(0))
    turned = Rotate().apply(images, torch.tensor([[180.0]]))
    torch.testing.assert_close(turned, images.flip(2, 3), atol=1e-5, rtol=0)


def test_rotation_keeps_shapes_in_an_oblong_image():
    """A disk off center comes back as the same disk a quarter turn further, not as an ellipse."""
    y, x = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(80) - 39.5, indexing="ij")

    def disk(cx, cy):
        return torch.sigmoid(5 - torch.hypot(x - cx, y - cy)).expand(1, 3, 40, 80)

    turned = Rotate().apply(disk(10.0, 0.0), torch.tensor([[90.0]]))
    # Further out the reflected border shows.
    inside = (..., slice(20, 60))
    torch.testing.assert_close(turned[inside], disk(0.0, -10.0)[inside], atol=1e-4, rtol=0)


def test_shifts_move_content_right_and_down_by_shares_of_the_side(images):
    moved = Crop().apply(images, torch.tensor([[0.0, 0.0, 0.25, 0.1]]).repeat(4, 1))
    torch.testing.assert_close(moved[:, :, 2:, 5:], images[:, :, :-2, :-5], atol=1e-5, rtol=0)
    # What came in from outside is the reflection of the border.
    torch.testing.assert_close(moved[:, :, 2:, :5], images[:, :, :-2, :5].flip(3), atol=1e-5, rtol=0)


def test_zoom_and_aspect_magnify():
    matrix = Crop().matrix(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    assert matrix[0].diagonal().tolist() == [2, 2, 1]
    width, height, _ = matrix[1].diagonal().tolist()
    assert width / height == pytest.approx(2)
    assert width * height == pytest.approx(1)


@pytest.mark.parametrize("theta", [0.4, 0.6, 1.0, 1.4, -1.0, 2.0, 3.0])
def test_flips_round_and_repeat(images, theta):
    odd = round(theta) % 2 == 1
    for transform, axis in ((HFlip(), 3), (VFlip(), 2)):
        out = transform.apply(images, torch.full((4, 1), theta))
        assert torch.equal(out, images.flip(axis) if odd else images)


@pytest.mark.parametrize(
    "crop", [Crop(), Crop(zoom=(0.0, 0.1), aspect=1.0), Crop(zoom=(1.0, 3.0), aspect=0.0)]
)
def test_crop_windows_stay_in_the_frame(crop):
    theta = crop.sample(10_000, generator=torch.Generator().manual_seed(0))
    window = torch.linalg.inv(crop.matrix(theta.double()))
    reach = window[:, :2, 2].abs() + window[:, :2, :2].sum(dim=2)
    assert float(reach.max()) <= 1 + 1e-6
    # The draws use the room they have, or the limit would hold for no effort.
    assert float((reach > 0.95).double().mean()) > 0.05


def test_zoomed_out_the_frame_stays_in_the_window():
    crop = Crop(zoom=(-1.0, 0.0))
    theta = crop.sample(10_000, generator=torch.Generator().manual_seed(0))
    matrix = crop.matrix(theta.double())
    assert float((matrix[:, :2, 2].abs() + matrix[:, :2, :2].sum(dim=2)).max()) <= 1 + 1e-6


coordinate = st.floats(-1.5, 1.5)
crops = st.tuples(*[coordinate] * 4).map(lambda v: torch.tensor([v], dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(crops, crops)
def test_crop_composes_and_inverts_as_its_matrices_do(first, second):
    crop = Crop()
    product = crop.matrix(second) @ crop.matrix(first)
    torch.testing.assert_close(crop.matrix(crop.compose(first, second)), product)
    torch.testing.assert_close(crop.matrix(crop.inverse(first)), torch.linalg.inv(crop.matrix(first)))


def slow_warp(image, matrix):
    """One pixel at a time, from the definition: (3, h, w) and (3, 3)."""
    _, h, w = image.shape
    pull, out = torch.linalg.inv(matrix.double()), torch.empty_like(image)
    for i in range(h):
        for j in range(w):
            at = torch.tensor([(2 * j + 1) / w - 1, (2 * i + 1) / h - 1, 1.0], dtype=torch.float64)
            x, y = (pull @ at)[:2].tolist()
            out[:, i, j] = slow_sample(image, ((x + 1) * w - 1) / 2, ((y + 1) * h - 1) / 2)
    return out


def slow_sample(image, x, y):
    _, h, w = image.shape
    value = torch.zeros(3, dtype=image.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            j, i = math.floor(x) + dx, math.floor(y) + dy
            value += (1 - abs(x - j)) * (1 - abs(y - i)) * image[:, mirror(i, h), mirror(j, w)]
    return value


def mirror(i, n):
    i %= 2 * n
    return i if i < n else 2 * n - 1 - i


@pytest.mark.parametrize("size", [(9, 14), (1, 5), (6, 1)])
def test_warp_equals_its_slow_twin(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, *size, generator=generator)
    crop = Crop(zoom=(-0.8, 1.0))
    shrunk, moved = crop.matrix(crop.sample(2, generator=generator)), torch.eye(3)
    moved = torch.stack([moved, moved])
    moved[:, :2] += 0.4 * torch.randn(2, 2, 3, generator=generator)
    # Straight and free matrices in one batch take different paths.
    matrix = torch.stack([shrunk[0], moved[0], shrunk[1], moved[1]])
    want = torch.stack([slow_warp(image, each) for image, each in zip(images, matrix, strict=True)])
    torch.testing.assert_close(warp(images, matrix), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(images[::2], matrix[::2]), want[::2], atol=1e-5, rtol=0)
