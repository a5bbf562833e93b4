"""Service: what the page and the API ask for, on one model and one gallery. It knows no widgets."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steerable.app.bounds import Bounds
from steerable.app.encoding import Door
from steerable.app.gallery import Gallery, Row
from steerable.app.known import Known, Score
from steerable.app.trust import Trust, trusted
from steerable.auditing import AuditReport
from steerable.data import decode
from steerable.data.decoding import count_pixels
from steerable.data.images import as_float
from steerable.errors import ConfigError, DataError, ShapeError, SteerableError, ThetaError
from steerable.metrics import relative_error, view_ranks
from steerable.model import SteerableEncoder

SHOWN = 224  # side in pixels of the picture that the page shows
POOL = 50  # views of one image among which the true one is ranked
FALLBACK = 32  # side in pixels where neither index nor encoder knows one


@dataclass(eq=False)
class Chosen:
    """An image that is being looked at: pixels (3, s, s) for the encoder, shown (3, t, t) for people, e (d,).

    id: its row in the gallery, None for an upload. pool: embeddings (v, d) of other views of it, once they are needed.
    """

    pixels: Float[Tensor, "3 s s"]
    shown: Float[Tensor, "3 t t"]
    e: Float[Tensor, " d"]
    name: str
    id: str | None = None
    pool: Tensor | None = field(default=None, repr=False)


class Steered(NamedTuple):
    """A steered embedding (d,), its neighbors, and the seconds that steering took."""

    e: Tensor
    hits: list[Row]
    seconds: float


class Compared(NamedTuple):
    """The embedding of the transformed image beside the steered one.

    error: relative, None where nothing moved. rank: of the true view among ``views`` of the same image. seconds: of
    transforming and encoding. hits: neighbors of the true one.
    """

    hits: list[Row]
    cosine: float
    error: float | None
    rank: int
    views: int
    seconds: float


class Service:
    """One model, one gallery, and the limits of a request.

    Args:
        model: in evaluation mode. gallery: its embeddings are this encoder's. reports: audits, the first model of
            the first one being this model, unless one of them is called ``name``. name: of the model, for people.

    Raises:
        ConfigError: an audit of other parameters than the model's.
    """

    def __init__(
        self,
        model: SteerableEncoder,
        gallery: Gallery,
        *,
        name: str = "model",
        reports: Sequence[AuditReport] = (),
        bounds: Bounds | None = None,
    ):
        self.model, self.gallery, self.name = model, gallery, name
        self.bounds = bounds or Bounds()
        self.door = Door(self.bounds)
        self.size = side_of(model, gallery.index.facts)
        self.reports: tuple[AuditReport, ...] = ()
        self.trust: dict[str, Trust] = {}
        self.known: Known | None = None
        self.began = time.time()
        if reports:
            self.learn(reports)

    def learn(self, reports: Sequence[AuditReport]) -> None:
        """Show these audits, and trust as far as this model's says."""
        own = [
            (report, info.name)
            for report in reports
            for info in report.models
            if info.name == self.name or len(report.models) == 1
        ]
        if own and [p.name for p in own[0][0].params] != [p.name for p in self.model.params]:
            raise ConfigError(
                f"the audit of {own[0][1]} has the parameters {', '.join(p.name for p in own[0][0].params)}; "
                f"expected {', '.join(p.name for p in self.model.params)}: audit this bundle"
            )
        self.reports = tuple(reports)
        self.trust = trusted(*own[0]) if own else {}

    def encode(self, images: Sequence[bytes]) -> Float[Tensor, "b d"]:
        """Embeddings (b, d) of image files.

        Raises:
            DataError: too many, or one that cannot be decoded. Busy: the encoder.
        """
        if not 1 <= len(images) <= self.bounds.batch:
            raise DataError(f"{len(images)} images; expected 1 to {self.bounds.batch}: send them in parts")
        pixels = sum(map(count_pixels, images))
        if pixels > self.bounds.pixels and len(images) > 1:  # for one the decoder speaks
            raise DataError(
                f"the images have {pixels:,} pixels; expected at most {self.bounds.pixels:,} in all: send fewer"
            )
        with self.door.turn():
            return self.model.encode(as_float(torch.stack([decode(i, size=self.size) for i in images]))).cpu()

    def upload(self, data: bytes, name: str = "upload", *, id: str | None = None) -> Chosen:
        """An image file to look at; it is decoded, kept in memory by whoever holds the result, and not stored."""
        with self.door.turn():
            pixels = as_float(decode(data, size=self.size))
            shown = as_float(decode(data, size=max(SHOWN, self.size)))
            return Chosen(pixels, shown, self.model.encode(pixels[None])[0].cpu(), name, id)

    def choose(self, id: str) -> Chosen:
        """An image of the gallery.

        Raises:
            DataError: no such id.
        """
        row = self.gallery.row(id)
        return self.upload(self.gallery.picture(row), file_name(row), id=id)

    def theta(self, values: Mapping[str, float]) -> Float[Tensor, " p"]:
        """Theta (p,) from coordinates by name.

        Raises:
            ThetaError: an unknown name, a value that is not finite, or one far beyond the range.
        """
        theta = self.model.theta(**values)
        for param, value in zip(self.model.params, theta.tolist(), strict=True):
            if param.period is None and abs(value) > self.bounds.far * param.scale:
                raise ThetaError(
                    f"{param.name} is {value:g}; expected {param.low:g} to {param.high:g}, and at most "
                    f"{self.bounds.far:g} times as far: nothing can be said out there"
                )
        return theta

    def orbit(self, e: Tensor, thetas: Sequence[Mapping[str, float]]) -> Float[Tensor, "b v d"]:
        """Every embedding (b, d) steered by every theta; no encoder pass.

        Raises:
            ShapeError: e of another width, or not finite. ThetaError: as in `theta`. ConfigError: more than bounded.
        """
        self._check(e)
        b, v = len(e), len(thetas)
        if (
            not (1 <= b <= self.bounds.batch and 1 <= v <= self.bounds.views)
            or b * v * self.model.dim > self.bounds.numbers
        ):
            raise ConfigError(
                f"{b} embeddings at {v} thetas; expected 1 to {self.bounds.batch}, 1 to {self.bounds.views}, and at "
                f"most {self.bounds.numbers // self.model.dim:,} results: ask in parts"
            )
        with torch.no_grad():
            return self._finite(
                self.model.orbit(e, torch.stack([self.theta(theta) for theta in thetas])).cpu()
            )

    def search(
        self, e: Tensor, theta: Mapping[str, float], *, k: int = 12, offset: int = 0, where: str | None = None
    ) -> Steered:
        """Hits offset ... offset + k - 1 of an embedding (d,), steered.

        Raises:
            ConfigError: more hits than bounded. DataError: the condition. Otherwise as `orbit`.
        """
        if not (k >= 1 and offset >= 0 and offset + k <= self.bounds.k):
            raise ConfigError(
                f"k is {k} from {offset}; expected at least 1, and at most {self.bounds.k} in all: ask for fewer"
            )
        self._check(e[None])
        began = time.perf_counter()
        with torch.no_grad():
            steered = self._finite(self.model.steer(e[None], self.theta(theta))[0].cpu())
        seconds = time.perf_counter() - began
        return Steered(steered, self.gallery.search(steered, offset + k, where)[offset:], seconds)

    def transformed(self, image: Tensor, theta: Mapping[str, float]) -> Float[Tensor, "3 h w"]:
        """A picture (3, h, w) under the chain."""
        return self.model.chain.apply(image[None], self.theta(theta)[None])[0]

    def compare(
        self, chosen: Chosen, theta: Mapping[str, float], steered: Tensor, *, k: int = 12
    ) -> Compared:
        """Encode the transformed image, and hold the steered embedding (d,) against it."""
        with self.door.turn():
            began = time.perf_counter()
            true = self.model.encode(self.transformed(chosen.pixels, theta)[None]).cpu()
            seconds = time.perf_counter() - began
            if chosen.pool is None:
                thetas = self.model.chain.sample(POOL - 1, generator=torch.Generator().manual_seed(0))
                views = chosen.pixels.expand(len(thetas), -1, -1, -1)
                chosen.pool = self.model.encode(self.model.chain.apply(views, thetas)).cpu()
        views = torch.cat([true, chosen.pool])[None]
        moved = bool((true[0] != chosen.e).any())
        return Compared(
            self.gallery.search(true[0], k),
            F.cosine_similarity(steered, true[0], dim=0).item(),
            relative_error(chosen.e[None], true, steered[None]) if moved else None,
            int(view_ranks(steered[None], views, torch.zeros(1, dtype=torch.int64))[0]),
            views.shape[1],
            seconds,
        )

    def score(self, e: Tensor) -> Score:
        """Probabilities and how far out an embedding (d,) is.

        Raises:
            DataError: the gallery was not measured (yet).
        """
        self._check(e[None])
        if self.known is None:
            raise DataError("nothing is known yet of the gallery's scores; expected them soon: try again")
        return self.known.score(e)

    def facts(self) -> dict[str, Any]:
        """For the health endpoint: what is served."""
        model = self.model
        return {
            "model": self.name,
            "encoder": model.encoder.name,
            "dim": model.dim,
            "image_size": self.size,
            "params": [
                {
                    "name": p.name,
                    "unit": p.unit,
                    "low": p.low,
                    "high": p.high,
                    "period": p.period,
                    "step": p.step,
                }
                for p in model.params
            ],
            "classes": list(self.known.classes) if self.known else list(model.classes),
            "rows": self.gallery.rows,
            "columns": self.gallery.columns,
            "audited": bool(self.trust),
        }

    def _check(self, e: Tensor) -> None:
        if e.ndim != 2 or e.shape[1] != self.model.dim or not bool(torch.isfinite(e).all()):
            raise ShapeError(
                f"embeddings have shape {tuple(e.shape)} or are not finite; expected finite (b, {self.model.dim}): "
                "take them from encode"
            )

    def _finite(self, e: Tensor) -> Tensor:
        if not bool(torch.isfinite(e).all()):
            raise ShapeError(
                "a steered embedding is not finite; expected numbers of usual size: scale it down"
            )
        return e


def side_of(model: SteerableEncoder, facts: Mapping[str, Any]) -> int:
    """Side in pixels that images are cut to for the encoder."""
    return int(facts.get("size") or model.encoder.image_size or FALLBACK)


def file_name(row: Mapping[str, Any]) -> str:
    """What a row's image is called, without the folders that it lies in."""
    path = row.get("path") or row["id"][:12]
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def explained(error: BaseException) -> str:
    """An error for people: one of ours as it is, any other without its inside."""
    if isinstance(error, SteerableError):
        return " ".join(str(error).split())
    return "something went wrong in the server, which its log tells; expected an answer: try again"
