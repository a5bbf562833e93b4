"""What happens when something on the page is touched: from widgets' values to the service, and to HTML."""

import base64
import binascii
import functools
import logging
import math
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from steerable.app.conditions import quoted
from steerable.app.fragments import fragment, hits_csv, neighbors, picture, seen, shares, tiles, views_page
from steerable.app.service import Chosen, Service, explained
from steerable.app.trust import beyond
from steerable.auditing.plan import range_alone
from steerable.errors import DataError, SteerableError

PER_PAGE, PICTURES = 24, 12
NEIGHBORS = (6, 12, 24)
STEER, SEARCH, AUDIT, VIEWS = "steer", "search", "audit", "views"
_LOG = logging.getLogger("steerable")


def _told(outputs: int) -> Callable[..., Any]:
    """A handler whose errors become the message, its first output; the ``outputs`` others stay as they are."""

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def call(*args: Any) -> list[Any]:
            try:
                return handler(*args)
            except Exception as error:
                if not isinstance(error, SteerableError):
                    _LOG.exception("in the page")
                return [fragment("message", explained(error), "error"), *(gr.skip() for _ in range(outputs))]

        return call

    return wrap


class Handlers:
    """One method per event; the last arguments are the sliders' values, in the order of the model's parameters."""

    def __init__(self, service: Service):
        self.service = service
        self.params = service.model.params
        self.bounds = service.bounds

    def restored(self, request: gr.Request) -> list[Any]:
        """The state that the address names; without one, the first image of the gallery as it is."""
        asked, problems = dict(request.query_params), []
        values: list[float | bool] = []
        for param in self.params:
            low, high = (0.0, 1.0) if param.is_switch else range_alone(param)
            try:
                value = min(max(float(asked.get(param.name, 0)), low), high)
            except ValueError:
                value = math.nan
            if math.isnan(value):
                problems.append(f"{param.name} in the link is {asked[param.name][:20]!r}; expected a number")
                value = 0.0
            values.append(bool(value) if param.is_switch else value)
        chosen = None
        if "image" in asked:
            try:
                chosen = self.service.choose(asked["image"])
            except SteerableError as error:
                problems.append(explained(error))
        chosen = chosen or self.service.choose(self.service.gallery.mixed(1)[0]["id"])
        k = next((k for k in NEIGHBORS if asked.get("k") == str(k)), 12)
        return [fragment("message", "; ".join(problems), "error"), chosen, k, *values]

    @_told(1)
    def uploaded(self, event: gr.EventData) -> list[Any]:
        data = event._data if isinstance(event._data, Mapping) else {}
        if data.get("refused"):  # by the script, which need not send what would be refused
            raise DataError(str(data["refused"])[:300])
        raw = str(data.get("data", ""))
        if len(raw) > self.megabytes * 2**20 * 4 / 3 + 4:
            raise DataError(
                f"the file is too large; expected at most {self.megabytes} MB: make it smaller first"
            )
        try:
            content = base64.b64decode(raw, validate=True)
        except (binascii.Error, ValueError):
            raise DataError("the upload is damaged; expected a file's bytes: choose it again") from None
        return ["", self.service.upload(content, str(data.get("name") or "upload")[:80])]

    @_told(1)
    def selected(self, event: gr.EventData) -> list[Any]:
        data = event._data if isinstance(event._data, Mapping) else {}
        return ["", self.service.choose(str(data.get("id")))]

    @_told(4)
    def moved(self, chosen: Chosen | None, k: Any, *values: float | bool) -> list[Any]:
        """At once, after each move of a slider: no encoder pass."""
        chosen, theta = _something(chosen), self._theta(values)
        found = self.service.search(chosen.e, theta, k=_whole(k))
        pair = [picture(image) for image in (chosen.shown, self.service.transformed(chosen.shown, theta))]
        too_far = beyond(self.service.trust, theta)
        about = f"beyond what the audit trusts: {', '.join(too_far)}" if too_far else ""
        amber = [name for name, value in theta.items() if beyond(self.service.trust, {name: value})]
        pictures = fragment("pictures", *pair, chosen.name, shares(theta, self.params), amber, about)
        query = urllib.parse.urlencode(
            {
                **({"image": chosen.id} if chosen.id else {}),
                **{n: f"{v:g}" for n, v in theta.items() if v},
                "k": _whole(k),
            }
        )
        # never twice the same: the script waits for a change, also where a move led to what was there before
        link = fragment("link", query, chosen.id is not None, time.monotonic_ns())
        return [gr.skip(), pictures, tiles(found.seconds, None), neighbors("steering", found.hits), link]

    @_told(6)
    def settled(
        self, chosen: Chosen | None, tab: Any, k: Any, wanted: Any, condition: Any, *values: float | bool
    ) -> list[Any]:
        """When the sliders rest: what the tab in view needs the encoder, or more time, for."""
        out: list[Any] = [gr.skip() for _ in range(7)]
        if chosen is None:  # the page is still being loaded
            return out
        chosen, theta = _something(chosen), self._theta(values)
        if tab == STEER:
            found = self.service.search(chosen.e, theta, k=_whole(k))
            true = self.service.compare(chosen, theta, found.e, k=_whole(k))
            common = {row["id"] for row in found.hits} & {row["id"] for row in true.hits}
            out[1] = tiles(found.seconds, true)
            out[2] = neighbors("steering", found.hits, common)
            out[3] = neighbors("encoding", true.hits, common)
        elif tab == VIEWS:
            score = self.service.score(chosen.e)
            names = [param.name for param in self.params]
            pictures = [
                self.service.transformed(chosen.shown, dict(zip(names, row, strict=True)))
                for row in score.thetas[:PICTURES].tolist()
            ]
            out[4] = views_page(score, pictures, self.params)
        elif tab == SEARCH:
            _, out[5], out[6] = self._page_of(chosen, wanted, condition, 1, theta)
        return out

    @_told(2)
    def searched(
        self, step: int, chosen: Chosen | None, wanted: Any, condition: Any, page: Any, *values: float | bool
    ) -> list[Any]:
        last = max(1, self.bounds.k // PER_PAGE)
        page = min(max(_whole(page) + step, 1), last) if step else 1
        return self._page_of(_something(chosen), wanted, condition, page, self._theta(values))

    def _page_of(
        self, chosen: Chosen, wanted: Any, condition: Any, page: int, theta: dict[str, float]
    ) -> list[Any]:
        parts = [f"label = {quoted(str(wanted))}"] if wanted else []
        parts += [f"({condition})"] if condition and str(condition).strip() else []
        where, first = " and ".join(parts) or None, (page - 1) * PER_PAGE
        hits = self.service.search(chosen.e, theta, k=first + PER_PAGE, where=where).hits
        if page > 1 and len(hits) <= first:  # past the end
            return self._page_of(chosen, wanted, condition, page - 1, theta)
        shown = hits[first:]
        words = (
            f"Images {first + 1} to {first + len(shown)} of {self.service.gallery.rows:,}"
            f"{' that meet the condition' if where else ''}, nearest to {chosen.name} ({shares(theta, self.params)})"
            if shown
            else "No image meets the condition."
        )
        return ["", fragment("found", seen(shown), first + 1, hits_csv(hits), words), page]

    def _theta(self, values: Sequence[float | bool]) -> dict[str, float]:
        names = [param.name for param in self.params]
        return {name: float(value or 0) for name, value in zip(names, values, strict=True)}

    @property
    def megabytes(self) -> float:
        """Of an upload: a request carries it in base64, with something around it."""
        return round(0.7 * self.bounds.body / 2**20, 1)


def _something(chosen: Chosen | None) -> Chosen:
    if not isinstance(chosen, Chosen):
        raise DataError("no image is chosen, or it was forgotten; expected one: choose or drop an image")
    return chosen


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"a number is {str(value)[:20]!r}; expected a whole one: choose it again")
    return value
