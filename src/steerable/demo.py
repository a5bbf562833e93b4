"""The main job at its smallest: a steerable encoder and its control on photographs, trained, audited and compared."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steerable.auditing import AuditReport, audit
from steerable.data import ImageSet, load_images
from steerable.evaluate import C_GRID, probe
from steerable.model import SteerableEncoder
from steerable.training import TrainConfig, train

Progress = Callable[[str, Any], None]
VIEWS = 1000
CONTROL, STEERABLE = "control", "steerable"


@dataclass(frozen=True)
class DemoRow:
    """One model's line of the table.

    probe_accuracy: of a linear probe on frozen embeddings. relative_error, mrr, hit_at_1: joint, by the
    model's own map, or a ridge map fitted afterwards where it has none. steer_seconds, encode_seconds: for 1,000
    views of one image.
    """

    model: str
    map: str
    probe_accuracy: float
    relative_error: float | None
    mrr: float | None
    hit_at_1: float | None
    steer_seconds: float | None
    encode_seconds: float

    @property
    def ratio(self) -> float | None:
        """How many times cheaper steering is than encoding again; None for the control, which has no map."""
        return self.encode_seconds / self.steer_seconds if self.steer_seconds else None


@dataclass(frozen=True)
class DemoResult:
    """rows: control, then steerable. report: the audit of both. page: the report as HTML."""

    rows: tuple[DemoRow, ...]
    report: AuditReport
    page: Path
    seconds: float


def cells(rows: Sequence[DemoRow]) -> list[list[str]]:
    """The table as text, its header first."""
    header = [
        "model",
        "probe accuracy",
        "relative error",
        "MRR",
        "Hit@1",
        f"steer {VIEWS:,} views",
        "encode them",
        "ratio",
    ]
    return [header, *(_cells(row) for row in rows)]


def _cells(row: DemoRow) -> list[str]:
    figures = [
        "n/a" if value is None else f"{value:.3f}" for value in (row.relative_error, row.mrr, row.hit_at_1)
    ]
    steer = "-" if row.steer_seconds is None else f"{1000 * row.steer_seconds:.1f} ms"
    ratio = "-" if row.ratio is None else f"{row.ratio:,.0f} x"
    name = row.model if row.map == "map" else f"{row.model} + {row.map}"
    return [name, f"{row.probe_accuracy:.1%}", *figures, steer, f"{1000 * row.encode_seconds:,.0f} ms", ratio]


def run_demo(
    config: TrainConfig,
    *,
    out: str | Path = "runs/demo",
    n_images: int = 200,
    progress: Callable[[str], Callable[..., None]] | None = None,
) -> DemoResult:
    """Train the control and the steerable encoder, audit both on the test images, and write everything to ``out``.

    config: the steerable recipe; the control is the same without steering and at the same number of encoder passes.
    out: gets control/ and steerable/ (run directories), report.html, report.json and table.json. A run that is in
        there already is gone on with, or where it has finished only audited again.
    progress: gives a listener for "control", "steerable" (training) and "audit".

    Raises:
        ConfigError: ``out`` holds a run with other settings. Further those of `steerable.train` and `steerable.audit`.
    """
    began = time.perf_counter()
    out = Path(out)
    listener = progress or (lambda name: None)
    configs = {CONTROL: dataclasses.replace(config, steering="none"), STEERABLE: config}
    models = {
        name: train(settings, out=out / name, resume=True, listener=listener(name)).model.eval()
        for name, settings in configs.items()
    }
    data = config.data
    train_set, test_set = (
        load_images(data.source, split=split, size=data.size, root=data.root) for split in ("train", "test")
    )
    report = audit(
        models,
        test_set,
        n_images=n_images,
        n_pool=50,
        strengths=4,
        seed=config.seed,
        progress=listener("audit"),
    )
    rows = tuple(_row(name, model, report, train_set, test_set) for name, model in models.items())
    page = out / "report.html"
    report.save_html(
        page, test_set, title="What two small encoders know about color and crop", summary=cells(rows)
    )
    report.save_json(out / "report.json")
    seconds = time.perf_counter() - began
    (out / "table.json").write_text(
        json.dumps({"seconds": seconds, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1)
    )
    return DemoResult(rows, report, page, seconds)


def _row(
    name: str, model: SteerableEncoder, report: AuditReport, train_set: ImageSet, test_set: ImageSet
) -> DemoRow:
    lead = next(info.lead for info in report.models if info.name == name)
    figures = report.figures(model=name, steering=lead)
    e, e_test = (model.encode(part.float_images(range(len(part)))) for part in (train_set, test_set))
    accuracy = probe(e, train_set.labels, e_test, test_set.labels, grid=C_GRID[::5]).accuracy
    steer_seconds, encode_seconds = time_views(model, test_set.float_images(range(1)), VIEWS)
    steer = None if name == CONTROL else steer_seconds
    return DemoRow(
        name,
        lead,
        accuracy,
        figures["relative_error"],
        figures["mrr"],
        figures["hit_at_1"],
        steer,
        encode_seconds,
    )


def time_views(
    model: SteerableEncoder, image: torch.Tensor, views: int, *, rounds: int = 5
) -> tuple[float, float]:
    """Seconds for ``views`` versions of one image (1, 3, h, w): encoded once and steered, and encoded each.

    Medians of ``rounds``, both warmed up; the first includes the encoder pass.
    """
    thetas = model.chain.sample(views, generator=torch.Generator().manual_seed(0))

    def steer() -> None:
        model.orbit(model.encode(image), thetas)

    def encode() -> None:
        model.encode(model.chain.apply(image.expand(views, -1, -1, -1), thetas))

    with torch.no_grad():
        return _median_seconds(steer, rounds), _median_seconds(encode, rounds)


def _median_seconds(call: Callable[[], None], rounds: int) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[rounds // 2]
