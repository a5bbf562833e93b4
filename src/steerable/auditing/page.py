"""The page of an audit: one HTML file with everything in it."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from steerable.auditing import curves, tables, words
from steerable.auditing.report import AuditReport, Example, ModelInfo, View
from steerable.data import ImageSet
from steerable.data.images import as_float
from steerable.errors import DataError
from steerable.theta import Param
from steerable.transforms import Chain, build

TEMPLATE = "report.html.j2"
THUMBNAIL = 96  # pixels: pictures are shown at 64, and sharp screens have more


def render_page(
    report: AuditReport, images: ImageSet | Tensor | None, title: str, summary: Sequence[Sequence[str]] = ()
) -> str:
    """The HTML text; see `AuditReport.save_html`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=words.number, label=words.label)
    return environment.get_template(TEMPLATE).render(_context(report, images, title), summary=summary)


def _context(report: AuditReport, images: ImageSet | Tensor | None, title: str) -> dict[str, Any]:
    curved = [param for param in report.params if not param.is_switch]
    return {
        "title": title,
        "report": report,
        "ranges": [(words.label(p.name), words.range_words(p)) for p in report.params],
        "drawn": [f"{words.label(p.name)} {_drawn(p)}" for p in report.params],
        "columns": tables.COLUMNS,
        "decoding": tables.DECODING,
        "laws": tables.LAWS,
        "joint": tables.joint_lines(report),
        "per_model": [_model_section(report, info) for info in report.models],
        "side_by_side": tables.ladder(report),
        "depth": [_depth_section(report, info) for info in report.models if report.layers(info.name)],
        "depth_legend": curves.depth_lines(report),
        "legend": curves.series(report),
        "curves": [(words.label(p.name), Markup(curves.curve_svg(report, p))) for p in curved],
        "examples": [] if images is None else _example_sections(report, images),
        "fitted": any(row.steering == "ridge" for row in report.rows),
        "plural": len(report.models) > 1,
    }


def _drawn(param: Param) -> str:
    """The range that the chain draws from."""
    return "on or off" if param.is_switch else words.span(param.low, param.high, param)


def _model_section(report: AuditReport, info: ModelInfo) -> dict[str, Any]:
    lines = tables.param_lines(report, info)
    steered = {row.steering for row in report.rows if row.model == info.name}
    beside = info.lead == "map" and "ridge" in steered
    ridge = [
        report.figures(param=p.name, model=info.name, steering="ridge")["relative_error"] if beside else None
        for p in report.params
    ]
    steering = words.steering_name(lines[0].steering, info.map)
    return {
        "info": info,
        "sentences": report.sentences(info.name),
        "lines": list(zip(lines, ridge, strict=True)),
        "beside": beside,
        "steering": steering,
    }


def _depth_section(report: AuditReport, info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "svg": Markup(curves.depth_svg(report, info.name)),
        "cells": tables.layer_table(report, info),
    }


def _example_sections(report: AuditReport, images: ImageSet | Tensor) -> list[dict[str, Any]]:
    pixels = images if isinstance(images, Tensor) else images.images
    shown = [view.image for e in report.examples for view in (e.view, *e.steered, *e.true)]
    if tuple(pixels.shape[2:]) != report.image_size or (shown and max(shown) >= len(pixels)):
        raise DataError(
            f"images are {tuple(pixels.shape)}; expected those that were audited, {report.image_size}: "
            "give the same images, or none to leave the pictures out"
        )
    gallery = _Gallery(pixels, build(report.chain), report)
    return [
        {"name": info.name, "rows": [gallery.row(e) for e in report.examples if e.model == info.name]}
        for info in report.models
    ]


class _Gallery:
    """Thumbnails of views, rendered again from the images and the chain."""

    def __init__(self, pixels: Tensor, chain: Chain, report: AuditReport):
        self.pixels, self.chain, self.params = pixels, chain, report.params

    def row(self, example: Example) -> dict[str, Any]:
        common = set(example.steered) & set(example.true)
        return {
            "plain": self.picture(View(example.view.image), False),
            "moved": self.picture(example.view, False),
            "words": words.theta_words(example.view.theta, self.params),
            "steered": [self.picture(view, view in common) for view in example.steered],
            "true": [self.picture(view, view in common) for view in example.true],
            "agree": len(common),
            "count": len(example.true),
        }

    def picture(self, view: View, agrees: bool) -> dict[str, Any]:
        alt = f"image {view.image}, {words.theta_words(view.theta, self.params)}"
        return {"src": _data_uri(self._pixels(view)), "alt": alt, "agrees": agrees}

    def _pixels(self, view: View) -> Float[Tensor, "3 h w"]:
        image = self.pixels[view.image][None]
        image = as_float(image) if image.dtype == torch.uint8 else image.float()
        if view.theta is not None:
            image = self.chain.apply(image, torch.tensor([view.theta]))
        return image[0]


def _data_uri(image: Float[Tensor, "3 h w"]) -> str:
    from PIL import Image

    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(array)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
