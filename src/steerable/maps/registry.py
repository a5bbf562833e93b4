"""The families by name, and maps rebuilt from their configuration."""

from collections.abc import Mapping
from typing import Any

from steerable.maps.base import IdentityMap, SteeringMap
from steerable.maps.basis import BasisMap, LowRankMap, ShiftMap
from steerable.maps.exponential import ExponentialMap
from steerable.maps.features import unknown_name
from steerable.maps.rotation import RotationMap

_FAMILIES: tuple[type[SteeringMap], ...] = (
    IdentityMap,
    ShiftMap,
    BasisMap,
    LowRankMap,
    RotationMap,
    ExponentialMap,
)
MAPS: dict[str, type[SteeringMap]] = {family.name: family for family in _FAMILIES}


def build(config: Mapping[str, Any]) -> SteeringMap:
    """The map that `SteeringMap.config` describes, with fresh weights.

    Args:
        config: "name" (a key of `MAPS`), "dim" and "n_params"; "features" (a string, or the settings of
            `Features`), "laws" and the family's own arguments may follow.

    Raises:
        ConfigError: unknown name or key (the nearest one is suggested), missing key, or values out of range.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in MAPS:
        raise unknown_name("map", str(name), MAPS)
    return MAPS[name].from_config(settings)
