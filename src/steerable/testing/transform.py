"""Checks that a transform keeps what it declares; for its author's own test suite."""

import contextlib
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerable.errors import LawError
from steerable.theta import Laws, Param
from steerable.transforms import Transform

_CASES = 8
_EDGE = 1.5
"""Width in pixels of the margin in which an interpolation sees the reflected border."""

_View = tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "b h w"]]


def check_transform(
    transform: Transform,
    *,
    images: Tensor | None = None,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-3,
) -> None:
    """Raise unless the transform keeps its laws, and the contract that all transforms share.

    Along each coordinate, the others at zero, what ``param_laws`` declares: IDENTITY, COMPOSE, INVERSE, and
    the period. Over joint draws: ``compose`` and ``inverse`` where they exist. And: sampling (shape, type,
    range, same draws from the same seed), determinism, clipping, no change to the input, bfloat16, batch
    equal to one-by-one. Laws hold up to clipping and interpolation, so pixels that clipped, or were fetched
    from outside the frame, are left out. The error is the worst one over pixels and cases.

    images: (m, 3, h, w) in [0, 1]; by default smooth ones, away from 0 and 1, on which bilinear
    interpolation is good to 5e-4. tolerance: largest error allowed in a pixel's value.

    Raises:
        AssertionError: names the law, the coordinate, the worst error and the theta where it occurred.
    """
    images = smooth_images() if images is None else images
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    check = _Check(transform, images, generator, tolerance)
    check.sampling()
    check.contract()
    for i, (param, laws) in enumerate(zip(transform.params, transform.param_laws, strict=True)):
        check.coordinate(i, param, laws)
    check.group()


def smooth_images(n: int = 2, h: int = 40, w: int = 56) -> Float[Tensor, "{n} 3 {h} {w}"]:
    """Images of a few low cosines, in [0.3, 0.6]; flat at the border, so that reflection adds no kink."""
    generator = torch.Generator().manual_seed(7)
    y, x = (torch.pi * (torch.arange(side) + 0.5) / side for side in (h, w))
    waves = torch.stack(
        [torch.cos(i * y)[:, None] * torch.cos(j * x) for i, j in ((1, 0), (0, 1), (1, 1), (2, 1))]
    )
    weights = torch.rand(n, 3, len(waves), generator=generator) - 0.5
    pattern = torch.einsum("nck,khw->nchw", weights, waves)
    return 0.45 + 0.15 * pattern / pattern.abs().amax(dim=(1, 2, 3), keepdim=True)


@dataclass(frozen=True)
class _Check:
    transform: Transform
    images: Tensor
    generator: torch.Generator
    tolerance: float

    def sampling(self) -> None:
        """Thetas: shape, type, device, range; the same again from the same seed."""
        transform, p = self.transform, len(self.transform.params)
        seed = int(torch.randint(2**31, (1,), generator=self.generator))
        theta, again = (transform.sample(64, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
        self._require(theta.shape == (64, p), f"sample(64) has shape {tuple(theta.shape)}, not {(64, p)}")
        self._require(theta.dtype == torch.float32, f"sample gives {theta.dtype}, not torch.float32")
        self._require(theta.device.type == "cpu", f"sample gives a tensor on {theta.device}, not on the CPU")
        self._require(torch.equal(theta, again), "sample differs between two generators of one seed")
        for i, param in enumerate(transform.params):
            low, high = float(theta[:, i].min()), float(theta[:, i].max())
            slack = 1e-5 * param.scale
            self._require(
                param.low - slack <= low and high <= param.high + slack,
                f"sample leaves the range of {param.name}: [{low}, {high}] in [{param.low}, {param.high}]",
            )

    def contract(self) -> None:
        """What holds for every transform, whatever its laws, at jointly drawn thetas."""
        theta = self.transform.sample(_CASES, generator=self.generator)
        images = self._repeat(_CASES)
        # Half of the cases get full contrast, so that clipping has work to do.
        images[::2] = (images[::2] > images[::2].mean()).to(images.dtype)
        before = images.clone()
        out = self.transform.apply(images, theta)
        self._require(torch.equal(images, before), "apply changes its input")
        self._require(
            out.shape == images.shape, f"apply gives shape {tuple(out.shape)}, not {tuple(images.shape)}"
        )
        self._require(out.dtype == images.dtype, f"apply gives {out.dtype}, not {images.dtype}")
        self._require(bool(torch.isfinite(out).all()), "apply gives values that are not finite")
        low, high = float(out.min()), float(out.max())
        self._require(low >= 0 and high <= 1, f"clipping: values of apply span [{low}, {high}], not [0, 1]")
        again = self.transform.apply(images, theta)
        self._require(torch.equal(out, again), "determinism: apply differs between two calls")
        alone = torch.cat([self.transform.apply(images[i : i + 1], theta[i : i + 1]) for i in range(_CASES)])
        error = (alone - out).abs().flatten(1).amax(dim=1)
        self._small("batch differs from one-by-one", error, theta, 1e-6)
        half = self.transform.apply(images.bfloat16(), theta)
        self._require(half.dtype == torch.bfloat16, f"apply turns bfloat16 into {half.dtype}")

    def coordinate(self, i: int, param: Param, laws: Laws) -> None:
        """The laws of one coordinate, the others at zero."""
        a, b = self._values(i, param)
        still = self._still(len(a))
        if Laws.IDENTITY in laws:
            self._same("IDENTITY", param.name, self._apply(still, 0 * a), still, a)
        if Laws.COMPOSE in laws:
            self._same("COMPOSE", param.name, self._twice(a, b), self._apply(still, a + b), a)
        if Laws.INVERSE in laws:
            self._same("INVERSE", param.name, self._twice(a + b, -a - b), still, a + b)
        if param.period is not None:
            turned = a.clone()
            turned[:, i] += param.period
            self._same("PERIOD", param.name, self._apply(still, turned), self._apply(still, a), a)

    def group(self) -> None:
        """compose and inverse at jointly drawn thetas, where the transform has them."""
        a, b = (0.5 * self.transform.sample(_CASES, generator=self.generator) for _ in range(2))
        switches = torch.tensor([param.is_switch for param in self.transform.params])
        a, b = torch.where(switches, (a > 0).float(), a), torch.where(switches, (b > 0).float(), b)
        still = self._still(_CASES)
        with contextlib.suppress(LawError):
            both = self.transform.compose(a, b)
            self._same("compose()", "all coordinates", self._twice(a, b), self._apply(still, both), both)
        with contextlib.suppress(LawError):
            undo = self.transform.inverse(a)
            self._same("inverse()", "all coordinates", self._twice(a, undo), still, a)

    def _values(self, i: int, param: Param) -> tuple[Tensor, Tensor]:
        """Pairs of thetas (n, p) along coordinate i: half the range each, so that their sums stay inside."""
        draws = torch.rand(2, _CASES, generator=self.generator)
        values = (param.low + (param.high - param.low) * draws) / 2
        # The ends of the range are reached too.
        values[:, 1], values[:, 2] = param.low / 2, param.high / 2
        if param.is_switch:
            values = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
        elif param.period is not None:
            # One pair whose sum passes the end of the period.
            values[:, 0] = torch.tensor([0.4, 0.3]) * param.period
        theta = torch.zeros(2, values.shape[1], len(self.transform.params))
        theta[:, :, i] = values
        return theta[0], theta[1]

    def _repeat(self, n: int) -> Tensor:
        return self.images.repeat(-(-n // len(self.images)), 1, 1, 1)[:n]

    def _still(self, n: int) -> _View:
        images = self._repeat(n)
        return images, torch.ones_like(images[:, 0], dtype=torch.bool)

    def _apply(self, view: _View, theta: Tensor) -> _View:
        """The transformed images, and which pixels stand for what the law says."""
        images, valid = view
        out = self.transform.apply(images, theta)
        return out, valid & ((out > 0) & (out < 1)).all(dim=1)

    def _twice(self, first: Tensor, second: Tensor) -> _View:
        out, valid = self._apply(self._apply(self._still(len(first)), first), second)
        return out, valid & self._inside(second)

    def _inside(self, theta: Tensor) -> Bool[Tensor, "b h w"]:
        """Pixels that theta fetches from inside the frame, and not from its reflected border."""
        h, w = self.images.shape[-2:]
        matrix = self.transform.plan(theta, w / h).matrix
        if matrix is None:
            return torch.ones(len(theta), h, w, dtype=torch.bool)
        x, y = (torch.linspace(1 / side - 1, 1 - 1 / side, side) for side in (w, h))
        at = torch.stack([x.expand(h, w), y[:, None].expand(h, w), torch.ones(h, w)], dim=-1).to(matrix)
        source = torch.einsum("bij,hwj->bhwi", torch.linalg.inv(matrix), at)[..., :2]
        return (source.abs() < 1 - 2 * _EDGE / torch.tensor([w, h])).all(dim=-1)

    def _same(self, law: str, where: str, left: _View, right: _View, theta: Tensor) -> None:
        valid = left[1] & right[1]
        self._require(
            bool(valid.any()), f"{law} along {where} cannot be judged: every pixel clipped or left the frame"
        )
        error = ((left[0] - right[0]).abs().amax(dim=1) * valid).flatten(1).amax(dim=1)
        self._small(f"{law} fails along {where}", error, theta, self.tolerance)

    def _small(self, what: str, error: Float[Tensor, " b"], theta: Tensor, tolerance: float) -> None:
        worst = int(error.argmax())
        values = ", ".join(f"{value:.4g}" for value in theta[worst].tolist())
        self._require(
            float(error[worst]) <= tolerance,
            f"{what}: worst error {float(error[worst]):.3g} at theta ({values}), tolerance {tolerance:.3g}",
        )

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise AssertionError(f"{self.transform.name}: {what}")
