"""Bulk embedding: what the shards hold, what is left out, what a kill costs, and that Ray changes nothing."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from processes import Job
from steerable.data.cache import alone_in
from steerable.data.images import as_float
from steerable.embedding import embed_images
from steerable.encoders import load_encoder
from steerable.errors import ConfigError
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Chain


def small_model() -> SteerableEncoder:
    torch.manual_seed(0)
    encoder = load_encoder("timm/resnet10t", pretrained=False, stem="cifar", width=4)
    chain = Chain.preset("geometric")
    return SteerableEncoder(encoder, chain, steering_for(chain, encoder.dim, "identity")).eval()


@pytest.fixture(scope="module")
def model() -> SteerableEncoder:
    return small_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images in two classes: the last four repeat the first ones, one is no image."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (36, 16, 16, 3), dtype=np.uint8)
    for i in range(40):
        path = folder / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[i % 36]).save(path)
    (folder / "b" / "11.png").write_bytes(b"no image")
    return folder


def table(out: Path) -> dict[str, list]:
    return pq.ParquetDataset(sorted(out.glob("*.parquet"))).read().to_pydict()


def test_rows_are_the_images_embeddings_each_content_once(model, folder, tmp_path):
    done = embed_images(model, folder, tmp_path / "out", shard=16)
    rows = table(tmp_path / "out")
    assert (done.rows, done.duplicates, len(done.skipped), done.shards, done.fresh) == (35, 4, 1, 3, 40)
    assert "11.png" in done.skipped[0].path
    assert len(rows["id"]) == len(set(rows["sha256"])) == 35
    assert set(rows["label"]) == {"a", "b"}
    for at in (0, 20, 34):
        pixels = torch.from_numpy(np.array(Image.open(rows["path"][at]))).permute(2, 0, 1)[None]
        e = model.encode(as_float(pixels))[0]
        np.testing.assert_allclose(rows["embedding"][at], e.numpy(), rtol=1e-4, atol=1e-5)
    again = embed_images(model, folder, tmp_path / "out", shard=16)
    assert (again.rows, again.fresh) == (35, 0)


def test_a_shard_that_is_gone_or_cut_is_made_again(model, folder, tmp_path):
    embed_images(model, folder, tmp_path / "out", shard=8)
    before = table(tmp_path / "out")
    os.truncate(tmp_path / "out" / "part-00001.parquet", 50)
    (tmp_path / "out" / "part-00003.parquet").unlink()
    again = embed_images(model, folder, tmp_path / "out", shard=8)
    assert again.fresh == 32
    assert table(tmp_path / "out") == before


def test_another_job_in_the_folder_is_refused(model, folder, tmp_path):
    embed_images(model, folder, tmp_path, shard=16)
    with pytest.raises(ConfigError, match=r"shard is 8 .* holds a job with 16"):
        embed_images(model, folder, tmp_path, shard=8)
    with alone_in(tmp_path, "job"), pytest.raises(ConfigError, match="in use by another job"):
        embed_images(model, folder, tmp_path, shard=16)
    with pytest.raises(ConfigError, match="engine 'spark'"):
        embed_images(model, folder, tmp_path, engine="spark")


def job(source: Path, out: Path, writes: int) -> None:
    """Embedding that is killed in the middle of its write number ``writes``."""
    honest, count = os.replace, []

    def replace(a, b):
        count.append(1)
        if len(count) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        honest(a, b)

    os.replace = replace
    embed_images(small_model(), source, out, shard=4)


def test_killed_five_times_ends_with_the_rows_of_an_unbroken_job(model, folder, tmp_path):
    draw, codes = random.Random(0), []
    for turn in range(5):
        killed = Job(1, tmp_path / str(turn), job, folder, tmp_path / "killed", draw.randint(1, 4))
        codes += killed.wait()
    assert codes == [-signal.SIGKILL] * 5
    assert embed_images(model, folder, tmp_path / "killed", shard=4).fresh < 40
    embed_images(model, folder, tmp_path / "unbroken", shard=4)
    assert table(tmp_path / "killed") == table(tmp_path / "unbroken")
    assert not list((tmp_path / "killed").glob(".*"))  # what the killed ones had begun


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its own, on its own deprecations
def test_ray_gives_the_same_rows(model, folder, tmp_path):
    pytest.importorskip("ray")
    embed_images(model, folder, tmp_path / "local", shard=16)
    done = embed_images(model, folder, tmp_path / "ray", shard=16, engine="ray", actors=1)
    ours, theirs = table(tmp_path / "local"), table(tmp_path / "ray")
    assert (done.rows, done.fresh) == (35, 40)
    np.testing.assert_allclose(theirs.pop("embedding"), ours.pop("embedding"), rtol=1e-4, atol=1e-5)
    assert theirs == ours
