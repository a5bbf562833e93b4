"""Every transform keeps what it declares, and check_transform notices each way not to."""

import pytest
import torch

from steerable.testing import check_transform
from steerable.theta import Laws, Param
from steerable.transforms import (
    TRANSFORMS,
    Brightness,
    Chain,
    Contrast,
    Crop,
    Filter,
    Grayscale,
    HFlip,
    Hue,
    Rotate,
    VFlip,
    color_map,
)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_keeps_its_laws(name):
    check_transform(TRANSFORMS[name]())


@pytest.mark.parametrize("name", ["simclr-full", "geometric"])
def test_presets_keep_their_laws(name):
    check_transform(Chain.preset(name))


@pytest.mark.parametrize(
    "transform", [Rotate(180.0), Crop(zoom=(-0.5, 0.5)), Hue(0.5), Chain([HFlip(), VFlip()])]
)
def test_other_ranges_keep_their_laws(transform):
    check_transform(transform)


def test_color_alone_is_exact():
    check_transform(Chain.preset("photometric"), tolerance=1e-6)


def test_what_each_transform_declares():
    group = {"rotate", "crop", "hflip", "vflip", "brightness", "contrast", "saturation", "hue"}
    for name, transform in TRANSFORMS.items():
        assert transform().laws == (Laws.ALL if name in group else Laws.IDENTITY), name


class NotNeutral(Brightness):
    def affine(self, theta):
        return super().affine(theta + 0.02)


class Linear(Brightness):
    """Factor 1 + theta: the identity and nothing else."""

    def affine(self, theta):
        return color_map((1 + theta)[:, :, None] * torch.eye(3, dtype=theta.dtype))


class LinearComposes(Linear):
    laws = Laws.IDENTITY | Laws.COMPOSE


class LinearInverts(Linear):
    laws = Laws.IDENTITY | Laws.INVERSE


class BadTail(Brightness):
    """Right but for a few thetas: a mean or a median over cases would not see it."""

    def affine(self, theta):
        return super().affine(torch.where(theta > 0.45, theta + 0.05, theta))


class ShortPeriod(Hue):
    def __init__(self):
        super().__init__()
        self.params = (Param("hue", "turn", -0.1, 0.1, period=0.5),)


class PlusCrop(Crop):
    def compose(self, first, second):
        return first + second


class MinusCrop(Crop):
    def inverse(self, theta):
        return -theta


class ReversibleGray(Grayscale):
    laws = Laws.IDENTITY | Laws.INVERSE


class _Custom(Filter):
    name = "custom"
    laws = Laws.IDENTITY

    def __init__(self):
        self.params = (Param("custom", "", 0.0, 1.0),)


class Random(_Custom):
    def act(self, images, theta):
        return images + theta[:, :, None, None] * torch.rand_like(images)


class DependsOnBatch(_Custom):
    def act(self, images, theta):
        return images + theta[:, :, None, None] * images.mean()


class InPlace(_Custom):
    def act(self, images, theta):
        return images.add_(theta[:, :, None, None])


class Cropped(_Custom):
    def act(self, images, theta):
        return images[..., 1:]


class Unclipped(Brightness):
    def apply(self, images, theta):
        return images * theta[:, :, None, None].exp2().to(images.dtype)


class NotFinite(_Custom):
    def act(self, images, theta):
        return images + (-theta[:, :, None, None]).log()


class Widened(Brightness):
    def apply(self, images, theta):
        return super().apply(images, theta).float()


class WrongShape(Brightness):
    def sample(self, n, *, generator):
        return super().sample(n, generator=generator)[:, 0]


class WrongType(Brightness):
    def sample(self, n, *, generator):
        return super().sample(n, generator=generator).double()


class WrongRange(Brightness):
    def sample(self, n, *, generator):
        return 2 * super().sample(n, generator=generator)


class OwnGenerator(Brightness):
    def sample(self, n, *, generator):
        return super().sample(n, generator=torch.Generator().manual_seed(torch.seed()))


BROKEN = [
    (NotNeutral, "IDENTITY fails along brightness"),
    (LinearComposes, "COMPOSE fails along brightness"),
    (LinearInverts, "INVERSE fails along brightness"),
    (BadTail, "COMPOSE fails along brightness"),
    (ReversibleGray, "INVERSE fails along grayscale"),
    (ShortPeriod, "PERIOD fails along hue"),
    (PlusCrop, "compose() fails along all coordinates"),
    (MinusCrop, "inverse() fails along all coordinates"),
    (Random, "determinism"),
    (DependsOnBatch, "batch differs from one-by-one"),
    (InPlace, "changes its input"),
    (Cropped, "gives shape"),
    (Unclipped, "clipping"),
    (NotFinite, "not finite"),
    (Widened, "turns bfloat16 into"),
    (WrongShape, "has shape"),
    (WrongType, "sample gives torch.float64"),
    (WrongRange, "leaves the range of brightness"),
    (OwnGenerator, "differs between two generators of one seed"),
]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_a_broken_transform_is_noticed(broken, message):
    transform = Unclipped(stops=(0.0, 3.0)) if broken is Unclipped else broken()
    with pytest.raises(AssertionError) as caught:
        check_transform(transform)
    assert message in str(caught.value)


def test_the_message_names_error_and_theta():
    with pytest.raises(
        AssertionError, match=r"brightness: .*: worst error 0.0\d+ at theta \(.*\), tolerance 0.001"
    ):
        check_transform(NotNeutral())


def test_an_undeclared_law_is_not_asked_for():
    class Honest(Linear):
        laws = Laws.IDENTITY

    check_transform(Honest())


def test_nothing_to_judge_is_a_failure():
    with pytest.raises(AssertionError, match="cannot be judged"):
        check_transform(Contrast(), images=torch.ones(1, 3, 8, 8))
