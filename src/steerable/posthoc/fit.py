"""`steerable.fit`: plan, encode what is not cached, choose a neck where one is needed, fit the map."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from steerable.data import ImageSet
from steerable.encoders import FINAL, Encoder, Neck, check_pixels, classifier_of
from steerable.errors import ConfigError, one_of
from steerable.fitting import LARGEST, check_room, fit_embeddings
from steerable.maps import SteeringMap
from steerable.model import SteerableEncoder, features_for, steering_for
from steerable.posthoc.adapter import ADAPTERS, WIDTH, adapted
from steerable.posthoc.pairs import Pairs, Progress
from steerable.posthoc.plan import make_plan
from steerable.transforms import Chain, Transform

_LOG = logging.getLogger(__name__)


def fit(
    encoder: Encoder | nn.Module,
    images: ImageSet | Tensor,
    chain: Chain | Transform | str | Mapping[str, Any] = "simclr",
    *,
    map: str = "basis",
    features: str = "linear",
    views: int = 4,
    ridge: float | None = None,
    rank: int | None = None,
    projection: int | str | None = "auto",
    refine: str | None = None,
    adapter: str | None = None,
    memory: float | int = 2.0,
    cache: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SteerableEncoder:
    """Make a frozen encoder steerable: encode images plain and transformed, and fit a map to the pairs.

    encoder: an `Encoder`, or any module from images (b, 3, h, w) in [0, 1] to (b, d); not changed. One with layers
        and without a neck gets a neck that standardizes its columns.
    images: an ImageSet, or (n, 3, h, w) floating RGB in [0, 1]. Labels are not used.
    chain: the transforms that it is to be steered by.
    map, features, ridge, rank, projection, refine, memory: as in `fit_embeddings`. Choices are made on images held
        out whole.
    views: transformed versions of each image.
    adapter: None, "discriminant" (closed form), "linear" or "hidden" (trained): a layer behind the encoder that turns
        up what moves predictably; see `steerable.posthoc.adapter`.
    cache: folder in which raw embeddings are kept, by encoder, images, chain and seed; by default $STEERABLE_CACHE or
        ~/.cache/steerable. An interrupted run goes on with what is there.
    seed: of the thetas. progress: called with (encoder passes done, passes in all, what is being done).

    The plan (passes, time, memory) is logged at INFO before it starts. Pairs are streamed into normal equations, so
    that memory does not grow with their number, except for families without a closed form (rotation, exponential),
    refinement and adapters. The price is in the result's ``record``; the classifier that the encoder was pretrained
    with, where it still fits, is its ``head``.

    Raises:
        ConfigError: an unknown map, features, adapter or chain, or no views.
        ShapeError: images that `SteerableEncoder.encode` refuses.
        FitError: too few images to fit to, or normal equations over the memory (before anything is encoded).
    """
    if views < 1:
        raise ConfigError(
            f"views is {views}; expected at least 1 transformed version of each image: raise it"
        )
    if adapter is not None and adapter not in ADAPTERS:
        raise ConfigError(f"adapter is {adapter!r}; {one_of(adapter, ADAPTERS)}")
    if isinstance(images, Tensor):
        check_pixels(images)
    plain = SteerableEncoder(encoder, chain)
    given = plain.encoder
    expansion = features_for(plain.chain, LARGEST if features == "auto" else features)
    dim = min(WIDTH, given.raw_dim) if adapter else given.dim
    needed = check_room(map, dim, expansion, projection=projection, memory=memory)
    began = time.perf_counter()
    pairs = Pairs(given, images, plain.chain, views=views, seed=seed, folder=cache, progress=progress)
    _LOG.info("%s", make_plan(pairs, needed))
    settings = {
        "map": map,
        "features": features if features == "auto" else expansion,
        "projection": projection,
    }
    if features == "auto":
        settings |= {"scales": expansion.scale_values, "periods": expansion.period_values}
    options = {"ridge": ridge, "rank": rank, "refine": refine, "memory": memory}
    try:
        pairs.neck = _neck(pairs, adapter, settings, memory, seed)
        # not strict: networks with ReLU have dead coordinates, and those need no motion
        fitted = fit_embeddings(pairs, **settings, **options, strict=False)
    except BaseException:
        if pairs.encoded:
            _LOG.info(
                "%d new encoder passes are kept in %s; the same call goes on there",
                pairs.encoded,
                pairs.folder,
            )
        raise
    ended = time.perf_counter()
    record = {
        "made_by": "fit", "images": len(pairs.pixels), "views": views, "pairs": len(pairs), "passes": pairs.passes,
        "passes_new": pairs.encoded, "seconds": round(ended - began, 2), "adapter": adapter, "refine": refine,
    }  # fmt: skip
    return _model(pairs, fitted, record)


def _neck(
    pairs: Pairs, adapter: str | None, settings: Mapping[str, Any], memory: float | int, seed: int
) -> Neck | None:
    """The encoder's own, or a standardizing one where layers are joined, with an adapter where one is asked for."""
    encoder = pairs.encoder
    if encoder.neck is not None and adapter is not None:
        raise ConfigError(
            f"adapter is {adapter!r} and the encoder has a neck already; expected an encoder without one: give "
            "encoder.with_neck(None), or leave adapter out"
        )
    if encoder.neck is not None or (adapter is None and tuple(encoder.layers) == (FINAL,)):
        return encoder.neck
    raw = pairs.plain()
    neck = Neck.standardizing(raw, encoder.layers)
    if adapter is None:
        return neck
    pairs.neck = neck
    # an adapter is made with a closed form; whatever map was asked for is then fitted behind it
    basis = {**settings, "map": "basis"}
    final = encoder.layers.get(FINAL, slice(0, encoder.raw_dim))
    return adapted(
        neck, pairs, neck(raw), final, adapter, views=pairs.views, settings=basis, memory=memory, seed=seed
    )


def _model(pairs: Pairs, fitted: SteeringMap, record: dict[str, Any]) -> SteerableEncoder:
    """Encoder, neck, map with the chain's laws, and the pretrained classifier where it still fits."""
    encoder = pairs.encoder if pairs.neck is pairs.encoder.neck else pairs.encoder.with_neck(pairs.neck)
    shape = {key: value for key, value in fitted.config().items() if key in ("rank", "inner")}
    steering = steering_for(pairs.chain, encoder.dim, fitted.name, fitted.features.expansion, **shape)
    steering.load_state_dict(fitted.state_dict())
    head = classifier_of(encoder)
    device = encoder.mean.device
    model = SteerableEncoder(encoder, pairs.chain, steering.to(device), head=head, record=record)
    return model.to(device).eval()
