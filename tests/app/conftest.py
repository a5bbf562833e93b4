"""A small model with a small gallery behind a real server on loopback."""

import os
from collections.abc import Iterator

import pytest
import torch

import bundles

pytest.importorskip("gradio", reason="the app's extra is not installed: pip install 'steerable[app]'")

from app_world import BOUNDS, SIZE, Running, running

from steerable.app import Service, memory_gallery
from steerable.app.known import Known
from steerable.app.start import start
from steerable.auditing import audit
from steerable.data import photos

BUNDLE = os.environ.get("STEERABLE_APP_BUNDLE")


@pytest.fixture(scope="session")
def service() -> Service:
    """140 photographs, a resnet of width 4, an audit of it, and what is known of the gallery."""
    if BUNDLE:  # the README's pictures show the demo's
        return start(BUNDLE, limit=1000).service
    torch.manual_seed(0)
    model = bundles.build(bundles.tiny(), head=False).eval()
    images = photos(size=48, n=140)
    report = audit({"tiny": model}, images.images[:16], views=4, n_images=8, n_pool=4, strengths=2)
    service = Service(
        model, memory_gallery(model, images, SIZE), name="tiny", reports=[report], bounds=BOUNDS
    )
    service.known = Known(service)
    return service


@pytest.fixture(scope="session")
def server(service: Service) -> Iterator[Running]:
    """The app as `steerable serve` runs it, without a token."""
    with running(service) as found:
        yield found
