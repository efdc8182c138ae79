"""A pool of environment instances and the threads that step them, each call under a deadline."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from mrlm_envs.core import clean
from mrlm_envs.spaces import Unicode
from mrlm_train.rollout.agents import import_name
from mrlm_train.rollout.environments import EnvEntry

STEP_TIMEOUT = 600.0  # seconds; far beyond what graders and judges take


class StepTimeout(TimeoutError):
    """A reset or a step that took longer than its deadline. Its thread may still run."""


class EnvPool:
    """Instances of each entry, reused from episode to episode, and the threads that step them.

    Attributes:
        envs: The entries.
        agents: For each entry, who plays each agent of the game; empty if it is not a game.
        num_tasks: For each entry, the size of its finite task source; None for an endless one.
        names: Name of each entry in statistics: its id, or `id#2` for the second entry with the same id.
        rewards: For each entry, the function that replaces its rewards, if any.
        privileged: Methods (`state_key`, `cost_to_go`) whose values are recorded at reset and after each turn, for
            credit.
    """

    privileged: Sequence[str] = ()

    def __init__(self, envs: list[EnvEntry], threads: int = 16, step_timeout: float = STEP_TIMEOUT) -> None:
        """Makes one instance of each entry, so that a bad id or argument shows at once.

        Args:
            envs: The entries.
            threads: Environments stepped at once.
            step_timeout: Time limit of a reset or a step, in seconds.
        """
        if not step_timeout > 0:
            raise ValueError(f"step_timeout must be above 0 seconds, got {step_timeout}")
        self.envs = envs
        self._lock = threading.Lock()
        self._workers = _Workers(threads, step_timeout)
        weakref.finalize(self, self._workers.close)
        self.rewards = [import_name(e.reward) if isinstance(e.reward, str) else e.reward for e in envs]
        ids = [entry.id for entry in envs]
        earlier = [ids[:index].count(name) for index, name in enumerate(ids)]
        self.names = [f"{name}#{count + 1}" if count else name for name, count in zip(ids, earlier, strict=True)]
        first = [entry.build() for entry in envs]
        self._idle = [[env] for env in first]
        self.num_tasks: list[int | None] = [getattr(env.unwrapped, "num_tasks", None) for env in first]
        self.agents = [entry.assign(env) if entry.is_game else {} for entry, env in zip(envs, first, strict=True)]

    def trained_agents(self, index: int) -> int:
        """How many episodes a request gives: one, or in a game one for each agent that the policy plays."""
        agents = self.agents[index]
        return sum(agent.trains for agent in agents.values()) if agents else 1

    def take(self, index: int) -> Any:
        """An idle instance of entry `index`, or a new one."""
        with self._lock:
            if self._idle[index]:
                return self._idle[index].pop()
        return self.envs[index].build()

    def give(self, index: int, env: Any) -> None:
        """Return an instance for the next episode."""
        with self._lock:
            self._idle[index].append(env)

    def drop(self, env: Any) -> None:
        """Close an instance that failed, on a thread: closing may fail or hang as well."""
        self._workers.submit(env.close)

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Run a reset or a step on a thread.

        Returns:
            A future of its result, which raises `StepTimeout` once the deadline has passed.
        """
        return self._workers.submit(call)

    def close(self) -> None:
        """Close every idle instance and stop the threads; a call that still runs is not waited for."""
        self._workers.close()
        for idle in self._idle:
            while idle:
                idle.pop().close()


class _Workers:
    """Daemon threads that run calls: unlike those of `ThreadPoolExecutor`, a hung one does not block the exit.

    When a call passes the deadline, a new thread takes the place of its thread, which ends when the call returns.
    """

    def __init__(self, threads: int, timeout: float) -> None:
        self._most, self._timeout = threads, timeout
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._running: dict[Future[Any], float] = {}  # when each call began
        self._is_closed = threading.Event()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, call))
        if not self._idle.acquire(blocking=False) and self._threads < self._most:
            self._start()
        return future

    def close(self) -> None:
        self._is_closed.set()
        for _ in range(self._threads):
            self._calls.put(None)

    def _start(self) -> None:
        if self._threads == 0:
            threading.Thread(target=self._watch, name="mrlm-env-deadlines", daemon=True).start()
        self._threads += 1
        threading.Thread(target=self._work, name=f"mrlm-env-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._calls.get()) is not None:
            future, call = job
            self._running[future] = time.monotonic()
            try:
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
            except InvalidStateError:
                return  # the deadline has passed: another thread has taken this one's place
            finally:
                self._running.pop(future, None)
            del job, future, call  # so that a waiting thread keeps no environment alive
            self._idle.release()

    def _watch(self) -> None:
        while not self._is_closed.wait(min(1.0, self._timeout / 4)):
            before = time.monotonic() - self._timeout
            for future in [future for future, start in list(self._running.items()) if start < before]:
                try:
                    future.set_exception(StepTimeout(f"the environment took longer than {self._timeout:g} seconds"))
                except InvalidStateError:
                    continue  # it has just returned
                warnings.warn(
                    f"an environment took longer than step_timeout={self._timeout:g} seconds; in a step, that is the "
                    "action's failure: reward 0, stop_reason step_timeout",
                    stacklevel=1,
                )
                threading.Thread(target=self._work, name="mrlm-env-again", daemon=True).start()


def fit(space: gymnasium.Space, action: str) -> str:
    """`action` fitted to a stock `Text` space: other characters are dropped, and it is truncated or padded.

    A policy may say anything, and many third-party spaces are narrow.
    """
    if not isinstance(space, Text) or isinstance(space, Unicode) or action in space:
        return action
    admitted = "".join(char for char in action if char in space.character_set)[: space.max_length]
    return admitted.ljust(space.min_length, " " if " " in space.character_set else min(space.character_set))


def as_text(observation: Any, whose: str = "observation") -> str:
    """An observation without lone surrogates.

    Raises:
        TypeError: If it is not text; `whose` says which observation.
    """
    if not isinstance(observation, str):
        raise TypeError(f"{whose} is {type(observation).__name__}, not text")
    return clean(observation)
