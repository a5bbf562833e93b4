"""``steerable audit``."""

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from steerable.errors import ConfigError

if TYPE_CHECKING:
    from steerable.auditing import AuditReport
    from steerable.data import ImageSet
    from steerable.encoders import Encoder
    from steerable.model import SteerableEncoder

READ_PER_MEASURED = 5  # an audit measures one part of the images and fits the ridge map to up to four


def audit(
    *models: Annotated[str, "MODEL"],
    images: Annotated[str, "SRC"],
    chain: str | None = None,
    layers: Annotated[str | None, "all|NAMES"] = None,
    depth: bool = False,
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
    fitted afterwards, to images that are not measured; it stands in for the map that an encoder alone lacks.
    docs/protocols.md says what each figure means.

    Args:
        models: a run directory, a bundle's folder, a bundle on the Hub, or an encoder alone: timm/NAME,
            timm/local-dir:PATH
        images: photos, an image folder, a parquet glob, or a Hub data set's name
        chain: of encoders alone: simclr, simclr-full, geometric or photometric [that of models beside them, or simclr]
        layers: of encoders alone: all, or names such as stage0,stage2,final
        depth: measure every layer of the networks as well, by the same passes
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
        steerable audit timm/resnet50 --images my_images --depth --out audit.html
    """
    from rich.console import Console

    from steerable.auditing import audit as run
    from steerable.data import load_images, localized, splits
    from steerable.progress import PassProgress

    if out is not None and out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out is {out}; expected a name ending in .html or .json: rename it")
    loaded = _load_all(models, layers)
    place = localized(images, data)
    if split is None and "test" in splits(place[0], root=place[1]):
        split = "test"
    side = size if size is not None else _side(loaded)
    bound = limit if limit is not None else READ_PER_MEASURED * n_images
    image_set = load_images(place[0], root=place[1], split=split, size=side, limit=bound)
    with PassProgress() as progress:
        report = run(
            loaded,
            image_set,
            chain=chain,
            depth=depth,
            views=views,
            n_images=n_images,
            seed=seed,
            progress=progress,
        )
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

    return {
        label: SteerableEncoder.from_pretrained(place_of_bundle(place)).eval()
        for label, place in _short_names(places).items()
    }


def _load_all(places: tuple[str, ...], layers: str | None) -> "dict[str, SteerableEncoder | Encoder]":
    """The same, with encoders alone among them."""
    from steerable.encoders import PREFIX, load_encoder

    alone = [place for place in places if place.startswith(PREFIX)]
    if layers is not None and not alone:
        raise ConfigError(
            f"--layers is {layers} and no encoder is alone; expected {PREFIX}NAME with it: bundles have layers"
        )
    return {
        label: load_encoder(place, layers=layers) if place in alone else _load_models((place,)).popitem()[1]
        for label, place in _short_names(places).items()
    }


def _short_names(places: tuple[str, ...]) -> dict[str, str]:
    """Places by names that tell them apart: the last part of the path where that does."""
    unique = list(dict.fromkeys(places))
    paths = [Path(place.removeprefix("timm/").removeprefix("local-dir:")) for place in unique]
    names = [path.resolve().name if path.exists() else path.name for path in paths]
    return dict(zip(names if len(set(names)) == len(names) else unique, unique, strict=True))


def place_of_bundle(place: str) -> str:
    """The bundle inside a run directory, or the place itself."""
    inside = Path(place).expanduser() / "bundle"
    return str(inside) if inside.is_dir() else place


def _side(models: "dict[str, SteerableEncoder | Encoder]") -> int | None:
    from steerable.encoders import Encoder

    encoders = [model if isinstance(model, Encoder) else model.encoder for model in models.values()]
    sides = [encoder.image_size for encoder in encoders if encoder.image_size]
    return max(sides) if len(sides) == len(encoders) else None


def _write(report: "AuditReport", images: "ImageSet", out: Path, *, announce: bool) -> None:
    if out.suffix == ".html":
        report.save_html(out, images)
    else:
        report.save_json(out)
    if announce:
        print(out)
