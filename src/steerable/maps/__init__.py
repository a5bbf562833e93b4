"""Steering maps, affine in the embedding, by theta: families (`MAPS`), and `build` from a config."""

from steerable.maps.base import IdentityMap, SteeringMap
from steerable.maps.basis import BasisMap, LowRankMap, ShiftMap
from steerable.maps.exponential import ExponentialMap
from steerable.maps.features import EXPANSIONS, Features
from steerable.maps.registry import MAPS, build
from steerable.maps.rotation import RotationMap

__all__ = [
    "EXPANSIONS",
    "MAPS",
    "BasisMap",
    "ExponentialMap",
    "Features",
    "IdentityMap",
    "LowRankMap",
    "RotationMap",
    "ShiftMap",
    "SteeringMap",
    "build",
]
