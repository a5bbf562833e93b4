"""What the app's tests share: a server in a thread, image files, and the browser's place."""

import base64
import io
import shutil
import socket
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from steerable.app import Bounds, Service

CHROMIUM = shutil.which("chromium")
BOUNDS = replace(Bounds(), body=2 * 2**20, arrive=1.0, batch=4, waiting=3, wait=5.0)
SIZE = 32


@dataclass
class Running:
    """A server in a thread."""

    url: str
    port: int
    service: Service


class running:
    """A context with a server for this service."""

    def __init__(self, service: Service, **settings: Any):
        import uvicorn

        from steerable.app.server import create_app, server_config

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        app = create_app(service, **settings)
        self.server = uvicorn.Server(server_config(app, "127.0.0.1", port, bounds=service.bounds))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.found = Running(f"http://127.0.0.1:{port}", port, service)

    def __enter__(self) -> Running:
        self.thread.start()
        for _ in range(200):
            if self.server.started:
                return self.found
            time.sleep(0.05)
        raise RuntimeError("the server did not start")

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)


def png(color: tuple[int, int, int] = (200, 80, 30), size: tuple[int, int] = (40, 40)) -> bytes:
    """A file with one color and a gradient."""
    image = Image.new("RGB", size, color)
    image.paste(Image.linear_gradient("L").resize((size[0], size[1] // 2)).convert("RGB"))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()
