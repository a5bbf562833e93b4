"""Agreement with torchvision's functional operations on a photograph, and with scikit-image's YIQ."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2yiq
from skimage.data import astronaut
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from steerable.transforms import Brightness, Contrast, Crop, HFlip, Hue, Rotate, Saturation, VFlip

SIDE = 96


@pytest.fixture(scope="module")
def photo():
    """The astronaut's face, (1, 3, 96, 96)."""
    pixels = np.ascontiguousarray(astronaut()[40:232:2, 140:332:2])
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def apply(transform, photo, *theta):
    return transform.apply(photo, torch.tensor([theta]))


@pytest.mark.parametrize("stops", [-1.3, -0.5, 0.3, 0.7])
def test_brightness(photo, stops):
    torch.testing.assert_close(
        apply(Brightness(), photo, stops), tv.adjust_brightness(photo, 2**stops), atol=1e-6, rtol=0
    )


# torchvision's luma weights sum to 0.9999: hence 2e-4 here.
@pytest.mark.parametrize("stops", [-1.3, -0.5, 0.3, 0.7])
@pytest.mark.parametrize(
    ("transform", "peer"), [(Contrast(), tv.adjust_contrast), (Saturation(), tv.adjust_saturation)]
)
def test_contrast_and_saturation(photo, transform, peer, stops):
    torch.testing.assert_close(apply(transform, photo, stops), peer(photo, 2**stops), atol=2e-4, rtol=0)


def test_flips_are_equal_to_the_bit(photo):
    assert torch.equal(apply(HFlip(), photo, 1.0), tv.horizontal_flip(photo))
    assert torch.equal(apply(VFlip(), photo, 1.0), tv.vertical_flip(photo))


@pytest.mark.parametrize("degrees", [-75.0, -20.0, 10.0, 90.0, 170.0])
def test_rotate_inside_the_common_circle(photo, degrees):
    ours = apply(Rotate(), photo, degrees)
    theirs = tv.rotate(photo, degrees, interpolation=InterpolationMode.BILINEAR)
    at = torch.arange(SIDE) - (SIDE - 1) / 2
    circle = at[:, None] ** 2 + at**2 < (SIDE / 2 - 2) ** 2
    torch.testing.assert_close(ours[..., circle], theirs[..., circle], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("top", "left", "height", "width"), [(8, 20, 48, 48), (30, 4, 40, 60), (0, 0, 96, 72)]
)
def test_crop_away_from_the_window_edge(photo, top, left, height, width):
    x, y = SIDE / width, SIDE / height
    zoom, aspect = np.log2(x * y) / 2, np.log2(x / y)
    shift_x, shift_y = x * (0.5 - (left + width / 2) / SIDE), y * (0.5 - (top + height / 2) / SIDE)
    ours = apply(Crop(), photo, zoom, aspect, shift_x, shift_y)
    theirs = tv.resized_crop(photo, top, left, height, width, [SIDE, SIDE], antialias=False)
    # torchvision repeats the window's last pixel, ours sees its neighbor beyond the window.
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(ours[inside], theirs[inside], atol=1e-4, rtol=0)


def test_hue_has_the_sense_of_hsv():
    red = torch.tensor([0.6, 0.3, 0.3])[None, :, None, None]
    ours, theirs = apply(Hue(), red, 0.1), tv.adjust_hue(red, 0.1)
    assert bool(ours[0, 1] > ours[0, 2])
    assert bool(theirs[0, 1] > theirs[0, 2])


@pytest.mark.parametrize("turns", [-0.2, 0.05, 0.1])
def test_hue_turns_the_chroma_of_yiq(photo, turns):
    photo = 0.4 + 0.2 * photo  # away from clipping
    before, after = (
        torch.from_numpy(rgb2yiq(image[0].permute(1, 2, 0).double().numpy()))
        for image in (photo, apply(Hue(), photo, turns))
    )
    torch.testing.assert_close(after[..., 0], before[..., 0], atol=1e-6, rtol=0)
    angle = torch.tensor(-2 * torch.pi * turns, dtype=torch.float64)
    want_i = before[..., 1] * angle.cos() - before[..., 2] * angle.sin()
    want_q = before[..., 1] * angle.sin() + before[..., 2] * angle.cos()
    torch.testing.assert_close(after[..., 1], want_i, atol=1e-4, rtol=0)
    torch.testing.assert_close(after[..., 2], want_q, atol=1e-4, rtol=0)
