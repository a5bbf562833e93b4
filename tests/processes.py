"""Processes of a training job, forked from one that has imported everything already: a start costs no import."""

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["steerable.training.loop", "lightning.fabric.strategies", "matplotlib.figure"]
)


class Job:
    """``target(*args)`` on ``size`` processes, which find the environment that torchrun would give them.

    folder: gets error-RANK.txt of each process that raised.
    """

    def __init__(self, size: int, folder: Path, target: Callable[..., Any], *args: Any):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.processes = [
            CONTEXT.Process(target=_run, args=(rank, size, port, folder, target, args))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """The exit codes; None for a process that is still there, which is then killed."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self, *ranks: int) -> None:
        """SIGKILL to some of the processes, or to all."""
        for rank in ranks or range(len(self.processes)):
            process = self.processes[rank]
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()

    def error(self, rank: int) -> str:
        path = self.folder / f"error-{rank}.txt"
        return path.read_text() if path.exists() else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(
    rank: int, size: int, port: int, folder: Path, target: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
    try:
        target(*args)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # no farewell between processes: one of them may be gone
