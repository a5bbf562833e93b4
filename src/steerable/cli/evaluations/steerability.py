"""``steerable eval steerability``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from steerable.cli.evaluations.presenting import Sheet, load_models, present
from steerable.cli.evaluations.reading import TEST, read_images, side_of

JOINT = {
    "model": ("model", "{}"),
    "map": ("map", "{}"),
    "invariance_level": ("moved", "{:.3f}"),
    "relative_error": ("error", "{:.3f}"),
    "relative_error_cosine": ("error (unit)", "{:.3f}"),
    "r2": ("R2", "{:.3f}"),
    "mrr": ("MRR", "{:.3f}"),
    "hit_at_1": ("Hit@1", "{:.1%}"),
    "hit_at_5": ("Hit@5", "{:.1%}"),
}
PARAMS = {
    "param": ("parameter", "{}"),
    **{key: column for key, column in JOINT.items() if key not in ("model", "map", "hit_at_5")},
    "decoding_r2": ("decoded R2", "{:.3f}"),
    "law_identity": ("identity", "{:.3f}"),
    "law_composition": ("composition", "{:.3f}"),
    "law_inverse": ("inverse", "{:.3f}"),
}


def steerability(
    *models: Annotated[str, "MODEL"],
    images: Annotated[str, "SRC"],
    views: int = 50,
    n_images: int = 400,
    data: Annotated[Path | None, "PATH"] = None,
    limit: int = 2000,
    size: int | None = None,
    seed: int = 0,
    json: bool = False,
    out: Annotated[Path | None, "DIR"] = None,
) -> None:
    """How far embeddings move and how well the map predicts it, model beside model.

    The figures of `steerable audit` over the whole range of each parameter and of all together; the audit has curves by
    strength and pictures beside them. A model without a map is judged by a ridge map, fitted to images that
    are not measured. Ranks are among views of the same image; MRR depends on the ranges, which the JSON holds.

    Args:
        models: a run directory, a bundle's folder, or a bundle on the Hub, with equal chains
        images: an image folder, a parquet glob, a Hub data set's name, or photos
        views: views of one image among which the true one is ranked
        n_images: images measured at most
        data: local data: a folder that holds a copy of SRC, or is what to use in its place
        limit: images read at most; those that are not measured fit the ridge map
        size: side in pixels that images are cut to [the encoder's]
        seed: of the choice of images and thetas
        json: print the figures as JSON instead of tables
        out: folder for steerability.json and a picture

    Examples:
        steerable eval steerability runs/control runs/steerable --images uoft-cs/cifar10 --data ../shared/data
        steerable eval steerability my-bundle --images my_images --out results
    """
    from steerable.evaluate.steerability import evaluate_steerability
    from steerable.progress import PassProgress

    loaded = load_models(models)
    side = (
        size if size is not None else max((side_of(model, None) or 0 for model in loaded.values()), default=0)
    )
    found = read_images(images, data, TEST, side or None, limit)
    with PassProgress() as progress:
        result = evaluate_steerability(
            loaded, found, views=views, n_images=n_images, seed=seed, progress=progress
        )
    show(by_model(result), json=json, out=out)


def by_model(result: Mapping[str, Any]) -> dict[str, Any]:
    """Each model's part of a result on several, as the other evaluations have it."""
    return {
        model["name"]: {
            **result,
            "models": [model],
            "rows": [row for row in result["rows"] if row["model"] == model["name"]],
        }
        for model in result["models"]
    }


def show(results: Mapping[str, Any], *, json: bool = False, out: Path | None = None) -> None:
    """Print what was measured, by model, and leave it in ``out``."""
    notes = list(dict.fromkeys(note for result in results.values() for note in result["notes"]))
    present(
        "steerability", results, _sheets(results), notes=notes, draw=lambda figure: _draw(figure, results),
        json=json, out=out,
    )  # fmt: skip


def _sheets(results: Mapping[str, Any]) -> list[Sheet]:
    settings = next(iter(results.values()))["settings"]
    joint = [
        {**row, "model": name}
        for name, result in results.items()
        for row in result["rows"]
        if row["param"] == "joint"
    ]
    sheets = [Sheet(f"steerability on {settings['images']}, all parameters together", JOINT, joint)]
    for name, result in results.items():
        rows = [row for row in result["rows"] if row["lead"] and row["param"] != "joint"]
        sheets.append(Sheet(f"{name}, one parameter at a time", PARAMS, rows))
    return sheets


def _draw(figure: Any, results: Mapping[str, Any]) -> None:
    """Relative error per parameter, model beside model."""
    axis = figure.subplots()
    width = 0.8 / len(results)
    for place, (name, result) in enumerate(results.items()):
        rows = [row for row in result["rows"] if row["lead"]]
        spots = [i + (place - (len(results) - 1) / 2) * width for i in range(len(rows))]
        axis.bar(spots, [row["relative_error"] or 0.0 for row in rows], 0.9 * width, label=name)
        axis.set_xticks(range(len(rows)), [row["param"] for row in rows], rotation=30, ha="right", fontsize=8)
    axis.axhline(1, color="0.6", lw=0.8, zorder=0)
    axis.set_ylabel("relative error; 1 is no steering")
    axis.legend(fontsize=7)
