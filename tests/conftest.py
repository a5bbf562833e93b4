"""Shapes checked in every test, one thread, and the small things that many tests need."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the Hub by accident

from jaxtyping import install_import_hook

# before the first import of the package: its annotations then run, in all tests
_hook = install_import_hook("steerable", "shape_checker.check")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Sums in one order, and test processes that do not fight for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Embeddings that tests keep, in this process or in others that they start, end with the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERABLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded anew for every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    """Eight smooth color images (8, 3, 16, 16) in [0, 1]."""
    small = torch.rand(8, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(small, 16, mode="bilinear", align_corners=False)
