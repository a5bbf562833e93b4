"""``steerable eval transfer``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from steerable.cli.evaluations.presenting import Sheet, load_with_encoders, present
from steerable.cli.evaluations.reading import side_of, transfer_sets

COLUMNS = {
    "set": ("set", "{}"),
    "metric": ("counts", "{}"),
    "n_train": ("train", "{:,}"),
    "n_test": ("test", "{:,}"),
}
PROBES = {"linear": "linear probe", "knn": "kNN"}
METRICS = {"accuracy": "top-1", "per_class": "per class"}


def transfer(
    *models: Annotated[str, "MODEL"],
    sets: Annotated[str | None, "A,B,..."] = None,
    data: Annotated[Path | None, "PATH"] = None,
    grid: int = 45,
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    cache: Annotated[Path | None, "DIR"] = None,
    json: bool = False,
    out: Annotated[Path | None, "DIR"] = None,
) -> None:
    """Linear probe and nearest neighbors on the embeddings of other data sets.

    The probe's strength of regularization is chosen on validation images, 10 % of train where there are none, and
    the probe is then fitted to all of them. Neighbors are 20, at temperature 0.07. Accuracy is top-1, or the mean per
    class for pets, flowers, caltech and aircraft, as these sets are counted. Embeddings are kept, so that a second
    probe costs no encoding.

    Args:
        models: a run directory, a bundle's folder, a bundle on the Hub, or an encoder alone: timm/NAME
        sets: labeled data sets, each a name under DATA, an image folder, a parquet glob, or a Hub data set's name
            [all in DATA/transfer]
        data: local data: a folder that holds copies of the sets
        grid: values of C that the probe tries, at most 45; 9 is quick
        size: side in pixels that images are cut to [the encoder's]
        limit: images read at most of each split
        seed: of the validation images
        cache: folder for embeddings [$STEERABLE_CACHE or ~/.cache/steerable]
        json: print the figures as JSON instead of a table
        out: folder for transfer.json and a picture

    Examples:
        steerable eval transfer runs/control runs/steerable --data ../shared/data --grid 9
        steerable eval transfer my-bundle timm/resnet18 --sets my_birds,uoft-cs/cifar100 --out results
    """
    from steerable.data.cache import cache_root
    from steerable.evaluate.probing import strengths
    from steerable.evaluate.transfer import evaluate_transfer
    from steerable.progress import PassProgress

    results = {}
    with PassProgress() as progress:
        for name, model in load_with_encoders(models).items():
            results[name] = evaluate_transfer(
                model,
                transfer_sets(sets, data, side_of(model, size), limit),
                grid=strengths(grid),
                seed=seed,
                cache=cache or cache_root(),
                progress=progress,
            )
    show(results, json=json, out=out)


def show(results: Mapping[str, Any], *, json: bool = False, out: Path | None = None) -> None:
    """Print what was measured, by model, and leave it in ``out``."""
    present(
        "transfer", results, _sheets(results), draw=lambda figure: _draw(figure, results), json=json, out=out
    )


def _sheets(results: Mapping[str, Any]) -> list[Sheet]:
    """A table for each probe: a row for each set, a column for each model."""
    sheets = []
    for probe, title in PROBES.items():
        table: dict[str, dict[str, Any]] = {}
        for name, result in results.items():
            for row in result["rows"]:
                if row["probe"] == probe:
                    line = table.setdefault(row["set"], {**row, "metric": METRICS[row["metric"]]})
                    line[f"model {name}"] = row["score"]
        means = {f"model {name}": result["means"][probe] for name, result in results.items()}
        shown = COLUMNS | {f"model {name}": (name, "{:.1%}") for name in results}
        sheets.append(Sheet(f"transfer, {title}", shown, [*table.values(), {"set": "mean", **means}]))
    return sheets


def _draw(figure: Any, results: Mapping[str, Any]) -> None:
    """The linear probe: a group of bars for each set, and for the mean."""
    axis = figure.subplots()
    width = 0.8 / len(results)
    for place, (name, result) in enumerate(results.items()):
        rows = {row["set"]: row["score"] for row in result["rows"] if row["probe"] == "linear"}
        rows["mean"] = result["means"]["linear"]
        spots = [i + (place - (len(results) - 1) / 2) * width for i in range(len(rows))]
        axis.bar(spots, [100 * score for score in rows.values()], 0.9 * width, label=name)
        axis.set_xticks(range(len(rows)), list(rows), rotation=30, ha="right", fontsize=8)
    axis.set_ylabel("linear probe, %")
    axis.legend(fontsize=7)
