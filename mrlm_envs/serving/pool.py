"""Threads that run jobs: one while jobs are quick, more as soon as jobs wait on something.

Python threads that all compute only fight for the interpreter's lock, so a batch of quick steps is run by one thread.
While jobs are queued, a monitor wakes more threads when none has finished lately (a step that computes for seconds must
not hold up the rest) or when the process leaves the processor idle (steps that wait for a sandbox or an endpoint).
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Protocol

_MONITOR = 0.002  # seconds between looks at a queue that is not empty
_IDLE_SHARE = 0.7  # of one core; below it, the running jobs wait rather than compute
_SLOW = 1e-3  # seconds; a job slower than this is announced at once


class Job(Protocol):
    """What the pool runs.

    Attributes:
        ends_batch: The last job of a batch: its end is announced at once.
        started: When it began (`time.monotonic`), or 0.0.
        done: It has been run.
        given_up: Set by `Pool.give_up`.
    """

    ends_batch: bool
    started: float
    done: bool
    given_up: bool

    def run(self) -> None:
        """Do the work; must not raise."""
        ...


class Call:
    """A function as a job."""

    started, done, given_up, ends_batch = 0.0, False, False, False

    def __init__(self, function: Callable[[], None]) -> None:
        self.run = function


class Pool:
    """Runs jobs on threads; owned by one event loop, on which all methods must be called.

    Args:
        threads: The most threads that run jobs at once.
        on_progress: Called on the loop after jobs have finished.
        on_finished: Called on the job's thread with the job and its seconds.
    """

    def __init__(
        self, threads: int, on_progress: Callable[[], None], on_finished: Callable[[Job, float], None]
    ) -> None:
        self.threads = threads
        self.queue: deque[Job] = deque()
        self.lost = 0  # threads in jobs that were given up
        self._loop = asyncio.get_running_loop()
        self._on_progress, self._on_finished = on_progress, on_finished
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._running: dict[int, Job] = {}
        self._lock = threading.Lock()  # guards _running and _finished
        self._active = 0
        self._started = 0
        self._finished = 0
        self._is_monitored = False
        self._is_closed = False

    @property
    def busy(self) -> int:
        """Jobs queued or running, those given up left out."""
        return len(self.queue) + len(self._running) - self.lost

    def submit(self, jobs: Iterable[Job]) -> None:
        """Queue jobs, in order."""
        self.queue.extend(jobs)
        if not self._active:
            self._wake()
        if not self._is_monitored:
            self._watch()

    def give_up(self, seconds: float) -> list[Job]:
        """Give up, and return, jobs that have run for longer than `seconds`; their threads run on until they end."""
        before = time.monotonic() - seconds
        with self._lock:
            late = [job for job in self._running.values() if job.started < before and not job.done and not job.given_up]
            for job in late:
                job.given_up = True
        self.lost += len(late)
        self._active -= len(late)
        if late:
            if self.queue and not self._active:
                self._wake()
            self._on_progress()
        return late

    def close(self) -> None:
        """Let idle threads end; running jobs are not interrupted."""
        self._is_closed = True
        for _ in range(self._started):
            self._tokens.put(False)

    def _wake(self) -> None:
        if self._active + self.lost >= 2 * self.threads:
            return  # too many threads never came back: what is queued waits for one that does
        self._active += 1
        if self._started < self._active + self.lost:
            self._started += 1
            threading.Thread(target=self._work, daemon=True, name=f"mrlm-step-{self._started}").start()
        self._tokens.put(True)

    def _watch(self) -> None:
        self._is_monitored = True
        look = self._finished, time.process_time(), time.monotonic()
        self._loop.call_later(_MONITOR, self._monitor, *look)

    def _monitor(self, finished: int, cpu: float, wall: float) -> None:
        self._is_monitored = False
        if not self.queue or self._is_closed:
            return
        share = (time.process_time() - cpu) / max(time.monotonic() - wall, 1e-9)
        if self._finished == finished or share < _IDLE_SHARE:
            for _ in range(max(1, min(self._active, len(self.queue)))):
                if self._active < self.threads:
                    self._wake()
        self._watch()

    def _work(self) -> None:
        while self._tokens.get():
            self._drain()
            if self._is_closed:
                return
            self._loop.call_soon_threadsafe(self._rest)

    def _drain(self) -> None:
        thread = threading.get_ident()
        while True:
            try:
                job = self.queue.popleft()
            except IndexError:
                return
            job.started = start = time.monotonic()
            with self._lock:
                self._running[thread] = job
            job.run()
            seconds = time.monotonic() - start
            with self._lock:
                del self._running[thread]
                self._finished += 1
            self._on_finished(job, seconds)
            if self._is_closed:
                return
            if job.given_up:
                self._loop.call_soon_threadsafe(self._found)
            elif (job.ends_batch or seconds > _SLOW) and self.queue:
                self._loop.call_soon_threadsafe(self._on_progress)

    def _found(self) -> None:
        self.lost -= 1
        self._active += 1

    def _rest(self) -> None:
        self._active -= 1
        self._on_progress()
        if self.queue and not self._active:
            self._wake()
