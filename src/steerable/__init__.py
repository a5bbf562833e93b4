"""Image embeddings that move predictably: train, fit, measure and spend steering maps.

The names below are loaded when they are first used, so that ``import steerable`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerable import data as data
    from steerable import losses as losses
    from steerable import maps as maps
    from steerable import metrics as metrics
    from steerable import ood as ood
    from steerable import testing as testing
    from steerable import transforms as transforms
    from steerable import tta as tta
    from steerable.auditing import AuditReport as AuditReport
    from steerable.auditing import audit as audit
    from steerable.data import load_images as load_images
    from steerable.encoders import Encoder as Encoder
    from steerable.encoders import load_encoder as load_encoder
    from steerable.errors import BundleError as BundleError
    from steerable.errors import ConfigError as ConfigError
    from steerable.errors import DataError as DataError
    from steerable.errors import FitError as FitError
    from steerable.errors import LawError as LawError
    from steerable.errors import MissingExtra as MissingExtra
    from steerable.errors import ShapeError as ShapeError
    from steerable.errors import SteerableError as SteerableError
    from steerable.errors import ThetaError as ThetaError
    from steerable.fitting import fit_embeddings as fit_embeddings
    from steerable.model import SteerableEncoder as SteerableEncoder
    from steerable.posthoc import fit as fit
    from steerable.retrieval import Index as Index
    from steerable.training import TrainConfig as TrainConfig
    from steerable.training import train as train

__version__ = "0.1.0"

# where each name lives; a new public name is one entry here, one import above and one in `__all__`
_HOMES: dict[str, tuple[str, ...]] = {
    "steerable.auditing": ("AuditReport", "audit"),
    "steerable.data": ("load_images",),
    "steerable.encoders": ("Encoder", "load_encoder"),
    "steerable.errors": (
        "BundleError",
        "ConfigError",
        "DataError",
        "FitError",
        "LawError",
        "MissingExtra",
        "ShapeError",
        "SteerableError",
        "ThetaError",
    ),
    "steerable.fitting": ("fit_embeddings",),
    "steerable.model": ("SteerableEncoder",),
    "steerable.posthoc": ("fit",),
    "steerable.retrieval": ("Index",),
    "steerable.training": ("TrainConfig", "train"),
}
_MODULES = ("data", "losses", "maps", "metrics", "ood", "testing", "transforms", "tta")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AuditReport",
    "BundleError",
    "ConfigError",
    "DataError",
    "Encoder",
    "FitError",
    "Index",
    "LawError",
    "MissingExtra",
    "ShapeError",
    "SteerableEncoder",
    "SteerableError",
    "ThetaError",
    "TrainConfig",
    "__version__",
    "audit",
    "data",
    "fit",
    "fit_embeddings",
    "load_encoder",
    "load_images",
    "losses",
    "maps",
    "metrics",
    "ood",
    "testing",
    "train",
    "transforms",
    "tta",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"steerable.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'steerable' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value  # the next look-up is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
