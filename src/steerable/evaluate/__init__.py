"""Evaluations: what embeddings and steering are worth on a task."""

from steerable.evaluate.corruptions import CORRUPTION_NAMES, CORRUPTIONS, corrupt
from steerable.evaluate.encoding import Encodings
from steerable.evaluate.ood import evaluate_ood
from steerable.evaluate.probe_arms import evaluate_probes
from steerable.evaluate.probing import C_GRID, ProbeResult, linear_head, probe, strengths
from steerable.evaluate.retrieval import evaluate_retrieval
from steerable.evaluate.robustness import ALEXNET, evaluate_robustness
from steerable.evaluate.steerability import evaluate_steerability
from steerable.evaluate.suite import evaluation_suite, headlines
from steerable.evaluate.transfer import evaluate_transfer, load_parts
from steerable.evaluate.tta import evaluate_tta

__all__ = [
    "ALEXNET",
    "CORRUPTIONS",
    "CORRUPTION_NAMES",
    "C_GRID",
    "Encodings",
    "ProbeResult",
    "corrupt",
    "evaluate_ood",
    "evaluate_probes",
    "evaluate_retrieval",
    "evaluate_robustness",
    "evaluate_steerability",
    "evaluate_transfer",
    "evaluate_tta",
    "evaluation_suite",
    "headlines",
    "linear_head",
    "load_parts",
    "probe",
    "strengths",
]
