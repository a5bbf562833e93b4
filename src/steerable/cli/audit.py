"""``steerable audit``."""

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from steerable.errors import ConfigError

if TYPE_CHECKING:
    from steerable.auditing import AuditReport
    from steerable.data import ImageSet
    from steerable.model import SteerableEncoder

READ_PER_MEASURED = 5  # an audit measures one part of the images and fits the ridge map to up to four


def audit(
    *models: Annotated[str, "MODEL"],
    images: Annotated[str, "SRC"],
    split: str | None = None,
    data: Annotated[Path | None, "PATH"] = None,
    out: Annotated[Path | None, "FILE"] = None,
    json: bool = False,
    views: int = 50,
    n_images: int = 500,
    limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> None:
    """Measure how embeddings move, and how well the map predicts it.

    Figures come per parameter and strength of the transform. Several models are audited on the same images
    and thetas and laid side by side. Beside each model's own map stand the identity and a ridge map
    fitted afterwards. docs/protocols.md says what each figure means.

    Args:
        models: a run directory, a bundle's folder, or a bundle on the Hub
        images: photos, an image folder, a parquet glob, or a Hub data set's name
        split: split of the images [test where there is one]
        data: local data: a folder that holds a copy of SRC, or is what to use in its place
        out: also write a page with curves and pictures (.html), or the figures (.json)
        json: print the figures as JSON instead of a table
        views: views of one image among which the true one is ranked
        n_images: images measured at most
        limit: images read at most [5 for each one measured]
        size: side in pixels that images are cut to [the encoder's]
        seed: of the choice of images and thetas

    Examples:
        steerable audit runs/demo-seed0 --images photos
        steerable audit runs/control runs/steerable --images uoft-cs/cifar10 --out audit.html
        steerable audit runs/demo-seed0 --images my_images --json > figures.json
    """
    from rich.console import Console

    from steerable.auditing import audit as run
    from steerable.data import load_images, localized, splits
    from steerable.progress import PassProgress

    if out is not None and out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out is {out}; expected a name ending in .html or .json: rename it")
    loaded = _load_models(models)
    place = localized(images, data)
    if split is None and "test" in splits(place[0], root=place[1]):
        split = "test"
    side = size if size is not None else _side(loaded)
    bound = limit if limit is not None else READ_PER_MEASURED * n_images
    image_set = load_images(place[0], root=place[1], split=split, size=side, limit=bound)
    with PassProgress() as progress:
        report = run(loaded, image_set, views=views, n_images=n_images, seed=seed, progress=progress)
    if json:
        print(jsonlib.dumps(report.to_dict(), allow_nan=False))
    else:
        # a file or a pipe has no width that a table would have to fit
        Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(report.table())
    if out is not None:
        _write(report, image_set, out, announce=not json)


def _load_models(places: tuple[str, ...]) -> "dict[str, SteerableEncoder]":
    """Models by the shortest names that tell them apart."""
    from steerable.model import SteerableEncoder

    folders = {place: place_of_bundle(place) for place in dict.fromkeys(places)}
    names = [Path(place).resolve().name if Path(place).exists() else Path(place).name for place in folders]
    labels = names if len(set(names)) == len(names) else list(folders)
    return {
        label: SteerableEncoder.from_pretrained(folder).eval()
        for label, folder in zip(labels, folders.values(), strict=True)
    }


def place_of_bundle(place: str) -> str:
    """The bundle inside a run directory, or the place itself."""
    inside = Path(place).expanduser() / "bundle"
    return str(inside) if inside.is_dir() else place


def _side(models: "dict[str, SteerableEncoder]") -> int | None:
    sizes = [model.encoder.image_size for model in models.values() if model.encoder.image_size]
    return max(sizes) if len(sizes) == len(models) else None


def _write(report: "AuditReport", images: "ImageSet", out: Path, *, announce: bool) -> None:
    if out.suffix == ".html":
        report.save_html(out, images)
    else:
        report.save_json(out)
    if announce:
        print(out)
