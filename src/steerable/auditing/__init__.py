"""Audits: how far an encoder's embeddings move with a transform, and how well its map predicts the motion."""

from steerable.auditing.report import AuditReport, Example, ModelInfo, Row, View
from steerable.auditing.run import audit

__all__ = ["AuditReport", "Example", "ModelInfo", "Row", "View", "audit"]
