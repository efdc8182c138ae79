"""`mrlm/Remote-v0`: a served environment as a Gymnasium environment, single or vector.

    gymnasium.make("mrlm_envs:mrlm/Remote-v0", address="host:25051", env_id="mrlm/Math-v0", max_turns=3)
    gymnasium.make_vec("mrlm_envs:mrlm/Remote-v0", num_envs=64, address=["a:25051", "b:25051"], env_id="mrlm/Math-v0")

It behaves to the byte like the local environment with the same seed. All instances of a process share one background
loop and one channel for each server, so steps taken on many threads at once travel together; the vector environment
sends one call a step. An instance may cross a fork: the child's copy goes on in a session of its own.
"""

import asyncio
import contextlib
import json
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Text

from mrlm_envs.background import run, spawn
from mrlm_envs.core import TextEnv, clean
from mrlm_envs.serving.client import AsyncClient, ClientSession, Info, StepTuple
from mrlm_envs.serving.connection import Access
from mrlm_envs.serving.server_pool import split_addresses
from mrlm_envs.spaces import Unicode
from mrlm_envs.vector import TextVectorEnv

_ACCESS = {field.name for field in fields(Access)}


class RemoteEnv(gymnasium.Env[str, str]):
    """An environment on a server, or on any of several equal ones.

    An episode whose server is lost goes on on another, by replay; `ClientSession.step` says how an episode ends that
    cannot, and what becomes of a step that never ends.

    Args:
        address: `host:port`, several with commas or in a list, or `dns:///name:port`.
        env_id: The environment's name on the server, `mrlm/Math-v0` or `math`.
        render_mode: "ansi" makes `render()` return the conversation so far.
        **kwargs: Fields of `Access` (`token`, `tls`, `tls_ca`, `tls_cert`, `tls_key`, `connect_timeout`,
            `rpc_timeout`, `step_timeout`), and those of the environment's own that the server allows.

    Raises:
        gymnasium.error.Error: If the environment is not served, or its arguments or the token are refused.
        EnvFault: If no server answers within `connect_timeout`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": None}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, address: str | Sequence[str], env_id: str, *, render_mode: str | None = None, **kwargs: Any
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be None or 'ansi', got {render_mode!r}")
        self.render_mode = render_mode
        access = Access(**{name: kwargs.pop(name) for name in _ACCESS if name in kwargs})
        self._address = split_addresses(address), access
        self._lock = threading.Lock()
        self._hold(run(_client(*self._address).session(env_id, **kwargs)))
        about = self._session.description
        self.metadata = {**json.loads(about.metadata), "render_modes": ["ansi"], "expert": None}  # pyright: ignore[reportAttributeAccessIssue]
        self.num_tasks = about.num_tasks if about.HasField("num_tasks") else None
        self.observation_space = Unicode(about.observation_length)
        if about.action_charset:
            self.action_space = Text(about.action_length, min_length=0, charset=about.action_charset)
        else:
            self.action_space = Unicode(about.action_length)
        self.system_prompt = ""
        self._messages: list[tuple[str, str]] = []

    def expert(self) -> None:
        """Never served: the reference action would be an answer key for every client.

        `state_key` and `cost_to_go` are not served either; a remote environment does not have these two methods.

        Raises:
            gymnasium.error.Error: Always.
        """
        raise gymnasium.error.Error("expert() is not served; make the environment locally to play its expert")

    @property
    def digest(self) -> bytes:
        """The chained digest of the episode so far: equal for equal episodes."""
        return self._session.digest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        """Begin an episode; an unseeded one draws its seed from `np_random`, here.

        Raises:
            ValueError: If the environment refuses the options.
            EnvFault: If the environment fails, or no server answers in time.
        """
        session = self._own()
        with self._lock:
            return self._began(*run(session.reset(seed=self._draw(seed), options=options)))

    def step(self, action: str) -> StepTuple:
        """Take one turn; it is taken once, whatever is lost on the way.

        Raises:
            gymnasium.error.ResetNeeded: Before `reset` or after the end of the episode.
            TypeError: If `action` is not a `str`.
        """
        session = self._own()
        with self._lock:
            return self._acted(action, run(session.step(action)))

    render: Any = TextEnv.render  # over the same attributes

    def close(self) -> None:
        """Close the session."""
        self._finalizer()

    def _hold(self, session: ClientSession) -> None:
        """Make `session` this environment's, to be closed with it."""
        self._session, self._pid = session, os.getpid()
        self._finalizer = weakref.finalize(self, _release, session, self._pid)
        self._finalizer.atexit = False

    def _own(self) -> ClientSession:
        """The session; after a fork, a copy of it that belongs to the child's client."""
        if self._pid != os.getpid():
            self._lock = threading.Lock()  # another thread of the parent's may hold the inherited one
            self._finalizer.detach()
            self._hold(self._session.copy(_client(*self._address)))
        return self._session

    def _draw(self, seed: int | None) -> int:
        if seed is not None and (not isinstance(seed, int | np.integer) or seed < 0):
            raise gymnasium.error.Error(f"seed must be a non-negative integer, got {seed!r}")
        super().reset(seed=None if seed is None else int(seed))
        return int(self.np_random.integers(2**31)) if seed is None else int(seed)

    def _began(self, observation: str, info: Info) -> tuple[str, Info]:
        self.system_prompt = info.get("system") or ""
        self._messages = [("user", observation)]
        return observation, info

    def _acted(self, action: str, result: StepTuple) -> StepTuple:
        if self.render_mode is not None:
            said = clean(action[: self._session.description.action_length])
            self._messages += [("assistant", said), (result[4].get("role", "user"), result[0])]
        return result


class RemoteVectorEnv(TextVectorEnv):
    """`num_envs` served episodes; a step, or a reset, of all of them is one call to each server.

    Args:
        num_envs: How many members, at least 1.
        **kwargs: See `RemoteEnv`; and `autoreset_mode` and `max_episode_steps` of `TextVectorEnv`.
    """

    envs: list[RemoteEnv]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(RemoteEnv, num_envs, **kwargs)  # pyright: ignore[reportArgumentType]

    def _begin(
        self, indices: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None
    ) -> list[tuple[str, Info]]:
        members = [self.envs[i] for i in indices]
        drawn = [(member._own(), member._draw(seed)) for member, seed in zip(members, seeds)]

        async def reset_all() -> list[Any]:
            calls = (session.reset(seed=seed, options=options) for session, seed in drawn)
            return await asyncio.gather(*calls, return_exceptions=True)

        results = run(reset_all()) if members else []
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [member._began(*result) for member, result in zip(members, results)]

    def _act(self, indices: Sequence[int], actions: Sequence[str]) -> list[StepTuple]:
        members = [self.envs[i] for i in indices]
        if not members:
            return []
        sessions = [member._own() for member in members]
        results = run(sessions[0].client.step_many(sessions, actions))
        return [member._acted(action, result) for member, action, result in zip(members, actions, results)]


_clients: dict[tuple[tuple[str, ...], Access], AsyncClient] = {}  # of this process, one for the same servers
os.register_at_fork(after_in_child=_clients.clear)


def _client(addresses: tuple[str, ...], access: Access) -> AsyncClient:
    """The one client of these servers."""
    key = addresses, access
    return _clients.get(key) or _clients.setdefault(key, AsyncClient(addresses, **asdict(access)))


def _close_clients() -> None:
    for client in _clients.values():
        with contextlib.suppress(TimeoutError):
            run(client.close(), 2.0)


# Unlike `atexit`, before the threads of executors are joined: a call to a frozen server would hold them up.
threading._register_atexit(_close_clients)  # pyright: ignore[reportAttributeAccessIssue]


def _release(session: ClientSession, pid: int) -> None:
    """Close a session, unless it was the parent's."""
    if pid == os.getpid():
        spawn(session.close())
