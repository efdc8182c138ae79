"""Threads that run jobs: one while jobs are quick, more as soon as jobs wait on something.

Python threads that all compute only fight for the interpreter's lock, so one thread runs a whole batch of quick jobs.
While work is queued, a monitor wakes more threads when none has finished lately: a step that computes for seconds must
not hold up the rest, and steps that wait for a sandbox or an endpoint are to wait at the same time.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mrlm_envs.serving.sessions import Job

_MONITOR = 0.002  # seconds between looks at a queue that is not empty
_ANNOUNCE = 1e-3  # seconds after which a busy thread announces what it has finished


class Pool:
    """Runs jobs on threads; owned by one event loop, on which all methods must be called.

    Args:
        threads: The most threads that run jobs at once.
        on_progress: Called on the loop after jobs have finished.
        run: Runs one job, on whichever thread.

    Attributes:
        executor: Of the threads.
    """

    def __init__(self, threads: int, on_progress: Callable[[], None], run: Callable[[Job], None]) -> None:
        self._threads, self._on_progress, self._run = threads, on_progress, run
        self._loop = asyncio.get_running_loop()
        self.executor = ThreadPoolExecutor(2 * threads, thread_name_prefix="mrlm-step")
        self._queue: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._lock = threading.Lock()  # guards all of the following, and the queue
        self._awaited, self._is_awaited = threading.Condition(self._lock), False  # the loop waits for jobs
        self._drains = 0  # threads at work, lost ones among them
        self._finished = 0
        self._is_monitored = False

    @property
    def lost(self) -> int:
        """Threads in jobs that were given up and still run."""
        return sum(job.given_up and not job.done for job in list(self._running.values()))

    @property
    def busy(self) -> int:
        """Jobs queued or running, those given up left out."""
        return len(self._queue) + len(self._running) - self.lost

    def submit(self, jobs: Sequence[Job], patience: float = 0.0) -> None:
        """Queue jobs, in order, and block the loop for at most `patience` seconds until they are done."""
        with self._lock:
            self._queue.extend(jobs)
            if self._drains == self.lost:
                self._wake()
            if patience:
                self._is_awaited = True
                self._awaited.wait_for(lambda: jobs[-1].done, patience)
                self._is_awaited = False
        if patience:
            self._on_progress()  # of other jobs, whose threads have not announced it
        if self._queue:
            self._watch()

    def give_up(self, seconds: float) -> list[Job]:
        """Give up, and return, jobs that have run for longer than `seconds`; their threads run on until they end."""
        before = time.monotonic() - seconds
        with self._lock:
            late = [job for job in self._running.values() if job.started < before and not job.is_settled]
            for job in late:
                job.given_up = True
            if self._queue and self._drains == self.lost:
                self._wake()
        if late:
            self._on_progress()
        return late

    def _wake(self) -> None:
        if self._drains < 2 * self._threads:  # else the queue waits for a thread that comes back
            self._drains += 1
            self.executor.submit(self._drain)

    def _watch(self) -> None:
        if not self._is_monitored:
            self._is_monitored = True
            self._loop.call_later(_MONITOR, self._monitor, self._finished)

    def _monitor(self, finished: int) -> None:
        self._is_monitored = False
        if not self._queue:
            return
        with self._lock:
            if self._finished == finished:
                active = self._drains - self.lost
                for _ in range(min(max(1, active), len(self._queue), self._threads - active)):
                    self._wake()
        self._watch()

    def _drain(self) -> None:
        """Run queued jobs until there is none."""
        thread, announced = threading.get_ident(), time.monotonic()
        while True:
            with self._lock:
                if not self._queue:
                    self._running.pop(thread, None)
                    self._drains -= 1
                    if self._is_awaited:
                        return self._awaited.notify()
                    break
                job = self._running[thread] = self._queue.popleft()
                job.started = time.monotonic()
            self._run(job)
            self._finished += 1
            if time.monotonic() > announced + _ANNOUNCE:
                self._loop.call_soon_threadsafe(self._on_progress)
                announced = time.monotonic()
        self._loop.call_soon_threadsafe(self._on_progress)
