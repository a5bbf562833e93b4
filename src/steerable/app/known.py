"""What is known of the gallery: a head for its classes, and how its own images score, to tell foreign ones apart."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable import ood, tta
from steerable.data import decode
from steerable.data.images import as_float
from steerable.errors import DataError
from steerable.evaluate import linear_head

if TYPE_CHECKING:
    from steerable.app.service import Service

MOST, FEWEST = 512, 40  # images of the gallery that are scored
PATIENCE = 15.0  # seconds that this may take
VIEWS, STRENGTH = 64, 0.5  # steered views of an image, and the share of the chain's range that they reach
NEAR = 5  # the neighbor whose distance is the score
KEEP = 0.95  # share of the gallery's images that is not called foreign
_LOG = logging.getLogger("steerable")


class Mark(NamedTuple):
    """One score. value: higher is further out. limit: above it is foreign. share: of the gallery's images below it."""

    name: str
    value: float
    limit: float
    share: float
    known: Tensor

    @property
    def foreign(self) -> bool:
        return self.value > self.limit


class Score(NamedTuple):
    """Of one image: p (c,) plain, views (v, c) steered at thetas (v, p), over ``classes``; and a mark per score."""

    classes: tuple[str, ...]
    p: Tensor
    views: Tensor
    thetas: Tensor
    marks: tuple[Mark, ...]


class Known:
    """Scores of a sample of the gallery's images, half of which a head is fitted to where the model has none."""

    def __init__(self, service: "Service"):
        self.service = service
        model = service.model
        self.thetas = tta.views(f"chain:{VIEWS}", model.chain, strength=STRENGTH)
        e, labels = _embedded(service)
        self.head, self.classes = _head(service, e, labels)
        held = e if model.head is not None else e[len(e) // 2 :]
        scores = {"distance": torch.tensor([self._distance(row, own=True) for row in held])}
        self.entropy = None
        if self.head is not None:
            self.entropy = ood.OrbitScore(model.steering, self.head, self.thetas)
            scores["entropy"] = self.entropy.predict_features(held).cpu()
        self.scores = {name: values.sort().values for name, values in scores.items()}
        self.limits = {name: ood.threshold(values, keep=KEEP) for name, values in scores.items()}

    @torch.no_grad()
    def score(self, e: Float[Tensor, " d"]) -> Score:
        """Of one embedding (d,)."""
        values = {"distance": self._distance(e)}
        p, views = torch.zeros(0), torch.zeros(len(self.thetas), 0)
        if self.head is not None and self.entropy is not None:
            values["entropy"] = self.entropy.predict_features(e[None]).item()
            p = self.head(e).softmax(-1)
            steering = self.service.model.steering
            views = tta.orbit_logits(steering, self.head, e[None], self.thetas)[0].softmax(-1)
        marks = [self._mark(name, value) for name, value in values.items()]
        return Score(self.classes, p, views, self.thetas, tuple(marks))

    def _mark(self, name: str, value: float) -> Mark:
        known = self.scores[name]
        share = (known < value).float().mean().item()
        return Mark(name, value, self.limits[name], share, known)

    def _distance(self, e: Tensor, *, own: bool = False) -> float:
        """1 - cosine to the fifth neighbor, an image itself left out (Sun et al., arXiv 2204.06507)."""
        hits = self.service.gallery.index.search(e, NEAR + 1)
        if own or hits[0]["score"] > 1 - 1e-5:
            hits = hits[1:]
        return 1 - hits[min(NEAR, len(hits)) - 1]["score"] if hits else 0.0


def _embedded(service: "Service") -> tuple[Float[Tensor, "n d"], list[str | None]]:
    """Embeddings and labels of a sample, as many as there is patience for."""
    gallery, began = service.gallery, time.perf_counter()
    parts: list[Tensor] = []
    labels: list[str | None] = []
    rows = gallery.sample[:MOST]
    for start in range(0, len(rows), 16):
        if len(labels) >= FEWEST and time.perf_counter() - began > PATIENCE:
            break
        pixels = []
        for row in rows[start : start + 16]:
            try:
                pixels.append(decode(gallery.picture(row), size=service.size))
                labels.append(row.get("label"))
            except DataError as error:
                _LOG.warning("left out: %s", error)
        if pixels:
            parts.append(service.model.encode(as_float(torch.stack(pixels))).cpu())
    return torch.cat(parts), labels


def _head(
    service: "Service", e: Tensor, labels: Sequence[str | None]
) -> tuple[nn.Linear | None, tuple[str, ...]]:
    """The model's own head, else one for the labels of the gallery, fitted on the first half of the sample."""
    model = service.model
    if model.head is not None:
        count = model.head.out_features
        return model.head, model.classes or tuple(f"class {i}" for i in range(count))
    half = len(e) // 2
    classes = sorted({label for label in labels[:half] if label})
    rows = [i for i in range(half) if labels[i]]
    if len(classes) < 2 or len(rows) < 5 * len(classes):
        return None, ()
    y = torch.tensor([classes.index(str(labels[i])) for i in rows])
    head, _ = linear_head(e[rows], y, grid=(1e-2,))
    return head, tuple(classes)
