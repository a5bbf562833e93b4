"""`steerable.fit`: plan, encode what is not cached, choose a neck where one is needed, fit the map."""

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from steerable.data import ImageSet
from steerable.encoders import FINAL, Encoder, Neck, check_pixels, classifier_of
from steerable.errors import ConfigError, FitError
from steerable.fitting import fit_embeddings
from steerable.maps import SteeringMap
from steerable.model import SteerableEncoder, features_for, steering_for
from steerable.posthoc.adapter import adapted
from steerable.posthoc.pairs import Pair, Pairs, Progress
from steerable.posthoc.plan import check_memory, duration, make_plan
from steerable.transforms import Chain, Transform

SAMPLE = 8192  # images that joined layers are standardized on
POOR = 0.5  # share of the motion that is left after steering, above which the way out is told
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

    encoder: an `Encoder`, or any module from images (b, 3, h, w) in [0, 1] to (b, d); not changed. One that joins
        layers and has no neck gets one that standardizes its columns, on 8,192 of the images or a few more.
    images: an ImageSet, or (n, 3, h, w) floating RGB in [0, 1]. Labels are not used.
    chain: the transforms that it is to be steered by.
    map, features, ridge, rank, projection, refine, memory: as in `fit_embeddings`. Choices are made on images held
        out whole.
    views: transformed versions of each image.
    adapter: None, "discriminant" (closed form), "linear" or "hidden" (trained): a layer behind the encoder that turns
        up what moves predictably; see `steerable.posthoc.adapter`.
    cache: folder in which raw embeddings are kept, by encoder, images, chain and seed; by default $STEERABLE_CACHE or
        ~/.cache/steerable. An interrupted run goes on with what is there.
    seed: of thetas and of training. progress: called with (encoder passes done, passes in all, what is being done).

    The plan (passes, time, memory) is logged at INFO before it starts, and at the end how much of the motion is left on
    held-out images (``record["held_out_error"]``), with the way out where that is much. Pairs are streamed into normal
    equations, so that memory does not grow with their number, except for families without a closed form (rotation,
    exponential), refinement and adapters. The price is in the result's ``record``; the classifier that the encoder was
    pretrained with, where it still fits, is its ``head``.

    Raises:
        ConfigError: an unknown map, features, adapter or chain, no views, or an adapter for an encoder with a neck.
        ShapeError: images that `SteerableEncoder.encode` refuses.
        FitError: too few images, or more than the memory (before anything is encoded).
    """
    plain = _checked(encoder, images, chain, views, adapter)
    given = plain.encoder
    expansion = features_for(plain.chain, features)
    needed = check_memory(
        given, expansion, images=len(images), views=views, map=map, projection=projection, refine=refine,
        adapter=adapter, memory=memory,
    )  # fmt: skip
    settings: dict[str, Any] = {"map": map, "features": expansion, "projection": projection}
    began = time.perf_counter()
    pairs = Pairs(given, images, plain.chain, views=views, seed=seed, folder=cache, progress=progress)

    options = {"ridge": ridge, "rank": rank, "refine": refine, "memory": memory}
    try:
        # not strict: networks with ReLU have dead coordinates, and those need no motion
        fitted = fit_embeddings(
            _batches(pairs, needed, adapter, settings, memory, seed), **settings, **options, strict=False
        )
    except BaseException:
        if pairs.encoded:
            kept = f"{pairs.encoded:,} new encoder passes are kept in {pairs.folder}"
            _LOG.info("%s; the same call goes on there", kept)
        raise
    seconds = time.perf_counter() - began
    record = {
        "made_by": "fit", "images": len(pairs.pixels), "views": views, "pairs": len(pairs), "passes": pairs.passes,
        "passes_new": pairs.encoded, "seconds": round(seconds, 2),
        "seconds_encoding": round(pairs.seconds, 2), "adapter": adapter, "refine": refine,
        **(fitted.fit_record or {}),
    }  # fmt: skip
    _LOG.info(
        "fitted to %s pairs in %s; %s encoder passes, %s of them new",
        *(f"{len(pairs):,}", duration(seconds), f"{pairs.passes:,}", f"{pairs.encoded:,}"),
    )
    if record.get("held_out_error") is not None:
        _LOG.info("%s", verdict(record["held_out_error"], given, adapter))
    return _model(pairs, fitted, record)


def _checked(
    encoder: Encoder | nn.Module,
    images: ImageSet | Tensor,
    chain: Chain | Transform | str | Mapping[str, Any],
    views: int,
    adapter: str | None,
) -> SteerableEncoder:
    """Encoder and chain in one, with the identity for a map."""
    if views < 1:
        raise ConfigError(
            f"views is {views}; expected at least 1 transformed version of each image: raise it"
        )
    if isinstance(images, Tensor):
        check_pixels(images)
    if len(images) < 2:
        raise FitError(
            f"there are {len(images)} images; expected 2 at least, one of them to hold out: give more"
        )
    plain = SteerableEncoder(encoder, chain)
    if adapter is not None and plain.encoder.neck is not None:
        raise ConfigError(
            f"adapter is {adapter!r} and the encoder has a neck already; expected an encoder without one: give "
            "encoder.with_neck(None), or leave adapter out"
        )
    return plain


def _batches(
    pairs: Pairs,
    needed: int,
    adapter: str | None,
    settings: Mapping[str, Any],
    memory: float | int,
    seed: int,
) -> Iterator[Pair]:
    """All pairs. A generator, so that `fit_embeddings` checks its arguments before anything is encoded."""
    _LOG.info("%s", make_plan(pairs, needed))
    pairs.neck = _neck(pairs, adapter, settings, memory, seed)
    yield from pairs


def _neck(
    pairs: Pairs, adapter: str | None, settings: Mapping[str, Any], memory: float | int, seed: int
) -> Neck | None:
    """The encoder's own, or a standardizing one where layers are joined, with an adapter where one is asked for."""
    encoder = pairs.encoder
    if encoder.neck is not None or (adapter is None and tuple(encoder.layers) == (FINAL,)):
        return encoder.neck
    raw = pairs.plain(SAMPLE if adapter is None else None)
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


def verdict(error: float, encoder: Encoder, adapter: str | None) -> str:
    """One plain sentence on a fit's held-out relative error; where it is poor, a second with what to try."""
    left = f"on held-out images {error:.0%} of the motion is left after steering"
    if error <= POOR or adapter is not None:
        return left
    joined = tuple(encoder.layers) != (FINAL,)
    layers = "" if joined or encoder.spec is None else "layers='all' (--layers all) and "
    return (
        f"{left}, so do not trust it far; try {layers}adapter='discriminant' (--adapter discriminant): another "
        "embedding, more predictable for most encoders, for which stored ones must be made again"
    )


def _model(pairs: Pairs, fitted: SteeringMap, record: dict[str, Any]) -> SteerableEncoder:
    """Encoder, neck, map with the chain's laws, and the pretrained classifier where it still fits."""
    encoder = pairs.encoder.with_neck(pairs.neck) if isinstance(pairs.neck, Neck) else pairs.encoder
    shape = {key: value for key, value in fitted.config().items() if key in ("rank", "inner")}
    steering = steering_for(pairs.chain, encoder.dim, fitted.name, fitted.features.expansion, **shape)
    steering.load_state_dict(fitted.state_dict())
    try:
        head = classifier_of(encoder)
    except ConfigError as error:  # the map is made; a classifier that cannot be reached shall not cost it
        head = None
        _LOG.warning("no classifier is kept: %s", error)
    device = encoder.mean.device
    model = SteerableEncoder(encoder, pairs.chain, steering.to(device), head=head, record=record)
    return model.to(device).eval()
