"""From settings to parts: data, modules, precision."""

import torch

from steerable.data import ImageSet, load_images, localized
from steerable.encoders import load_encoder
from steerable.errors import DataError
from steerable.model import steering_for
from steerable.training.config import TrainConfig
from steerable.training.objective import Learner
from steerable.transforms import Chain


def load_splits(config: TrainConfig) -> tuple[ImageSet, ImageSet]:
    """Training and test images.

    Raises:
        DataError: none found, fewer than one batch, or no labels where the base loss needs them.
    """
    data = config.data
    source, root = localized(data.source, data.root)
    train_set = load_images(source, split="train", size=data.size, limit=data.train_limit, root=root)
    test_set = load_images(source, split="test", size=data.size, limit=data.test_limit, root=root)
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


def build_learner(config: TrainConfig, chain: Chain, n_classes: int) -> Learner:
    """Encoder, map and readout with fresh weights."""
    e = config.encoder
    encoder = load_encoder(
        e.name, pretrained=e.pretrained, weights=e.weights, stem=e.stem, width=e.width,
        image_size=e.image_size, model_args=e.model_args,
    )  # fmt: skip
    steering = None
    if config.steering != "none":
        steering = steering_for(chain, encoder.dim, config.steering, config.features)
    return Learner(encoder, steering, config, n_classes)


def precision_for(precision: str) -> str:
    """Fabric's name of the precision; auto is bf16-mixed only where bfloat16 products are native, elsewhere they are slower."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16-mixed" if native else "32-true"
