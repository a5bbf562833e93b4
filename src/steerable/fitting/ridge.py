"""Ridge regression of the motion target - source on phi and phi x, by streamed normal equations."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerable.errors import FitError
from steerable.fitting.moments import Moments, Spread
from steerable.fitting.pairs import GIB, PairBatch
from steerable.maps import Features

_FLOOR = 1e-10  # keeps unpenalized columns apart where basis functions coincide on the data
_CHUNK_NUMBERS = 2**23  # numbers in one block of the design matrix: 64 MiB


@dataclass
class System:
    """The regression on columns phi_k [x - mean, 1] of unit power, k blocks of strip columns, ready to solve.

    x is the source e, its whitened projection P e, or nothing (strip 1). Sums over the rows to fit and over
    those that are held out.
    """

    fitted: Moments
    held: Moments
    scale: Tensor  # (m,) what the columns were multiplied by, 0 where they are empty
    strip: int
    center: Tensor  # (strip - 1,) mean of x

    def block(self, basis: Int[Tensor, " j"], width: int) -> "System":
        """The regression on some basis functions, and on the first `width` of x."""
        inner = torch.arange(self.strip, device=basis.device)
        inner = inner[(inner < width) | (inner == self.strip - 1)]
        columns = (basis[:, None] * self.strip + inner).flatten()
        parts = self.fitted.block(columns), self.held.block(columns)
        return System(*parts, self.scale[columns], width + 1, self.center[:width])

    def sketch(self, n: int) -> "System":
        """The same regression on n random combinations of the outputs, scaled so that sums of squares are unbiased."""
        d = self.fitted.cross.shape[1]
        noise = torch.randn(d, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        frame = (d / n) ** 0.5 * torch.linalg.qr(noise.to(self.scale.device)).Q
        parts = (replace(part, cross=part.cross @ frame) for part in (self.fitted, self.held))
        return replace(self, **dict(zip(("fitted", "held"), parts, strict=True)))

    def solve(
        self, part: Moments, strength: float, rank: int | None = None
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "d r"] | None]:
        """Ridge coefficients; NaN where the system is not positive definite.

        With a rank they are projected on the r strongest directions of the fit, which are returned too.
        """
        system = part.gram / part.rows
        system.diagonal().add_(self._penalty(strength))
        factor, failed = torch.linalg.cholesky_ex(system)
        if int(failed):
            return torch.full_like(part.cross, torch.nan), None
        b = torch.cholesky_solve(part.cross / part.rows, factor)
        if rank is None:
            return b, None
        _, vectors = torch.linalg.eigh(b.T @ (part.gram @ b))
        frame = vectors[:, -rank:]
        return b @ frame @ frame.T, frame

    def raw(self, b: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "k e d"], Float[Tensor, "k d"]]:
        """From scaled coefficients to (A_k^T, b_k) on plain x."""
        blocks = (self.scale[:, None] * b).unflatten(0, (-1, self.strip))
        slopes, shift = blocks[:, :-1], blocks[:, -1]
        return slopes, shift - torch.einsum("e,kei->ki", self.center, slopes)

    def _penalty(self, strength: float) -> Float[Tensor, " m"]:
        """The shifts phi_k alone go free: a strong ridge then tends to the shift map. Empty columns get 1."""
        penalty = torch.full_like(self.scale, max(strength, _FLOOR))
        penalty[self.strip - 1 :: self.strip] = _FLOOR
        return torch.where(self.scale == 0, 1.0, penalty)


class NormalEquations:
    """Streamed sums for the design z = phi(theta) x [x - mean, 1].

    Args:
        features: phi, in float64.
        first: any batch, for the sizes.
        projection: P (r, d): x is P e; None: x is e.
        with_source: False leaves x out: the design is phi alone.
        strict: refuse columns that are constant or depend on others, and too few rows.
        memory: GiB for these sums and for solving them: four (m, m) and four (m, d) float64 matrices, with
            m = k (1 + width of x).

    Raises:
        FitError: more than that would be needed.
    """

    def __init__(
        self,
        features: Features,
        first: PairBatch,
        *,
        projection: Tensor | None = None,
        with_source: bool = True,
        strict: bool = True,
        memory: float = 2.0,
    ):
        d, k = first.source.shape[1], features.n_features
        self.features, self.projection, self.strict = features, projection, strict
        self.with_source = with_source
        self.strip = 1 + (0 if not with_source else d if projection is None else len(projection))
        m = k * self.strip
        room(m, k, d, memory)
        self.source = Spread(first.source[0], second=strict and with_source and projection is None)
        self.theta = Spread(first.theta[0])
        self.fitted = Moments.zeros(m, d, first.source.device)
        self.held = Moments.zeros(m, d, first.source.device)

    def add(self, batch: PairBatch) -> None:
        """Count a batch in."""
        self.source.add(batch.source)
        self.theta.add(batch.theta)
        chunk = max(64, _CHUNK_NUMBERS // len(self.fitted.gram))
        for part, rows in ((self.fitted, ~batch.held), (self.held, batch.held)):
            chosen = [tensor[rows].split(chunk) for tensor in batch[:3]]
            for source, theta, target in zip(*chosen, strict=True):
                part.add(self._design(source, theta), target - source, self.strip)

    def close(self) -> System:
        """Check, center x at its mean, scale the columns to unit power; once, after the last batch.

        Raises:
            FitError: constant or dependent columns, or too few rows (where strict).
        """
        self._check_rows()
        if self.strict:
            self.theta.check("theta")
        if self.source.second:
            self.source.check("source")
        parts = (self.fitted, self.held)
        shift = self._read(self.source.total / self.source.rows)
        for part in parts:
            part.close(self.strip)
            self._center(part, shift)
        power = (self.fitted.gram.diagonal() + self.held.gram.diagonal()) / self.source.rows
        scale = torch.where(power > 0, power.clamp(min=1e-300).rsqrt(), 0.0)
        for part in parts:
            part.gram *= scale
            part.gram *= scale[:, None]
            part.cross *= scale[:, None]
        return System(*parts, scale, self.strip, self._read(self.source.mean))

    def _read(self, e: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        if not self.with_source:
            return e[..., :0]
        return e if self.projection is None else e @ self.projection.T

    def _design(self, source: Float[Tensor, "n d"], theta: Float[Tensor, "n p"]) -> Float[Tensor, "n m"]:
        phi = self.features(theta)
        x = torch.cat([self._read(source - self.source.start), torch.ones_like(source[:, :1])], dim=1)
        return (phi[:, :, None] * x[:, None, :]).flatten(1)

    def _center(self, part: Moments, shift: Float[Tensor, " e"]) -> None:
        """Replace columns phi_k (x - start) by phi_k (x - mean) in sums already taken."""
        k = self.features.n_features
        gram = part.gram.view(k, self.strip, k, self.strip)
        gram[:, :-1] -= shift[:, None, None] * gram[:, -1:]
        gram[..., :-1] -= gram[..., -1:] * shift
        cross = part.cross.view(k, self.strip, -1)
        cross[:, :-1] -= shift[:, None] * cross[:, -1:]

    def _check_rows(self) -> None:
        rows = self.source.rows
        least = 1 + (self.strip - 1 if self.strict and self.with_source else 1)
        if rows < least:
            raise FitError(
                f"there are {rows} pairs for embeddings {len(self.source.start)} wide; expected at least "
                f"{least}: give more pairs"
            )


def room(m: int, k: int, d: int, memory: float) -> int:
    """Bytes for the sums over m unknowns per output and for solving them.

    Raises:
        FitError: they are more than the memory, in GiB.
    """
    need = 8 * 4 * m * (m + d)
    if need > memory * GIB:
        raise FitError(
            f"the normal equations of {k} basis functions and {m // k - 1} inputs need {need / GIB:.1f} GiB; expected "
            f"at most memory={memory:g}: set projection='auto', take fewer features or map='shift', or raise memory"
        )
    return need
