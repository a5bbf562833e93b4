"""What a fit will cost, said before it starts."""

import time
from dataclasses import dataclass

from steerable.encoders import Encoder
from steerable.errors import FitError
from steerable.fitting import check_room
from steerable.maps import Features
from steerable.posthoc.adapter import adapted_width, check_adapter
from steerable.posthoc.pairs import Pairs

PROBE = 16  # images of the short probe that the time is estimated from


@dataclass(frozen=True)
class Plan:
    """Encoder passes in all and those still to be made, seconds for these, bytes on disk and in memory.

    memory: what the fit itself needs beside the images, in bytes. seconds: None where nothing is left to encode.
    """

    images: int
    views: int
    passes: int
    missing: int
    seconds: float | None
    disk: int
    memory: int

    def __str__(self) -> str:
        cached = f", {self.passes - self.missing:,} of them cached" if self.missing < self.passes else ""
        time_text = "nothing left to encode" if self.seconds is None else f"about {duration(self.seconds)}"
        return (
            f"plan: {self.images:,} images x (1 plain + {self.views} views) = {self.passes:,} encoder passes{cached}; "
            f"{time_text}; {size(self.disk)} on disk, {size(self.memory)} of memory for the fit"
        )


def make_plan(pairs: Pairs, memory: int) -> Plan:
    """Time one warm batch of views and count what is missing; memory: bytes that the fit itself needs."""
    missing = pairs.missing()
    seconds = missing * _seconds_per_pass(pairs) if missing else None
    disk = pairs.passes * (pairs.encoder.raw_dim + len(pairs.chain.params)) * 4
    return Plan(len(pairs.pixels), pairs.views, pairs.passes, missing, seconds, disk, memory)


def check_memory(
    encoder: Encoder,
    expansion: Features,
    *,
    images: int,
    views: int,
    map: str,
    projection: int | str | None,
    refine: str | None,
    adapter: str | None,
    memory: float | int,
) -> int:
    """Bytes that the largest step of the fit will need, known before anything is encoded. Arguments as in `fit`.

    Raises:
        ConfigError: an unknown adapter. FitError: more than the memory, or too few images for an adapter.
    """
    dim, needs = encoder.dim, []
    if adapter is not None:
        needs.append(check_adapter(adapter, images, views, encoder.raw_dim, memory=memory))
        dim = adapted_width(images, encoder.raw_dim)
        needs.append(check_room("basis", dim, expansion, projection=projection, memory=memory))
    needs.append(check_room(map, dim, expansion, projection=projection, memory=memory))
    if refine is not None or map in ("rotation", "exponential"):
        kept = images * views * (2 * dim + expansion.n_params) * 4
        if kept > memory * 2**30:
            raise FitError(
                f"this fit keeps its pairs, and these need {kept / 2**30:.2g} GiB; expected at most memory={memory:g}: "
                "give fewer images or views, raise memory, or take a closed form alone"
            )
        needs.append(kept)
    return max(needs)


def _seconds_per_pass(pairs: Pairs) -> float:
    batch = pairs.image_batch(0, PROBE)
    theta = pairs.thetas(1)[: len(batch)]
    times = []
    for _ in range(2):  # the first call pays for what is set up once
        began = time.perf_counter()
        pairs.encoder.raw(pairs.chain.apply(batch, theta)).cpu()
        times.append(time.perf_counter() - began)
    return min(times) / len(batch)


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 3.5 min, 2.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes in words: 12 MB, 1.4 GB."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
