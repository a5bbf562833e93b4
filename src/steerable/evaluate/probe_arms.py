"""Probes with augmentation: from cached embeddings through the map, against truly augmented images and none."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from steerable.data import ImageSet
from steerable.evaluate.minibatch import augmented, minibatch_head, steered
from steerable.evaluate.probing import C_GRID, linear_head, scored
from steerable.model import SteerableEncoder

Progress = Callable[[int, int, str], None]
BATCH = 256


def evaluate_probes(
    model: SteerableEncoder,
    train: ImageSet,
    test: ImageSet,
    *,
    views: int = 4,
    thetas: int = 1000,
    grid: Sequence[float] = C_GRID[::5],
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Linear probes on ``model``'s embeddings of train, scored on plain embeddings of test; JSON types.

    Rows: "plain" (L-BFGS) and "plain, minibatch" (the control with the other two's solver); "steered" by one of
    ``thetas`` draws of the chain at each step; "augmented", with ``views`` encoded versions of each image. Each has
    accuracy, per_class, c, seconds of the fit, and the encoder passes per training image that it needed.
    """
    total, done = (1 + views) * len(train) + len(test), 0

    def encoded(images: ImageSet, what: str, *, generator: torch.Generator | None = None) -> Tensor:
        nonlocal done
        parts = []
        for batch in images.batches(BATCH, device=model.device):
            if generator is not None:
                batch = model.chain.apply(batch, model.chain.sample(len(batch), generator=generator))
            parts.append(model.encode(batch))
            done += len(batch)
            if progress is not None:
                progress(done, total, what)
        return torch.cat(parts)

    e, e_test = encoded(train, "images to train on"), encoded(test, "images to test on")
    generator = torch.Generator().manual_seed(seed)
    pool = model.chain.sample(thetas, generator=generator)
    true = [encoded(train, "augmented images", generator=generator) for _ in range(views)]
    settings: dict[str, Any] = {"grid": grid, "seed": seed}
    arms: dict[str, tuple[int, Callable[[], tuple[nn.Linear, float]]]] = {
        "plain": (1, lambda: linear_head(e, train.labels, **settings)),
        "plain, minibatch": (1, lambda: minibatch_head(e, train.labels, lambda i, _: e[i], **settings)),
        "steered": (1, lambda: minibatch_head(e, train.labels, steered(e, model.steering, pool), **settings)),
        "augmented": (
            1 + views,
            lambda: minibatch_head(e, train.labels, augmented(e, torch.stack(true, 1)), **settings),
        ),
    }
    rows = []
    for name, (passes, fit) in arms.items():
        began = time.perf_counter()
        head, c = fit()
        result = asdict(scored(head, c, e_test, test.labels))
        rows.append({"probe": name, **result, "seconds": time.perf_counter() - began, "passes": passes})
    return {"train": train.name, "test": test.name, "n_train": len(train), "n_test": len(test), "rows": rows}
