"""``steerable serve``."""

from pathlib import Path
from typing import Annotated


def serve(
    model: Annotated[str | None, "MODEL"] = None,
    db: Annotated[str | None, "DB"] = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    images: Annotated[str, "SRC"] = "photos",
    data: Annotated[Path | None, "PATH"] = None,
    limit: int | None = None,
    size: int | None = None,
    audit: Annotated[list[Path], "FILE"] = [],  # noqa: B006 - read only; the parser wants a list
) -> None:
    """Open a page where sliders move embeddings, and a JSON API beside it.

    Without a model: the demo's, or where no demo has run, a map that is fitted to photographs first, which takes
    under a minute. The page and the API are for this machine alone unless --host says otherwise; others need the
    token. Uploaded images stay in memory and are never stored.

    Args:
        model: a run directory, a bundle's folder, or a bundle on the Hub
        db: a gallery that `steerable index` made; without it, SRC is put into memory
        host: address to listen on; one that others can reach needs a token
        port: to listen on
        token: to be asked for, 12 characters at least; $STEERABLE_TOKEN hides it from lists of processes
        images: without DB, images of the gallery: photos, an image folder, a parquet glob, or a Hub data set's name
        data: local data: a folder that holds a copy of SRC, or is what to use in its place
        limit: images put into memory at most
        size: side in pixels that images are cut to [the gallery's, else the encoder's]
        audit: audits to show (JSON files of `steerable audit --out`) [audit.json or report.json beside the bundle]

    Examples:
        steerable serve
        steerable serve my-bundle gallery.db
        steerable serve my-bundle gallery.db --host 0.0.0.0 --token a-long-secret
    """
    from steerable.app.server import checked_token, create_app, is_loopback, need_app, run_server

    need_app()  # before anything takes time
    token = checked_token(host, token)
    from steerable.app.start import start
    from steerable.cli.audit import place_of_bundle
    from steerable.data import localized
    from steerable.progress import PassProgress

    source, root = localized(images, data)
    with PassProgress() as progress:
        started = start(
            None if model is None else place_of_bundle(model),
            db,
            images=source,
            root=root,
            limit=limit,
            size=size,
            audits=audit,
            progress=progress,
        )
    app = create_app(
        started.service,
        token=token,
        hosts=None if token else frozenset({"localhost", "127.0.0.1", "::1"}),
        source=started.source,
        command=started.command,
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}/" + ("" if is_loopback(host) else "  (asks for the token)"), flush=True)
    run_server(app, host, port, bounds=started.service.bounds)
