"""What one request may ask for, and what a server holds at once."""

from dataclasses import dataclass

from steerable.errors import SteerableError


class Busy(SteerableError):
    """The server has too much to do; asking again later may work."""


@dataclass(frozen=True)
class Bounds:
    """Limits of a server.

    body: bytes of a request; held: bytes of all requests that are being read. batch: images or embeddings of a request;
    pixels: of all its images.
    views: thetas of a request. numbers: floats of an answer. k: hits of a search, pages included. where: characters
    of a condition. far: how many times its range a coordinate may reach. waiting: requests that may wait for the
    encoder, each at most ``wait`` seconds. arrive: seconds in which a request's head, and then its body, must have
    come. seconds: for an answer of the API. connections: open at a time.
    """

    body: int = 12 * 2**20
    held: int = 192 * 2**20
    batch: int = 32
    pixels: int = 64_000_000
    views: int = 1024
    numbers: int = 1_000_000
    k: int = 1000
    where: int = 500
    far: float = 4.0
    waiting: int = 16
    wait: float = 10.0
    arrive: float = 10.0
    seconds: float = 30.0
    connections: int = 256
