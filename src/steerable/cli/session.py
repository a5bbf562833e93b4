"""What surrounds a command: logging to stderr, and the console that bars and logs share."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.logging import RichHandler

from steerable.progress import stderr_console


@contextmanager
def session(*, verbose: bool = False) -> Iterator[None]:
    """Log records of the library go to stderr, in color on a terminal; ``verbose`` adds the debugging ones.

    Warnings of other libraries are shown with ``verbose`` only. Everything is as before afterwards.
    """
    handler = _handler()
    level = logging.DEBUG if verbose else logging.INFO
    loggers = [logging.getLogger("steerable"), logging.getLogger("py.warnings")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    handler.addFilter(lambda record: verbose or record.name != "py.warnings")
    logging.captureWarnings(True)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, old_level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        return RichHandler(console=stderr_console(), show_time=False, show_path=False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("steerable: %(levelname)s: %(message)s"))
    return handler


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().format(record)
