"""The audit: encode images and their views, measure every map on them, put the figures into one report."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steerable.auditing.bench import Bench, Progress
from steerable.auditing.measurement import Measurement
from steerable.auditing.plan import make_plan
from steerable.auditing.report import AuditReport, ModelInfo
from steerable.data import ImageSet
from steerable.errors import ConfigError, ShapeError
from steerable.model import SteerableEncoder
from steerable.transforms import Chain, build


def audit(
    model: nn.Module | Mapping[str, nn.Module],
    images: ImageSet | Tensor,
    *,
    chain: Chain | str | Mapping[str, Any] | None = None,
    depth: bool = False,
    views: int = 50,
    n_images: int = 500,
    n_pool: int = 100,
    strengths: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> AuditReport:
    """Measure how far embeddings move with each parameter and how well the map predicts it.

    Beside each model's own map stand the identity, and "ridge": a basis map with the same features fitted
    afterwards on images that are not measured, which says what any such map can do on this encoder. Where a
    model has no map, as a bare encoder, the ridge map stands in for it. What each figure means is written in
    docs/protocols.md.

    Args:
        model: a SteerableEncoder, or an encoder alone (an `Encoder`, or any module that SteerableEncoder takes);
            or several by name, which are then audited on the same images and thetas. An encoder that joins
            layers is standardized on the images that are not measured.
        images: an ImageSet, or (n, 3, h, w) uint8 or floating in [0, 1]; 4 at least; half are measured. With
            labels, models also get the accuracy of their nearest neighbors.
        chain: what encoders alone are moved by: a chain, a preset's name, or a config; by default the chain of
            the models beside them, else "simclr".
        depth: measure every layer of the networks too, by the same passes: the means and deviations of each
            stage over space (where an encoder joins layers: its own statistics), standardized, with a ridge map
            each.
        views: size of the pool of views of one image that ranks are counted in.
        n_images: images measured at most.
        n_pool: those of them whose views are ranked; half as many for the pools of one coordinate alone.
        strengths: levels on each side of zero for the curves.
        seed: of the choice of images and thetas: equal seeds choose equally, on every machine.
        progress: called with (encoder passes done, passes in all, what is measured); passes count all models.

    Raises:
        ConfigError: no models, models with different chains, numbers out of range, or depth and a network that
            does not show its layers.
        DataError: fewer than four images.
        ShapeError: a tensor that holds no images, or values that are not finite.
    """
    given = dict(model) if isinstance(model, Mapping) else {"model": model}
    models, chain = _with_common_chain(given, chain)
    pixels, source = _pixels(images)
    generator = torch.Generator().manual_seed(seed)
    plan = make_plan(
        len(pixels), views=views, n_images=n_images, n_pool=n_pool, strengths=strengths, generator=generator
    )
    labels = images.labels if isinstance(images, ImageSet) and images.labeled else None
    bench = Bench(models, chain, pixels, plan.passes(chain.params), progress, depth=depth)
    measured = Measurement(bench, plan, generator, labels)
    with torch.no_grad():
        measured.run()
    return AuditReport(
        source=source,
        image_size=(pixels.shape[2], pixels.shape[3]),
        seed=seed,
        views=views,
        strengths=strengths,
        counts=plan.counts,
        chain=chain.config(),
        params=chain.params,
        models=tuple(_info(bench, name, measured.accuracy.get(name)) for name in models),
        rows=tuple(measured.rows),
        examples=tuple(measured.examples),
        notes=tuple(measured.notes),
        depth=tuple(measured.depth),
    )


def _info(bench: Bench, name: str, accuracy: float | None) -> ModelInfo:
    model = bench.models[name]
    record = model.record
    price = {
        key: float(record[key]) for key in ("passes", "seconds") if isinstance(record.get(key), int | float)
    }
    return ModelInfo(
        name,
        model.encoder.name,
        model.dim,
        model.steering.name,
        bench.passes,
        round(bench.seconds[name], 2),
        neighbor_accuracy=accuracy,
        fit_passes=price.get("passes"),
        fit_seconds=price.get("seconds"),
    )


def _with_common_chain(
    given: Mapping[str, nn.Module], chain: Chain | str | Mapping[str, Any] | None
) -> tuple[dict[str, SteerableEncoder], Chain]:
    """Every model with a chain, which is the same for all."""
    if not given:
        raise ConfigError("there are no models to audit; expected at least one: pass a SteerableEncoder")
    chains = {f"model {name!r}": m.chain for name, m in given.items() if isinstance(m, SteerableEncoder)}
    if chain is not None or not chains:
        asked = chain if isinstance(chain, Chain) else build(chain or "simclr")
        chains = {"chain=": asked} | chains
    (first, common), *others = chains.items()
    for name, other in others:
        if other.config() != common.config():
            raise ConfigError(
                f"{first} and {name} have different chains ({common}, {other}); expected equal "
                "ones, so that they meet the same thetas: audit them one by one"
            )
    models = {
        name: model if isinstance(model, SteerableEncoder) else SteerableEncoder(model, common)
        for name, model in given.items()
    }
    return models, common


def _pixels(images: ImageSet | Tensor) -> tuple[Tensor, str]:
    """(n, 3, h, w) uint8 or floating, and a name for reports."""
    if isinstance(images, ImageSet):
        return images.images, images.name or "images"
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError(
            f"images are {got}; expected an ImageSet or a tensor (n, 3, h, w): use data.load_images"
        )
    if images.dtype != torch.uint8 and not bool(torch.isfinite(images).all()):
        raise ShapeError(
            "images hold values that are not finite; expected RGB in [0, 1]: drop or repair those images"
        )
    return images, "images"
