"""Evaluations of frozen embeddings."""

from steerable.evaluate.probing import C_GRID, ProbeResult, probe

__all__ = ["C_GRID", "ProbeResult", "probe"]
