"""The server: page, API and guard in one application, run by uvicorn."""

import asyncio
import hashlib
import ipaddress
import os
from typing import Any

from steerable.app.bounds import Bounds
from steerable.app.service import Service
from steerable.errors import ConfigError, MissingExtra

TOKEN = "STEERABLE_TOKEN"
SHORTEST = 12  # characters of a token
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


def create_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: frozenset[str] | None = LOCAL,
    source: str = "images",
    command: str = "steerable audit",
) -> Any:
    """The ASGI application. token: asked for, where it is not None. hosts: names by which it may be addressed."""
    need_app()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is told to anybody
    import gradio as gr
    from fastapi import FastAPI
    from gradio.themes import Base

    from steerable import __version__
    from steerable.app.api import add_api
    from steerable.app.counting import Counts
    from steerable.app.guard import Guard
    from steerable.app.page import Page

    app = FastAPI(
        title="steerable", version=__version__, openapi_url="/api/openapi.json", docs_url=None, redoc_url=None
    )
    counts = Counts()
    add_api(app, service, counts)
    blocks = Page(service, source=source, command=command).build()
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # none is fetched
    theme = Base(primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app, blocks, path="/", show_error=False, run_history=False, footer_links=[], ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, max_file_size=service.bounds.body, theme=theme, css_paths=[_style()],
    )  # fmt: skip
    return Guard(app, bounds=service.bounds, counts=counts, token=token, hosts=hosts)


def need_app() -> None:
    """Raises MissingExtra where what the app is made of is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingExtra((error.name or "gradio").partition(".")[0], "app") from None


def checked_token(host: str, token: str | None) -> str | None:
    """The token to ask for: the one given, else the environment's; there must be one beyond loopback.

    Raises:
        ConfigError: none for an address that others can reach, or one that is short enough to be guessed.
    """
    token = token or os.environ.get(TOKEN) or None
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"host is {host}, which others can reach, and there is no token; expected one: give --token or set "
            f"${TOKEN}, or leave --host out"
        )
    if token is not None and (len(token) < SHORTEST or not token.isascii()):
        raise ConfigError(
            f"the token has {len(token)} characters; expected {SHORTEST} plain ones at least: take a longer one, "
            f"such as {hashlib.sha256(os.urandom(16)).hexdigest()[:24]}"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def run_server(app: Any, host: str, port: int, *, bounds: Bounds) -> None:
    """Serve until interrupted."""
    import uvicorn

    uvicorn.Server(server_config(app, host, port, bounds=bounds)).run()


def server_config(app: Any, host: str, port: int, *, bounds: Bounds) -> Any:
    """uvicorn's settings for the app."""
    import uvicorn

    return uvicorn.Config(
        app, host=host, port=port, http=deadline_protocol(bounds.arrive), ws="none", log_level="warning",
        access_log=False, limit_concurrency=bounds.connections, server_header=False, timeout_keep_alive=5,
        timeout_graceful_shutdown=3, proxy_headers=False,
    )  # fmt: skip


def deadline_protocol(seconds: float) -> Any:
    """uvicorn's protocol, which hangs up where a request's head takes longer than ``seconds`` to come."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Deadline(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            coming = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            if coming and self.late is None:
                self._wait()
            elif not coming:
                self._rest()

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self.late = self.loop.call_later(seconds, self.transport.close)

        def _rest(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

    return Deadline


def _style() -> str:
    from pathlib import Path

    return str(Path(__file__).parent / "page.css")
