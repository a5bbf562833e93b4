"""Test-time augmentation measured: steered, folded, re-encoded and ttach's, on the same images and views."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerable.data import ImageSet
from steerable.data.images import random_order
from steerable.errors import ConfigError
from steerable.evaluate.heads import check_labels
from steerable.metrics import paired_gain
from steerable.model import SteerableEncoder
from steerable.tta import VIEWS, choose_views, fold, merge, merged, views

Progress = Callable[[int, int, str], None]
BATCH, BINS = 256, 15
MERGED = (("mean", "probabilities"), ("max", "probabilities"))  # the mean of logits is the folded head
CANDIDATES = 25  # views of each strength from which some are chosen
STRENGTHS = (1.0, 0.5, 0.25, 0.125)
FEWEST = 50  # images below which re-encoding is not measured


def evaluate_tta(
    model: SteerableEncoder,
    images: ImageSet,
    *,
    head: nn.Linear | None = None,
    counts: Sequence[int] = (1, 10, 100, 1000),
    draws: str = "chain",
    strength: float = 1.0,
    budget: float = 60.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy, calibration and cost of test-time augmentation on labeled images; JSON types.

    head: default the model's own. counts: numbers of views; draws, strength: where they come from, see
    `steerable.tta.views` (larger sets contain smaller ones; the untouched image is the first). budget: seconds for
    each re-encoded set, which bounds its number of images. seed: of views and halves. progress: as everywhere, in
    encoder passes.

    Rows: method ("plain", "steered", "folded", "re-encoded", "ttach", "chosen", "weighted"), views, merge, n,
    accuracy, ece (top-label, 15 bins of equal width), log_likelihood, ms (per image), ratio (to one plain pass), and
    gain with gain_se: accuracy minus plain accuracy **on the same n images**, and its paired standard error.
    Re-encoded and ttach rows also have steered_gain, the gain of steering by the same views on the same images,
    and, where the true gain exceeds two standard errors, recovered, the share of it that steering has. Chosen
    (greedy) and weighted (learned) views are chosen from draws of several strengths on one half of the images,
    and measured on the other.

    Raises:
        ConfigError: neither the model nor ``head`` classifies, or unknown ``draws``.
        DataError: images without labels, or of more classes than the head.
    """
    study = _Study(model, images, head, budget, seed, progress)
    pool = views(f"{draws}:{max(counts)}", model.chain, seed=seed, strength=strength)
    own = {param.name for param in model.params}
    fitting = [name for name, rows in VIEWS.items() if name != "plain" and own.issuperset(set().union(*rows))]
    named = {name: views(name, model.chain) for name in fitting}
    sets = {str(n): pool[:n] for n in counts if n > 1} | named
    rows = [study.row("plain", 1, study.plain, 0.0)]
    for name, thetas in sets.items():
        rows += study.steered(name, thetas)
    some = f"{draws}:{CANDIDATES}"
    rows += study.chosen(torch.cat([views(some, model.chain, seed=seed, strength=s)[1:] for s in STRENGTHS]))
    rows += study.reencoded(sets)
    return {
        "images": images.name,
        "n": len(images),
        "bins": BINS,
        "draws": draws,
        "strength": strength,
        "ranges": {param.name: [param.low, param.high] for param in model.params},
        "map": model.steering.name,
        "features": model.steering.features.expansion,
        "head": "own" if head is None else "given",
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "rows": rows,
        "notes": study.notes,
    }


@dataclass
class _Study:
    """One model on one set of images: what was measured once and every row needs."""

    model: SteerableEncoder
    images: ImageSet
    given: nn.Linear | None
    budget: float
    seed: int
    progress: Progress | None

    def __post_init__(self):
        head = self.model.head if self.given is None else self.given
        if head is None:
            raise ConfigError(
                "the model has no head; expected a classifier: give images to train a probe on (--train)"
            )
        check_labels(self.images, head)
        self.head = head.to(self.model.device)
        self.labels = self.images.labels.to(self.model.device)
        self.notes: list[str] = []
        self.done, self.total = 0, len(self.images)
        parts, seconds = zip(*self._timed(self.images, self._encoded), strict=True)
        self.e = torch.cat(parts)
        with torch.no_grad():
            self.plain = self.head(self.e).softmax(-1)
        self.seconds = _median(seconds)

    def row(
        self, method: str, n_views: int, p: Float[Tensor, "n c"], seconds: float, *, name: str = "", merge: str = "",
        index: Tensor | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A row for probabilities of the images at index; seconds per image beyond the plain pass."""
        index = torch.arange(len(self.labels)) if index is None else index
        y, plain = self.labels[index], self.plain[index]
        gain, error = paired_gain(p.argmax(1) == y, plain.argmax(1) == y)
        return {
            "method": method,
            "views": n_views,
            "set": name or str(n_views),
            "merge": merge,
            "n": len(y),
            "accuracy": (p.argmax(1) == y).double().mean().item(),
            "ece": calibration_error(p, y),
            "log_likelihood": p.gather(1, y[:, None]).double().clamp(min=1e-30).log().mean().item(),
            "ms": 1e3 * (self.seconds + seconds),
            "ratio": 1 + seconds / self.seconds,
            "gain": gain,
            "gain_se": error,
        }

    def steered(self, name: str, thetas: Tensor) -> Iterator[dict[str, Any]]:
        """Every merge of steered views, and the folded head."""
        for how, of in MERGED:
            p, seconds = self._merged(thetas, how, of)
            yield self.row("steered", len(thetas), p, seconds, name=name, merge=f"{how} of {of}")
        with torch.no_grad():
            p = fold(self.model.steering, self.head, thetas)(self.e).softmax(-1)
        yield self.row("folded", len(thetas), p, 0.0, name=name, merge="mean of logits")

    def chosen(self, thetas: Tensor) -> Iterator[dict[str, Any]]:
        """Views chosen on one half of the images, measured on the other."""
        order = random_order(len(self.labels), self.seed)
        fit, test = order[: len(order) // 2], order[len(order) // 2 :]
        for how, method in (("greedy", "chosen"), ("learned", "weighted")):
            kept, weights = choose_views(
                self.model.steering, self.head, self.e[fit], self.labels[fit], thetas, how=how
            )
            p, seconds = self._merged(kept, "mean", "probabilities", weights, test)
            yield self.row(method, len(kept), p, seconds, merge="mean of probabilities", index=test)

    def reencoded(self, sets: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
        """True augmentation by the same views, ours and ttach's, on as many images as the budget allows."""
        jobs = [("re-encoded", name, thetas, self._augmented(thetas)) for name, thetas in sets.items()]
        jobs += [("ttach", name, sets[name], run) for name, run in self._ttach().items() if name in sets]
        order = random_order(len(self.images), self.seed)
        one_view = self._augmented(torch.zeros(1, len(self.model.params)))
        _, per_view = next(self._timed(self.images.subset(order[:BATCH]), one_view))
        sizes = [min(len(order), int(self.budget / (per_view * len(job[2])))) for job in jobs]
        self.total += sum(size * len(job[2]) for size, job in zip(sizes, jobs, strict=True) if size >= FEWEST)
        for size, (method, name, thetas, run) in zip(sizes, jobs, strict=True):
            if size < min(FEWEST, len(order)):
                self.notes.append(
                    f"{method} {name} was not measured: {FEWEST} images would take over {self.budget:g} s"
                )
                continue
            index = order[:size].sort().values
            batch = max(1, min(BATCH, BATCH * 8 // len(thetas)))
            parts, seconds = zip(
                *self._timed(self.images.subset(index), run, batch, len(thetas)), strict=True
            )
            p = torch.cat(parts)
            row = self.row(
                method, len(thetas), p, _median(seconds) - self.seconds, name=name, merge="mean of probabilities",
                index=index,
            )  # fmt: skip
            yield row | self._recovered(row, thetas, index)

    def _recovered(self, row: Mapping[str, Any], thetas: Tensor, index: Tensor) -> dict[str, float | None]:
        p, _ = self._merged(thetas, "mean", "probabilities", index=index)
        y = self.labels[index]
        gain, _ = paired_gain(p.argmax(1) == y, self.plain[index].argmax(1) == y)
        clear = row["gain"] > 2 * row["gain_se"]
        return {"steered_gain": gain, "recovered": gain / row["gain"] if clear else None}

    def _merged(
        self, thetas: Tensor, how: str, of: str, weights: Tensor | None = None, index: Tensor | None = None
    ) -> tuple[Float[Tensor, "n c"], float]:
        """Merged probabilities and seconds per image."""
        parts, seconds = [], []
        with torch.no_grad():
            for e in (self.e if index is None else self.e[index]).split(BATCH):
                began = self._clock()
                out = merged(self.model.steering, self.head, e, thetas, how, of=of, weights=weights)
                seconds.append((self._clock() - began) / len(e))
                p = out if of == "probabilities" else out.softmax(-1)
                parts.append(p / p.sum(1, keepdim=True))  # a maximum of probabilities does not sum to one
        return torch.cat(parts), _median(seconds)

    def _timed(
        self, images: ImageSet, run: Callable[[Tensor], Tensor], batch: int = BATCH, passes: int = 1
    ) -> Iterator[tuple[Tensor, float]]:
        """Outputs of each batch, and its seconds per image; the first batch is run twice, to warm up."""
        for place, x in enumerate(images.batches(batch, device=self.model.device)):
            if not place:
                run(x)
            began = self._clock()
            out = run(x)
            yield out, (self._clock() - began) / len(x)
            self.done += len(x) * passes
            if self.progress is not None:
                self.progress(self.done, max(self.done, self.total), f"images at {passes} views")

    def _encoded(self, x: Tensor) -> Float[Tensor, "b d"]:
        e = self.model.encode(x)
        with torch.no_grad():
            self.head(e)  # part of a plain pass's price
        return e

    def _augmented(self, thetas: Tensor) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.no_grad():
                outputs = [
                    self.head(self.model.encode(self.model.chain.apply(x, theta.expand(len(x), -1)))).softmax(
                        -1
                    )
                    for theta in thetas
                ]
            return merge(torch.stack(outputs, 1))

        return run

    def _ttach(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """ttach's wrapper around the same classifier, for the sets that it has too."""
        try:
            import ttach
        except ImportError:
            self.notes.append("ttach is not installed, and was left out: pip install 'steerable[eval]'")
            return {}
        scales = [2.0 ** view.get("zoom", 0.0) for view in VIEWS["multiscale"]]
        sets = {
            "hflip": ttach.aliases.hflip_transform(),
            "flip": ttach.aliases.flip_transform(),
            "d4": ttach.aliases.d4_transform(),
            "multiscale": ttach.aliases.multiscale_transform(scales),  # resized, not cropped
        }

        def wrapped(transforms: Any) -> Callable[[Tensor], Tensor]:
            wrapper = ttach.ClassificationTTAWrapper(
                nn.Sequential(self.model, self.head, nn.Softmax(-1)).eval(), transforms
            )
            return torch.no_grad()(wrapper)

        return {name: wrapped(transforms) for name, transforms in sets.items()}

    def _clock(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def calibration_error(p: Float[Tensor, "n c"], labels: Int[Tensor, " n"], bins: int = BINS) -> float:
    """Expected calibration error: mean over images of |confidence - accuracy| of their bin, of equal width.

    Formula: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599); confidence is the largest
    probability.
    """
    confidence, predicted = p.double().max(1)
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=p.device)
    gap.index_add_(0, bin_of, confidence - (predicted == labels).double())
    return (gap.abs().sum() / len(p)).item()


def _median(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]
