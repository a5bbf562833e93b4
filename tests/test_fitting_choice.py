"""What a fit chooses (inputs, expansion), what it refuses, and what memory it takes."""

import logging
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from steerable.errors import ConfigError, FitError
from steerable.fitting import check_room, choice, closed, fit_embeddings
from steerable.fitting.moments import Spread
from steerable.maps import BasisMap, Features
from steerable.metrics import relative_error

Pairs = tuple[Tensor, Tensor, Tensor]


def subspace_pairs(
    d: int, latent: int, p: int, n: int, *, seed: int = 0, noise: float = 0.0, still: float = 1e-3
) -> Pairs:
    """An action that reads (and moves) `latent` directions of e; the others hold only a little noise."""
    world, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(d, latent, generator=world))[0]
    generators = torch.randn(p, latent, latent, generator=world) / latent**0.5
    mean = torch.randn(d, generator=world)
    z = torch.randn(n, latent, generator=generator) * torch.linspace(1, 3, latent)
    theta = 2 * torch.rand(n, p, generator=generator) - 1
    source = mean + z @ frame.T + still * torch.randn(n, d, generator=generator)
    motion = torch.einsum("np,pij,nj->ni", theta, generators, z) @ frame.T
    return source, theta, source + motion + noise * torch.randn(n, d, generator=generator)


def error_on(steering, pairs: Pairs) -> float:
    with torch.no_grad():
        return relative_error(pairs[0], pairs[2], steering(pairs[0], pairs[1]))


error_on.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def test_a_projection_recovers_an_action_in_a_subspace_of_a_wide_embedding():
    """Far fewer pairs than k (d + 1) = 2,565 unknowns, so that the full form cannot know it."""
    fitted = fit_embeddings(*subspace_pairs(512, 12, 5, 400), projection=12)
    assert isinstance(fitted, BasisMap)
    assert fitted.inner == 12
    assert fitted.weight.shape == (5, 512, 12)
    assert error_on(fitted, subspace_pairs(512, 12, 5, 300, seed=1)) < 1e-4
    theta = torch.zeros(5)
    assert torch.equal(fitted.matrix(theta), torch.eye(512))
    assert not fitted.offset(theta).any()


def test_auto_takes_the_full_form_where_it_is_affordable():
    data = subspace_pairs(10, 10, 2, 100)
    auto, full = fit_embeddings(*data, projection="auto"), fit_embeddings(*data)
    assert isinstance(auto, BasisMap)
    assert auto.inner is None
    assert torch.equal(auto(*data[:2]), full(*data[:2]))


@pytest.mark.parametrize(("latent", "expected"), [(4, 4), (7, 8)])
@pytest.mark.parametrize("name", ["basis", "low_rank"])
def test_auto_chooses_the_number_of_inputs_by_held_out_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, latent: int, expected: int
):
    monkeypatch.setattr(closed, "_UNKNOWNS", 60)
    monkeypatch.setattr(closed, "_WIDTHS", (4, 8, 16, 32))
    data = subspace_pairs(40, latent, 3, 300, noise=0.3, still=0.3)
    with caplog.at_level(logging.INFO, "steerable"):
        fitted = fit_embeddings(*data, projection="auto", map=name)
    tried = {
        int(width): float(error)
        for width, error in re.findall(r"(\d+) inputs: held-out error (\S+)", caplog.text)
    }
    assert list(tried) == [4, 8, 16]  # 3 (r + 1) <= 60
    assert min(tried, key=lambda width: tried[width]) == expected
    if isinstance(fitted, BasisMap):
        assert fitted.inner == expected
    else:
        weights = fitted.get_parameter("weight")
        assert int(torch.linalg.matrix_rank(weights.flatten(0, 1), rtol=1e-4)) == expected
    fresh = subspace_pairs(40, latent, 3, 300, seed=1, noise=0.3, still=0.3)
    assert error_on(fitted, fresh) < error_on(fit_embeddings(*data, map="shift"), fresh)


def test_a_sketch_of_many_outputs_chooses_as_all_of_them_do(monkeypatch: pytest.MonkeyPatch):
    data = subspace_pairs(60, 20, 3, 300, noise=0.5)
    by_all = fit_embeddings(*data).fit_record
    monkeypatch.setattr(choice, "_SKETCH", 25)
    sketched = fit_embeddings(*data).fit_record
    assert sketched is not None
    assert sketched == by_all
    assert 1e-8 < sketched["ridge"] < 10  # inside the grid: there was something to choose


def test_a_few_of_many_directions_hold_what_an_eigendecomposition_finds():
    generator = torch.Generator().manual_seed(0)
    scale = 0.99 ** torch.arange(1100)
    x = (torch.randn(3000, 1100, generator=generator) * scale).double()
    spread = Spread(x[0])
    spread.add(x)
    found = spread.principal(64)
    seen = found @ spread.covariance @ found.T
    torch.testing.assert_close(
        seen, torch.eye(64, dtype=seen.dtype), rtol=0, atol=1e-6
    )  # uncorrelated, of variance 1
    kept = found.square().sum(1).reciprocal().sum()  # each row is divided by its standard deviation
    assert kept > 0.995 * torch.linalg.eigvalsh(spread.covariance)[-64:].sum()


def test_all_directions_whitened_are_the_full_form_with_another_penalty():
    data = subspace_pairs(10, 10, 2, 300)
    whitened = fit_embeddings(*data, projection=10, ridge=0)
    torch.testing.assert_close(
        whitened(*data[:2]), fit_embeddings(*data, ridge=0)(*data[:2]), rtol=1e-4, atol=1e-4
    )
    # whitened, a strong ridge is nearly indifferent to a change of basis of the embeddings
    mixing = torch.randn(10, 10, generator=torch.Generator().manual_seed(5))
    moved = (data[0] @ mixing, data[1], data[2] @ mixing)

    @torch.no_grad()
    def change(projection: int | None) -> float:
        before = fit_embeddings(*data, projection=projection, ridge=1.0)(*data[:2]) @ mixing - moved[0]
        after = fit_embeddings(*moved, projection=projection, ridge=1.0)(*moved[:2]) - moved[0]
        return float((after - before).norm() / before.norm())

    assert change(10) < 0.05
    assert change(None) > 0.2


def test_directions_come_from_the_first_pairs_of_a_stream_and_none_is_lost():
    data = subspace_pairs(40, 5, 2, 2000, noise=0.1)
    at_once = fit_embeddings(*data, projection=5, ridge=1e-3)
    batches = zip(*(part.split(100) for part in data), strict=True)
    streamed = fit_embeddings(
        batches, projection=5, ridge=1e-3, scales=at_once.features.scale_values, memory=1e-3
    )
    fresh = subspace_pairs(40, 5, 2, 300, seed=1, noise=0.1)
    assert error_on(streamed, fresh) == pytest.approx(error_on(at_once, fresh), rel=0.01)


def test_a_still_source_has_no_directions():
    source, theta, target = subspace_pairs(6, 6, 2, 50)
    with pytest.raises(FitError, match="source is constant in column"):
        fit_embeddings(source * 0 + 2, theta, target, projection=3)
    fitted = fit_embeddings(source * 0 + 2, theta, target, projection=3, strict=False)
    assert not fitted.get_parameter("weight").any()


def expansion_pairs(kind: str, name: str = "basis", seed: int = 0, n: int = 600) -> Pairs:
    """Motions by one expansion of two coordinates, of which the second has period 2."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, 8, generator=generator)
    theta = 2 * torch.rand(n, 2, generator=generator) - 1
    phi = (
        theta
        + {
            "linear": 0,
            "linear+squares": 2 * theta.square(),
            "linear+squares+pairwise": theta.square() + 2 * theta[:, :1] * theta[:, 1:],
            "linear+harmonics": torch.sin(torch.pi * theta) * torch.tensor([0.0, 2.0]),
        }[kind]
    )
    matrices = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(7))
    moved = torch.ones_like(source) if name == "shift" else source
    motion = torch.einsum("nk,kij,nj->ni", phi, matrices, moved)
    return source, theta, source + motion + 0.5 * torch.randn(n, 8, generator=generator)


@pytest.mark.parametrize("name", ["basis", "low_rank", "shift"])
@pytest.mark.parametrize("kind", ["linear", "linear+squares", "linear+squares+pairwise"])
def test_auto_features_are_those_that_were_planted(name: str, kind: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "steerable"):
        fitted = fit_embeddings(*expansion_pairs(kind, name), map=name, features="auto")
    assert fitted.features.expansion == kind
    assert [int(k) for k in re.findall(r"k = (\d+)", caplog.text)] == [2, 4, 5]
    # a part of the largest system is the system of that part alone
    alone = fit_embeddings(*expansion_pairs(kind, name), map=name, features=kind)
    fresh = expansion_pairs(kind, name, seed=1)
    torch.testing.assert_close(fitted(*fresh[:2]), alone(*fresh[:2]), rtol=1e-4, atol=1e-4)


def test_auto_features_try_harmonics_where_there_is_a_period(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "steerable"):
        fitted = fit_embeddings(*expansion_pairs("linear+harmonics"), features="auto", periods=[None, 2.0])
    assert fitted.features.expansion == "linear+harmonics"
    assert [int(k) for k in re.findall(r"k = (\d+)", caplog.text)] == [2, 4, 5, 6, 9]


def window_pairs(seed: int = 0) -> Pairs:
    """Motions by what a crop shows, of zooms up to 1.8 octaves."""
    truth, generator = (
        BasisMap(8, 4, features=Features("linear+window", 4, window=range(4))),
        torch.Generator(),
    )
    torch.nn.init.normal_(truth.weight, generator=generator.manual_seed(7))
    theta = torch.rand(600, 4, generator=generator.manual_seed(seed)) * 2 - 1
    theta[:, 0] = 0.9 * (theta[:, 0] + 1)
    source = torch.randn(600, 8, generator=generator)
    return source, theta, truth(source, theta).detach() + 0.01 * torch.randn(600, 8, generator=generator)


def test_auto_features_try_the_window_where_there_is_a_crop(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "steerable"):
        fitted = fit_embeddings(*window_pairs(), features="auto", window=range(4))
    assert fitted.features.expansion == "linear+window"
    assert [int(k) for k in re.findall(r"k = (\d+)", caplog.text)] == [4, 8, 14, 18, 28]
    fresh = window_pairs(seed=1)
    assert error_on(fitted, fresh) < 1e-3 < error_on(fit_embeddings(*window_pairs(), features="auto"), fresh)
    unchosen = fit_embeddings(*window_pairs(), map="rotation", features="auto", window=range(4))
    assert unchosen.features.is_linear


def test_auto_features_do_without_products_that_would_cost_inputs(caplog: pytest.LogCaptureFixture):
    generator = torch.Generator().manual_seed(0)
    source, theta = torch.randn(400, 200, generator=generator), torch.rand(400, 9, generator=generator)
    with caplog.at_level(logging.INFO, "steerable"):
        fit_embeddings(source, theta, source * (1 + theta[:, :1]), features="auto", projection="auto")
    assert [int(k) for k in re.findall(r"k = (\d+)", caplog.text)] == [9, 18]  # and not 54
    assert "200 inputs" in caplog.text  # of which 54 functions would have left 64
    largest = Features("auto", 9)
    asked = [
        check_room("basis", 200, f, projection="auto", memory=9)
        for f in (largest, Features(largest.expansion, 9))
    ]
    assert asked[0] > asked[1]  # named, products are there


def test_auto_is_linear_where_nothing_is_to_be_chosen():
    data = expansion_pairs("linear+squares", n=60)
    for name in ("identity", "rotation"):
        assert fit_embeddings(*data, map=name, features="auto", projection="auto").features.is_linear
    assert (
        fit_embeddings(data[0], data[1][:, :1], data[2], features="auto").features.expansion
        == "linear+squares"
    )


def test_features_and_inputs_are_chosen_together(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(closed, "_FEW", 0)
    monkeypatch.setattr(closed, "_UNKNOWNS", 32)
    monkeypatch.setattr(closed, "_WIDTHS", (2, 4, 8))
    with caplog.at_level(logging.INFO, "steerable"):
        fitted = fit_embeddings(
            *subspace_pairs(16, 4, 2, 300, noise=0.3, still=0.3), features="auto", projection="auto"
        )
    assert (fitted.config()["features"]["expansion"], fitted.config()["inner"]) == ("linear", 4)
    tried = re.findall(r"(\S+), (\d+) inputs", caplog.text)  # a dear expansion may read less
    inputs = {"linear": "248", "linear+squares": "24", "linear+squares+pairwise": "24"}
    assert tried == [(name, width) for name, widths in inputs.items() for width in widths]


@pytest.mark.parametrize("name", ["basis", "low_rank"])
def test_a_gram_matrix_over_the_memory_is_refused_before_it_is_made(name: str):
    """Even the weights of this map would take 45 GB."""
    wide, theta = torch.randn(3, 75_000), torch.tensor([[0.1, 0.5], [0.3, -1.0], [0.2, 0.7]])
    with pytest.raises(
        FitError, match=r"2 basis functions and 75000 inputs need .* GiB; .*memory=2: set projection"
    ):
        fit_embeddings(wide, theta, wide + 1, map=name)
    assert fit_embeddings(wide, theta, wide + 1, map="shift").dim == 75_000


def test_the_memory_is_what_the_message_says():
    data = expansion_pairs("linear", n=60)
    need = 8 * 4 * 18 * (18 + 8) / 2**30
    assert fit_embeddings(*data, memory=need * 1.01).dim == 8
    with pytest.raises(FitError, match="basis functions and 8 inputs"):
        fit_embeddings(*data, memory=need * 0.99)
    assert check_room("basis", 8, Features("linear", 2), projection=None, memory=1) == round(need * 2**30)
    with pytest.raises(FitError, match="basis functions and 8 inputs"):
        check_room("low_rank", 8, Features("linear", 2), projection="auto", memory=need * 0.99)
    assert check_room("rotation", 8, Features("linear", 2), projection=None, memory=0) == 0
    with pytest.raises(FitError, match="this fit keeps its pairs"):
        fit_embeddings(*data, map="exponential", memory=1e-6)
    with pytest.raises(FitError, match="this fit keeps its pairs"):
        fit_embeddings(*data, map="shift", refine="cosine", memory=4e-6)


def test_settings_out_of_range():
    data = expansion_pairs("linear", n=60)
    with pytest.raises(ConfigError, match="projection is 9; expected 1 to 8"):
        fit_embeddings(*data, projection=9)
    with pytest.raises(ConfigError, match="projection is 'all'; expected a number"):
        fit_embeddings(*data, projection="all")
    with pytest.raises(ConfigError, match="projection is 3 and map is 'shift'; expected basis or low_rank"):
        fit_embeddings(*data, projection=3, map="shift")
    with pytest.raises(FitError, match="all pairs are of one group"):
        fit_embeddings(*data, features="auto", ridge=0.1, groups=[1] * 60)


_STREAM = """
import resource, sys, torch
from steerable import fit_embeddings
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
matrix = torch.randn(512, 512, generator=generator) / 512**0.5
def batches(n):
    for start in range(0, n, 500):
        e, theta = torch.randn(500, 512, generator=generator), torch.rand(500, 1, generator=generator)
        yield e, theta, e + theta * (e @ matrix), [start + i // 4 for i in range(500)]
fit_embeddings(batches(int(sys.argv[1])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _peak(pairs: int) -> int:
    out = subprocess.run(
        [sys.executable, "-c", _STREAM, str(pairs)], capture_output=True, text=True, check=True
    )
    return int(out.stdout)


@pytest.mark.parametrize("many", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_pairs(many: int):
    assert _peak(many) < 1.1 * _peak(2000)
