"""Sampling, input checks, types and devices, shared by all transforms."""

import pytest
import torch
from scipy import ndimage

from steerable.errors import LawError, ShapeError, ThetaError
from steerable.theta import Laws, Param
from steerable.transforms import (
    TRANSFORMS,
    Blur,
    Chain,
    Grayscale,
    HFlip,
    Hue,
    Photometric,
    Rotate,
    color_map,
)
from steerable.transforms.filters import _gaussian


@pytest.fixture(scope="module")
def chain():
    return Chain.preset("simclr-full")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "/ 255"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), "convert to RGB"),
        (torch.zeros(2, 8, 8, 3), "channels first"),
        (torch.zeros(2, 3, 0, 8), "shape"),
        ([[0.0]], "images are list"),
    ],
)
def test_images_of_another_kind(chain, images, message):
    with pytest.raises(ShapeError, match=message):
        chain.apply(images, torch.zeros(2, len(chain.params)))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    "theta", [torch.zeros(2, 3), torch.zeros(3, 11), torch.zeros(11), torch.full((2, 11), torch.nan), "zero"]
)
def test_theta_of_another_kind(chain, theta):
    with pytest.raises(ThetaError, match="theta"):
        chain.apply(torch.zeros(2, 3, 8, 8), theta)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("seed", [None, 0])
def test_sampling_needs_a_generator(chain, seed):
    with pytest.raises(ThetaError, match="generator is"):
        chain.sample(2, generator=seed)


def test_theta_of_integers_is_taken():
    images = torch.rand(2, 3, 4, 4, generator=generator())
    assert torch.equal(HFlip().apply(images, torch.tensor([[1], [0]]))[0], images[0].flip(2))


def test_shares_of_switches():
    draws = Chain([HFlip(p=0.3), Grayscale(p=0.1)]).sample(10_000, generator=generator())
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert draws.mean(dim=0).tolist() == pytest.approx([0.3, 0.1], abs=0.015)
    blur = Blur(sigma=0.02, p=0.25).sample(10_000, generator=generator())
    assert float((blur > 0).float().mean()) == pytest.approx(0.25, abs=0.015)
    assert 0.019 < float(blur.max()) <= 0.02


def test_draws_are_independent_between_coordinates(chain):
    theta = chain.sample(20_000, generator=generator())
    spread = torch.corrcoef(theta.T)
    # Zoom widens the room for shifts, on both sides alike.
    assert float((spread - torch.eye(len(spread))).abs().max()) < 0.03


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_computed_at_full_precision(chain, dtype):
    images, theta = torch.rand(3, 3, 16, 16, generator=generator()), chain.sample(3, generator=generator())
    out = chain.apply(images.to(dtype), theta)
    assert out.dtype == dtype
    want = chain.apply(images.to(dtype).float(), theta)
    torch.testing.assert_close(out.float(), want.to(dtype).float(), atol=1e-6, rtol=0)


def test_autocast_does_not_reach_the_pixels(chain):
    images, theta = torch.rand(3, 3, 16, 16, generator=generator()), chain.sample(3, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = chain.apply(images, theta)
    assert torch.equal(out, chain.apply(images, theta))


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(chain, n):
    theta = chain.sample(n, generator=generator())
    assert chain.apply(torch.rand(n, 3, 8, 8), theta).shape == (n, 3, 8, 8)


def test_memory_layout_does_not_matter(chain):
    images, theta = torch.rand(3, 3, 16, 10, generator=generator()), chain.sample(3, generator=generator())
    want = chain.apply(images, theta)
    for same in (images.contiguous(memory_format=torch.channels_last), images.mT.contiguous().mT):
        torch.testing.assert_close(chain.apply(same, theta), want, atol=1e-6, rtol=0)
        assert chain.apply(same, theta).is_contiguous()


def test_gradients_reach_theta():
    theta = torch.tensor([[0.05]], dtype=torch.float64, requires_grad=True)
    images = 0.3 + 0.4 * torch.rand(1, 3, 6, 6, generator=generator(), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: Hue().apply(images, t), theta)


def test_blur_keeps_the_mean_and_smooths():
    images = torch.rand(2, 3, 24, 30, generator=generator())
    out = Blur(sigma=0.2).apply(images, torch.tensor([[0.1], [-0.1]]))
    torch.testing.assert_close(out[0].mean(dim=(1, 2)), images[0].mean(dim=(1, 2)), atol=2e-3, rtol=0)
    assert float(out[0].std()) < 0.4 * float(images[0].std())
    assert torch.equal(out[1], images[1])


def test_blur_is_the_convolution_of_the_mirrored_image_and_spares_the_others():
    images = torch.rand(5, 3, 11, 16, generator=generator(), dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.03, -0.2, 0.1, 0.0])
    out = Blur(sigma=0.3).apply(images, sigma[:, None])
    assert torch.equal(out[[0, 2, 4]], images[[0, 2, 4]])
    for i in (1, 3):
        pixels = sigma[i].item() * 11
        expected = images[i].numpy()
        for axis in (1, 2):
            expected = ndimage.gaussian_filter1d(expected, pixels, axis=axis, mode="reflect", radius=15)
        torch.testing.assert_close(out[i], torch.from_numpy(expected), atol=2e-7, rtol=0)


def test_blur_keeps_clear_of_subnormal_numbers():
    """Products with them are 20 times slower on a CPU; with small deviations they come by the thousand."""
    weights = _gaussian(torch.linspace(0.1, 2, 20), 64)
    assert float(weights[weights > 0].min()) > 1e-13


def test_both_borders_blur_alike():
    images, theta = torch.rand(1, 3, 12, 15, generator=generator()), torch.tensor([[0.1]])
    mirrored = Blur().apply(images.flip(2, 3), theta).flip(2, 3)
    torch.testing.assert_close(Blur().apply(images, theta), mirrored, atol=1e-6, rtol=0)


def test_a_blurred_point_is_a_gaussian():
    images = torch.zeros(1, 3, 41, 41)
    images[..., 20, 20] = 1
    row = Blur(sigma=0.2).apply(images, torch.tensor([[3.0 / 41]]))[0, 0, 20]
    at = torch.arange(41) - 20.0
    want = torch.exp(-(at**2) / 18) / (9 * 2 * torch.pi)
    torch.testing.assert_close(row, want, atol=1e-5, rtol=0)


def test_plus_is_refused_across_coordinates_that_do_not_commute():
    class Pair(Photometric):
        name = "pair"
        laws = Laws.ALL

        def __init__(self):
            self.params = (Param("one", "", 0.0, 1.0), Param("two", "", 0.0, 1.0))

        def affine(self, theta):
            return color_map(torch.eye(3).expand(len(theta), 3, 3))

    with pytest.raises(LawError, match="plus is not composition"):
        Pair().compose(torch.zeros(1, 2), torch.zeros(1, 2))
    torch.testing.assert_close(
        Rotate().compose(torch.tensor([170.0]), torch.tensor([20.0])), torch.tensor([-170.0])
    )


def test_names_of_classes_and_parameters_are_unique():
    names = [param.name for cls in TRANSFORMS.values() for param in cls().params]
    assert len(names) == len(set(names))
    assert all(name == cls.name for name, cls in TRANSFORMS.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["simclr-full", "geometric"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_cuda_equals_cpu(name, where):
    chain = Chain.preset(name)
    images, theta = torch.rand(5, 3, 20, 24, generator=generator()), chain.sample(5, generator=generator())
    out = chain.apply(images.cuda(), theta.to(where))
    assert out.device.type == "cuda"
    torch.testing.assert_close(out.cpu(), chain.apply(images, theta), atol=1e-5, rtol=0)
