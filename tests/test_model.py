"""SteerableEncoder: what it computes, what it refuses, and that it leaves the encoder as it found it."""

import pytest
import torch
from torch import nn

from steerable.encoders import Encoder
from steerable.errors import ConfigError, LawError, ShapeError, ThetaError
from steerable.maps import MAPS, BasisMap, IdentityMap
from steerable.model import SteerableEncoder, steering_for
from steerable.theta import Laws
from steerable.transforms import PRESETS, Chain, Crop, HFlip, Hue, Rotate


class Net(nn.Module):
    """(b, 3, h, w) to (b, 6), with layers whose training mode differs from evaluation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x))).mean((2, 3))


def filled(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 12, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> SteerableEncoder:
    chain = Chain.preset("photometric")
    return SteerableEncoder(filled(Net()), chain, filled(steering_for(chain, 6), seed=2))


@pytest.fixture
def thetas(model) -> torch.Tensor:
    return model.chain.sample(4, generator=torch.Generator().manual_seed(3))


# encode


def test_encode_is_the_network_on_normalized_images(model, images):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    net = model.encoder.network.eval()
    expected = net((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).detach()
    e = model.encode(images)
    assert e.shape == (5, model.dim) == (5, 6)
    assert e.dtype == torch.float32
    assert not e.requires_grad
    torch.testing.assert_close(e, expected)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_encode_does_not_depend_on_the_batch(model, images, batch_size):
    torch.testing.assert_close(model.encode(images, batch_size=batch_size), model.encode(images))


def test_encode_restores_every_mode_and_touches_no_statistics(model, images):
    model.train()
    model.encoder.network.norm.eval()  # as someone who freezes BatchNorm does
    modes = {name: part.training for name, part in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first = model.encode(images)
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(first, model.eval().encode(images)), "dropout was on"


def test_encode_restores_modes_after_an_error(model):
    model.train()
    with pytest.raises(RuntimeError, match="Kernel size"):
        model.encode(torch.rand(1, 3, 2, 2))
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_encode_takes_any_floating_type(model, images, dtype):
    e = model.encode(images.to(dtype))
    assert e.dtype == torch.float32
    torch.testing.assert_close(e, model.encode(images), atol=0.02, rtol=0)


def test_encode_of_no_images_is_empty(model):
    assert model.encode(torch.zeros(0, 3, 8, 8)).shape == (0, 6)


def test_forward_has_gradients(model, images):
    model(images).sum().backward()
    assert model.encoder.network.conv.weight.grad.abs().sum() > 0


def broken(kind: str) -> torch.Tensor:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[1, 0, 0, :3] = float("nan")
    images[2, 2, 5, 5] = float("inf")
    return {
        "nan": images,
        "bytes": torch.nan_to_num(images, 0, 1) * 255,
        "normalized": torch.nan_to_num(images, 0, 1) * 4 - 2,
        "uint8": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        "single": torch.zeros(3, 8, 8),
        "gray": torch.zeros(4, 1, 8, 8),
        "channels last": torch.zeros(4, 8, 8, 3),
        "no pixels": torch.zeros(4, 3, 0, 8),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"4 pixel values in 2 of 4 images are NaN or infinite; expected finite .*: drop"),
        ("bytes", r"range from .* to 255; expected \[0, 1\]: divide by 255"),
        ("normalized", r"range from -2 to 2; expected \[0, 1\]: .*the encoder normalizes"),
        ("uint8", r"uint8; expected floating .*255"),
        ("single", r"\(3, 8, 8\); expected \(b, 3, h, w\): add the batch axis"),
        ("gray", r"\(4, 1, 8, 8\); expected \(b, 3, h, w\)"),
        ("channels last", r"\(4, 8, 8, 3\); expected \(b, 3, h, w\)"),
        ("no pixels", r"\(4, 3, 0, 8\); expected"),
    ],
)
def test_encode_refuses(model, kind, message):
    with pytest.raises(ShapeError, match=message) as caught:
        model.encode(broken(kind))
    assert "\n" not in str(caught.value)


def test_encode_forgives_rounding(model, images):
    model.encode(images * 1.0005)


# theta, steer, orbit, outside


def test_theta_names_columns(model):
    assert [param.name for param in model.params] == ["brightness", "contrast", "saturation", "hue"]
    assert torch.equal(model.theta(hue=0.1, contrast=-0.5), torch.tensor([0, -0.5, 0, 0.1]))
    with pytest.raises(ThetaError, match="did you mean hue"):
        model.theta(hui=0.1)


def test_steer_is_the_affine_map(model, images, thetas):
    e, theta = model.encode(images)[:4], thetas
    expected = torch.einsum("bij,bj->bi", model.steering.matrix(theta), e) + model.steering.offset(theta)
    torch.testing.assert_close(model.steer(e, theta), expected)
    assert torch.equal(model.steer(e, model.theta()), e)
    assert (model.steer(e, theta) - e).abs().max() > 0.01


def test_orbit_is_steer_for_every_pair(model, images, thetas):
    e = model.encode(images)
    orbit = model.orbit(e, thetas)
    assert orbit.shape == (5, 4, 6)
    for v, theta in enumerate(thetas):
        torch.testing.assert_close(orbit[:, v], model.steer(e, theta))


def test_steer_refuses(model, images):
    e = model.encode(images)
    with pytest.raises(ThetaError, match=r"\(3,\); expected .*brightness, contrast"):
        model.steer(e, torch.zeros(3))
    with pytest.raises(ThetaError, match="not finite in hue"):
        model.steer(e, torch.tensor([0, 0, 0, float("nan")]))
    with pytest.raises(ShapeError, match=r"\(5, 5\)"):
        model.steer(e[:, :5], model.theta())
    with pytest.raises(ThetaError, match=r"expected \(v, 4\)"):
        model.orbit(e, model.theta())


def test_outside_names_the_coordinates():
    model = SteerableEncoder(filled(Net()), Chain([Rotate(30.0), HFlip(), Hue(0.1)]))
    assert model.outside(model.theta(rotate=30.0, hflip=1.0, hue=-0.1)) == ()
    assert model.outside(model.theta(rotate=345.0)) == (), "345 degrees are -15"
    assert model.outside(model.theta(rotate=31.0, hue=0.2)) == ("rotate", "hue")
    rows = torch.stack([model.theta(), model.theta(hue=-0.11), model.theta(hflip=0.5)])
    assert model.outside(rows) == ("hue",)
    assert model.outside(model.chain.sample(100, generator=torch.Generator().manual_seed(0))) == ()


# the constructor


def test_parts_may_be_given_in_short():
    net = filled(Net())
    for chain in ("photometric", Chain.preset("photometric"), Chain.preset("photometric").config(), Hue()):
        model = SteerableEncoder(net, chain)
        assert isinstance(model.steering, IdentityMap)
        assert isinstance(model.encoder, Encoder)
        assert model.encoder.image_size is None
        e = torch.ones(2, 6)
        assert torch.equal(model.steer(e, model.theta(hue=0.1)), e)


def test_parts_must_fit():
    net, chain = filled(Net()), Chain([HFlip(), Hue()])
    with pytest.raises(ShapeError, match=r"width 7 and the encoder gives 6.*steering_for"):
        SteerableEncoder(net, chain, steering_for(chain, 7))
    with pytest.raises(ThetaError, match=r"3 coordinates and the chain 2 \(hflip, hue\).*steering_for"):
        SteerableEncoder(net, chain, BasisMap(6, 3))
    with pytest.raises(ShapeError, match="head takes embeddings of width 5"):
        SteerableEncoder(net, chain, head=nn.Linear(5, 2))
    with pytest.raises(ShapeError, match="3 classes are named and the head has 2 outputs"):
        SteerableEncoder(net, chain, head=nn.Linear(6, 2), classes=["a", "b", "c"])
    with pytest.raises(ShapeError, match="1 classes are named and there is no head"):
        SteerableEncoder(net, chain, classes=["a"])


def test_a_map_may_not_declare_what_the_chain_lacks():
    chain = Chain.preset("simclr-full")  # its blur does not invert
    n_params, lacking = len(chain.params), {p.name for p in chain.params[-2:]}
    assert any(laws != Laws.ALL for laws in chain.param_laws)
    for name in ("rotation", "shift", "identity", "exponential"):
        with pytest.raises(
            LawError, match=r"declares .*(COMPOSE|INVERSE).* for (\w+).*laws=chain.param_laws"
        ) as caught:
            SteerableEncoder(filled(Net()), chain, MAPS[name](dim=6, n_params=n_params))
        assert any(f"for {name}," in str(caught.value) for name in lacking)
        SteerableEncoder(filled(Net()), chain, MAPS[name](dim=6, n_params=n_params, laws=chain.param_laws))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", MAPS)
def test_steering_for_fits_every_chain(preset, name):
    chain = Chain.preset(preset)
    steering = steering_for(chain, 6, name)
    SteerableEncoder(filled(Net()), preset, steering)
    high = torch.tensor([max(abs(param.low), abs(param.high)) for param in chain.params])
    torch.testing.assert_close(steering.features(high), torch.ones(len(high)), msg="phi is of order one")


def test_steering_for_passes_periods_and_arguments():
    steering = steering_for(Chain([Rotate(180.0), HFlip()]), 6, "low_rank", "linear+harmonics", rank=3)
    assert steering.features.period_values == (360.0, None)
    assert steering.rank == 3
    phi = steering.features
    torch.testing.assert_close(phi(torch.tensor([190.0, 1.0])), phi(torch.tensor([-170.0, 1.0])))


def test_window_features_are_what_the_crop_shows(generator):
    """Read from a picture of its own coordinates, halfway to the borders."""
    chain, n = Chain([HFlip(p=0), Crop()]), 64
    ramp = ((torch.arange(n) + 0.5) / n).expand(n, n)
    theta = chain.sample(50, generator=generator)
    seen = 2 * chain.apply(torch.stack([ramp, ramp.T, ramp]).expand(50, -1, -1, -1), theta) - 1
    x, y = seen[:, 0, n // 2], seen[:, 1, :, n // 2]
    halves = [axis[:, 3 * n // 4] - axis[:, n // 4] for axis in (x, y)]
    centers = [axis[:, n // 2 - 1 : n // 2 + 1].mean(1) for axis in (x, y)]
    phi = steering_for(chain, 6, features="window").features(theta)
    most = 1 - 2 ** -(1.8 + 0.42 / 2)
    torch.testing.assert_close(
        phi[:, :4] * most,
        torch.stack([*halves, *centers], 1) - torch.tensor([1.0, 1, 0, 0]),
        atol=1e-5,
        rtol=0,
    )
    assert phi[:, :4].abs().max() < 1.001, "of order one"


def test_window_features_want_a_crop():
    with pytest.raises(
        ConfigError, match=r"'linear\+window' and theta is not known to hold a crop; .* leave window"
    ):
        steering_for(Chain([Rotate(), HFlip()]), 6, features="linear+window")
    steering = steering_for("simclr", 6, features="linear+window")
    assert steering.laws == Laws.IDENTITY, "what is curved along a coordinate does not compose"


# fingerprint


def test_fingerprint_tells_what_answers_differently(model):
    seen = {model.fingerprint()}
    assert model.train().fingerprint() in seen, "modes do not matter"

    def differs(other: SteerableEncoder) -> bool:
        found = other.fingerprint()
        new = found not in seen
        seen.add(found)
        return new

    encoder, chain, steering = model.encoder, model.chain, model.steering
    assert differs(SteerableEncoder(encoder, chain))
    assert differs(SteerableEncoder(encoder, chain, filled(steering_for(chain, 6), seed=9)))
    assert differs(SteerableEncoder(encoder, chain, steering, head=filled(nn.Linear(6, 2))))
    assert differs(SteerableEncoder(encoder, chain, steering, head=filled(nn.Linear(6, 2), seed=1)))
    assert differs(SteerableEncoder(encoder, chain, steering, head=filled(nn.Linear(6, 2)), classes="ab"))
    assert differs(SteerableEncoder(Encoder(encoder.network, image_size=16), chain, steering))
    wider = [dict(member) for member in PRESETS["photometric"]]
    wider[-1]["turns"] = 0.2
    assert differs(SteerableEncoder(encoder, wider_chain(wider), steering))
    with torch.no_grad():
        encoder.network.conv.bias[0] += 1e-6
    assert differs(model)


def wider_chain(members: list[dict]) -> Chain:
    return SteerableEncoder(filled(Net()), {"name": "chain", "members": members}).chain


@pytest.mark.gpu
def test_everything_runs_on_the_gpu(model, images, thetas):
    e = model.encode(images)
    orbit = model.orbit(e, thetas)
    model.cuda()
    torch.testing.assert_close(model.encode(images).cpu(), e, atol=1e-3, rtol=1e-3)
    assert model.orbit(e, thetas).is_cuda, "inputs follow the model"
    torch.testing.assert_close(model.orbit(e, thetas).cpu(), orbit, atol=1e-3, rtol=1e-3)
    assert model.outside(thetas.cuda()) == ()
