"""Steerability: the audit's figures over the whole range of each coordinate, as rows of an evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from steerable.auditing import audit
from steerable.data import ImageSet
from steerable.model import SteerableEncoder

Progress = Callable[[int, int, str], None]


def evaluate_steerability(
    models: SteerableEncoder | Mapping[str, SteerableEncoder],
    images: ImageSet,
    *,
    views: int = 50,
    n_images: int = 400,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How far embeddings move and how well the map predicts it, per coordinate and jointly; JSON types.

    models: one, or several by name, with equal chains; they meet the same images and thetas. views, n_images, seed,
    progress: as in `steerable.audit`, whose curves by strength are left out here.

    "rows": model, map ("map" is its own, "ridge" one fitted afterwards, "identity"), lead (is it the map that the model
    is judged by: its own, or ridge where it has none), param ("joint" or a coordinate), and the figures: relative
    errors, invariance_level, r2, mrr, hit_at_1, hit_at_5, decoding_r2 and the three laws; None is not defined.

    Raises:
        ConfigError, DataError: as `steerable.audit`.
    """
    report = audit(
        models, images, views=views, n_images=n_images, n_pool=max(1, n_images // 4), strengths=1, seed=seed,
        progress=progress,
    )  # fmt: skip
    lead = {model.name: model.lead for model in report.models}
    names = list(dict.fromkeys(name for row in report.rows if row.value is None for name in row.figures))
    return {
        "rows": [
            {
                "model": row.model,
                "map": row.steering,
                "lead": row.steering == lead[row.model],
                "param": row.param,
            }
            | {name: row.figures.get(name) for name in names}
            for row in report.rows
            if row.value is None
        ],
        "models": [asdict(model) for model in report.models],
        "ranges": {param.name: [param.low, param.high] for param in report.params},
        "settings": {"images": report.source, **report.counts, "views": views, "seed": seed},
        "chance": report.chance,
        "notes": list(report.notes),
    }
