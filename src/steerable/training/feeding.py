"""What feeds a run: images in memory, of which a batch is a draw of indices, each process taking its share of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerable.data import ImageSet
from steerable.data.images import as_float
from steerable.transforms.pixels import sent

if TYPE_CHECKING:
    from steerable.data.streaming import Stream


def deal(batch: int, parts: int, part: int, size: int, rank: int) -> slice:
    """The rows of a batch that a process works on in one of its parts: parts first, so that processes change none."""
    share = batch // (parts * size)
    start = part * (batch // parts) + rank * share
    return slice(start, start + share)


class InMemory:
    """Images in memory, on the device where they fit.

    goals: (n, ...) what the base loss aims at, by image, on the device.
    """

    def __init__(self, images: ImageSet, goals: Tensor, device: torch.device, batch_size: int):
        self.device, self.batch_size, self.goals = device, batch_size, goals
        # as bytes, so that a step waits for no transfer
        self.images = images.images.to(device) if fits(images.images, device) else images.images
        self.steps_per_epoch = len(images) // batch_size

    def batches(self, generator: torch.Generator, first: int) -> Iterator[Tensor]:
        """Indices (batch_size,) of an epoch's batches from the one numbered ``first`` on."""
        order = torch.randperm(len(self.images), generator=generator)
        for i in range(first, self.steps_per_epoch):
            yield order[i * self.batch_size : (i + 1) * self.batch_size]

    def fetch(self, batch: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Float images (b, 3, h, w) and goals (b, ...) of some rows of a batch, on the device."""
        here = sent(batch[rows], self.device)
        # chosen before they travel where the whole set does not fit
        index = here if self.images.device == self.device else batch[rows]
        return as_float(sent(self.images[index], self.device)), self.goals[here]


class Streamed:
    """Images from shards: a batch holds the share of one process."""

    def __init__(self, stream: "Stream", device: torch.device):
        self.stream, self.device = stream, device
        self.steps_per_epoch = stream.steps_per_epoch

    def batches(self, generator: torch.Generator, first: int) -> Iterator[Any]:
        """As of `InMemory`."""
        return self.stream.batches(generator.initial_seed(), first)

    def fetch(self, batch: Any, rows: slice) -> tuple[Tensor, Tensor]:
        """As of `InMemory`; ``rows`` are those of the whole batch."""
        share = rows.stop - rows.start
        part = rows.start // (share * self.stream.size)
        here = slice(part * share, (part + 1) * share)
        images, labels = (sent(x[here], self.device) for x in (batch.images, batch.labels))
        return as_float(images), labels


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images may live on the device: they take at most half of what a GPU has free."""
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
