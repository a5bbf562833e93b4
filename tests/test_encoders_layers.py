"""Layers: statistics of stages against plain formulas on hooked activations, from one pass, under timm's names."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from steerable.encoders import Encoder, load_encoder
from steerable.errors import ConfigError

SIZE = 64


def make(name: str = "test_resnet", **settings) -> Encoder:
    torch.manual_seed(0)
    return load_encoder(f"timm/{name}", **{"pretrained": False, "image_size": SIZE, **settings})


def noise(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def hooked(encoder: Encoder, module: nn.Module) -> tuple[torch.Tensor, list[np.ndarray]]:
    seen: list[np.ndarray] = []
    handle = module.register_forward_hook(lambda _m, _i, out: seen.append(out.double().numpy().copy()))
    e = encoder.encode(noise())
    handle.remove()
    return e, seen


def plain(x: np.ndarray) -> np.ndarray:
    """mean, std and 2x2 means of (b, c, h, w) with even sides, by numpy."""
    b, c, h, w = x.shape
    quarters = x.reshape(b, c, 2, h // 2, 2, w // 2).mean((3, 5)).reshape(b, 4 * c)
    return np.concatenate([x.mean((2, 3)), x.std((2, 3)), quarters], 1)


@pytest.fixture(scope="module")
def deep() -> Encoder:
    return make(layers="all")


# what the columns hold


@pytest.mark.parametrize(("stage", "part"), [("stage0", "act1"), ("stage1", "layer1"), ("stage4", "layer4")])
def test_stages_of_a_resnet(deep, stage, part):
    e, seen = hooked(deep, getattr(deep.network, part))
    assert len(seen) == 1, "one pass for all layers"
    np.testing.assert_allclose(e[:, deep.layers[stage]], plain(seen[0]), rtol=1e-3, atol=1e-4)


def test_stages_of_a_vit_are_grids_of_patches():
    encoder = make("vit_tiny_patch16_224", layers="stage1,final", model_args={"img_size": SIZE, "depth": 3})
    e, seen = hooked(encoder, encoder.network.blocks[1])
    patches = (
        seen[0][:, 1:].reshape(3, 4, 4, 192).transpose(0, 3, 1, 2)
    )  # the class token belongs to no place
    np.testing.assert_allclose(e[:, encoder.layers["stage1"]], plain(patches), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"]
)
def test_final_is_what_the_network_gives_alone(name):
    settings = {"model_args": {"img_size": SIZE}} if "vit" in name else {}
    encoder = make(name, layers="all", **settings)
    assert list(encoder.layers) == [*(f"stage{i}" for i in range(len(encoder.layers) - 1)), "final"]
    assert [part.start for part in encoder.layers.values()][1:] == [
        part.stop for part in encoder.layers.values()
    ][:-1]
    assert len(encoder.layers) >= 5
    e = encoder.encode(noise())
    assert e.shape == (3, encoder.dim)
    assert encoder.dim == encoder.raw_dim == encoder.layers["final"].stop
    alone = make(name, **settings)
    alone.network.load_state_dict(encoder.network.state_dict())  # timm's own names
    torch.testing.assert_close(e[:, encoder.layers["final"]], alone.encode(noise()), rtol=1e-4, atol=1e-5)
    plain_timm = timm.create_model(name, num_classes=0, **settings.get("model_args", {}))
    assert plain_timm.state_dict().keys() == encoder.network.state_dict().keys()


def test_flips_move_only_what_has_a_position():
    encoder = make(layers="stage1")
    pooled = make(layers="stage1", statistics="std+mean")
    width = pooled.dim // 2
    assert encoder.dim == 6 * width
    with torch.no_grad():
        x = encoder.network.forward_intermediates(noise(), indices=[1], intermediates_only=True)[0]
    pooled.network.load_state_dict(encoder.network.state_dict())
    expected = torch.cat([x.std((2, 3), correction=0), x.mean((2, 3))], 1)
    # the same stage each time, so that only the statistics count
    pooled.network.forward_intermediates = lambda *a, **k: [x]
    torch.testing.assert_close(pooled.encode(noise()), expected)
    pooled.network.forward_intermediates = lambda *a, **k: [x.flip(3)]
    torch.testing.assert_close(pooled.encode(noise()), expected)
    pooled.statistics = "grid"
    left, right = pooled.encode(noise()).view(3, width, 2, 2).unbind(3)
    pooled.network.forward_intermediates = lambda *a, **k: [x]
    torch.testing.assert_close(
        pooled.encode(noise()).view(3, width, 2, 2), torch.stack([right, left], 3), atol=1e-5, rtol=1e-4
    )


def test_the_pass_ends_with_the_deepest_stage():
    encoder = make(layers="stage1")
    calls = []
    encoder.network.layer4.register_forward_hook(lambda *_: calls.append(1))
    encoder.encode(noise())
    assert calls == []


def test_dead_channels_have_gradients():
    encoder = make(layers="stage0", statistics="std")
    with torch.no_grad():
        encoder.network.bn1.weight.zero_()
        encoder.network.bn1.bias.fill_(-1)  # ReLU kills every channel
    encoder.eval()(noise()).sum().backward()
    grads = [p.grad for p in encoder.network.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


# how they are asked for


def test_names_in_any_form_and_order(deep):
    one, two = make(layers=" final,stage2, stage0 "), make(layers=["stage0", "stage2", "final", "stage0"])
    assert list(one.layers) == list(two.layers) == ["stage0", "stage2", "final"]
    assert one.fingerprint() == two.fingerprint()
    one.network.load_state_dict(deep.network.state_dict())
    expected = torch.cat([deep.encode(noise())[:, deep.layers[name]] for name in one.layers], 1)
    torch.testing.assert_close(one.encode(noise()), expected)


def test_final_alone_is_a_plain_encoder():
    plain, final = make(), make(layers="final")
    assert plain.layers == final.layers == {"final": slice(0, plain.dim)}
    assert plain.fingerprint() == final.fingerprint() == plain.raw_fingerprint()
    assert plain.settings() == plain.preprocessing()


def test_fingerprint_and_spec_carry_layers(deep):
    prints = {
        make(**s).fingerprint()
        for s in (
            {},
            {"layers": "all"},
            {"layers": "stage0"},
            {"layers": "stage0", "statistics": "mean"},
            {"layers": "stage0", "statistics": "std"},
        )
    }
    assert len(prints) == 5
    again = load_encoder(**deep.spec)
    again.network.load_state_dict(deep.network.state_dict())
    assert again.fingerprint() == deep.fingerprint()
    assert again.layers == deep.layers
    assert Encoder(deep.network, **deep.settings()).fingerprint() == deep.fingerprint()


class Stranger(nn.Module):
    """Shows its stages, but its embedding beside them is another one; or fails as told."""

    def __init__(self, error: Exception | None = None):
        super().__init__()
        self.error = error

    def forward(self, x):
        return x.mean((2, 3))

    def forward_intermediates(self, x, indices=None, intermediates_only=False, **_):
        if self.error:
            raise self.error
        return [x] if intermediates_only else (x, [x])

    def forward_head(self, x):
        return x.amax((2, 3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(layers="stage9"), "layer 'stage9' is not in ResNet; expected one of stage0, .*, final"),
        (lambda: make(layers="stage1,finale"), "'finale' .*did you mean final"),
        (lambda: make(layers=["all", "final"]), "layer 'all' is not in"),
        (lambda: make(layers=""), "layer ''"),
        (
            lambda: make(layers="all", statistics="mean+median"),
            "hold 'median'; expected one of mean, std, grid",
        ),
        (lambda: make(layers="all", statistics="std+std"), "hold 'std' twice"),
        (
            lambda: Encoder(nn.Sequential(nn.Flatten()), layers="all"),
            "Sequential has no forward_intermediates",
        ),
        (lambda: Encoder(Stranger(), layers="all"), "another embedding beside its stages.*leave 'final' out"),
        (
            lambda: Encoder(Stranger(AssertionError("Output shape must be NCHW.\nx")), layers="stage0"),
            r"\(b, c, h, w\) \(Output shape must be NCHW.\); expected",
        ),
    ],
)
def test_what_cannot_be_layered_is_one_line(build, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
