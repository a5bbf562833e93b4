"""Chains: the matrices of the members are multiplied, the pixels are touched once."""

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import ConfigError, LawError, one_of
from steerable.theta import Laws, Param
from steerable.transforms.base import Transform
from steerable.transforms.pixels import Plan
from steerable.transforms.registry import PRESETS, TRANSFORMS


class Chain(Transform):
    """Transforms in sequence: geometry, then color, then filters; the listed order within each.

    Columns of theta follow the listing. There is one warp and one color product per image, however
    many members, and one clipping, at the end. Chains among the members are unpacked.

    Raises:
        ConfigError: no members, something that is no transform, or two parameters of one name.
    """

    name = "chain"

    def __init__(self, members: Iterable[Transform]):
        self.members = tuple(part for member in members for part in _unpack(member))
        self.params: tuple[Param, ...] = tuple(param for member in self.members for param in member.params)
        if not self.members:
            raise ConfigError(
                "the chain has no members; expected one transform at least: e.g. Chain([HFlip()])"
            )
        names = [param.name for param in self.params]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"the chain has parameters of the same name ({', '.join(twice)}); "
                "expected each name once: list each transform once"
            )
        self.laws = Laws.ALL
        for member in self.members:
            self.laws &= member.laws
        families = {member.commuting for member in self.members}
        self.commuting = families.pop() if len(families) == 1 else None

    @classmethod
    def preset(cls, name: str) -> "Chain":
        """A ready-made chain: simclr, simclr-full, geometric or photometric.

        Raises:
            ConfigError: another name.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset is {name!r}; {one_of(name, PRESETS)}")
        return build(PRESETS[name])

    @property
    def param_laws(self) -> tuple[Laws, ...]:
        return tuple(laws for member in self.members for laws in member.param_laws)

    @property
    def window(self) -> list[int] | None:
        """The places of a crop's zoom, aspect, shift_x and shift_y in theta; None without a crop."""
        crop = [param for member in self.members if member.name == "crop" for param in member.params]
        return [self.params.index(param) for param in crop] or None

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n p"]:
        """Draw each member's theta, in listed order, from one generator: (n, p), float32 on the CPU."""
        return torch.cat([member.sample(n, generator=generator) for member in self.members], dim=1)

    def plan(self, theta: Float[Tensor, "b p"], ratio: float) -> Plan:
        parts = theta.split([len(member.params) for member in self.members], dim=1)
        plans = [member.plan(part, ratio) for member, part in zip(self.members, parts, strict=True)]
        return functools.reduce(Plan.then, plans)

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Theta of ``first``, then ``second``, where the chain is one member or members that commute.

        Raises:
            LawError: the chain keeps its own order, so that two passes are no single pass of it.
            ThetaError: shapes or values.
        """
        if len(self.members) == 1:
            return self.members[0].compose(first, second)
        self._require_closed("compose")
        return super().compose(first, second)

    def inverse(self, theta: Tensor) -> Tensor:
        """Theta that undoes ``theta``, where the chain is one member or members that commute.

        Raises:
            LawError: the chain keeps its own order, in which no member can be undone before the others.
            ThetaError: shape or values.
        """
        if len(self.members) == 1:
            return self.members[0].inverse(theta)
        self._require_closed("inverse")
        return super().inverse(theta)

    def _require_closed(self, method: str) -> None:
        if self.commuting is None:
            names = ", ".join(member.name for member in self.members)
            raise LawError(
                f"the chain of {names} has no {method}: its order is fixed and its members do not commute; "
                "expected one member, or members that commute: split the chain, or apply it twice"
            )

    def config(self) -> dict[str, Any]:
        """``{"name": "chain", "members": [...]}``, ready for JSON; ``build`` is the way back."""
        return {"name": self.name, "members": [member.config() for member in self.members]}

    def __repr__(self) -> str:
        return f"Chain([{', '.join(map(repr, self.members))}])"


def _unpack(member: Transform) -> tuple[Transform, ...]:
    if not isinstance(member, Transform):
        raise ConfigError(
            f"a member of the chain is {member!r}; expected a transform: e.g. HFlip(); configs go to build"
        )
    return member.members if isinstance(member, Chain) else (member,)


def build(config: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Chain:
    """A chain from a preset's name, from the configs of its members, or from a chain's own config.

    Raises:
        ConfigError: an unknown preset, transform or argument (the nearest one is suggested).
    """
    if isinstance(config, str):
        return Chain.preset(config)
    if isinstance(config, Mapping):
        members = config["members"] if config.get("name") == "chain" and "members" in config else [config]
        return build(members)
    if not isinstance(config, Sequence):
        raise ConfigError(
            f"the chain's config is {config!r}; expected a preset's name or a list of configs: e.g. 'simclr'"
        )
    return Chain([_build_one(member) for member in config])


def _build_one(config: Mapping[str, Any]) -> Transform:
    if not isinstance(config, Mapping) or "name" not in config:
        raise ConfigError(
            f"a transform's config is {config!r}; expected a mapping with a name: e.g. {{'name': 'hflip'}}"
        )
    arguments = {key: value for key, value in config.items() if key != "name"}
    name = config["name"]
    if name not in TRANSFORMS:
        raise ConfigError(f"transform is {name!r}; {one_of(name, TRANSFORMS)}")
    known = inspect.signature(TRANSFORMS[name]).parameters
    for key in arguments:
        if key not in known:
            raise ConfigError(f"{name} has no argument {key!r}; {one_of(key, known)}")
    return TRANSFORMS[name](**arguments)
