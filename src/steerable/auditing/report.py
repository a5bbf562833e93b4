"""AuditReport: every figure of an audit as data, with its table, its JSON and its page."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from torch import Tensor

from steerable.auditing.measure import Figures, chance_figures
from steerable.data import ImageSet
from steerable.errors import ConfigError, DataError
from steerable.theta import Param

FORMAT = "steerable-audit-1"
JOINT = "joint"


@dataclass(frozen=True)
class Row:
    """Figures of one model under one map and one choice of thetas.

    steering: "map" (the model's own), "ridge" (a basis map fitted afterwards on other images) or "identity".
    param: "joint" (all coordinates as the chain draws them) or the one coordinate that is not zero.
    value: that coordinate's value in its unit, or None where the whole range was drawn.
    figures: by name; None is not defined.
    """

    model: str
    steering: str
    param: str
    value: float | None
    figures: Figures


@dataclass(frozen=True)
class LayerRow:
    """Figures of one layer of a model under a ridge map of its own, on standardized columns.

    layer: "stage0", ... in order of depth, "final" last. dim: its width. param: as in `Row`, over the whole range.
    """

    model: str
    layer: str
    dim: int
    param: str
    figures: Figures


@dataclass(frozen=True)
class ModelInfo:
    """What was audited and what that cost: encoder passes, and seconds with the transforms included.

    neighbor_accuracy: of the measured images by their 20 nearest neighbors (T = 0.07) among those that are
    not measured; None without labels. fit_passes, fit_seconds: the price of the model, where its record tells.
    """

    name: str
    encoder: str
    dim: int
    map: str
    passes: int
    seconds: float
    neighbor_accuracy: float | None = None
    fit_passes: float | None = None
    fit_seconds: float | None = None

    @property
    def lead(self) -> str:
        """The steering that tables show per parameter: the model's own map, or ridge where it has none."""
        return "ridge" if self.map == "identity" else "map"


@dataclass(frozen=True)
class View:
    """An image of the audited set, plain (theta None) or transformed."""

    image: int
    theta: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Example:
    """Nearest neighbors, best first, of a steered embedding and of the embedding of the transformed image."""

    model: str
    view: View
    steered: tuple[View, ...]
    true: tuple[View, ...]


@dataclass(frozen=True)
class AuditReport:
    """What `audit` measured; JSON-able, so that pages and comparisons can be made later and elsewhere.

    source: name of the images. image_size: (h, w). seed, views, strengths: the arguments of `audit`.
    counts: images "measured", in the "pool" of joint ranking, in the pool of one coordinate "alone", and for
    the "ridge" map. chain: its config. params: its coordinates, whose ranges MRR depends on.
    """

    source: str
    image_size: tuple[int, int]
    seed: int
    views: int
    strengths: int
    counts: dict[str, int]
    chain: dict[str, Any]
    params: tuple[Param, ...]
    models: tuple[ModelInfo, ...]
    rows: tuple[Row, ...]
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    depth: tuple[LayerRow, ...] = ()

    @property
    def chance(self) -> Figures:
        """MRR, Hit@1 and Hit@5 of guessing."""
        return chance_figures(self.views)

    def figures(self, *, param: str = JOINT, model: str | None = None, steering: str = "map") -> Figures:
        """Figures by name over the whole range of ``param`` ("joint" is all together).

        model: default the first. steering: "map", "ridge" or "identity".

        Raises:
            ConfigError: nothing of that kind was measured.
        """
        model = self.models[0].name if model is None else model
        for row in self.rows:
            if (row.model, row.steering, row.param, row.value) == (model, steering, param, None):
                return row.figures
        known = sorted({(row.model, row.steering, row.param) for row in self.rows})
        raise ConfigError(
            f"the audit has no figures for model {model!r}, steering {steering!r}, param {param!r}; "
            f"expected one of {len(known)} kinds such as {known[0]}: see .rows"
        )

    def curve(self, param: str, *, model: str, steering: str) -> list[Row]:
        """Rows by strength, from the lowest value of ``param`` to the highest."""
        found = [
            row
            for row in self.rows
            if (row.model, row.steering, row.param) == (model, steering, param) and row.value is not None
        ]
        return sorted(found, key=lambda row: row.value or 0.0)

    def layers(self, model: str, param: str = JOINT) -> list[LayerRow]:
        """Rows of a model's layers in order of depth; none unless the audit was asked for depth."""
        return [row for row in self.depth if (row.model, row.param) == (model, param)]

    def table(self) -> Group:
        """For a terminal: models side by side, figures per parameter, and layers."""
        from steerable.auditing.tables import terminal_tables

        return terminal_tables(self)

    def sentences(self, model: str | None = None) -> tuple[str, str, str]:
        """What the model ignores, what moves predictably, and what not to trust, in plain words."""
        from steerable.auditing.words import verdict

        return verdict(self, self.models[0].name if model is None else model)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; undefined figures are null."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self), allow_nan=False))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AuditReport":
        """The way back from `to_dict`.

        Raises:
            DataError: not an audit of this format.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise DataError(
                f"the audit's format is {found!r}; expected {FORMAT!r}: write it again with save_json"
            )
        try:
            values = {key: value for key, value in data.items() if key != "format"}
            values["image_size"] = tuple(values["image_size"])
            values["params"] = tuple(Param(**param) for param in values["params"])
            values["models"] = tuple(ModelInfo(**model) for model in values["models"])
            values["rows"] = tuple(Row(**row) for row in values["rows"])
            values["examples"] = tuple(_example(example) for example in values["examples"])
            values["notes"] = tuple(values["notes"])
            values["depth"] = tuple(LayerRow(**row) for row in values.get("depth", ()))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"the audit is damaged at {error}; expected what save_json wrote: write it again"
            ) from error

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as one JSON file; folders are made."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def save_html(
        self,
        path: str | os.PathLike[str],
        images: ImageSet | Tensor | None = None,
        *,
        title: str = "Steerability audit",
        summary: Sequence[Sequence[str]] = (),
    ) -> None:
        """Write one self-contained page: sentences, tables, curves, and rows of pictures.

        images: what was audited, in the same order; without it there are no pictures.
        summary: a table to open with, its header first; the last line is set in bold.

        Raises:
            DataError: images of another size or number than those audited.
        """
        from steerable.auditing.page import render_page

        file = Path(path)
        html = render_page(self, images, title, summary)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(html, encoding="utf-8")


def _example(data: Mapping[str, Any]) -> Example:
    def view(item: Mapping[str, Any]) -> View:
        theta = item["theta"]
        return View(item["image"], None if theta is None else tuple(theta))

    return Example(
        data["model"],
        view(data["view"]),
        tuple(view(item) for item in data["steered"]),
        tuple(view(item) for item in data["true"]),
    )
