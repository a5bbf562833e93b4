"""Fit steering maps to pairs of embeddings: closed forms where they exist, gradients where not."""

from steerable.fitting.closed import check_room
from steerable.fitting.embeddings import fit_embeddings

__all__ = ["check_room", "fit_embeddings"]
