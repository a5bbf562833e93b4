"""Out-of-distribution scores on embeddings, higher is further out, with pytorch-ood's interface.

None of them runs an encoder: steered views cost matrix products, and truly encoded views are handed in.
"""

from steerable.ood.baselines import BASELINES, Baseline, baseline
from steerable.ood.combining import Combination, threshold
from steerable.ood.detectors import MotionShare, OrbitContrast, OrbitScore, OverOrbit, SteeringResidual
from steerable.ood.scores import ORBIT_SCORES

__all__ = [
    "BASELINES", "ORBIT_SCORES", "Baseline", "Combination", "MotionShare", "OrbitContrast", "OrbitScore", "OverOrbit",
    "SteeringResidual", "baseline", "threshold",
]  # fmt: skip
