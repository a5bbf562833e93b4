"""Embedding jobs: images into a gallery (read, encode, add) or into shards of a table, and an image's question."""

from steerable.embedding.gallery import Indexed, index_images, search_image, thumbnail
from steerable.embedding.shards import Embedded, embed_images

__all__ = ["Embedded", "Indexed", "embed_images", "index_images", "search_image", "thumbnail"]
