"""A worker that the system kills."""

import multiprocessing
import os
import signal

import pytest

import processes  # noqa: F401  # its server has imported what workers need
from steerable.errors import DataError
from test_streaming import stream_of, write_shards


def test_a_worker_that_is_killed_ends_the_epoch_with_a_reason(tmp_path):
    write_shards(tmp_path, (64, 64))
    batches = stream_of(tmp_path, workers=1, batch=2).batches(0, 0)
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a worker that decodes images is gone.*data\.workers"):
        list(batches)
