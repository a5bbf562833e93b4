"""The encoder's door: one request at a time, others wait behind it, and there is a limit to that too."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from steerable.app.bounds import Bounds, Busy


class Door:
    """``with door.turn():`` around whatever decodes images or runs the encoder.

    Attributes:
        waiting: requests in the queue now. served, refused: turns so far. seconds: spent inside.
    """

    def __init__(self, bounds: Bounds):
        self.bounds = bounds
        self.waiting = self.served = self.refused = 0
        self.seconds = 0.0
        self._count, self._busy = threading.Lock(), threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the encoder, and hold it.

        Raises:
            Busy: too many wait already, or the turn did not come in time.
        """
        with self._count:
            if self.waiting >= self.bounds.waiting:
                self.refused += 1
                raise Busy(
                    f"{self.waiting} requests wait for the encoder; expected fewer than {self.bounds.waiting}: "
                    "try again in a few seconds"
                )
            self.waiting += 1
        came = self._busy.acquire(timeout=self.bounds.wait)
        with self._count:
            self.waiting -= 1
            self.served += came
            self.refused += not came
        if not came:
            raise Busy(
                f"the encoder was not free for {self.bounds.wait:g} s; expected a turn by then: try again later"
            )
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
            self._busy.release()
