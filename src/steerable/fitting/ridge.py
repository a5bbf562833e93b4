"""Ridge regression of the motion target - source on phi and phi e, by streamed normal equations."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import FitError
from steerable.fitting.pairs import PairBatch
from steerable.maps import Features

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)  # strong to weak, on columns of unit power
_FLOOR = 1e-10  # keeps unpenalized columns apart where basis functions coincide on the data
_CONSTANT = 1e-14  # variance as a share of the squared mean: float32 cannot tell the values apart
_DEPENDENT = 1e-11  # eigenvalue of a correlation matrix, which float32 rounding leaves of an exact dependence
_CHUNK_NUMBERS = 2**23  # numbers in one block of the design matrix: 64 MiB


@dataclass
class Moments:
    """Sums over rows of a design z (n, m) and a motion y (n, d): all that least squares needs."""

    gram: Tensor  # (m, m) z^T z
    cross: Tensor  # (m, d) z^T y
    power: float = 0.0  # sum of y^2
    rows: int = 0

    @classmethod
    def zeros(cls, m: int, d: int, device: torch.device) -> "Moments":
        """No rows yet."""
        options = {"dtype": torch.float64, "device": device}
        return cls(torch.zeros(m, m, **options), torch.zeros(m, d, **options))

    def add(self, z: Float[Tensor, "n m"], y: Float[Tensor, "n d"], strip: int) -> None:
        """Count rows in; of the Gram matrix only the blocks right of the diagonal (`close` mirrors them)."""
        for start in range(0, z.shape[1], strip):
            block = z[:, start : start + strip]
            self.gram[start : start + strip, start:].addmm_(block.T, z[:, start:])
        self.cross.addmm_(z.T, y)
        self.power += float(y.square().sum())
        self.rows += len(z)

    def close(self, strip: int) -> None:
        """Mirror the upper blocks into the lower ones."""
        for start in range(0, len(self.gram), strip):
            stop = start + strip
            self.gram[stop:, start:stop] = self.gram[start:stop, stop:].T

    def include(self, other: "Moments") -> None:
        """Add another's sums to these."""
        self.gram += other.gram
        self.cross += other.cross
        self.power += other.power
        self.rows += other.rows

    def relative_error(self, b: Float[Tensor, "m d"]) -> float:
        """sum |y - z b|^2 / sum |y|^2 over the rows counted in."""
        rest = self.power - 2 * float((b * self.cross).sum()) + float((b * (self.gram @ b)).sum())
        return rest / self.power if self.power else 0.0


@dataclass
class Spread:
    """Sums that tell constant and dependent columns of x (n, c); `start`, any row, is subtracted first."""

    start: Tensor
    total: Tensor = field(init=False)
    gram: Tensor = field(init=False)
    rows: int = 0

    def __post_init__(self):
        self.total = torch.zeros_like(self.start)
        self.gram = torch.zeros(
            len(self.start), len(self.start), dtype=torch.float64, device=self.start.device
        )

    def add(self, x: Float[Tensor, "n c"]) -> None:
        """Count rows in."""
        x = x - self.start
        self.total += x.sum(dim=0)
        self.gram.addmm_(x.T, x)
        self.rows += len(x)

    @property
    def mean(self) -> Float[Tensor, " c"]:
        """Column means."""
        return self.start + self.total / self.rows

    def check(self, name: str) -> None:
        """Raise FitError where a column is constant or depends on the others."""
        shift = self.total / self.rows
        covariance = self.gram / self.rows - torch.outer(shift, shift)
        variance = covariance.diagonal()
        constant = (variance <= _CONSTANT * self.mean.square()).nonzero().flatten().tolist()
        if constant:
            raise FitError(
                f"{name} is constant in column(s) {_listed(constant)}; expected every column to vary: "
                "drop them, or pass strict=False to fit without them"
            )
        values, vectors = torch.linalg.eigh(covariance / torch.outer(variance.sqrt(), variance.sqrt()))
        dependent = int((values < _DEPENDENT * len(values)).sum())
        if dependent:
            column = int(vectors[:, 0].abs().argmax())
            raise FitError(
                f"{name} has rank {len(values) - dependent} of {len(values)}: column {column} is a "
                "combination of "
                "others; expected independent columns: drop it, give more varied pairs, or pass "
                "strict=False to leave such directions to the ridge"
            )


class NormalEquations:
    """Streamed sums for the design z = phi(theta) x [e - mean, 1], or phi alone without the source.

    ``fitted`` and ``held`` keep the two kinds of rows apart; memory is two (m, m) matrices, m = k (d + 1).
    """

    def __init__(self, features: Features, first: PairBatch, *, with_source: bool):
        d, k = first.source.shape[1], features.n_features
        self.features = features
        self.with_source = with_source
        self.strip = d + 1 if with_source else 1
        self.source = Spread(first.source[0])
        self.theta = Spread(first.theta[0])
        m = k * self.strip
        self.fitted = Moments.zeros(m, d, first.source.device)
        self.held = Moments.zeros(m, d, first.source.device)
        self.scale = first.source.new_ones(m)

    def add(self, batch: PairBatch) -> None:
        """Count a batch in."""
        self.source.add(batch.source)
        self.theta.add(batch.theta)
        for part, rows in ((self.fitted, ~batch.held), (self.held, batch.held)):
            chosen = [tensor[rows].split(self._chunk()) for tensor in batch[:3]]
            for source, theta, target in zip(*chosen, strict=True):
                part.add(self._design(source, theta), target - source, self.strip)

    def close(self, *, strict: bool) -> None:
        """Check, center e at its mean, scale the columns to unit power; once, after the last batch.

        Raises:
            FitError: constant or dependent columns, or too few rows (the last two where strict).
        """
        self._check_rows(strict)
        if strict:
            self.theta.check("theta")
            if self.with_source:
                self.source.check("source")
        power = torch.zeros_like(self.scale)
        for part in (self.fitted, self.held):
            part.close(self.strip)
            if self.with_source:
                self._center(part)
            power += part.gram.diagonal()
        power = power / (self.fitted.rows + self.held.rows)
        self.scale = torch.where(power > 0, power.clamp(min=1e-300).rsqrt(), 0.0)
        for part in (self.fitted, self.held):
            part.gram *= self.scale
            part.gram *= self.scale[:, None]
            part.cross *= self.scale[:, None]

    def solve(self, part: Moments, strength: float) -> Float[Tensor, "m d"]:
        """Ridge coefficients on the scaled columns; NaN where the system is not positive definite."""
        system = part.gram / part.rows
        system.diagonal().add_(self._penalty(strength))
        factor, failed = torch.linalg.cholesky_ex(system)
        if int(failed):
            return torch.full_like(part.cross, torch.nan)
        return torch.cholesky_solve(part.cross / part.rows, factor)

    def raw(self, b: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "k e d"], Float[Tensor, "k d"]]:
        """From scaled coefficients to (A_k^T, b_k) on plain e, where e is d wide, or 0 without the source."""
        blocks = (self.scale[:, None] * b).unflatten(0, (self.features.n_features, self.strip))
        slopes, shift = blocks[:, :-1], blocks[:, -1]
        return slopes, shift - (
            torch.einsum("d,kdi->ki", self.source.mean, slopes) if self.with_source else 0.0
        )

    def _design(self, source: Float[Tensor, "n d"], theta: Float[Tensor, "n p"]) -> Float[Tensor, "n m"]:
        phi = self.features(theta)
        if not self.with_source:
            return phi
        x = torch.cat([source - self.source.start, torch.ones_like(source[:, :1])], dim=1)
        return (phi[:, :, None] * x[:, None, :]).flatten(1)

    def _chunk(self) -> int:
        return max(64, _CHUNK_NUMBERS // len(self.scale))

    def _center(self, part: Moments) -> None:
        """Replace columns phi_k (e - start) by phi_k (e - mean) in sums already taken."""
        k, shift = self.features.n_features, self.source.total / self.source.rows
        gram = part.gram.view(k, self.strip, k, self.strip)
        gram[:, :-1] -= shift[:, None, None] * gram[:, -1:]
        gram[..., :-1] -= gram[..., -1:] * shift
        cross = part.cross.view(k, self.strip, -1)
        cross[:, :-1] -= shift[:, None] * cross[:, -1:]

    def _penalty(self, strength: float) -> Float[Tensor, " m"]:
        """The shifts phi_k alone go free: a strong ridge then tends to the shift map. Empty columns get 1."""
        penalty = torch.full_like(self.scale, max(strength, _FLOOR))
        penalty[self.strip - 1 :: self.strip] = _FLOOR
        return torch.where(self.scale == 0, 1.0, penalty)

    def _check_rows(self, strict: bool) -> None:
        rows = self.fitted.rows + self.held.rows
        least = 1 + (self.strip - 1 if strict and self.with_source else 1)
        if rows < least:
            raise FitError(
                f"there are {rows} pairs for embeddings {len(self.source.start)} wide; expected at least "
                f"{least}: give more pairs"
            )


def _listed(columns: list[int]) -> str:
    shown = ", ".join(map(str, columns[:5]))
    return shown if len(columns) <= 5 else f"{shown} and {len(columns) - 5} more"
