"""``steerable search``."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

from steerable.errors import ConfigError


def search(
    db: Annotated[str, "DB"],
    *,
    image: Annotated[Path, "FILE"],
    theta: dict[str, float],
    k: int = 12,
    where: Annotated[str | None, "SQL"] = None,
    model: Annotated[str | None, "MODEL"] = None,
    html: Annotated[Path | None, "FILE"] = None,
    json: bool = False,
) -> None:
    """Find the images that look as this one would after a transform.

    The query is encoded as it is and its embedding steered; the transform itself is never applied. Coordinates
    beyond the range that the map was made for are warned of.

    Args:
        db: a gallery that `steerable index` made
        image: the query
        k: number of results
        where: a condition on the columns id, path, label, width, height, and those of your own table
        model: the bundle, where it is no longer where it was when the gallery was made
        html: also write a page with the pictures
        json: print the results as JSON instead of a table

    Examples:
        steerable search photos.db --image cat.jpg --hue 0.1 --zoom 1 -k 12
        steerable search gallery.db --image rose.jpg --hue 0.2 --where "label='rose'" --html roses.html
    """
    from steerable.cli.audit import place_of_bundle
    from steerable.embedding import search_image
    from steerable.model import SteerableEncoder
    from steerable.retrieval import Index

    index = Index.open(db)
    place = model or index.facts.get("model")
    if not len(index) or not place:
        raise ConfigError(
            f"{db} holds no rows or does not say whose embeddings they are; expected a gallery of steerable "
            "index: check the path, or give --model"
        )
    bundle = SteerableEncoder.from_pretrained(place_of_bundle(place))
    index = Index.open(db, model=bundle)
    hits = search_image(index, bundle, image, theta, k=k, where=where)
    rows = [{key: value for key, value in hit.items() if not isinstance(value, bytes)} for hit in hits]
    if json:
        print(
            jsonlib.dumps({"query": str(image), "theta": theta, "where": where, "results": rows}, default=str)
        )
    else:
        _print(rows)
    if html is not None:
        _write(html, image, theta, hits)
        if not json:
            print(html)


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "cosine", "label", "size", "path", box=None, pad_edge=False)
    for place, row in enumerate(rows, start=1):
        size = f"{row['width']}x{row['height']}" if row["width"] else ""
        words = (row["label"] or "", size, row["path"] or row["id"])
        table.add_row(str(place), f"{row['score']:.3f}", *map(escape, words))
    # a file or a pipe has no width that a table would have to fit
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _write(html: Path, image: Path, theta: dict[str, float], hits: list[dict[str, Any]]) -> None:
    from steerable.data import decode
    from steerable.embedding import thumbnail
    from steerable.retrieval import results_page

    about = ", ".join(f"{name} {value:+g}" for name, value in theta.items()) or "as it is"
    query = thumbnail(decode(image).permute(1, 2, 0).contiguous().numpy())
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(
        results_page(hits, title=f"Images like {image.name}", about=f"Query: {about}", query=query)
    )
