"""Fit over images: maps for an encoder that exists already, its weights untouched."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steerable.data import ImageSet
from steerable.encoders import Encoder
from steerable.errors import ConfigError
from steerable.fitting import fit_embeddings
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Chain, Transform

Progress = Callable[[int, int, str], None]
BATCH = 256


def fit(
    encoder: Encoder | nn.Module,
    images: ImageSet | Tensor,
    chain: Chain | Transform | str | Mapping[str, Any] = "simclr",
    *,
    map: str = "basis",
    features: str = "linear",
    views: int = 4,
    ridge: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SteerableEncoder:
    """Make a frozen encoder steerable: encode images plain and transformed, and fit a map to the pairs.

    encoder: an `Encoder`, or any module from images (b, 3, h, w) in [0, 1] to (b, d); not changed.
    images: an ImageSet, or (n, 3, h, w) floating RGB in [0, 1]. Labels are not used.
    chain: the transforms that it is to be steered by. map, features: as in `fit_embeddings`.
    views: transformed versions of each image; the ridge strength is chosen on images held out whole.
    ridge: that strength, or None to choose it. seed: of the thetas.
    progress: called with (encoder passes done, passes in all, what is being done).

    Pairs are streamed into normal equations, so that memory does not grow with their number, except for the
    families without a closed form (rotation, exponential).

    Raises:
        ConfigError: an unknown map, features or chain, or no views.
        ShapeError: images that `SteerableEncoder.encode` refuses.
        FitError: too few images to fit to.
    """
    if views < 1:
        raise ConfigError(
            f"views is {views}; expected at least 1 transformed version of each image: raise it"
        )
    plain = SteerableEncoder(encoder, chain)
    fresh = steering_for(plain.chain, plain.dim, map, features)
    batches = (
        images.batches(BATCH, device=plain.device) if isinstance(images, ImageSet) else images.split(BATCH)
    )
    pairs = plain.pairs(batches, views=views, generator=torch.Generator().manual_seed(seed))
    told = _told(pairs, views, len(images), progress)
    # not strict: networks with ReLU have dead coordinates, and those need no motion
    fitted = fit_embeddings(told, map=map, features=fresh.features, ridge=ridge, strict=False)
    fresh.load_state_dict(fitted.state_dict())
    return SteerableEncoder(plain.encoder, plain.chain, fresh.to(plain.device)).eval()


def _told(pairs: Iterator[Any], views: int, images: int, progress: Progress | None) -> Iterator[Any]:
    done, total = 0, images * (1 + views)
    for place, batch in enumerate(pairs):
        done += len(batch[0]) * (2 if place % views == 0 else 1)  # the plain pass comes with the first view
        if progress is not None:
            progress(done, total, "pairs of plain and transformed images")
        yield batch
