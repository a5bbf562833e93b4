"""Test-time augmentation on embeddings: one encoder pass, any number of steered views."""

from steerable.tta.classifier import SteeredClassifier
from steerable.tta.merging import MERGES, OF, fold, merge, merged, orbit_logits
from steerable.tta.views import VIEWS, choose_views, views

__all__ = [
    "MERGES",
    "OF",
    "VIEWS",
    "SteeredClassifier",
    "choose_views",
    "fold",
    "merge",
    "merged",
    "orbit_logits",
    "views",
]
