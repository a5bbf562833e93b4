"""The linear classifier that an evaluation reads embeddings with."""

from torch import nn

from steerable.data import ImageSet
from steerable.errors import ConfigError, DataError
from steerable.evaluate.encoding import Encodings
from steerable.evaluate.probing import linear_head, strengths

GRID = strengths(9)


def classifier(
    encode: Encodings, own: nn.Linear | None, train: ImageSet | None, *, seed: int = 0
) -> nn.Linear:
    """A linear probe (9 values of C) on labeled images where there are any, else the model's own head.

    Raises:
        ConfigError: neither. DataError: images without labels.
    """
    if train is None:
        if own is None:
            raise ConfigError(
                "the model has no head; expected a classifier: give images to train a probe on (--train)"
            )
        return own
    if not train.labeled:
        raise DataError(f"{train.name or 'train'} has no labels; expected classes: give a labeled set")
    return linear_head(encode(train).to(encode.encoder.mean.device), train.labels, grid=GRID, seed=seed)[0]


def check_labels(images: ImageSet, head: nn.Linear) -> None:
    """Raises DataError for images without labels, or with labels that are no outputs of ``head``."""
    if not images.labeled or int(images.labels.max()) >= head.out_features:
        raise DataError(
            f"{images.name or 'the images'} have {len(images.classes)} classes and the head {head.out_features} "
            "outputs; expected labels that are its outputs: give the data that it was made for"
        )
