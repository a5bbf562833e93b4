"""The scores that `evaluate_ood` compares, fitted and calibrated on embeddings that are there already."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.maps import SteeringMap
from steerable.ood import (
    BASELINES,
    ORBIT_SCORES,
    Combination,
    MotionShare,
    OrbitContrast,
    OrbitScore,
    OverOrbit,
    SteeringResidual,
    baseline,
)
from steerable.theta import named_theta
from steerable.transforms import Chain

COLORS = ("brightness", "contrast", "saturation", "hue")
DARK = ("brightness", "contrast")  # lowered, they give the first encoded views: residuals told most there
BANK_VIEWS = 16  # steered views of each training embedding
EXAGGERATED = 2.0  # factor on these views' thetas for the contrast
RESIDUAL_VIEWS = (1, 2)
COMBINED = {  # by mean z-score; the first is the control, of single-pass detectors alone
    "mahalanobis + fdbd": ("mahalanobis", "fdbd"),
    "steered contrast + share": ("steered contrast", "steered share"),
    "steered contrast + share + fdbd": ("steered contrast", "steered share", "fdbd"),
}


class Entry(NamedTuple):
    """One score of x (n, 1 + v, d), plain embeddings and then encoded views.

    kind: "single pass", "steered", "residual", "encoded" (the ceiling) or "combined". views: encoded ones that
    it needs, beside the plain pass.
    """

    name: str
    kind: str
    views: int
    predict: Callable[[Tensor], Tensor]


class Lineup:
    """All scores of one model.

    head: linear, on embeddings. thetas (v, p): of the steered views that the head sees. bank (u, p): of those that
    detectors are fitted on. encoded (w, p): of the views that stand in x (n, 1 + w, d).
    """

    def __init__(
        self, steering: SteeringMap, head: nn.Linear, *, thetas: Tensor, bank: Tensor, encoded: Tensor
    ):
        self.steering = steering
        self.head = head
        self.thetas = thetas
        self.bank = bank
        self.encoded = encoded
        self.entries: list[Entry] = []
        self.milliseconds: dict[str, float] = {}
        self.combinations: dict[str, Combination] = {}

    def fit(self, x: Tensor, y: Tensor) -> "Lineup":
        """Fit every detector on training embeddings x (n, 1 + w, d) with labels y (n,)."""
        self.entries = [*self._single(x, y), *self._steered(x, y), *self._residual(x), *self._encoded()]
        return self

    def calibrate(self, x: Tensor) -> dict[str, Tensor]:
        """Fit the combinations on known images that no detector saw; returns their scores, all of them."""
        parts = self._parts(x)
        for name, members in COMBINED.items():
            if all(parts[member].std() > 0 for member in members):
                self.combinations[name] = Combination().fit({m: parts[m] for m in members})
        return self._with_combinations(parts)

    def score(self, x: Tensor) -> dict[str, Tensor]:
        """Name -> scores (n,) of x (n, 1 + w, d); notes the milliseconds per image of each."""
        return self._with_combinations(self._parts(x))

    def kinds(self) -> Iterator[tuple[str, str, int]]:
        """(name, kind, encoder passes) of every score."""
        for entry in self.entries:
            yield entry.name, entry.kind, 1 + entry.views
        for name in self.combinations:
            yield name, "combined", 1  # of single-pass scores

    def _parts(self, x: Tensor) -> dict[str, Tensor]:
        parts = {}
        for entry in self.entries:
            start = time.perf_counter()
            parts[entry.name] = entry.predict(x).float().cpu()
            self.milliseconds[entry.name] = 1000 * (time.perf_counter() - start) / len(x)
        return parts

    def _with_combinations(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, combination in self.combinations.items():
            members = {member: parts[member] for member in combination.reference}
            self.milliseconds[name] = sum(self.milliseconds[member] for member in members)
            parts |= {name: combination.combine(members)}
        return parts

    def _single(self, x: Tensor, y: Tensor) -> Iterator[Entry]:
        for name in BASELINES:
            detector = baseline(name, self.head).fit_features(x[:, 0], y)
            yield Entry(name, "single pass", 0, _on_plain(detector))

    def _steered(self, x: Tensor, y: Tensor) -> Iterator[Entry]:
        for score in ORBIT_SCORES:
            detector = OrbitScore(self.steering, self.head, self.thetas, score=score)
            yield Entry(f"steered {_words(score)}", "steered", 0, _on_plain(detector))
        for name, build, thetas in (
            ("mahalanobis", OverOrbit, self.bank),
            ("contrast", OrbitContrast, EXAGGERATED * self.bank),
        ):
            detector = build(baseline("mahalanobis", self.head), self.steering, thetas)
            yield Entry(f"steered {name}", "steered", 0, _on_plain(detector.fit_features(x[:, 0], y)))
        share = MotionShare(self.steering).fit_features(x[:, 0], y)
        yield Entry("steered share", "steered", 0, _on_plain(share))

    def _residual(self, x: Tensor) -> Iterator[Entry]:
        for views in RESIDUAL_VIEWS:
            if views <= len(self.encoded):
                detector = SteeringResidual(self.steering, self.encoded[:views])
                detector.fit_features(x[:, : 1 + views])
                title = f"residual of {views} view{'s' * (views > 1)}"
                yield Entry(title, "residual", views, _on_first(detector, 1 + views))

    def _encoded(self) -> Iterator[Entry]:
        count = len(self.encoded)
        for name, score in ORBIT_SCORES.items() if count else ():
            yield Entry(f"encoded {_words(name)}", "encoded", count, _on_logits(score, self.head))


def steered_thetas(chain: Chain, views: int, generator: torch.Generator) -> Float[Tensor, "v p"]:
    """The plain view and color moves in pairs that cancel; where the chain has no colors, any moves.

    With zero-mean thetas a first-order map leaves mean logits as they are, so that what differs is the spread.
    """
    draws = chain.sample(max(1, views), generator=generator)
    color = torch.tensor([float(param.name in COLORS) for param in chain.params])
    if color.any():
        draws = torch.cat([draws * color, -draws * color])
    return torch.cat([torch.zeros(1, len(chain.params)), draws])[: 1 + views]


def encoded_thetas(chain: Chain, views: int, generator: torch.Generator) -> Float[Tensor, "w p"]:
    """Darkening and flattening first, where the chain can, then its draws."""
    if views == 0:
        return torch.zeros(0, len(chain.params))
    dark = [named_theta(chain.params, {p.name: p.low}) for p in chain.params if p.name in DARK]
    return torch.stack([*dark, *chain.sample(views, generator=generator)][:views])


def _on_plain(detector: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: detector.predict_features(x[:, 0])


def _on_first(detector: Any, count: int) -> Callable[[Tensor], Tensor]:
    return lambda x: detector.predict_features(x[:, :count])


def _on_logits(score: Callable[[Tensor], Tensor], head: nn.Linear) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(lambda x: score(head(x)))


def _words(name: str) -> str:
    return name.replace("_", " ")
