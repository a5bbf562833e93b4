"""phi(theta): the functions of theta that a steering map is linear in, all exactly zero at theta = 0."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerable.errors import ConfigError, ThetaError, one_of

EXPANSIONS = ("linear", "squares", "cubes", "absolute", "pairwise", "harmonics", "window")
_AUTO = ("linear", "squares", "pairwise")
_ORDERS = (1, 2)  # harmonics: sin and cos of these multiples of the angle
_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


def unknown_name(what: str, name: str, options: Iterable[str]) -> ConfigError:
    """The error for a name that is not among the options; it suggests the nearest one."""
    return ConfigError(f"{what} {name!r} is unknown; {one_of(name, options)}")


class Features(nn.Module):
    """phi: theta (*, p) -> (*, k), with phi(0) = 0 exactly.

    Args:
        expansion: names joined by "+", with x = theta / scale (coordinates that have a period are wrapped
            into (-P/2, P/2] first, so that phi(theta + P) = phi(theta)):
            "linear" x; "squares" x^2; "cubes" x^3; "absolute" |x|; "pairwise" x_i x_j for i < j;
            "harmonics" sin(2 pi m theta / P) and cos(2 pi m theta / P) - 1 for m = 1, 2, of each
            coordinate with a period; "window" the part of the image that a crop shows: w - 1, h - 1, x, y
            with half its width and height and its center, [-1, 1] spanning the image and y pointing down,
            these divided by what the scales allow for 1 - w; and the products of these four. "auto" alone is
            linear, squares and pairwise, with harmonics where there is a period and window where there is a
            crop: `fit_embeddings` chooses from these.
        n_params: p.
        scales: one positive number per coordinate, usually its largest absolute value, so that phi is of
            order one; ones by default.
        periods: one positive number or None per coordinate; none by default.
        window: where zoom, aspect, shift_x and shift_y stand in theta, in the units of
            `steerable.transforms.Crop`; none by default.

    Raises:
        ConfigError: unknown or repeated expansion, harmonics without a period, "window" without window, no
            function at all, scales and periods that are not p positive numbers, or a window that is not
            four places.
    """

    scales: Tensor
    periods: Tensor

    def __init__(
        self,
        expansion: str = "linear",
        n_params: int = 1,
        scales: Sequence[float | int] | None = None,
        periods: Sequence[float | int | None] | None = None,
        window: Sequence[int] | None = None,
    ):
        super().__init__()
        if n_params < 1:
            raise ConfigError(
                f"n_params is {n_params}; expected at least 1: give the number of theta's coordinates"
            )
        self.n_params = n_params
        self.auto = expansion == "auto"
        if self.auto:
            more = {"harmonics": any(periods or ()), "window": window is not None}
            expansion = "+".join([*_AUTO, *(term for term, has in more.items() if has)])
        self.terms = _parse(expansion)
        self.scale_values = _positive(
            "scales", [1.0] * n_params if scales is None else list(scales), n_params
        )
        self.period_values = _positive(
            "periods", [None] * n_params if periods is None else list(periods), n_params
        )
        self._periodic = [i for i, period in enumerate(self.period_values) if period is not None]
        if "harmonics" in self.terms and not self._periodic:
            raise ConfigError(
                "features are 'harmonics' and no coordinate has a period; expected at least one: "
                "give periods=, or leave harmonics out"
            )
        self.window: tuple[int, ...] = () if window is None else _places(window, n_params)
        if "window" in self.terms and not self.window:
            raise ConfigError(
                f"features are {expansion!r} and theta is not known to hold a crop; expected the places of zoom, "
                "aspect, shift_x and shift_y: take a chain with crop (or give window=), or leave window out"
            )
        # Constants, rebuilt from the configuration: they follow .to(device) and stay out of saved weights.
        # A missing period is 0, not infinity, which a moving average of all buffers would turn into NaN.
        self.register_buffer("scales", torch.tensor(self.scale_values), persistent=False)
        periods_or_zero = [0.0 if period is None else period for period in self.period_values]
        self.register_buffer("periods", torch.tensor(periods_or_zero), persistent=False)
        if self.n_features == 0:
            raise ConfigError(
                f"features {expansion!r} give no function for {n_params} coordinate(s); expected at least "
                "one: add linear"
            )

    @property
    def expansion(self) -> str:
        """The names joined by "+"."""
        return "+".join(self.terms)

    @property
    def is_linear(self) -> bool:
        """True where phi is theta / scale."""
        return self.terms == ("linear",)

    @property
    def term_sizes(self) -> dict[str, int]:
        """How many functions each part of the expansion has, in the order of phi's columns."""
        p = self.n_params
        sizes = {
            "pairwise": p * (p - 1) // 2,
            "harmonics": 2 * len(_ORDERS) * len(self._periodic),
            "window": 14,
        }
        return {term: sizes.get(term, p) for term in self.terms}

    @property
    def n_features(self) -> int:
        """k."""
        return sum(self.term_sizes.values())

    def config(self) -> dict[str, Any]:
        """What `from_config` needs besides n_params, as JSON types."""
        settings = {
            "expansion": self.expansion,
            "scales": list(self.scale_values),
            "periods": list(self.period_values),
        }
        return settings | ({"window": list(self.window)} if "window" in self.terms else {})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], n_params: int) -> "Features":
        """Rebuild from `config`.

        Raises:
            ConfigError: a key that is not one of expansion, scales, periods, window; or values that the
            constructor refuses.
        """
        for key in config:
            if key not in ("expansion", "scales", "periods", "window"):
                raise unknown_name("feature setting", key, ("expansion", "scales", "periods", "window"))
        return cls(n_params=n_params, **config)

    def forward(self, theta: Tensor) -> Float[Tensor, "*batch k"]:
        """phi(theta) (*, k) in theta's type, float32 at least.

        Raises:
            ThetaError: theta (*, p) has another width, is not real, or is not finite.
        """
        theta = self.check(theta)
        wrapped = self._wrapped(theta)
        x = wrapped / self.scales
        columns = [self._term(term, x, wrapped) for term in self.terms]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)

    def check(self, theta: Tensor) -> Tensor:
        """theta as a finite floating tensor (*, p), float32 at least, or ThetaError."""
        if not isinstance(theta, Tensor) or theta.is_complex() or theta.dtype == torch.bool:
            kind = theta.dtype if isinstance(theta, Tensor) else type(theta).__name__
            raise ThetaError(
                f"theta is {kind}; expected a real tensor (..., {self.n_params}): use torch.tensor"
            )
        if theta.ndim == 0 or theta.shape[-1] != self.n_params:
            raise ThetaError(
                f"theta has shape {tuple(theta.shape)}; this map has {self.n_params} coordinates and "
                f"expected (..., {self.n_params}): use the theta of the chain that the map was made for"
            )
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        if not (torch.compiler.is_compiling() or _TRUSTED.get() or bool(torch.isfinite(theta).all())):
            finite = torch.isfinite(theta).reshape(-1, self.n_params).all(dim=0)
            bad = (~finite).nonzero().flatten().tolist()
            raise ThetaError(
                f"theta is not finite in coordinate(s) {', '.join(map(str, bad))}; expected finite numbers: "
                "drop or correct those rows"
            )
        return theta

    def _wrapped(self, theta: Float[Tensor, "*batch p"]) -> Float[Tensor, "*batch p"]:
        if not self._periodic:
            return theta
        has_period = self.periods > 0
        turns = torch.ceil(theta / torch.where(has_period, self.periods, 1.0) - 0.5)
        return theta - torch.where(has_period, turns, 0.0) * self.periods

    def _term(
        self, term: str, x: Float[Tensor, "*batch p"], wrapped: Float[Tensor, "*batch p"]
    ) -> Float[Tensor, "*batch m"]:
        if term == "linear":
            return x
        if term == "squares":
            return x.square()
        if term == "cubes":
            return x**3
        if term == "absolute":
            return x.abs()
        if term == "pairwise":
            first, second = torch.triu_indices(self.n_params, self.n_params, offset=1, device=x.device)
            return x[..., first] * x[..., second]
        if term == "window":
            return self._window(wrapped)
        turns = wrapped[..., self._periodic] / self.periods[self._periodic]
        waves = [(2 * math.pi * m) * turns for m in _ORDERS]
        return torch.cat([f for wave in waves for f in (wave.sin(), wave.cos() - 1)], dim=-1)

    def _window(self, theta: Float[Tensor, "*batch p"]) -> Float[Tensor, "*batch m"]:
        zoom, aspect, *shifts = (theta[..., i] for i in self.window)
        halves = [(-zoom - aspect / 2).exp2(), (aspect / 2 - zoom).exp2()]
        centers = [-2 * shift * half for shift, half in zip(shifts, halves, strict=True)]
        most = self.scale_values[self.window[0]] + self.scale_values[self.window[1]] / 2
        x = torch.stack([*(half - 1 for half in halves), *centers], dim=-1) / (1 - 2**-most)
        first, second = torch.triu_indices(4, 4, device=x.device)
        return torch.cat([x, x[..., first] * x[..., second]], dim=-1)


def as_features(features: str | Features, n_params: int) -> Features:
    """An own copy of Features, from an expansion's name or from Features.

    Raises:
        ConfigError: Features made for another number of coordinates.
    """
    if isinstance(features, str):
        return Features(features, n_params)
    if features.n_params != n_params:
        raise ConfigError(
            f"features are for {features.n_params} coordinates and the map has n_params={n_params}; "
            "expected the same number: build both from one chain"
        )
    return Features.from_config(features.config(), n_params)


def _parse(expansion: str) -> tuple[str, ...]:
    terms = tuple(term.strip() for term in expansion.split("+"))
    for term in terms:
        if term not in EXPANSIONS:
            raise unknown_name("feature expansion", term, EXPANSIONS)
    if len(set(terms)) < len(terms):
        raise ConfigError(
            f"features {expansion!r} name an expansion twice; expected each once: leave one out"
        )
    return terms


def _places(window: Sequence[int], n_params: int) -> tuple[int, ...]:
    """Four different places in theta, or ConfigError."""
    places = list(window)
    if len(places) != 4 or len(set(places)) < 4 or not set(places) <= set(range(n_params)):
        raise ConfigError(
            f"window is {places}; expected the places of zoom, aspect, shift_x and shift_y, each once, among "
            f"{n_params} coordinates: correct window="
        )
    return tuple(map(int, places))


def _positive(what: str, values: list, n_params: int) -> tuple:
    """The values as a tuple of floats (or None, for periods), one per coordinate, or ConfigError."""
    if len(values) != n_params:
        raise ConfigError(
            f"{what} has {len(values)} values; expected {n_params}, one per coordinate: correct {what}="
        )
    for value in values:
        if value is None and what == "periods":
            continue
        if value is None or not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{what} holds {value}; expected positive finite numbers: correct {what}=")
    return tuple(None if value is None else float(value) for value in values)


@contextmanager
def trusted() -> Iterator[None]:
    """Within it thetas are not searched for values that are not finite, for which a GPU would be waited for.

    For thetas that a transform's `sample` drew.
    """
    token = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(token)
