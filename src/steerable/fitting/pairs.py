"""Pairs (source, theta, target) as checked batches, with the rows that are held out."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerable.errors import FitError

HELD_OUT_SHARE = 5  # one group in five
GIB = 2**30
_CHUNK = 8192  # rows of a batch that was given in memory


class PairBatch(NamedTuple):
    """Finite float64 pairs: source (n, d), theta (n, p), target (n, d), held (n,) true where held out.

    groups: the n names of the images.
    """

    source: Tensor
    theta: Tensor
    target: Tensor
    held: Tensor
    groups: list[str]


class HeldOut:
    """Decides, group by group, which rows are held out, by a hash: memory does not grow with the groups.

    The first group seen is never held out and the second always is, so two groups are enough.
    """

    def __init__(self):
        self._rows = 0
        self._first: list[str] = []

    def names(self, groups: Sequence[Any] | np.ndarray | Tensor | None, n: int) -> list[str]:
        """One per row; without groups each row is its own."""
        given = groups.tolist() if isinstance(groups, Tensor) else groups
        names = range(self._rows, self._rows + n) if given is None else np.asarray(given).tolist()
        self._rows += n
        return [str(name) for name in names]

    def mask(self, names: Sequence[str]) -> Tensor:
        """(n,) bool."""
        return torch.tensor([self._is_held(name) for name in names], dtype=torch.bool)

    def _is_held(self, name: str) -> bool:
        if len(self._first) < 2 and name not in self._first:
            self._first.append(name)
        if name in self._first:
            return name == self._first[-1] and len(self._first) == 2
        return zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0


def need_two_groups(fitted: int, held: int) -> None:
    """Raise FitError where no rows are left to fit, or none are held out."""
    if not (fitted and held):
        raise FitError(
            "all pairs are of one group; expected two at least, so that one can be held out: "
            "give more images, or ridge= and nothing to choose"
        )


def pair_batches(source: Any, theta: Any, target: Any, groups: Any) -> Iterator[PairBatch]:
    """Checked batches from arrays, or from an iterable of (source, theta, target[, groups]).

    Raises:
        FitError: parts that are missing, are not matrices, differ in length or width, or are not finite.
    """
    if theta is None and target is None and not isinstance(source, Tensor | np.ndarray):
        raw: Iterable = source
    elif theta is None or target is None:
        missing = "theta" if theta is None else "target"
        raise FitError(
            f"{missing} is missing; expected source, theta and target: give all three, or batches of them"
        )
    else:
        _check_lengths(source=source, theta=theta, target=target, groups=groups)
        raw = _slices(source, theta, target, groups)
    held_out, widths = HeldOut(), None
    for index, batch in enumerate(raw):
        parts = tuple(batch)
        if len(parts) not in (3, 4):
            raise FitError(
                f"batch {index} has {len(parts)} parts; expected (source, theta, target) or those and groups"
            )
        checked = _checked(*parts[:3], groups=parts[3] if len(parts) == 4 else None, held_out=held_out)
        seen = (checked.source.shape[1], checked.theta.shape[1])
        widths = widths or seen
        if seen != widths:
            raise FitError(
                f"batch {index} has widths (d, p) = {seen}; expected {widths}, as the first: use one encoder"
            )
        if len(checked.source):
            yield checked


def _slices(source: Any, theta: Any, target: Any, groups: Any) -> Iterator[tuple]:
    for start in range(0, len(source), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield source[rows], theta[rows], target[rows], None if groups is None else groups[rows]


def _checked(source: Any, theta: Any, target: Any, *, groups: Any, held_out: HeldOut) -> PairBatch:
    _check_lengths(source=source, theta=theta, target=target, groups=groups)
    source, theta, target = _matrix("source", source), _matrix("theta", theta), _matrix("target", target)
    if source.shape != target.shape:
        raise FitError(
            f"source {tuple(source.shape)} and target {tuple(target.shape)} differ in width; expected "
            "embeddings of one encoder: encode both with it"
        )
    names = held_out.names(groups, len(source))
    held = held_out.mask(names).to(source.device)
    return PairBatch(source, theta.to(source.device), target.to(source.device), held, names)


class Pairs(NamedTuple):
    """Float32 pairs in memory: source (n, d), theta (n, p), target (n, d), held (n,), group (n,) whole numbers."""

    source: Tensor
    theta: Tensor
    target: Tensor
    held: Tensor
    group: Tensor

    def rows(self, chosen: Tensor) -> "Pairs":
        """Some of them, by index or mask."""
        return Pairs(*(values[chosen] for values in self))


class Kept:
    """Batches passed on and kept as float32, up to `memory` GiB."""

    def __init__(self, memory: float):
        self.memory = memory
        self._batches: list[PairBatch] = []

    def through(self, batches: Iterable[PairBatch]) -> Iterator[PairBatch]:
        """The same batches.

        Raises:
            FitError: more than the memory allows.
        """
        size = 0
        for batch in batches:
            source, theta, target = (values.float() for values in batch[:3])
            size += source.nbytes + theta.nbytes + target.nbytes
            if size > self.memory * GIB:
                raise FitError(
                    f"this fit keeps its pairs, and these need more than {size / GIB:.2g} GiB; expected at "
                    f"most memory={self.memory:g}: give fewer pairs, raise memory, or take a closed form alone"
                )
            self._batches.append(PairBatch(source, theta, target, batch.held, batch.groups))
            yield batch

    def pairs(self) -> Pairs:
        """All of them."""
        source, theta, target, held = (
            torch.cat(parts) for parts in zip(*(batch[:4] for batch in self._batches), strict=True)
        )
        names = np.array([name for batch in self._batches for name in batch.groups])
        group = torch.from_numpy(np.unique(names, return_inverse=True)[1]).to(source.device)
        return Pairs(source, theta, target, held, group)


def _check_lengths(**parts: Any) -> None:
    lengths = {name: len(part) for name, part in parts.items() if part is not None}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise FitError(f"rows differ: {listed}; expected one row of each per pair: align them")


def _matrix(name: str, values: Any) -> Tensor:
    matrix = torch.as_tensor(values).detach()
    if matrix.ndim != 2 or matrix.is_complex():
        raise FitError(
            f"{name} has shape {tuple(matrix.shape)} and type {matrix.dtype}; expected a real matrix, one "
            "row per pair: reshape it"
        )
    matrix = matrix.double()
    finite = torch.isfinite(matrix)
    if not bool(finite.all()):
        share = 1 - finite.all(dim=1).double().mean().item()
        column = int((~finite).any(dim=0).nonzero()[0])
        raise FitError(
            f"{name} is not finite in {share:.2%} of its rows, first in column {column}; expected finite "
            "numbers: drop those rows"
        )
    return matrix
