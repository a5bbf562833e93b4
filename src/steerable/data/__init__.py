"""Images from folders, parquet files and the Hub, decoded once and kept in memory as uint8."""

from steerable.data.decoding import decode
from steerable.data.images import ImageSet, Skipped
from steerable.data.photographs import photos
from steerable.data.sources import load_images, localized, splits

__all__ = ["ImageSet", "Skipped", "decode", "load_images", "localized", "photos", "splits"]
