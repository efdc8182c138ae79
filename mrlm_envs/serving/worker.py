"""One server process under the supervisor: `python -m mrlm_envs.serving.worker`, with its orders on standard input."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import mmap
import os
import pickle
import signal
import sys
from pathlib import Path

from mrlm_envs.serving.metrics import log_json
from mrlm_envs.serving.settings import Refused, Settings, words

REFUSED = 2  # exit status of a worker whose settings cannot be served

_RETRY = 0.5  # seconds between attempts to listen on a port that is taken
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_LABEL = 240  # bytes of a session's label, as in `sessions.LABEL`

logger = logging.getLogger("mrlm.serve")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel signal this process when its parent ends, even while it computes and never returns to Python."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


class Board(ctypes.Structure):
    """What a worker notes down in memory that the supervisor reads when the worker has died.

    Attributes:
        port: Where it listens.
        pid: The process that listens, or did; 0 before the first does.
        label: The session whose step started last; empty before the first step.
    """

    _fields_ = (("port", ctypes.c_uint32), ("pid", ctypes.c_uint32), ("label", ctypes.c_char * _LABEL))
    port: int
    pid: int
    label: bytes

    @classmethod
    def open(cls, path: Path) -> "Board":
        """The board in the file at `path`, which is made if it does not exist; all who open it see the same."""
        with path.open("a+b") as file:
            file.truncate(ctypes.sizeof(cls))
            return cls.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(cls)))


async def _serve(settings: Settings, path: Path, is_restart: bool) -> None:
    """Serve until SIGTERM, or the death of the supervisor.

    Args:
        settings: The settings, with this worker's own ports.
        path: Of its board; with `.sock` behind it, of the socket on which the supervisor asks for its health.
        is_restart: It follows one that died: it waits for its port if that is taken meanwhile.
    """
    from mrlm_envs.serving.server import Server  # the supervisor imports this module without gRPC

    stop, parent, board, socket = asyncio.Event(), os.getppid(), Board.open(path), path.with_suffix(".sock")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if settings.isolate:
        from mrlm_envs.serving.isolated import preload

        preload(words(settings.environments))
    server = Server(settings, board)
    socket.unlink(missing_ok=True)
    while True:
        try:
            await server.start(f"unix:{socket}")
            break
        except Refused as error:
            if not is_restart:
                raise
            logger.warning("waiting: %s", error)
            await asyncio.sleep(_RETRY)
    board.label, board.port, board.pid = b"", server.port, os.getpid()
    sys.stdout.write(f"mrlm serve: {server.address} serves {', '.join(server.catalog.ids)}\n")
    sys.stdout.flush()
    while not stop.is_set() and os.getppid() == parent:  # the kernel's signal, where there is one, comes first
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
    await server.stop(0.9 * settings.grace)


def main() -> None:
    """Serve until SIGTERM, or the death of the supervisor; never returns."""
    die_with_parent()
    log_json()
    gc.set_threshold(50_000)  # a step leaves no cycles: looking for some after 700 objects costs a tenth of its time
    status = 0
    try:
        asyncio.run(_serve(*pickle.load(sys.stdin.buffer)))
    except (Refused, OSError, ModuleNotFoundError) as error:
        sys.stderr.write(f"mrlm serve: {error}\n")
        status = REFUSED
    sys.stdout.flush()
    os._exit(status)  # steps that never end have threads that never end


if __name__ == "__main__":
    main()
