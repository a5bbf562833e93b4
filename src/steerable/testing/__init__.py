"""Checks for transforms and maps of your own: call them from your test suite."""

from steerable.testing.map import check_map
from steerable.testing.transform import check_transform

__all__ = ["check_map", "check_transform"]
