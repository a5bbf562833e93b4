"""Sums over streamed rows: those that least squares needs, and those that tell what the columns are like."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerable.errors import FitError

_CONSTANT = 1e-14  # variance as a share of the squared mean: float32 cannot tell the values apart
_DEPENDENT = 1e-11  # eigenvalue of a correlation matrix, which float32 rounding leaves of an exact dependence
_WIDE, _SPARE, _ITERATIONS = 1024, 32, 6  # subspace iteration: from this width, extra directions, products
_DEAD = 1e-10  # variance along a direction, as a share of the largest: rounding of float32 embeddings


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

    def block(self, columns: Int[Tensor, " c"]) -> "Moments":
        """The sums for some of the columns alone; these where none is left out."""
        if len(columns) == len(self.gram):
            return self
        return Moments(self.gram[columns[:, None], columns], self.cross[columns], self.power, self.rows)

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
    """Sums that tell constant and dependent columns of x (n, c); `start`, any row, is subtracted first.

    second: False leaves out the products of columns, so that only the mean is known.
    """

    start: Tensor
    second: bool = True
    total: Tensor = field(init=False)
    gram: Tensor = field(init=False)
    rows: int = 0

    def __post_init__(self):
        self.total = torch.zeros_like(self.start)
        width = len(self.start) if self.second else 0
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=self.start.device)

    def add(self, x: Float[Tensor, "n c"]) -> None:
        """Count rows in."""
        x = x - self.start
        self.total += x.sum(dim=0)
        if self.second:
            self.gram.addmm_(x.T, x)
        self.rows += len(x)

    @property
    def mean(self) -> Float[Tensor, " c"]:
        """Column means."""
        return self.start + self.total / self.rows

    @property
    def covariance(self) -> Float[Tensor, "c c"]:
        """Of the columns, by the number of rows."""
        shift = self.total / self.rows
        return self.gram / self.rows - torch.outer(shift, shift)

    def principal(self, n: int) -> Float[Tensor, "n c"]:
        """The n leading principal directions, each divided by its standard deviation; zeros where x is still.

        Applied to x they give uncorrelated columns of unit variance.
        """
        values, vectors = _leading(self.covariance, n)
        moving = values > _DEAD * values[0].clamp(min=1e-300)
        return (torch.where(moving, values.clamp(min=1e-300).rsqrt(), 0.0) * vectors).T.contiguous()

    def check(self, name: str, *, rank: bool = True) -> None:
        """Raise FitError where a column is constant or (rank) depends on the others."""
        covariance = self.covariance
        variance = covariance.diagonal()
        constant = (variance <= _CONSTANT * self.mean.square()).nonzero().flatten().tolist()
        if constant:
            raise FitError(
                f"{name} is constant in column(s) {_listed(constant)}; expected every column to vary: "
                "drop them, or pass strict=False to fit without them"
            )
        if not rank:
            return
        values, vectors = torch.linalg.eigh(covariance / torch.outer(variance.sqrt(), variance.sqrt()))
        dependent = int((values < _DEPENDENT * len(values)).sum())
        if dependent:
            column = int(vectors[:, 0].abs().argmax())
            raise FitError(
                f"{name} has rank {len(values) - dependent} of {len(values)}: column {column} is a "
                "combination of others; expected independent columns: drop it, give more varied pairs, or pass "
                "strict=False to leave such directions to the ridge"
            )


def _leading(matrix: Float[Tensor, "c c"], n: int) -> tuple[Float[Tensor, " n"], Float[Tensor, "c n"]]:
    """The n largest eigenvalues, and eigenvectors; few of many by subspace iteration.

    Ritz vectors are orthonormal and their values are the exact variances along them; what is approximate is that
    no other n directions have more (Halko, Martinsson and Tropp 2011).
    """
    if 4 * n > len(matrix) or len(matrix) < _WIDE:
        values, vectors = torch.linalg.eigh(matrix)
        return values[-n:].flip(0), vectors[:, -n:].flip(1)
    start = torch.randn(
        len(matrix), n + _SPARE, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype
    )
    frame = torch.linalg.qr(start.to(matrix.device)).Q
    for _ in range(_ITERATIONS):
        frame = torch.linalg.qr(matrix @ frame).Q
    values, vectors = torch.linalg.eigh(frame.T @ matrix @ frame)
    return values[-n:].flip(0), (frame @ vectors[:, -n:]).flip(1)


def _listed(columns: list[int]) -> str:
    shown = ", ".join(map(str, columns[:5]))
    return shown if len(columns) <= 5 else f"{shown} and {len(columns) - 5} more"
