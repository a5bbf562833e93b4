"""From a bundle and an index, or nothing at all, to a service: what is not there is made, and said."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steerable.app.bounds import Bounds
from steerable.app.gallery import Gallery, memory_gallery
from steerable.app.known import Known
from steerable.app.service import Service, side_of
from steerable.auditing import AuditReport, audit
from steerable.auditing.plan import make_plan
from steerable.data import ImageSet, decode, load_images, photos
from steerable.data.sources import PHOTOS, Source, parse_source
from steerable.encoders import load_encoder
from steerable.errors import ConfigError, DataError
from steerable.model import SteerableEncoder
from steerable.posthoc import fit
from steerable.retrieval import Index

DEMO = Path("runs/demo")
SHARP = 128  # side in pixels of the photographs that are shown
AUDITED, QUICK = 120, 20.0  # images of an audit at start-up, and the seconds that it may take
Progress = Callable[[int, int, str], None]
_LOG = logging.getLogger("steerable")


class Started(NamedTuple):
    """A service, and what it is about, in words."""

    service: Service
    source: str
    command: str


def start(
    model: str | None = None,
    db: str | None = None,
    *,
    images: Source = PHOTOS,
    root: Source | None = None,
    limit: int | None = None,
    size: int | None = None,
    audits: Sequence[Source] = (),
    bounds: Bounds | None = None,
    progress: Progress | None = None,
) -> Started:
    """A service for a bundle and a gallery.

    model: the bundle's folder, or a bundle on the Hub; None is the demo's, and where no demo has run, a map that is
        fitted to photographs now.
    db: an index of `steerable index`; None puts ``images`` (at most ``limit`` of them) into memory. root: local data.
    size: side in pixels for the encoder [the index's, else the encoder's].
    audits: files that `AuditReport.save_json` wrote. Without one, what lies beside the bundle as audit.json or
        report.json is read, and where there is none and it takes at most 20 seconds, an audit is made.

    Raises:
        BundleError, DataError, ConfigError, MissingExtra: of what it is made from.
    """
    name, bundle, found = _model(model, progress)
    if db is not None:
        index = Index.open(db, model=bundle)
        folder = index.facts.get("images")
        gallery = Gallery(index, root=Path(folder) if folder else None, bounds=bounds)
        source = f"images in {Path(db).name}"
    else:
        side = size or side_of(bundle, {})
        pictures = _pictures(images, root, limit, side)
        gallery = memory_gallery(bundle, pictures, side, bounds=bounds, progress=progress)
        source = (
            "photographs" if pictures.name.startswith(PHOTOS) else f"images of {Path(pictures.name).name}"
        )
    service = Service(bundle, gallery, name=name, bounds=bounds)
    service.learn(_read(audits) if audits else _beside(found))
    if not service.reports:
        quick = _quick_audit(service, progress)
        service.learn([quick] if quick else [])
    service.known = Known(service)
    command = f"steerable audit {model or name} --images {images} --out audit.json"
    return Started(service, source, command)


def _model(place: str | None, progress: Progress | None) -> tuple[str, SteerableEncoder, Path | None]:
    """The name, the model, and the folder in which it lies."""
    if place is None and (DEMO / "steerable" / "bundle" / "config.json").is_file():
        place = str(DEMO / "steerable" / "bundle")
        _LOG.info("no model was named: the demo's, %s", place)
    if place is not None:
        path = Path(place).expanduser()
        name = path.resolve().parent.name if path.name == "bundle" else path.name
        return name, SteerableEncoder.from_pretrained(place), path if path.is_dir() else None
    _LOG.info(
        "no model was named and no demo has run: fitting a map to photographs, which takes under a minute; the "
        "network is untrained, so steerable demo gives a better one"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = load_encoder(
            "timm/resnet10t", pretrained=False, width=16, stem="cifar", image_size=32, layers="all"
        )
    bundle = fit(
        encoder,
        photos(size=32, n=600),
        "simclr",
        features="linear+squares",
        adapter="discriminant",
        progress=progress,
    )
    return "untrained", bundle, None


def _pictures(images: Source, root: Source | None, limit: int | None, side: int) -> ImageSet:
    """The gallery's images, photographs sharper than the encoder needs them."""
    name, split = parse_source(images)
    if name == PHOTOS:
        return photos(split or "train", size=max(SHARP, side), n=limit)
    return load_images(images, root=root, size=max(SHARP, side), limit=limit)


def _beside(folder: Path | None) -> list[AuditReport]:
    """The audit that lies in a bundle's folder, its run's, or the demo's."""
    places = [] if folder is None else [folder, *folder.resolve().parents[:2]]
    for place in places:
        for name in ("audit.json", "report.json"):
            if (place / name).is_file():
                _LOG.info("audit: %s", place / name)
                return _read([place / name])
    return []


def _read(files: Sequence[Source]) -> list[AuditReport]:
    reports = []
    for file in files:
        try:
            reports.append(AuditReport.from_dict(json.loads(Path(file).read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"{file} cannot be read as an audit ({reason}); expected a file of steerable audit --out audit.json: "
                "write it again"
            ) from None
    return reports


def _quick_audit(service: Service, progress: Progress | None) -> AuditReport | None:
    """A small audit on the gallery's images, if the encoder is fast enough for one."""
    pixels = []
    for row in service.gallery.sample[:AUDITED]:
        try:
            pixels.append(decode(service.gallery.picture(row), size=service.size))
        except DataError:
            continue
    if len(pixels) < 8:
        return None
    images, model = torch.stack(pixels), service.model
    settings: dict[str, Any] = {"views": 20, "n_images": 40, "n_pool": 20, "strengths": 4}
    plan = make_plan(len(images), **settings, generator=torch.Generator().manual_seed(0))
    model.encode(images[:8].float() / 255)
    began = time.perf_counter()
    model.encode(images[:8].float() / 255)
    expected = (time.perf_counter() - began) / 8 * plan.passes(model.params)
    if expected > QUICK:
        _LOG.info(
            "no audit was found, and one would take about %.0f s: sliders show no trusted ranges", expected
        )
        return None
    return audit({service.name: model}, images, progress=progress, **settings)
