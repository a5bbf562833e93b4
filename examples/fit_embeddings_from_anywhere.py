"""Fit a map to embeddings that are already there: arrays from any model, in any language, of any modality.

    python examples/fit_embeddings_from_anywhere.py

All that is needed is rows (source, theta, target): the embedding of a thing, what was done to it, and the
embedding of the result. Here they come from a made-up world, so that the right answer is known.
"""

from collections.abc import Iterator

import numpy as np
import torch

from steerable import fit_embeddings, metrics

D, P = 16, 2  # width of the embeddings; coordinates of theta


def world(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n rows of (source, theta, target): coordinate 0 turns a plane, coordinate 1 shifts along a line."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(n, D))
    theta = np.stack([rng.uniform(-0.5, 0.5, n), rng.uniform(-1, 1, n)], axis=1)
    target = source.copy()
    cos, sin = np.cos(theta[:, 0]), np.sin(theta[:, 0])
    target[:, 0] = cos * source[:, 0] - sin * source[:, 1]
    target[:, 1] = sin * source[:, 0] + cos * source[:, 1]
    target[:, 2] += theta[:, 1]
    return source, theta, target


def batches(n: int, size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The same rows as a stream with image ids: memory stays flat however long it is."""
    for i in range(0, n, size):
        yield *world(size, seed + i), np.arange(i, i + size)


def main(n: int = 4000) -> dict[str, float]:
    """Fit three kinds of maps; returns their relative errors on rows that none has seen."""
    source, theta, target = (torch.from_numpy(part).float() for part in world(1000, seed=10**6))
    errors = {}
    for features in ("linear", "linear+squares", "linear+squares+cubes"):
        steering = fit_embeddings(batches(n, 500, seed=0), map="basis", features=features)
        errors[features] = metrics.relative_error(source, target, steering(source, theta))
        print(f"basis map, {features}: relative error {errors[features]:.4f}")
    return errors


if __name__ == "__main__":
    main()
