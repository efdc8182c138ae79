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
import struct
import sys
from pathlib import Path

from mrlm_envs.serving.metrics import log_json
from mrlm_envs.serving.settings import Refused, Settings, words

REFUSED = 2  # exit status of a worker whose settings cannot be served

_RETRY = 0.5  # seconds between attempts to listen on a port that is taken
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_SIZE = 256
_HEAD = struct.Struct("<II")

logger = logging.getLogger("mrlm.serve")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel signal this process when its parent ends, even while it computes and never returns to Python."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


class Board:
    """A few bytes in a file that both map: the worker writes, and the supervisor reads when the worker has died.

    Args:
        path: The file; made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_SIZE)
            self._map = mmap.mmap(file.fileno(), _SIZE)

    def note(self, label: bytes) -> None:
        """Write down the session whose step starts now; `label` has a fixed length."""
        self._map[_HEAD.size : _HEAD.size + len(label)] = label

    def announce(self, port: int) -> None:
        """Write down that this process serves on `port`, and has not begun a step yet."""
        self.note(bytes(_SIZE - _HEAD.size))
        _HEAD.pack_into(self._map, 0, port, os.getpid())

    @property
    def served(self) -> tuple[int, int]:
        """The port, and the process id, of the process that announced itself last; zeros before."""
        return _HEAD.unpack_from(self._map)

    @property
    def label(self) -> str:
        """The session whose step started last, or ""."""
        return self._map[_HEAD.size :].rstrip(b" \0").decode("utf-8", "replace")


async def _serve(settings: Settings, path: Path, is_restart: bool) -> None:
    """Serve until SIGTERM, or the death of the supervisor.

    Args:
        settings: The settings, with this worker's own ports.
        path: Of its board; with `.sock` behind it, of the socket on which the supervisor asks for its health.
        is_restart: It follows one that died: it waits for its port if that is taken meanwhile.
    """
    from mrlm_envs.serving.server import Server  # the supervisor imports this module without gRPC

    stop, parent, board, socket = asyncio.Event(), os.getppid(), Board(path), path.with_suffix(".sock")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if settings.isolate:
        from mrlm_envs.serving.isolated import preload

        preload(words(settings.environments))
    server = Server(settings, board.note)
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
    board.announce(server.port)
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
