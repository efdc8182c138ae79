"""Compare expressions with math-verify in worker processes, from any thread, under a deadline.

Workers start on demand (about a second; `warm_up` does it ahead of time) and stay. The deadline starts when a worker
takes the question: waiting for a worker to start, or for a busy one, does not count against the agent.
"""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

SECONDS = 1.4  # a comparison that takes longer is "different"
_PATIENCE = 0.3  # seconds past the deadline before a silent worker is abandoned
_START_SECONDS = 60.0  # for a worker to import sympy on a machine under load
_CANARY_SECONDS = 10.0  # generous, so that a machine under load does not look like a broken grader
_STARVED = 0.25  # a canary slower than this (20 ms on an idle core) says that the machine, not the answer, was slow
_CANARY = ("value", [r"\frac{1}{2}x"], [r"x/2"])


class Budget:
    """The seconds of comparison that one `grade` call may still use."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.left = seconds


class _Worker:
    """One worker process and the thread that starts it and reads its one-byte replies.

    The thread lives as long as the process: the kernel's parent-death signal follows the thread, not the process.
    Its pipes are unbuffered, so a fork of our process inherits no lock. The process ends when its stdin does.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.is_usable = False
        self._start = b""

    def _run(self) -> None:
        command = [sys.executable, "-s", "-P", str(Path(__file__).with_name("worker.py")), json.dumps(sys.path)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError:
            self.replies.put(b"")
            return
        self.process = process
        assert process.stdout is not None
        while reply := process.stdout.read(1):
            self.replies.put(reply)
        process.wait()
        self.replies.put(b"")

    def start(self) -> bytes:
        """Start the worker, if it is new, and wait for it: R(eady), F(ault), or b"" when the process died."""
        if not self._start:
            threading.Thread(target=self._run, name="mrlm-math-worker", daemon=True).start()
            self._start = self._reply(_START_SECONDS)
        return self._start

    def ask(self, kind: str, gold: Sequence[str], answer: Sequence[str], seconds: float) -> bytes:
        """The worker's verdict (see `worker.py`), b"" when it died or did not answer in time."""
        request = json.dumps({"kind": kind, "gold": gold, "answer": answer, "seconds": seconds})
        try:
            assert self.process is not None and self.process.stdin is not None
            self.process.stdin.write(request.encode() + b"\n")
        except OSError:
            return b""
        return self._reply(seconds + _PATIENCE)

    def _reply(self, seconds: float) -> bytes:
        try:
            return self.replies.get(timeout=seconds)
        except queue.Empty:
            return b""

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


class _Pool:
    """A few workers, each used by one thread at a time and started when all that run are busy."""

    def __init__(self) -> None:
        self.workers = [_Worker() for _ in range(min(4, os.cpu_count() or 1))]
        self._free = deque(self.workers)  # those that run on the right
        self._places = threading.BoundedSemaphore(len(self.workers))

    @contextlib.contextmanager
    def worker(self) -> Iterator[_Worker]:
        """A worker for one question; it is replaced unless it is usable at the end."""
        with self._places:
            worker = self._free.pop()
            worker.is_usable = False
            try:
                yield worker
            finally:
                if worker.is_usable:
                    self._free.append(worker)
                else:
                    worker.kill()
                    self.workers[self.workers.index(worker)] = fresh = _Worker()
                    self._free.appendleft(fresh)


_pool = _Pool()


def _forget() -> None:
    """After a fork: the workers, locks and threads are the parent's; this process starts its own."""
    global _pool
    _pool = _Pool()


def _stop() -> None:
    for worker in _pool.workers:
        worker.kill()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def warm_up() -> None:
    """Start a worker, if none runs, and wait until it can answer.

    Raises:
        EnvFault: It cannot (math-verify is missing or broken).
    """
    same(*_CANARY)


def same(kind: str, gold: Sequence[str], answer: Sequence[str], budget: Budget | None = None) -> bool:
    r"""Whether two LaTeX expressions, or two relations, are equal; False when the deadline passes first.

    Args:
        kind: "value", or the relation: "=", "<", "\le", "\ne".
        gold: The reference expression, or both sides of the relation.
        answer: The agent's, in the same form.
        budget: The time left; the comparison deducts what it used.

    Raises:
        EnvFault: The workers are broken: they fail on a canary of ours as well.
    """
    from mrlm_envs.core import EnvFault

    budget = budget or Budget()
    if budget.left <= 0:
        return False
    is_retry = False
    for _ in range(3):  # a worker that was killed from outside is no verdict: ask the next one
        with _pool.worker() as worker:
            verdict, start = b"", worker.start()
            if start == b"R":
                begun = time.monotonic()
                verdict = worker.ask(kind, gold, answer, budget.left)
                budget.left -= time.monotonic() - begun
                worker.is_usable = verdict in (b"E", b"D")
            if not worker.is_usable and verdict != b"":  # late or crashed: the agent's doing, or the machine's?
                begun = time.monotonic()
                worker.is_usable = worker.ask(*_CANARY, _CANARY_SECONDS) == b"E"
                if worker.is_usable and not is_retry and time.monotonic() - begun > _STARVED:
                    is_retry, budget.left = True, SECONDS
                    continue
            if worker.is_usable:
                return verdict == b"E"
        if start == b"F":
            raise EnvFault(f"math grader: math-verify does not work under {sys.executable}; reinstall it")
        if verdict != b"":  # late or crashed, and the canary too
            raise EnvFault(
                "math grader: a worker fails on its canary, x/2 = x/2; is the machine out of memory or time?"
            )
        if budget.left <= 0 and not hasattr(os, "fork"):  # no deadline inside the worker here: silence is a bomb
            return False
        if budget.left <= 0:
            break
    raise EnvFault("math grader: workers died or fell silent; something outside kills or stops them")
