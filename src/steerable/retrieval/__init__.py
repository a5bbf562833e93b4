"""Galleries of embeddings that are searched with steered queries: in memory, or in a LanceDB table."""

from steerable.retrieval.index import Index
from steerable.retrieval.page import results_page

__all__ = ["Index", "results_page"]
