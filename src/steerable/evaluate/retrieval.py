"""Steered search with figures: transformed images hidden in a gallery, and neighbors that have the wanted color."""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from steerable.data import ImageSet
from steerable.data.images import as_float, random_order
from steerable.errors import ConfigError, DataError
from steerable.metrics import hit_at, mean_reciprocal_rank
from steerable.model import SteerableEncoder
from steerable.theta import Param

Progress = Callable[[int, int, str], None]
KINDS = ("unsteered", "steered", "reencoded")
QUALITY = 75
JOINT = "all together"
BATCH = 256
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


class _Question(NamedTuple):
    """One theta per query, and what it asks for. value is None where each query has a theta of its own."""

    param: str
    unit: str
    value: float | None
    theta: Float[Tensor, "b p"]


def evaluate_retrieval(
    model: SteerableEncoder,
    images: ImageSet,
    *,
    queries: int = 500,
    strengths: int = 2,
    k: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask a gallery of all ``images`` for transformed versions of some of them.

    *Hidden items*: the gallery holds every image's plain embedding, except that the query image's own is replaced by
    that of its transformed version (``*_kept``: stands beside it). The rank of the hidden one by cosine gives Hit@1,
    Hit@5 and MRR. The query is the image after JPEG at quality 75, so that it differs from what is hidden:
    unsteered, e(x'); steered, M e(x') + b; reencoded, e(t x'), the ceiling, which costs an encoder pass.

    *Attributes* (color coordinates): ``match`` is the share of the k nearest gallery images, the query's own left
    out, whose own attribute lies nearer to that of the transformed image than to that of the image; ``chance`` is
    that share of the whole gallery. ``move``: how far the neighbors' mean attribute goes toward the wanted one,
    against the unsteered neighbors: 0 not at all, 1 all the way, by regression through the origin. Attributes:
    hue, chroma (I, Q of YIQ) of the mean color; saturation, mean length of the pixels' chroma; brightness and
    contrast, mean and deviation of luma.

    queries: images asked for, at most. strengths: levels on each side of zero, the last is the range's end.
    seed: of the choice of queries and of the thetas drawn jointly. progress: called with passes done and in all.

    Returns:
        JSON types: source, gallery, queries, k, hidden and attributes (rows per coordinate and value; value None
        pools a coordinate's values), and jpeg_quality. gain_hit1 is steered minus unsteered, se_hit1 the standard
        error of that paired difference.

    Raises:
        ConfigError: queries, strengths or k below 1.
        DataError: fewer than two images.
    """
    for name, count in {"queries": queries, "strengths": strengths, "k": k}.items():
        if count < 1:
            raise ConfigError(f"{name} is {count}; expected at least 1: raise it")
    if len(images) < 2:
        raise DataError(f"{len(images)} images make no gallery; expected at least 2: give more")
    chosen = random_order(len(images), seed)[:queries].sort().values
    hunt = _Hunt(model, images, chosen, min(k, len(images) - 1), progress)
    hidden, attributes = hunt.run(_questions(model, len(chosen), strengths, seed))
    return {
        "source": images.name,
        "gallery": len(images),
        "queries": len(chosen),
        "k": hunt.k,
        "jpeg_quality": QUALITY,
        "hidden": hidden,
        "attributes": attributes,
    }


class _Hunt:
    """A gallery, its queries, and the passes that they cost."""

    def __init__(
        self, model: SteerableEncoder, images: ImageSet, chosen: Tensor, k: int, progress: Progress | None
    ):
        self.model, self.chosen, self.k, self.progress = model, chosen, k, progress
        self.done, self.total = 0, len(images)
        self.plain, self.rough = as_float(images.images[chosen]), _recompressed(images.images[chosen])
        parts = [(self._encode(part), attributes_of(part)) for part in images.batches(BATCH)]
        self.gallery = F.normalize(torch.cat([e for e, _ in parts]), dim=1)
        self.looks = {name: torch.cat([looks[name] for _, looks in parts]) for name in parts[0][1]}

    def run(self, questions: list[_Question]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of hidden items, and of attributes."""
        self.total += len(self.chosen) * (1 + 2 * len(questions))
        rough = self._encode(self.rough)
        ranks: dict[tuple[str, float | None], Any] = {}
        hidden, attributes = [], []
        for question in questions:
            moved = self._transformed(self.plain, question)
            target = F.normalize(self._encode(moved), dim=1)
            asked = {
                "unsteered": rough,
                "steered": self.model.steer(rough, question.theta).cpu(),
                "reencoded": self._encode(self._transformed(self.rough, question)),
            }
            cosines = {kind: F.normalize(e, dim=1) @ self.gallery.T for kind, e in asked.items()}
            own = {kind: (F.normalize(e, dim=1) * target).sum(1) for kind, e in asked.items()}
            found = {kind: _ranks(cosines[kind], own[kind], self.chosen) for kind in KINDS}
            ranks[question.param, question.value] = found
            hidden.append(_hidden_row(question, [found]))
            if question.param in self.looks:
                attributes.append(self._attribute_row(question, moved, cosines))
        return [*_pooled(questions, ranks), *hidden], attributes

    def _transformed(self, images: Tensor, question: _Question) -> Tensor:
        theta = question.theta.split(BATCH)
        return torch.cat(
            [self.model.chain.apply(i, t) for i, t in zip(images.split(BATCH), theta, strict=True)]
        )

    def _encode(self, images: Tensor) -> Tensor:
        e = self.model.encode(images, batch_size=BATCH).cpu()
        self.done += len(images)
        if self.progress is not None:
            self.progress(self.done, max(self.total, self.done), "images")
        return e

    def _attribute_row(
        self, question: _Question, moved: Tensor, cosines: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        look = self.looks[question.param]
        own, wanted = look[self.chosen], attributes_of(moved)[question.param]
        rows = torch.arange(len(own))
        nearer = _nearer(look[None], wanted, own)
        nearer[rows, self.chosen] = False
        row: dict[str, Any] = {"param": question.param, "unit": question.unit, "value": question.value}
        row["chance"] = (nearer.sum(1) / (len(look) - 1)).mean().item()
        means = {}
        for kind in KINDS:
            near = cosines[kind].index_put((rows, self.chosen), torch.tensor(-2.0)).topk(self.k).indices
            row[f"{kind}_match"] = nearer.gather(1, near).double().mean().item()
            means[kind] = look[near].mean(1)
        wish = wanted - own
        for kind in KINDS[1:]:
            step = ((means[kind] - means["unsteered"]) * wish).sum() / wish.square().sum()
            row[f"{kind}_move"] = step.item() if math.isfinite(step) else None
        return row


def attributes_of(images: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b m"]]:
    """Hue (b, 2), saturation, brightness and contrast (b, 1) of images, as `evaluate_retrieval` defines them."""
    yiq = torch.einsum("ij,bjhw->bihw", _YIQ.to(images), images).flatten(2)
    chroma = yiq[:, 1:]
    return {
        "hue": chroma.mean(2),
        "saturation": torch.linalg.vector_norm(chroma, dim=1).mean(1, keepdim=True),
        "brightness": yiq[:, 0].mean(1, keepdim=True),
        "contrast": yiq[:, 0].std(1, keepdim=True),
    }


def _questions(model: SteerableEncoder, n: int, strengths: int, seed: int) -> list[_Question]:
    generator = torch.Generator().manual_seed(seed)
    joint = _Question(JOINT, "", None, model.chain.sample(n, generator=generator))
    alone = [
        _Question(param.name, param.unit, value, model.theta(**{param.name: value}).expand(n, -1))
        for param in model.params
        for value in _levels(param, strengths)
    ]
    return [joint, *alone]


def _levels(param: Param, strengths: int) -> Iterator[float]:
    """Values on both sides of zero, as far as the range goes; the end alone for a switch."""
    steps = [1.0] if param.is_switch else [step / strengths for step in range(1, strengths + 1)]
    for end in (param.low, param.high):
        yield from (step * end for step in steps if end)


def _ranks(
    cosines: Float[Tensor, "b n"], own: Float[Tensor, " b"], chosen: Int64[Tensor, " b"]
) -> dict[str, Tensor]:
    """Ranks (1 is best) of the hidden item: with the query image's own plain embedding removed, and with it kept.

    A tie counts at its middle place, so that a collapsed encoder scores as chance does.
    """
    ahead, tied = (cosines > own[:, None]), (cosines == own[:, None])
    mine = torch.arange(len(own)), chosen
    kept = 1 + ahead.sum(1) + tied.sum(1) // 2
    removed = 1 + (ahead.sum(1) - ahead[mine].long()) + (tied.sum(1) - tied[mine].long()) // 2
    return {"": removed, "_kept": kept}


def _hidden_row(question: _Question, parts: list[Mapping[str, Mapping[str, Tensor]]]) -> dict[str, Any]:
    """One row over the ranks of the same queries at one or several values."""
    row: dict[str, Any] = {"param": question.param, "unit": question.unit, "value": question.value}
    for kind in KINDS:
        for suffix in ("", "_kept"):
            found = torch.cat([part[kind][suffix] for part in parts])
            row[f"{kind}_hit1{suffix}"] = hit_at(found, 1)
            row[f"{kind}_hit5{suffix}"] = hit_at(found, 5)
            row[f"{kind}_mrr{suffix}"] = mean_reciprocal_rank(found)
    first = [[(part[kind][""] == 1).double() for part in parts] for kind in ("steered", "unsteered")]
    gain = torch.stack(first[0]).mean(0) - torch.stack(first[1]).mean(
        0
    )  # per image, whose values hang together
    row["gain_hit1"] = gain.mean().item()
    row["se_hit1"] = (gain.std() / math.sqrt(len(gain))).item() if len(gain) > 1 else None
    return row


def _pooled(questions: list[_Question], ranks: Mapping[Any, Any]) -> Iterator[dict[str, Any]]:
    """One row per coordinate over all its values."""
    for param in dict.fromkeys(q.param for q in questions if q.value is not None):
        asked = [q for q in questions if q.param == param]
        yield _hidden_row(asked[0]._replace(value=None), [ranks[param, q.value] for q in asked])


def _nearer(look: Float[Tensor, "1 n m"], wanted: Float[Tensor, "b m"], own: Float[Tensor, "b m"]) -> Tensor:
    """(b, n): whose attribute lies nearer to the wanted one than to the query's own."""
    return (look - wanted[:, None]).square().sum(2) < (look - own[:, None]).square().sum(2)


def _recompressed(images: Tensor) -> Float[Tensor, "b 3 h w"]:
    """uint8 images after JPEG at ``QUALITY``, in [0, 1]."""
    out = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, "JPEG", quality=QUALITY)
        out.append(torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1))
    return as_float(torch.stack(out))
