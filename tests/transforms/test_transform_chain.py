"""Chains: the same as their members in sequence, in one pass; presets, configs, laws."""

import json

import pytest
import torch

from steerable.errors import ConfigError, LawError
from steerable.testing.transform import smooth_images
from steerable.theta import Laws, Param
from steerable.transforms import (
    PRESETS,
    TRANSFORMS,
    Blur,
    Brightness,
    Chain,
    Contrast,
    Crop,
    Filter,
    Grayscale,
    HFlip,
    Hue,
    Photometric,
    Rotate,
    Saturation,
    build,
    color_map,
    pixels,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Warmth(Photometric):
    """Red up, blue down: does not keep the luma, so that a contrast after it needs the moved mean."""

    name = "warmth"
    laws = Laws.ALL

    def __init__(self):
        self.params = (Param("warmth", "stop", -0.3, 0.3),)

    def affine(self, theta):
        gains = theta * torch.tensor([[1.0, 0.0, -1.0]], dtype=theta.dtype)
        return color_map(torch.diag_embed(gains.exp2()))


class Glow(Photometric):
    """The mean color is added: a second transform, after contrast, that needs the moved mean."""

    name = "glow"
    laws = Laws.IDENTITY

    def __init__(self):
        self.params = (Param("glow", "share", -0.2, 0.2),)

    def affine(self, theta):
        identity = torch.eye(3, dtype=theta.dtype).expand(len(theta), 3, 3)
        return color_map(identity, theta[:, :, None] * identity)


@pytest.mark.parametrize("name", PRESETS)
def test_chain_equals_its_members_in_sequence(name):
    """simclr-full ends with the blur, and crop then flip interpolates once either way: so to rounding."""
    chain = Chain.preset(name)
    members = [member for member in chain.members if not isinstance(member, Rotate)]
    chain = Chain(members)
    theta = 0.5 * chain.sample(6, generator=generator())
    images = smooth_images(6)
    out, column = images, 0
    for member in members:
        width = len(member.params)
        out = member.apply(out, theta[:, column : column + width])
        column += width
    assert float(out.min()) > 0
    assert float(out.max()) < 1
    torch.testing.assert_close(chain.apply(images, theta), out, atol=2e-6, rtol=0)


def test_rotation_then_crop_equals_the_sequence_but_for_interpolation():
    chain, images = Chain([Rotate(), Crop(zoom=(0.6, 1.0))]), smooth_images(6)
    theta = chain.sample(6, generator=generator())
    crop = chain.members[1].apply(chain.members[0].apply(images, theta[:, :1]), theta[:, 1:])
    torch.testing.assert_close(chain.apply(images, theta), crop, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "members",
    [
        [Warmth(), Contrast()],
        [Contrast(), Warmth()],
        [Contrast(), Warmth(), Glow()],
        [Glow(), Contrast(), Hue()],
    ],
)
def test_contrast_follows_the_mean_color(members):
    images = smooth_images(4)
    theta = Chain(members).sample(4, generator=generator())
    out = images
    for i, member in enumerate(members):
        out = member.apply(out, theta[:, i : i + 1])
    torch.testing.assert_close(Chain(members).apply(images, theta), out, atol=1e-6, rtol=0)


def test_listed_order_matters_within_color():
    theta, images = torch.tensor([[0.3, 0.7]]), smooth_images(1)
    one = Chain([Warmth(), Contrast()]).apply(images, theta)
    other = Chain([Contrast(), Warmth()]).apply(images, theta.flip(1))
    assert float((one - other).abs().max()) > 1e-3


def test_geometry_comes_first_and_filters_last_whatever_the_listing():
    images = smooth_images(3)
    usual = Chain([Crop(), Contrast(), Blur(sigma=0.1, p=1.0)])
    other = Chain([Blur(sigma=0.1, p=1.0), Contrast(), Crop()])
    theta = usual.sample(3, generator=generator())
    moved = torch.cat([theta[:, 5:], theta[:, 4:5], theta[:, :4]], dim=1)
    assert torch.equal(usual.apply(images, theta), other.apply(images, moved))


def test_clipping_comes_once_at_the_end():
    bright = torch.full((1, 3, 2, 2), 0.8)
    chain = Chain([Brightness(), Warmth()])
    out = chain.apply(bright, torch.tensor([[1.0, -2.0]]))
    torch.testing.assert_close(out[0, 0], torch.full((2, 2), 0.4))


def test_a_batch_in_blocks_equals_the_whole(monkeypatch):
    chain = Chain.preset("simclr-full")
    images, theta = torch.rand(7, 3, 16, 16, generator=generator()), chain.sample(7, generator=generator())
    whole = chain.apply(images, theta)
    monkeypatch.setattr(pixels, "_BLOCK_BYTES", 2 * 3 * 16 * 16 * 4 // torch.get_num_threads())
    torch.testing.assert_close(chain.apply(images, theta), whole, atol=1e-6, rtol=0)
    images.requires_grad_()
    chain.apply(images, theta).sum().backward()
    assert images.grad is not None
    assert bool((images.grad.abs().flatten(1).sum(dim=1) > 0).all())


@pytest.mark.parametrize("name", [*TRANSFORMS, *PRESETS])
def test_theta_zero_changes_no_bit(name):
    transform = TRANSFORMS[name]() if name in TRANSFORMS else Chain.preset(name)
    images = torch.rand(5, 3, 17, 12, generator=generator())
    assert torch.equal(transform.apply(images, torch.zeros(5, len(transform.params))), images)


def test_still_rows_keep_their_bits_among_moving_ones():
    chain = Chain.preset("geometric")
    images, theta = torch.rand(6, 3, 12, 12, generator=generator()), chain.sample(6, generator=generator())
    theta[::2] = 0
    out = chain.apply(images, theta)
    assert torch.equal(out[::2], images[::2])
    assert not torch.equal(out[1::2], images[1::2])


def test_presets_are_as_documented():
    ranges = {param.name: (param.low, param.high) for param in Chain.preset("simclr").params}
    assert ranges["zoom"] == (0.0, 1.8)
    assert ranges["aspect"] == (-0.42, 0.42)
    assert ranges["brightness"] == ranges["contrast"] == ranges["saturation"] == (-0.7, 0.7)
    assert ranges["hue"] == (-0.1, 0.1)
    names = [member.name for member in Chain.preset("simclr").members]
    assert names == ["crop", "hflip", "brightness", "contrast", "saturation", "hue"]
    full = [member.name for member in Chain.preset("simclr-full").members]
    assert full == [*names, "grayscale", "blur"]


def test_laws_are_the_intersection_and_stay_per_coordinate():
    chain = Chain([Hue(), Grayscale(), Crop()])
    assert chain.laws == Laws.IDENTITY
    assert chain.param_laws == (Laws.ALL, Laws.IDENTITY, *[Laws.ALL] * 4)


def test_compose_where_the_chain_is_closed():
    jitter = Chain([Brightness(), Hue()])
    first, second = torch.tensor([[0.2, 0.4]]), torch.tensor([[0.1, 0.3]])
    torch.testing.assert_close(jitter.compose(first, second), torch.tensor([[0.3, -0.3]]))
    torch.testing.assert_close(jitter.inverse(first), -first)
    crop, theta = Chain([Crop()]), torch.tensor([[0.5, 0.1, 0.2, 0.3]])
    torch.testing.assert_close(crop.compose(theta, crop.inverse(theta)), torch.zeros(1, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "members",
    [[Rotate(), Crop()], [HFlip(), Hue()], [Grayscale()], [Crop(), Brightness()], [Saturation(), Blur()]],
)
def test_no_compose_where_it_is_not(members):
    chain = Chain(members)
    zero = torch.zeros(1, len(chain.params))
    with pytest.raises(LawError, match="compose"):
        chain.compose(zero, zero)
    with pytest.raises(LawError, match="inverse"):
        chain.inverse(zero)


@pytest.mark.parametrize("name", PRESETS)
def test_configs_go_through_json_and_back(name):
    chain = Chain.preset(name)
    again = build(json.loads(json.dumps(chain.config())))
    assert again.config() == chain.config()
    assert again.params == chain.params
    images, theta = torch.rand(2, 3, 8, 8, generator=generator()), chain.sample(2, generator=generator())
    assert torch.equal(again.apply(images, theta), chain.apply(images, theta))
    assert torch.equal(build(chain.config()["members"]).apply(images, theta), chain.apply(images, theta))


def test_build_takes_one_config_and_chains_unpack():
    assert build({"name": "rotate", "degrees": [0.0, 90.0]}).params[0].high == 90
    assert len(Chain([Chain([HFlip()]), Chain.preset("photometric")]).members) == 5
    assert "Rotate(degrees=" in repr(Chain([Rotate()]))


def test_a_filter_of_ones_own_joins_a_chain():
    class Negative(Filter):
        name = "negative"
        laws = Laws.IDENTITY

        def __init__(self):
            self.params = (Param("negative", "", 0.0, 1.0),)

        def act(self, images, theta):
            return torch.lerp(images, 1 - images, theta[:, :, None, None])

    out = Chain([Negative(), HFlip()]).apply(smooth_images(1), torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(out, 1 - smooth_images(1).flip(3))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("simclrr", "did you mean simclr"),
        ([{"name": "rotat"}], "did you mean rotate"),
        ([{"name": "rotate", "degree": 3}], "did you mean degrees"),
        ([{"degrees": 3}], "expected a mapping with a name"),
        ([{"name": "rotate", "degrees": "far"}], "degrees is 'far'"),
        ([{"name": "hflip", "p": 2}], "p is 2"),
        ([{"name": "crop", "aspect": -1}], "aspect is -1"),
        ([{"name": "blur", "sigma": 0}], "sigma is 0"),
        ([{"name": "hflip"}, {"name": "hflip"}], r"same name \(hflip\)"),
        ([], "no members"),
        (7, "the chain's config is 7"),
        (["hflip"], "a transform's config is 'hflip'"),
    ],
)
def test_wrong_configs(config, message):
    with pytest.raises(ConfigError, match=message):
        build(config)


@pytest.mark.usefixtures("as_users_run_it")
def test_members_must_be_transforms():
    with pytest.raises(ConfigError, match="a member of the chain is 'hflip'"):
        Chain(["hflip"])
