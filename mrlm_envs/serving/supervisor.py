"""The parent of the worker processes: checks their health, kills frozen ones, restarts dead ones, forwards SIGTERM.

A step that holds Python's interpreter lock freezes its whole worker, signal handlers included. So health is checked
from outside, over gRPC and with a deadline, and a silent worker gets SIGKILL.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import pickle
import signal
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from mrlm_envs.serving.metrics import log_json
from mrlm_envs.serving.settings import Settings
from mrlm_envs.serving.worker import REFUSED, Board, die_with_parent

PARENT = "MRLM_SERVE_PARENT"  # if it is set, the supervisor ends with its parent
_CHECK = 1.0  # seconds between health checks of a worker, and the time limit of one; less with a short step_timeout
_BACKOFF = 0.5, 5.0  # seconds before a restart: at first (doubled with each death), and at most
_STEADY = 60.0  # seconds; a worker that lived this long starts with the shortest wait again
_DEATHS = 8  # deaths per worker within a minute that stop everything

logger = logging.getLogger("mrlm.serve")


class Supervisor:
    """Runs `settings.workers` processes.

    Args:
        settings: The settings of all workers.

    Attributes:
        status: The exit status so far.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.status = settings, 0
        self.stop = asyncio.Event()
        self._deaths: deque[float] = deque(maxlen=_DEATHS * settings.workers)

    async def run(self) -> int:
        """Run until SIGTERM, SIGINT or too many deaths of workers; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop.set)
        with tempfile.TemporaryDirectory(prefix="mrlm-") as folder:
            await asyncio.gather(
                *(self._keep(index, Path(folder, str(index))) for index in range(self.settings.workers))
            )
        return self.status

    async def _keep(self, index: int, path: Path) -> None:
        """Keep one worker alive until the stop.

        Args:
            index: Index of the worker.
            path: Path of its board; with `.sock` appended, of its socket.
        """
        board, wait, is_restart = Board.open(path), _BACKOFF[0], False
        while not self.stop.is_set():
            own = self.settings.shifted(index)
            own = dataclasses.replace(own, port=board.port or own.port)  # a restart listens where clients expect it
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mrlm_envs.serving.worker", stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
            assert process.stdin is not None
            with contextlib.suppress(ConnectionError):
                process.stdin.write(pickle.dumps((own, path, is_restart)))
                process.stdin.close()
            began = time.monotonic()
            watch = asyncio.create_task(self._kill_if_frozen(process, board, path))
            ending = asyncio.create_task(self._end_when_stopped(process))
            code = await process.wait()
            watch.cancel()
            ending.cancel()
            if self.stop.is_set():
                return
            if code == REFUSED and not board.pid:  # it said why
                self.status = REFUSED
                self.stop.set()
                return
            wait = _BACKOFF[0] if time.monotonic() - began > _STEADY else wait
            self._record_death(index, process.pid, code, board)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), wait)
            wait, is_restart = min(2 * wait, _BACKOFF[1]), True

    async def _end_when_stopped(self, process: asyncio.subprocess.Process) -> None:
        await self.stop.wait()
        process.terminate()
        await asyncio.sleep(self.settings.grace)
        process.kill()

    def _record_death(self, index: int, pid: int, code: int, board: Board) -> None:
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        label = board.label.decode("utf-8", "replace") if board.pid == pid else ""
        doing = f"; the step that began last: {label}" if label else ""
        logger.error("worker %d ended %s%s", index, how, doing, extra={"worker": index, "pid": pid})
        self._deaths.append(time.monotonic())
        if len(self._deaths) == self._deaths.maxlen and self._deaths[0] > time.monotonic() - 60:
            logger.critical("%d workers died within a minute, the last %s%s: stopping", len(self._deaths), how, doing)
            self.status = 1
            self.stop.set()

    async def _kill_if_frozen(self, process: asyncio.subprocess.Process, board: Board, path: Path) -> None:
        """Kill a worker that has served and is then not healthy for `step_timeout`."""
        import grpc  # the workers start meanwhile
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        serving = health_pb2.HealthCheckResponse.SERVING
        healthy_at: float | None = None
        pause = min(_CHECK, self.settings.step_timeout / 4)
        async with grpc.aio.insecure_channel(f"unix:{path.with_suffix('.sock')}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while process.returncode is None:
                await asyncio.sleep(pause)
                if healthy_at is None and board.pid == process.pid:
                    healthy_at = time.monotonic()
                with contextlib.suppress(grpc.aio.AioRpcError):
                    reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=pause)
                    healthy_at = time.monotonic() if reply.status == serving else healthy_at
                if healthy_at is not None and time.monotonic() - healthy_at > self.settings.step_timeout:
                    logger.error("killing process %d: no sign of health", process.pid, extra={"pid": process.pid})
                    process.kill()
                    return


def supervise(settings: Settings) -> int:
    """Run the workers as children of this process; returns the exit status."""
    log_json()
    if settings.host not in ("127.0.0.1", "localhost", "::1") and not (settings.token_file and settings.tls_cert):
        logger.warning("%s is open to others without %s", settings.host, "TLS" if settings.token_file else "a token")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its own lines are not JSON
    if PARENT in os.environ:
        die_with_parent(signal.SIGTERM)
    return asyncio.run(Supervisor(settings).run())
