"""``steerable eval all``."""

import contextlib
import importlib
import io
import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from steerable.cli.evaluations.presenting import Sheet, load_models, present
from steerable.cli.evaluations.reading import TEST, TRAIN, read_images, side_of, train_images, transfer_sets
from steerable.errors import ConfigError, SteerableError

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Evaluation</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; max-width: 60rem }
td, th { padding: .1rem .8rem .1rem 0; text-align: right } td:first-child, th:first-child { text-align: left }
img { max-width: 100% }
</style>
<h1>Evaluation</h1>
<p>{{ about }}</p>
<table><tr><th></th>{% for model in models %}<th>{{ model }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><td>{{ row.figure }}</td>
{% for model in models %}<td>{{ "-" if row[model] is none else "%.3f"|format(row[model]) }}</td>{% endfor %}
</tr>{% endfor %}
</table>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
{% for name in names %}<h2>{{ name }}</h2><p><a href="{{ name }}.json">{{ name }}.json</a></p>
<img src="{{ name }}.png" alt="{{ name }}">{% endfor %}
</html>
"""


def all(
    *models: Annotated[str, "MODEL"],
    images: Annotated[str, "SRC"],
    train: Annotated[str | None, "SRC"] = None,
    sets: Annotated[str | None, "A,B,..."] = None,
    ood: Annotated[list[str], "SRC"] = [],  # noqa: B006, read and never written
    near: Annotated[list[str], "SRC"] = [],  # noqa: B006
    data: Annotated[Path | None, "PATH"] = None,
    grid: int = 9,
    limit: int = 1000,
    train_limit: int = 5000,
    budget: float = 10.0,
    size: int | None = None,
    seed: int = 0,
    cache: Annotated[Path | None, "DIR"] = None,
    json: bool = False,
    out: Annotated[Path, "DIR"] = Path("evaluation"),
) -> None:
    """Every evaluation that has its data, into one folder, and a page that sums them up.

    What lacks its data is left out and named: transfer without data sets, ood and, for a model without a head,
    robustness and tta without training images. Settings are moderate; the evaluations themselves have them all.
    Embeddings and corrupted images are made once for all evaluations.

    Args:
        models: a run directory, a bundle's folder, or a bundle on the Hub
        images: labeled test images: an image folder, a parquet glob, a Hub data set's name, or photos
        train: labeled training images, for detectors and missing heads [the train split of --images]
        sets: data sets of the transfer, as in `steerable eval transfer` [all in DATA/transfer]
        ood: foreign images beside the corruptions: one source or several
        near: foreign images that resemble the known ones
        data: local data: a folder that holds copies of the sources
        grid: values of C that transfer's probe tries, at most 45
        limit: test images read at most, and images of each foreign set
        train_limit: training images read at most
        budget: seconds for each set of truly augmented views
        size: side in pixels that images are cut to [the encoder's]
        seed: of everything that is drawn
        cache: folder for embeddings and corrupted images [$STEERABLE_CACHE or ~/.cache/steerable]
        json: print the figures as JSON instead of tables
        out: folder for a JSON file and a picture of each evaluation, and index.html

    Examples:
        steerable eval all runs/control runs/steerable --images uoft-cs/cifar10 --data ../shared/data --out results
        steerable eval all my-bundle --images my_images --sets my_birds,my_cars --limit 500
    """
    from steerable.data.cache import cache_root
    from steerable.evaluate.probing import strengths
    from steerable.evaluate.suite import evaluation_suite
    from steerable.progress import PassProgress

    suites: dict[str, Any] = {}
    with PassProgress() as progress:
        for name, model in load_models(models).items():
            side = side_of(model, size)
            test = read_images(images, data, TEST, side, limit)
            suites[name] = evaluation_suite(
                model,
                test,
                train=train_images(train, images, data, side, train_limit),
                sets=transfer_sets(sets, data, side, None, needed=False),
                foreign={
                    source: read_images(source, data, (*TEST, *TRAIN), side or test.images.shape[-1], limit)
                    for source in (*near, *ood)
                },
                near=near,
                grid=strengths(grid),
                budget=budget,
                seed=seed,
                cache=cache or cache_root(),
                progress=progress,
            )
        measured, notes = _run(suites, out, quiet=json)
    with contextlib.redirect_stdout(io.StringIO()) if json else contextlib.nullcontext():
        rows = _sum_up(measured, list(suites))
        columns = {"figure": ("", "{}")} | {name: (name, "{:.3f}") for name in suites}
        present("all", {"rows": rows, "notes": notes}, [Sheet("all", columns, rows)], notes=notes, out=out)
        print(
            _write_page(out, rows, list(suites), list(measured), notes, f"{images}, {limit} images at most")
        )
    if json:
        print(jsonlib.dumps({**measured, "all": rows}, allow_nan=False))


def _run(suites: Mapping[str, Any], out: Path, *, quiet: bool) -> tuple[dict[str, Any], list[str]]:
    """Evaluation -> model -> figures, each shown when it is there; and what was left out or failed."""
    measured: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for evaluation in ("transfer", "robustness", "steerability", "tta", "ood", "retrieval"):
        found = {}
        for name, suite in suites.items():
            if evaluation not in suite:
                notes.append(f"{evaluation} of {name} was left out: it lacks its data (see --help)")
                continue
            try:
                found[name] = suite[evaluation]()
            except SteerableError as error:
                notes.append(f"{evaluation} of {name} failed: {error}")
        if found:
            measured[evaluation] = found
            module = importlib.import_module(f"steerable.cli.evaluations.{evaluation}")
            with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
                module.show(found, out=out)
    if not measured:
        raise ConfigError(f"nothing could be measured; expected one evaluation at least: {'; '.join(notes)}")
    return measured, notes


def _sum_up(measured: Mapping[str, Any], models: list[str]) -> list[dict[str, Any]]:
    """A row for each headline figure, a column for each model."""
    from steerable.evaluate.suite import headlines

    told = {
        name: headlines({evaluation: found[name] for evaluation, found in measured.items() if name in found})
        for name in models
    }
    figures = dict.fromkeys(figure for found in told.values() for figure in found)
    return [{"figure": figure} | {name: told[name].get(figure) for name in models} for figure in figures]


def _write_page(
    out: Path, rows: list[dict[str, Any]], models: list[str], names: list[str], notes: list[str], about: str
) -> Path:
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    path = out.expanduser() / "index.html"
    path.write_text(page.render(rows=rows, models=models, names=names, notes=notes, about=about))
    return path
