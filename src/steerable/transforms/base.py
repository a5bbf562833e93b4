"""The contract of every transform: parameters, laws, sampling, application, and the group operations."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import ConfigError, LawError, ShapeError, ThetaError
from steerable.theta import Laws, Param, check_theta, wrap
from steerable.transforms.pixels import Plan, paint

Range = float | tuple[float, float] | list[float]


class Transform(ABC):
    """A family of image operations indexed by theta (b, p); zero leaves the image as it is.

    A subclass sets ``name``, ``params`` and ``laws`` (what holds along every coordinate), and stores its
    constructor's arguments under their own names, from which ``config`` reads them. Extend ``Geometric``,
    ``Photometric`` or ``Filter``, which ask for one method: ``matrix``, ``affine`` or ``act``.
    """

    name: ClassVar[str]
    commuting: str | None = None
    """A family whose members commute with each other before clipping, so that plus composes them jointly."""
    params: tuple[Param, ...]
    laws: Laws

    @property
    def param_laws(self) -> tuple[Laws, ...]:
        """Laws of each coordinate; the transform's own, repeated, by default."""
        return (self.laws,) * len(self.params)

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n p"]:
        """Draw n thetas, float32 on the CPU: uniform within each range, or over the values of a stepped coordinate.

        Raises:
            ThetaError: the generator is absent or not on the CPU.
        """
        draw = uniform(n, len(self.params), generator)
        columns = []
        for param, u in zip(self.params, draw.T, strict=True):
            levels = param.levels
            value = (param.high - param.low) * u if levels is None else (levels * u).floor() * param.step
            columns.append(param.low + value)
        return torch.stack(columns, dim=1)

    def apply(self, images: Tensor, theta: Tensor) -> Tensor:
        """Transform each image by its own row of theta.

        images: (b, 3, h, w), floating, RGB in [0, 1], any device. theta: (b, p), on any device.
        Returns images of the same shape, type and device, clipped to [0, 1]. Deterministic; half-precision
        images are computed in float32. Values are not searched for NaN here: encoders do that.

        Raises:
            ShapeError: images of another shape or type.
            ThetaError: theta of another shape, or not finite.
        """
        check_images(images)
        theta = check_theta(theta, self.params, n=len(images))
        # In single precision a row's matrices would depend, in their last bit, on the batch around it.
        theta = theta.float() if theta.device.type == "mps" else theta.double()
        with (
            torch.autocast(images.device.type, enabled=False),
            torch.autocast(theta.device.type, enabled=False),
        ):
            return paint(images, self.plan(theta, images.shape[-1] / images.shape[-2]))

    @abstractmethod
    def plan(self, theta: Float[Tensor, "b p"], ratio: float) -> Plan:
        """What theta does to images of this ratio of width to height."""

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Theta of ``first``, then ``second``: (..., p) each, broadcast.

        Raises:
            LawError: the family is not closed under composition.
            ThetaError: shapes or values.
        """
        self._require(Laws.COMPOSE, "compose")
        first, second = check_theta(first, self.params), check_theta(second, self.params)
        return wrap(first + second, self.params)

    def inverse(self, theta: Tensor) -> Tensor:
        """Theta that undoes ``theta``: (..., p) in and out.

        Raises:
            LawError: the family has no inverses.
            ThetaError: shape or values.
        """
        self._require(Laws.INVERSE, "inverse")
        return wrap(-check_theta(theta, self.params), self.params)

    def _require(self, law: Laws, method: str) -> None:
        if law not in self.laws:
            raise LawError(
                f"{self.name} does not declare {law.name}; {method} needs it: "
                "apply in sequence, or leave out what loses information"
            )
        if len(self.params) > 1 and self.commuting is None:
            raise LawError(
                f"{self.name} has {len(self.params)} coordinates, across which plus is not composition; "
                f"expected one, or its own {method}: override {method} where the family is closed"
            )

    def config(self) -> dict[str, Any]:
        """The name and the constructor's arguments, ready for JSON; ``build`` is the way back."""
        arguments = inspect.signature(type(self)).parameters
        return {"name": self.name, **{key: _plain(getattr(self, key)) for key in arguments}}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value}" for key, value in self.config().items() if key != "name")
        return f"{type(self).__name__}({arguments})"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def uniform(n: int, k: int, generator: torch.Generator) -> Float[Tensor, "n k"]:
    """(n, k) uniform draws in [0, 1), float32 on the CPU, so that they are equal on every machine.

    Raises:
        ThetaError: the generator is absent or not on the CPU.
    """
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        kind = generator.device if isinstance(generator, torch.Generator) else type(generator).__name__
        raise ThetaError(
            f"generator is {kind}; expected a torch.Generator on the CPU: torch.Generator().manual_seed(0)"
        )
    return torch.rand(n, k, generator=generator)


def check_images(images: Tensor) -> None:
    """Raise unless images are floating and of shape (b, 3, h, w).

    Raises:
        ShapeError: another shape or type.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError(
            f"images are {kind}; expected floating values in [0, 1]: convert with images.float() / 255"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ShapeError(
            f"images have shape {tuple(images.shape)}; expected (b, 3, h, w): "
            "add the batch axis, put channels first, convert to RGB"
        )


def as_range(value: Range, name: str) -> tuple[float, float]:
    """(low, high) from a pair, or (-value, value) from a number.

    Raises:
        ConfigError: neither a number nor a pair of numbers.
    """
    try:
        low, high = (-abs(value), abs(value)) if isinstance(value, int | float) else value
        return float(low), float(high)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} is {value!r}; expected a number or a pair (low, high): e.g. {name}=(-0.1, 0.1)"
        ) from error


def as_probability(value: float, name: str = "p") -> float:
    """The value as a float, if it is a probability.

    Raises:
        ConfigError: not a number in [0, 1].
    """
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value!r}; expected a probability: a number from 0 to 1")
    return float(value)
