"""Images in memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from steerable.errors import DataError


class Skipped(NamedTuple):
    """A file or row that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images with their labels.

    Attributes:
        images: (n, 3, h, w) uint8, RGB in 0..255, on the CPU.
        labels: (n,) int64, indices into ``classes``; zeros where the source has no labels.
        classes: names of the classes; empty where the source has no labels.
        paths: the name of each row: the file's path, or "shard.parquet#row".
        skipped: what could not be decoded.
        name: where the images come from, for reports.

    Raises:
        DataError: parts that do not fit each other.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    name: str = ""

    def __post_init__(self):
        n = len(self.images)
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            raise DataError(
                f"images are {self.images.dtype} of shape {tuple(self.images.shape)}; expected uint8 "
                "(n, 3, h, w): use load_images, or multiply floats in [0, 1] by 255 and round"
            )
        if self.labels.shape != (n,) or self.labels.dtype != torch.int64 or len(self.paths) != n:
            raise DataError(
                f"{n} images have {self.labels.dtype} labels {tuple(self.labels.shape)} and "
                f"{len(self.paths)} paths; expected {n} int64 labels and {n} paths: give one each per image"
            )
        low, high = (int(self.labels.min()), int(self.labels.max())) if n else (0, 0)
        if low < 0 or high >= max(1, len(self.classes)):
            raise DataError(
                f"labels reach from {low} to {high}; expected indices into {len(self.classes)} classes: "
                "correct the labels or the names of the classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labeled(self) -> bool:
        """True where the source had labels."""
        return bool(self.classes)

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """The images at ``indices`` (or where a mask (n,) is true), in that order.

        Classes and name stay, ``skipped`` does not.
        """
        index = _as_index(indices)
        paths = tuple(self.paths[i] for i in index.tolist())
        return ImageSet(self.images[index], self.labels[index], self.classes, paths, name=self.name)

    def float_images(self, indices: Tensor | Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """The images at ``indices`` as float32 RGB in [0, 1]."""
        return as_float(self.images[_as_index(indices)])

    def batches(
        self, batch_size: int, *, device: torch.device | str | None = None
    ) -> Iterator[Float[Tensor, "b 3 h w"]]:
        """All images in order, as float32 RGB in [0, 1] on ``device``; the last batch may be smaller.

        Raises:
            DataError: a batch size below 1.
        """
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; expected at least 1: raise it")
        # bytes travel to the device, floats would be four times as many
        return (as_float(part.to(device, non_blocking=True)) for part in self.images.split(batch_size))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over shape, pixels and labels; equal for equal content wherever it came from."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().astype("<i8").data)
        return digest.hexdigest()


def as_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [0, 1], same shape."""
    return images.to(torch.float32).div_(255)


def random_order(n: int, seed: int) -> Int64[Tensor, " n"]:
    """A permutation of n rows, equal for equal seeds."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _as_index(indices: Tensor | Sequence[int]) -> Int64[Tensor, " b"]:
    index = torch.as_tensor(indices)
    return index.nonzero().flatten() if index.dtype == torch.bool else index.to(torch.int64)
