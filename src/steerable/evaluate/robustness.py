"""Robustness: accuracy on corrupted images, as they are and with steered test-time augmentation."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steerable.data import ImageSet
from steerable.evaluate.corruptions import CORRUPTION_NAMES, SEVERITIES, corrupt
from steerable.evaluate.encoding import Encodings
from steerable.evaluate.heads import check_labels, classifier
from steerable.metrics import paired_gain
from steerable.model import SteerableEncoder
from steerable.tta import fold, merged
from steerable.tta import views as view_set

Progress = Callable[[int, int, str], None]
Row = dict[str, Any]
Hits = Mapping[str, Bool[Tensor, " n"]]

CLEAN = "clean"
SIDE, CLASSES = 224, 1000  # of ImageNet, for which mCE is defined
ALEXNET: Mapping[str, float] = {
    "gaussian_noise": 88.64, "shot_noise": 89.45, "impulse_noise": 92.26, "defocus_blur": 81.99,
    "glass_blur": 82.63, "motion_blur": 78.59, "zoom_blur": 79.84, "snow": 86.68, "frost": 82.66, "fog": 81.93,
    "brightness": 56.46, "contrast": 85.32, "elastic_transform": 64.61, "pixelate": 71.78,
    "jpeg_compression": 60.65,
}  # fmt: skip
"""Error of AlexNet in percent, mean over the severities, as published with ImageNet-C (arXiv 1903.12261)."""


def evaluate_robustness(
    model: SteerableEncoder,
    images: ImageSet,
    *,
    train: ImageSet | None = None,
    corruptions: Sequence[str] = CORRUPTION_NAMES,
    severities: Sequence[int] = SEVERITIES,
    views: str = "chain:32",
    strength: float = 0.5,
    seed: int = 0,
    cache: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy on labeled images, clean and after each corruption at each severity; JSON types.

    Methods: "plain"; "steered", the mean of the probabilities of steered views; "folded", their mean of logits.

    Args:
        model: with a linear head of its own, or ``train`` is needed.
        train: labeled images; a linear probe on them is then the head.
        views, strength: the steered views, see `steerable.tta.views`.
        seed: of corruptions, views and the probe.
        cache: a folder for corrupted pixels and embeddings, so that an interrupted run goes on.
        progress: called with (image sets done, image sets, name).

    "rows": corruption ("clean" too), severity (0 for that), method, n, accuracy, and gain with gain_se: accuracy minus
    plain accuracy on the same images, and its standard error. "corruptions": per corruption and method the mean
    accuracy and error over severities. "summary": per method the clean accuracy, accuracy and corruption_error (not
    normalized: means over corruptions and severities), gain (of accuracy over plain), and mce, normalized by AlexNet's
    errors; None but for all corruptions and severities of ImageNet at 224 pixels.

    Raises:
        ConfigError: unknown corruptions, severities or views, or no head. DataError: images without labels, of other
            classes than the head, or below 32 pixels. MissingExtra: imagecorruptions is not installed.
    """
    encode = Encodings(model, cache)
    head = classifier(encode, model.head, train, seed=seed)
    check_labels(images, head)
    thetas = view_set(views, model.chain, seed=seed, strength=strength)
    predict = _Methods(model, head, thetas)
    places = [(CLEAN, 0), *((name, severity) for name in corruptions for severity in severities)]
    rows: list[Row] = []
    for done, (name, severity) in enumerate(places):
        if progress:
            progress(done, len(places), f"{name} {severity or ''}".strip())
        seen = images if name == CLEAN else corrupt(images, name, severity, seed=seed, cache=cache)
        rows.extend(_rows(name, severity, predict(encode(seen), images.labels)))
    per_corruption = list(_per_corruption(rows, corruptions))
    normalized = (
        len(images.classes) == CLASSES
        and tuple(images.images.shape[2:]) == (SIDE, SIDE)
        and {*corruptions} == {*CORRUPTION_NAMES}
        and {*severities} == {*SEVERITIES}
    )
    return {
        "rows": rows,
        "corruptions": per_corruption,
        "summary": list(_summary(rows, per_corruption, normalized)),
        "settings": {
            "images": images.name, "n": len(images), "train": train.name if train else None,
            "severities": list(severities), "views": views, "strength": strength, "seed": seed,
            "size": list(images.images.shape[2:]),
            "ranges": {param.name: [param.low, param.high] for param in model.params},
        },
        "passes": encode.encoded,
    }  # fmt: skip


class _Methods:
    """Which embeddings (n, d) each method classifies right; computed on the model's device."""

    def __init__(self, model: SteerableEncoder, head: nn.Linear, thetas: Float[Tensor, "v p"]):
        self.steering, self.thetas = model.steering, thetas
        self.head = copy.deepcopy(head).to(model.device)
        self.folded = fold(model.steering, self.head, thetas)

    @torch.no_grad()
    def __call__(self, e: Float[Tensor, "n d"], labels: Tensor) -> Hits:
        e = e.to(self.head.weight)
        outputs = {
            "plain": self.head(e),
            "steered": merged(self.steering, self.head, e, self.thetas),
            "folded": self.folded(e),
        }
        return {method: output.argmax(1).cpu() == labels for method, output in outputs.items()}


def _rows(name: str, severity: int, hits: Hits) -> Iterator[Row]:
    for method, right in hits.items():
        gain, error = paired_gain(right, hits["plain"])
        place = {"corruption": name, "severity": severity, "method": method, "n": len(right)}
        yield place | {"accuracy": right.double().mean().item(), "gain": gain, "gain_se": error}


def _per_corruption(rows: Sequence[Row], corruptions: Sequence[str]) -> Iterator[Row]:
    for name in corruptions:
        for method in ("plain", "steered", "folded"):
            own = [row for row in rows if (row["corruption"], row["method"]) == (name, method)]
            accuracy, gain = mean(row["accuracy"] for row in own), mean(row["gain"] for row in own)
            yield {
                "corruption": name, "method": method, "accuracy": accuracy, "error": 1 - accuracy, "gain": gain
            }  # fmt: skip


def _summary(rows: Sequence[Row], per_corruption: Sequence[Row], normalized: bool) -> Iterator[Row]:
    for clean in (row for row in rows if row["corruption"] == CLEAN):
        own = [row for row in per_corruption if row["method"] == clean["method"]]
        figures = {"accuracy": "accuracy", "corruption_error": "error", "gain": "gain"}
        means = {key: mean(row[name] for row in own) if own else None for key, name in figures.items()}
        ratios = [100 * row["error"] / ALEXNET[row["corruption"]] for row in own]  # of percents
        place = {"method": clean["method"], "clean_accuracy": clean["accuracy"]}
        yield place | means | {"mce": 100 * mean(ratios) if normalized else None}
