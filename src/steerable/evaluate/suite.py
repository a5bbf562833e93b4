"""All evaluations of one model, with settings that fit together, and the few figures that tell them."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from steerable.data import ImageSet
from steerable.evaluate.corruptions import CORRUPTION_NAMES
from steerable.evaluate.encoding import Encodings
from steerable.evaluate.heads import classifier
from steerable.evaluate.ood import evaluate_ood
from steerable.evaluate.probing import strengths
from steerable.evaluate.retrieval import evaluate_retrieval
from steerable.evaluate.robustness import evaluate_robustness
from steerable.evaluate.steerability import evaluate_steerability
from steerable.evaluate.transfer import Parts, evaluate_transfer
from steerable.evaluate.tta import evaluate_tta
from steerable.model import SteerableEncoder

Figures = dict[str, Any]
Progress = Callable[[int, int, str], None]

COUNTS = (1, 10, 100)  # views of test-time augmentation
RANKED = 200  # images of the steerability


def evaluation_suite(
    model: SteerableEncoder,
    images: ImageSet,
    *,
    train: ImageSet | None = None,
    sets: Mapping[str, Parts | Callable[[], Parts]] | None = None,
    foreign: Mapping[str, ImageSet] | None = None,
    near: Collection[str] = (),
    grid: Sequence[float] = strengths(9),
    budget: float = 10.0,
    encoded: int = 0,
    seed: int = 0,
    cache: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Callable[[], Figures]]:
    """Name -> what measures it, in order, for every evaluation that has its data; nothing is measured before a call.

    images: test images, which every evaluation but transfer measures; with labels, or robustness, tta and ood are
    left out. train: labeled images for detectors and, where the model has no head, the head; without
    them ood is left out, and what needs a head. sets, grid: see `evaluate_transfer`, left out without sets.
    foreign, near, encoded: see `evaluate_ood`; the corruptions are always scored. budget: see `evaluate_tta`.
    cache: a folder for corrupted pixels and embeddings, which the evaluations share.
    """
    common: dict[str, Any] = {"seed": seed, "progress": progress}
    kept = common | {"cache": cache}
    suite: dict[str, Callable[[], Figures]] = {}
    if sets:
        suite["transfer"] = functools.partial(evaluate_transfer, model, sets, grid=grid, **kept)
    labeled = images.labeled and (model.head is not None or train is not None)
    probed = train if model.head is None else None
    if labeled:
        suite["robustness"] = functools.partial(
            evaluate_robustness, model, images, train=probed, corruptions=CORRUPTION_NAMES, **kept
        )
    suite["steerability"] = functools.partial(evaluate_steerability, model, images, n_images=RANKED, **common)
    if labeled:

        def tta() -> Figures:
            head = classifier(Encodings(model, cache), model.head, probed, seed=seed)
            return evaluate_tta(model, images, head=head, counts=COUNTS, budget=budget, **common)

        suite["tta"] = tta
    if train is not None:
        suite["ood"] = functools.partial(
            evaluate_ood, model, images, foreign or {}, train=train, near=near, corruptions=CORRUPTION_NAMES,
            encoded=encoded, **kept,
        )  # fmt: skip
    suite["retrieval"] = functools.partial(evaluate_retrieval, model, images, **common)
    return suite


def headlines(results: Mapping[str, Figures]) -> dict[str, float | None]:
    """The figures that tell what one model's evaluations (by name) have found; those that are there."""
    found: dict[str, float | None] = {}
    if transfer := results.get("transfer"):
        found |= {"transfer, linear": transfer["means"]["linear"], "transfer, kNN": transfer["means"]["knn"]}
    if robustness := results.get("robustness"):
        plain, steered, _ = robustness["summary"]
        found |= {
            "clean accuracy": plain["clean_accuracy"],
            "corrupted accuracy": plain["accuracy"],
            "corrupted accuracy, steered views": steered["accuracy"],
        }
    if steerability := results.get("steerability"):
        row = next((row for row in steerability["rows"] if row["lead"] and row["param"] == "joint"), {})
        names = {"relative_error": "relative error", "r2": "R2", "mrr": "MRR", "hit_at_1": "Hit@1"}
        found |= {title: row.get(name) for name, title in names.items()}
    if tta := results.get("tta"):
        true = [row for row in tta["rows"] if row["method"] == "re-encoded"]
        best = max(true, key=lambda row: row["gain"], default={})
        found |= {
            "best gain of re-encoded views": best.get("gain"),
            "gain of the same views, steered": best.get("steered_gain"),
        }
    if ood := results.get("ood"):
        for kind in ("single pass", "steered"):
            key = "corruptions" if ood["scores"][0]["corruptions"] is not None else "far"
            best = [row[key] for row in ood["scores"] if row["kind"] == kind and row[key] is not None]
            found[f"OOD AUROC, best {kind}"] = max(best, default=None)
    if retrieval := results.get("retrieval"):
        rows = [row for row in retrieval["hidden"] if row["value"] is None]
        found["found first, steered"] = rows[-1]["steered_hit1"] if rows else None
    return found
