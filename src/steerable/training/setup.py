"""From settings to parts: data, modules, precision, and what the hardware is told."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from steerable.data import ImageSet, load_images, localized, splits
from steerable.data.sources import parse_source
from steerable.encoders import load_encoder
from steerable.errors import DataError
from steerable.model import steering_for
from steerable.training.config import TrainConfig
from steerable.training.objective import HyperMatrix, Learner, steered_width
from steerable.transforms import Chain, build

if TYPE_CHECKING:
    from steerable.data.shards import ShardSet

log = logging.getLogger("steerable")

SAMPLE = 10_000  # images of a stream that are kept in memory
HELD_OUT = ("test", "testing", "validation", "valid", "val", "dev")


def load_splits(config: TrainConfig) -> tuple[ImageSet, ImageSet]:
    """Training and test images; one image in five is held out where the source has no second split.

    A split that follows the source's name is the one to train on.

    Raises:
        DataError: none found, fewer than one batch, or no labels where the base loss needs them.
    """
    data = config.data
    if data.stream:
        return _streamed_splits(config)
    source, root = localized(data.source, data.root)
    name, chosen = parse_source(source)
    names = splits(name, root=root)
    train_set = load_images(name, split=chosen, size=data.size, limit=data.train_limit, root=root)
    trained_on = (chosen or ("train" if "train" in names else names[0])).partition("[")[0]
    held_out = next((split for split in HELD_OUT if split in names and split != trained_on), None)
    if held_out:
        test_set = load_images(name, split=held_out, size=data.size, limit=data.test_limit, root=root)
    else:
        train_set, test_set = _hold_out(train_set, data.test_limit)
        log.info("%s has no test split: %d images are held out of training", source, len(test_set))
    if len(train_set) < config.batch_size:
        raise DataError(
            f"{source} has {len(train_set)} training images; expected at least one batch of {config.batch_size}: "
            "lower batch_size or give more images"
        )
    if config.base == "supervised" and len(train_set.classes) < 2:
        raise DataError(
            f"{source} has {len(train_set.classes)} classes; the supervised loss expected at least 2: "
            "use class folders, or --base simclr"
        )
    return train_set, test_set


def shards_of(config: TrainConfig) -> "ShardSet":
    """The shards that ``data.stream`` reads.

    Raises:
        DataError: no such parquet files, or no labels where the base loss needs them.
    """
    from steerable.data.shards import open_shards  # imports datasets, which takes over a second

    source, root = localized(config.data.source, config.data.root)
    name, chosen = parse_source(source)
    return open_shards(str(name), chosen or "train", root=root, size=config.data.size)


def _streamed_splits(config: TrainConfig) -> tuple[ImageSet, ImageSet]:
    """A sample of the stream, which validation and the refit take, and the test images."""
    data = config.data
    source, root = localized(data.source, data.root)
    name, chosen = parse_source(source)
    names = splits(name, root=root)
    held_out = next((split for split in HELD_OUT if split in names and split != chosen), None)
    if held_out is None:
        raise DataError(
            f"{source} has the split {', '.join(names)} alone; expected test images beside a stream: add "
            "test-*.parquet, or leave data.stream out"
        )
    from steerable.data.streaming import first_images

    shards = shards_of(config)
    if any("://" in path for path in shards.paths):  # to load a split would be to download the whole data set
        tests = dataclasses.replace(config, data=dataclasses.replace(data, source=f"{name}:{held_out}"))
        test_set = first_images(shards_of(tests), data.test_limit or SAMPLE)
    else:
        test_set = load_images(name, split=held_out, size=data.size, limit=data.test_limit, root=root)
    return first_images(shards, SAMPLE), test_set


def _hold_out(images: ImageSet, limit: int | None) -> tuple[ImageSet, ImageSet]:
    """Four fifths and one fifth, by a fixed seed: runs that are compared must share their test images."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    fifth = len(images) // 5
    test = images.subset(order[:fifth][:limit])
    return dataclasses.replace(images.subset(order[fifth:].sort().values), skipped=images.skipped), test


def build_learner(config: TrainConfig, chain: Chain, n_classes: int) -> Learner:
    """Encoder, map and readout with fresh weights."""
    e = config.encoder
    encoder = load_encoder(
        e.name, pretrained=e.pretrained, weights=e.weights, stem=e.stem, width=e.width,
        image_size=e.image_size, model_args=e.model_args,
    )  # fmt: skip
    steering = None
    width = steered_width(config, encoder.dim)
    if config.steering == "hypernetwork":
        steering = HyperMatrix(width, chain.params)
    elif config.steering != "none":
        steering = steering_for(chain, width, config.steering, config.features)
    base_params = build(config.base_chain).params if config.base_chain is not None else ()
    return Learner(encoder, steering, config, n_classes, params=chain.params, base_params=base_params)


def precision_for(precision: str) -> str:
    """Fabric's name of the precision; auto is bf16-mixed where bfloat16 is native: elsewhere it is slower."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    native = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    )
    return "bf16-mixed" if native else "32-true"


@contextmanager
def fast_math(device: torch.device, precision: str) -> Iterator[None]:
    """On a GPU: let cuDNN try its algorithms, and TF32 in what mixed precision leaves in float32; both only within.

    precision: as configured; 32-true is taken at its word.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    tried = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_float32_matmul_precision(before if precision == "32-true" else "high")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = tried  # pyright: ignore[reportAttributeAccessIssue]
        torch.set_float32_matmul_precision(before)


def eager() -> AbstractContextManager[None]:
    """Within it nothing runs compiled: to compile for a shape that is met once an epoch costs more than it saves."""
    return torch.compiler.set_stance("force_eager")
