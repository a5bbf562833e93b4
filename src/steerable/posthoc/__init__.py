"""Fit over images: maps for an encoder that exists already, its weights untouched."""

from steerable.posthoc.fit import fit

__all__ = ["fit"]
