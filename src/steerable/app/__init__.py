"""The app of `steerable serve`: a page and a JSON API over one service, which knows neither."""

from steerable.app.bounds import Bounds, Busy
from steerable.app.gallery import Gallery, memory_gallery
from steerable.app.service import Service

__all__ = ["Bounds", "Busy", "Gallery", "Service", "memory_gallery"]
