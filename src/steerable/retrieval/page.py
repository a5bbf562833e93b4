"""The page of a search: one HTML file with its pictures in it."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem }
figure { margin: 0 } img { width: 100%; border-radius: 4px } figcaption { overflow-wrap: anywhere; font-size: 13px }
.query { max-width: 9rem }
</style>
<h1>{{ title }}</h1>
{% if query %}<figure class="query"><img src="{{ query }}" alt="the query"></figure>{% endif %}
<p>{{ about }}</p>
<main>
{% for hit in hits %}
<figure>{% if hit.src %}<img src="{{ hit.src }}" alt="{{ hit.path or hit.id }}">{% endif %}
<figcaption>{{ loop.index }}. {{ "%.3f"|format(hit.score) }} {{ hit.label or "" }}
<br>{{ hit.path or hit.id }}</figcaption>
</figure>
{% endfor %}
</main></html>
"""


def results_page(
    hits: Sequence[Mapping[str, Any]], *, title: str, about: str = "", query: bytes | None = None
) -> str:
    """HTML with the thumbnails of what `Index.search` returned; self-contained, all text escaped.

    about: a sentence on what was searched for. query: JPEG bytes of the query's own thumbnail.
    """
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    shown = [{**hit, "src": _data_uri(hit.get("thumbnail"))} for hit in hits]
    return page.render(title=title, about=about, hits=shown, query=_data_uri(query))


def _data_uri(jpeg: bytes | None) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""
