"""What steered views are worth for telling foreign images from known ones.

Every score sees the same embeddings and the same head. Detectors are fitted on training images; thresholds and
combinations are calibrated on a part of the known images that is measured nowhere; no foreign image is
seen before it is scored. Beside the steered scores stand pytorch-ood's single-pass detectors, and the same
scores on views that were truly encoded: the ceiling.
"""

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from steerable.data import ImageSet
from steerable.errors import ConfigError, DataError, one_of
from steerable.evaluate.corruptions import SEVERITIES, corrupt
from steerable.evaluate.encoding import Encodings
from steerable.evaluate.lineup import BANK_VIEWS, Lineup, encoded_thetas, steered_thetas
from steerable.evaluate.probing import C_GRID, linear_head
from steerable.metrics import ood_figures
from steerable.model import SteerableEncoder
from steerable.ood import threshold

Progress = Callable[[int, int, str], None]
Figures = dict[str, Any]
Scores = dict[str, Tensor]
Place = tuple[str, str, int | None]  # group ("near", "far", "corruptions"), name, severity

VALIDATION = 0.3  # share of the known images that calibrates and is not measured
FEWEST = 60  # images in a set
SHARED = 0.05  # of the known images may be in the training set: sources hold duplicates
GRID = C_GRID[::5]
TIMED = 32  # images in the batch whose encoding is timed


def evaluate_ood(
    model: SteerableEncoder,
    known: ImageSet,
    foreign: Mapping[str, ImageSet],
    *,
    train: ImageSet,
    near: Collection[str] = (),
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    views: int = 32,
    encoded: int = 8,
    seed: int = 0,
    cache: Path | str | None = None,
    progress: Progress | None = None,
) -> Figures:
    """AUROC, AUPR, both FPR95s and the cost of every score, per foreign set and corruption; JSON types.

    "scores" has one row per score: kind, encoder passes and milliseconds per image, the threshold that 95 % of
    the validation images stay within, and AUROC ("near" and "far": means over sets; "corruptions": all pooled).
    "rows" has the figures of `steerable.metrics.ood_figures` per score and set, of the corruptions per name,
    per severity and pooled, and "flagged", the share above the threshold.

    Args:
        model: with its own linear head, or one is fitted to the training embeddings.
        known: images of the training classes that neither encoder nor head was trained on.
        foreign: other images by name. near: the names among them that resemble the known ones.
        train: labeled images that detectors, and a missing head, are fitted on.
        corruptions: names; each corrupts ``known``, whose measured part is scored, at each of ``severities``.
        views: steered views that the head sees. encoded: truly encoded ones; 0 leaves out the ceiling and the residual.
        cache: a folder for corrupted pixels and embeddings, so that an interrupted run goes on.

    Raises:
        ConfigError: nothing foreign, or a name in ``near`` that is not in ``foreign``.
        DataError: too few images, training images without labels, or known images among them.
    """
    _check(known, {"the known set": known, "train": train, **foreign}, foreign, train, near, corruptions)
    generator = torch.Generator().manual_seed(seed)
    validation, measured = _parted(len(known), generator)
    encode, moves = Encodings(model, cache), encoded_thetas(model.chain, encoded, generator)
    total = 2 + len(foreign) + len(corruptions) * len(severities)

    def step(done: int, name: str, images: ImageSet) -> Float[Tensor, "n w d"]:
        """Each image encoded plain and at each of the moves."""
        if progress:
            progress(done, total, name)
        return torch.stack([encode(images), *(encode(images, theta) for theta in moves)], 1)

    x = step(0, "train", train)
    # embeddings are scored on the CPU, whatever device encodes: some detectors know no other
    head = copy.deepcopy(model.head).cpu() if model.head else linear_head(x[:, 0], train.labels, grid=GRID)[0]
    lineup = Lineup(
        copy.deepcopy(model.steering).cpu(),
        head,
        thetas=steered_thetas(model.chain, views, generator),
        bank=model.chain.sample(BANK_VIEWS, generator=generator),
        encoded=moves,
    ).fit(x, train.labels)
    x = step(1, "known", known)
    limits = {name: threshold(scores) for name, scores in lineup.calibrate(x[validation]).items()}
    plain = lineup.score(x[measured])
    scored = {}
    sets = _foreign_sets(known, foreign, near, corruptions, severities, seed, cache)
    for done, (place, images) in enumerate(sets, 2):
        x = step(done, " ".join(map(str, place[1:])), images)
        scored[place] = lineup.score(x[measured] if place[0] == "corruptions" else x)
    rows = list(_rows(plain, scored, limits))
    return {
        "scores": _summary(lineup, rows, limits, _pass_milliseconds(model, known, moves)),
        "rows": rows,
        "settings": {
            "known": known.name, "train": train.name, "n_known": len(measured), "n_validation": len(validation),
            "n_train": len(train), "foreign": {name: len(images) for name, images in foreign.items()},
            "corruptions": list(corruptions), "severities": list(severities), "views": views,
            "encoded": encoded, "seed": seed, "own_head": model.head is not None,
            "ranges": {param.name: [param.low, param.high] for param in model.params},
        },
    }  # fmt: skip


def _parted(n: int, generator: torch.Generator) -> tuple[Int64[Tensor, " v"], Int64[Tensor, " m"]]:
    """Rows of the known images that validate, and those that are measured."""
    order = torch.randperm(n, generator=generator)
    cut = round(VALIDATION * n)
    return order[:cut], order[cut:]


def _rows(plain: Scores, scored: Mapping[Place, Scores], limits: Mapping[str, float]) -> Iterator[Figures]:
    """Per set, or pool of corruptions, and score."""
    for (group, title, severity), parts in _pooled(scored).items():
        for name, scores in parts.items():
            flagged = (scores > limits[name]).double().mean().item()
            place = {"score": name, "group": group, "set": title, "severity": severity}
            yield place | ood_figures(plain[name], scores) | {"flagged": flagged}


def _check(
    known: ImageSet,
    sets: Mapping[str, ImageSet],
    foreign: Mapping[str, ImageSet],
    train: ImageSet,
    near: Collection[str],
    corruptions: Sequence[str],
) -> None:
    if not foreign and not corruptions:
        raise ConfigError(
            "nothing foreign is given; expected image sets or corruptions: name one (--ood SRC)"
        )
    for name in near:
        if name not in foreign:
            raise ConfigError(f"near set {name!r} is not among the foreign ones; {one_of(name, foreign)}")
    if not train.labeled:
        raise DataError(f"{train.name or 'train'} has no labels; expected classes: give a labeled set")
    for name, images in sets.items():
        if len(images) < FEWEST:
            raise DataError(
                f"{name} has {len(images)} images; expected at least {FEWEST}, so that a share means something: "
                "give more"
            )
    seen = {pixels.numpy().tobytes() for pixels in train.images}
    shared = sum(pixels.numpy().tobytes() in seen for pixels in known.images)
    if shared > SHARED * len(known):
        raise DataError(
            f"{shared} of {len(known)} known images are among the training images; expected images that no "
            "detector was fitted on: name another set or split (--train)"
        )


def _foreign_sets(
    known: ImageSet,
    foreign: Mapping[str, ImageSet],
    near: Collection[str],
    corruptions: Sequence[str],
    severities: Sequence[int],
    seed: int,
    cache: Path | str | None,
) -> Iterator[tuple[Place, ImageSet]]:
    for name, images in foreign.items():
        yield ("near" if name in near else "far", name, None), images
    for name in corruptions:
        for severity in severities:
            yield ("corruptions", name, severity), corrupt(known, name, severity, seed=seed, cache=cache)


def _pooled(scored: Mapping[Place, Scores]) -> dict[Place, Scores]:
    """Foreign sets as they are; corruptions per name, per severity, and all ("all", None)."""
    parts: dict[Place, list[Scores]] = {}
    for (group, name, severity), scores in scored.items():
        places = [(group, name, None)]
        if group == "corruptions":
            places += [(group, "all", severity), (group, "all", None)]
        for place in places:
            parts.setdefault(place, []).append(scores)
    return {
        place: {name: torch.cat([one[name] for one in several]) for name in several[0]}
        for place, several in parts.items()
    }


def _summary(
    lineup: Lineup, rows: Sequence[Figures], limits: Mapping[str, float], milliseconds: tuple[float, float]
) -> list[Figures]:
    """One row per score: cost, threshold, and the mean AUROC of each group's sets (corruptions: all pooled)."""
    first, further = milliseconds
    table = []
    for name, kind, passes in lineup.kinds():
        own = [row for row in rows if row["score"] == name]
        pooled = [row for row in own if row["group"] == "corruptions" and row["set"] == "all"]
        groups = {group: [row for row in own if row["group"] == group] for group in ("near", "far")}
        groups["corruptions"] = [row for row in pooled if row["severity"] is None]
        means = {
            key: sum(row["auroc"] for row in group) / len(group) if group else None
            for key, group in groups.items()
        }
        cost = first + (passes - 1) * further + lineup.milliseconds[name]
        head = {"score": name, "kind": kind, "passes": passes, "milliseconds": cost}
        table.append(head | {"threshold": limits[name]} | means)
    return table


def _pass_milliseconds(model: SteerableEncoder, images: ImageSet, thetas: Tensor) -> tuple[float, float]:
    """Milliseconds per image of a plain pass, and of a transform with its pass; medians of three."""
    batch = images.float_images(range(min(TIMED, len(images)))).to(model.device)
    theta = torch.zeros(len(batch), len(model.params), device=model.device)
    theta = theta + thetas[:1].to(model.device) if len(thetas) else theta
    seconds: list[list[float]] = [[], []]
    for _ in range(3):
        for kind, work in enumerate(
            (lambda: model.encode(batch), lambda: model.encode(model.chain.apply(batch, theta)))
        ):
            start = time.perf_counter()
            float(work().sum())  # waits for the device
            seconds[kind].append(time.perf_counter() - start)
    plain, moved = (1000 * median(times) / len(batch) for times in seconds)
    return plain, moved
