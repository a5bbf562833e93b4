"""The page: Gradio's widgets around the service. Pictures travel inside the HTML, so that no file is ever served."""

import functools
from pathlib import Path
from typing import Any

import gradio as gr

from steerable.app.fragments import audit_page, fragment, seen
from steerable.app.handlers import AUDIT, NEIGHBORS, SEARCH, STEER, VIEWS, Handlers
from steerable.app.service import Service
from steerable.auditing.plan import range_alone
from steerable.auditing.words import label
from steerable.theta import Param

SAMPLES = 16  # images of the gallery to choose from
SESSIONS = 128  # of which images are remembered
FORGET = 3600  # seconds after which an image that nobody looks at is dropped
_SCRIPTS = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
_CALL: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class Page:
    """Widgets, and what happens when they are touched. source: what the gallery holds, in words."""

    def __init__(self, service: Service, *, source: str = "images", command: str = "steerable audit"):
        self.service, self.source, self.command = service, source, command
        self.params, self.do = service.model.params, Handlers(service)

    def build(self) -> gr.Blocks:
        """The page itself."""
        with gr.Blocks(title="steerable", analytics_enabled=False, fill_width=True) as blocks:
            model, gallery = self.service.model, self.service.gallery
            gr.HTML(
                fragment("head", self.service.name, model.encoder.name, model.dim, gallery.rows, self.source)
            )
            self.message = gr.HTML(elem_id="message")
            self.chosen = gr.State(None, time_to_live=FORGET)
            self.tab, self.number = gr.State(STEER), gr.State(1)
            with gr.Row():
                with gr.Column(min_width=300, scale=1, elem_id="left"):
                    self._left()
                with gr.Column(min_width=320, scale=3, elem_id="right"), gr.Tabs():
                    self._right()
            self._wire(blocks)
        blocks.state_session_capacity = SESSIONS
        return blocks

    def _left(self) -> None:
        limit = self.do.megabytes
        self.picker = gr.HTML(
            fragment("picker", seen(self.service.gallery.mixed(SAMPLES)), limit),
            js_on_load=f"({_script('PICKER')})()",
            limit=limit,
            elem_id="picker",
        )
        self.pictures = gr.HTML(elem_id="pictures")
        with gr.Column(elem_id="thetas"):
            self.sliders = [self._slider(param) for param in self.params]
        self.reset = gr.Button("Reset", size="sm", elem_id="reset")
        self.link = gr.HTML(js_on_load=f"({_script('LINK')})()", elem_id="link")

    def _slider(self, param: Param) -> Any:
        trust = self.service.trust.get(param.name)
        settings: dict[str, Any] = {
            "info": trust.words if trust else None,
            "elem_id": f"theta-{param.name}",
            "elem_classes": "theta",
        }
        if param.is_switch:
            return gr.Checkbox(False, label=label(param.name), **settings)
        low, high = range_alone(param)
        unit = "of the side" if param.unit == "side" else f"{param.unit}s"
        return gr.Slider(
            round(low, 2),
            round(high, 2),
            0,
            step=param.step,
            label=f"{label(param.name)}, {unit}",
            buttons=[],
            **settings,
        )

    def _right(self) -> None:
        gallery = self.service.gallery
        prose: dict[str, Any] = {"elem_classes": "prose"}
        with gr.Tab("Steer") as steer:
            self.tiles = gr.HTML(elem_id="tiles")
            with gr.Row():
                self.steered = gr.HTML(elem_id="steered", min_width=280, **prose)
                self.encoded = gr.HTML(elem_id="encoded", min_width=280, **prose)
            self.k = gr.Radio(list(NEIGHBORS), value=12, label="Neighbors shown", elem_id="k")
        with gr.Tab("Search") as search:
            with gr.Row():
                self.wanted = gr.Dropdown(
                    ["", *gallery.labels], value="", label="Label", elem_id="label", scale=1
                )
                self.condition = gr.Textbox(
                    label="Condition", placeholder="width > 200 and label != 'rose'", elem_id="condition", scale=2,
                    info=f"on {', '.join(gallery.columns)}", max_length=self.service.bounds.where,
                )  # fmt: skip
            self.find = gr.Button("Search", variant="primary", size="sm", elem_id="find")
            self.results = gr.HTML(elem_id="results", **prose)
            with gr.Row():
                self.back = gr.Button("Previous page", size="sm", elem_id="back")
                self.on = gr.Button("Next page", size="sm", elem_id="on")
        with gr.Tab("Audit") as audit:
            gr.HTML(audit_page(self.service.reports, self.command), elem_id="audit", **prose)
        with gr.Tab("Compare views") as views:
            self.views = gr.HTML(elem_id="views", **prose)
        self.tabs = {STEER: steer, SEARCH: search, AUDIT: audit, VIEWS: views}

    def _wire(self, blocks: gr.Blocks) -> None:
        moved: dict[str, Any] = {
            "fn": self.do.moved, "inputs": [self.chosen, self.k, *self.sliders],
            "outputs": [self.message, self.pictures, self.tiles, self.steered, self.link], **_CALL,
        }  # fmt: skip
        settled: dict[str, Any] = {
            "fn": self.do.settled,
            "inputs": [self.chosen, self.tab, self.k, self.wanted, self.condition, *self.sliders],
            "outputs": [self.message, self.tiles, self.steered, self.encoded, self.views, self.results, self.number],
            **_CALL,
        }  # fmt: skip
        found: dict[str, Any] = {
            "inputs": [self.chosen, self.wanted, self.condition, self.number, *self.sliders],
            "outputs": [self.message, self.results, self.number], **_CALL,
        }  # fmt: skip
        start = [self.message, self.chosen, self.k, *self.sliders]
        blocks.load(self.do.restored, None, start, **_CALL).then(**moved)
        self.picker.upload(self.do.uploaded, None, [self.message, self.chosen], **_CALL).success(**moved)
        self.picker.select(self.do.selected, None, [self.message, self.chosen], **_CALL).success(**moved)
        self.reset.click(
            lambda: [0.0 if not p.is_switch else False for p in self.params], None, self.sliders, **_CALL
        ).then(**moved)
        gr.on([s.input for s in self.sliders] + [self.k.input], **moved, trigger_mode="always_last")
        self.link.submit(**settled, trigger_mode="always_last")
        for name, tab in self.tabs.items():
            tab.select(functools.partial(str, name), None, self.tab, **_CALL).then(**settled)
        gr.on(
            [self.find.click, self.condition.submit, self.wanted.input],
            functools.partial(self.do.searched, 0),
            **found,
        )
        self.back.click(functools.partial(self.do.searched, -1), **found)
        self.on.click(functools.partial(self.do.searched, 1), **found)


def _script(name: str) -> str:
    """One of the functions in page.js."""
    return _SCRIPTS.split(f"const {name} = ", 1)[1].split("\n};", 1)[0] + "\n}"
