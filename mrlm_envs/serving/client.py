"""`AsyncClient` and its sessions: episodes on served environments, exactly once, across lost servers.

Concurrent steps travel together. When a server is lost, its episodes are replayed (seed and actions) on another, and
the chained digest shows that they are the same. A step that freezes or kills two workers is not tried on a third: the
action has failed.
"""

import asyncio
import contextlib
import copy
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from mrlm_envs.core import EnvFault, clean
from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.connection import Access, Connection, ConnectionLost, pause
from mrlm_envs.serving.protocol import chained_digest
from mrlm_envs.serving.server_pool import NoServer, ServerPool, split_addresses

Info = dict[str, Any]
StepTuple = tuple[str, float, bool, bool, Info]

_WORKERS = 2  # workers lost during one step before its action is blamed
_REPLAY_BYTES = 4 << 20  # bytes of actions that one reset replays; the rest are stepped
_COME_BACK = 2.0  # seconds beyond a call's time-out for a server to come back, if its episode cannot be replayed
_GARBLED = 0.05  # seconds before the retry after a garbled reply
_POLL = 0.02  # seconds between looks at a server that should come back
_TEXTS = {
    "step_timeout": "The action was stopped",
    "env_fault": "The environment failed",
    "env_lost": "The environment was lost",
}
_REASONS = {pb.STEP_TIMEOUT: "step_timeout", pb.ENV_FAILED: "env_fault", pb.EPISODE_OVER: "env_lost"}

_decode = json.JSONDecoder().raw_decode  # `json.loads` first guesses the encoding and skips blanks that are not there


class _EpisodeEnded(Exception):
    """The episode cannot continue.

    Attributes:
        reason: "step_timeout" (the action's failure), "env_fault" (the environment raised) or "env_lost".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ClientSession:
    """One environment on a server; made by `AsyncClient.session`.

    Args:
        client: The client whose servers it uses.
        description: The environment, as the server describes it.
        kwargs: The environment's arguments, as JSON.

    Attributes:
        episode: Number of the episode, from 1.
        is_open: An episode is under way.
        actions: The actions taken in it.
        digests: The chained digest after the reset and after each step.
        connection: The server that has the episode; None until one is chosen.
        is_alive: That server has answered for this episode.
        worker: The process that has the episode.
        suspects: Workers that were lost while they ran the current step.
        tried: Addresses of servers that were lost during the current step.
    """

    def __init__(self, client: "AsyncClient", description: "pb.Description", kwargs: bytes) -> None:
        self.client, self.description, self.kwargs = client, description, kwargs
        self.is_deterministic = bool(json.loads(description.metadata).get("deterministic", True))
        self.key, self.episode, self.is_open = os.urandom(16), 0, False
        self.actions: list[bytes] = []
        self.digests: list[bytes] = []
        self.seed, self.options, self.task_id = 0, b"", ""
        self.connection: Connection | None = None
        self.is_alive, self.worker = False, b""
        self.suspects: set[bytes] = set()
        self.tried: set[str] = set()

    @property
    def digest(self) -> bytes:
        """The digest of the newest result; equal for equal episodes."""
        return self.digests[-1] if self.digests else b""

    def copy(self, client: "AsyncClient") -> "ClientSession":
        """A second session in the same state, of `client`, which replays the episode when it is first used."""
        other = copy.copy(self)
        other.client, other.key, other.connection, other.is_alive = client, os.urandom(16), None, False
        other.actions, other.digests = [*self.actions], [*self.digests]
        other.suspects, other.tried = set(), set()
        return other

    async def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        """Begin an episode.

        Args:
            seed: The episode seed, 0 or more and below 2**64; by default one is drawn here, so that the episode can
                be replayed.
            options: JSON values for the environment's reset.

        Raises:
            ValueError: If the environment refuses the seed or the options.
            EnvFault: If the environment fails, if two workers are lost under the reset, or if no server answers within
                `step_timeout`.
        """
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "big") >> 1
        elif not 0 <= seed < 2**64:
            raise gymnasium.error.Error(f"seed must be a non-negative integer below 2**64, got {seed!r}")
        self.is_open, self.episode, self.seed, self.options = False, self.episode + 1, seed, _encode_json(options or {})
        self.actions, self.digests, self.is_alive = [], [], False
        self.suspects, self.tried = set(), set()
        try:
            observation, *_, info = await self._settle(b"", None, self.client.deadline())
        except _EpisodeEnded as end:
            raise EnvFault(f"{self.description.env_id}: {end}") from None
        self.task_id = str(info.get("task_id", ""))
        return observation, info

    async def step(self, action: str) -> StepTuple:
        """Take a step, exactly once, even if calls or servers are lost.

        A step that the server gives up on, or that freezes or kills two workers, is the action's failure: the episode
        ends terminated, with reward 0 and `info["stop_reason"]` "step_timeout". An episode that cannot be restored (its
        environment cannot be replayed, or no server answers within `step_timeout`) ends truncated, with
        `info["valid"]` False and `info["stop_reason"]` "env_lost"; one whose environment raised ends the same way with
        "env_fault".

        Raises:
            gymnasium.error.ResetNeeded: Before a reset, or after the end of the episode.
            TypeError: If `action` is not a `str`.
            RemoteError: If the server refuses the client.
        """
        data, deadline = self.encode(action), self.client.deadline()
        try:
            outcome = await self.send(data)
        except ConnectionLost as lost:
            outcome = lost
        return self.accept(data, outcome) or await self.finish(data, outcome, deadline)

    async def close(self) -> None:
        """Close the session; its server is notified in the background."""
        connection, self.is_open = self.connection, False
        self._go_to(None)
        if connection is not None and self.is_alive:
            self.is_alive = False
            self.client.notify_close(connection, self.key)

    def encode(self, action: str) -> bytes:
        """The action as it is sent.

        Raises: see `step`.
        """
        if not self.is_open:
            raise ResetNeeded(f"{self.description.env_id}: the episode is not open; call reset() before step()")
        if not isinstance(action, str):
            raise TypeError(f"{self.description.env_id}: an action is a str, got {type(action).__name__}")
        return clean(action[: self.description.action_length]).encode()

    def send(self, action: bytes) -> "asyncio.Future[pb.Result | None]":
        """Send a step; the result is None at once if the session has no server that is known to be alive."""
        connection = self.connection
        if connection is None or not self.is_alive or connection.is_blocked:
            nothing = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
            return nothing
        return connection.send("Step", self._step_item(len(self.actions), action))

    def accept(self, action: bytes, result: "pb.Result | BaseException | None") -> StepTuple | None:
        """The outcome of a step or reset; None if there is none, or its digest shows that it was garbled."""
        if not isinstance(result, pb.Result):
            return None
        text, reward, info = result.observation, result.reward, result.info
        terminated, truncated = result.terminated, result.truncated
        ends, seq = terminated | truncated << 1, len(self.digests)
        digest = chained_digest(self.digest, action, seq, text.encode(), reward, ends, info)
        if digest != result.digest:
            return None
        self.digests.append(digest)
        if seq:
            self.actions.append(action)
        if self.tried:
            self.suspects, self.tried = set(), set()
        self.is_open = not ends
        return text, reward, terminated, truncated, _decode(info.decode())[0]

    async def finish(self, action: bytes, outcome: "pb.Result | BaseException | None", deadline: float) -> StepTuple:
        """Finish a step whose first attempt gave no result; see `_settle`."""
        try:
            return await self._settle(action, outcome, deadline)
        except _EpisodeEnded as end:
            return self._end(end.reason, str(end))

    async def _settle(self, action: bytes, outcome: "pb.Result | BaseException | None", deadline: float) -> StepTuple:
        """Retry a step, or the reset if there is no result so far, until an outcome is accepted.

        Args:
            action: The action; empty for a reset.
            outcome: The outcome of the first attempt: a result or an exception; None if there was no attempt.
            deadline: On the event loop's clock.

        Raises:
            _EpisodeEnded: If the episode cannot continue.
        """
        try:
            async with asyncio.timeout_at(deadline):
                while (accepted := self.accept(action, outcome)) is None:
                    if isinstance(outcome, ConnectionLost):
                        self._record_loss(outcome)
                    elif isinstance(outcome, BaseException):
                        raise outcome
                    elif outcome is not None:
                        await self._handle(outcome.error)
                    try:
                        connection = await self._restore()
                        item = self._step_item(len(self.actions), action) if self.digests else self._reset_item()
                        method = "Step" if self.digests else "Reset"
                        outcome = await connection.ask(method, item, is_suspect=bool(self.suspects))
                        self.worker = connection.worker
                    except ConnectionLost as lost:
                        outcome = lost
                return accepted
        except (NoServer, TimeoutError) as error:
            late = f"gave up after {self.client.access.step_timeout:g} s; {self.client.servers.trouble}"
            raise _EpisodeEnded("env_lost", str(error) or late) from None

    def _record_loss(self, lost: ConnectionLost) -> None:
        """Note that the server was lost under the current step or reset.

        Raises:
            _EpisodeEnded: If the step is the cause.
        """
        connection = self.connection
        if connection is None or not connection.is_blocked:
            return  # the call was lost, not the server: it still has the episode
        self.tried.add(connection.address)
        if lost.is_suspicious and self.is_alive:
            self.suspects.add(self.worker)
        self.is_alive = False
        if len(self.suspects) >= _WORKERS:
            raise _EpisodeEnded("step_timeout", f"it froze or crashed {_WORKERS} servers, the last: {lost}")

    async def _handle(self, error: "pb.Error") -> None:
        """Handle an error of the server: return to try again, or raise to end the episode."""
        if error.HasField("retry_after_ms"):
            await pause(error)
        elif error.code == pb.CODE_UNSPECIFIED:  # no error: the reply was garbled, and the server has kept it
            await asyncio.sleep(_GARBLED)
        elif self.digests and error.code in (pb.UNKNOWN_SESSION, pb.BAD_SEQ):  # the episode is not there: replay it
            self.is_alive = False
            self._go_to(None)
        elif error.code in _REASONS:
            raise _EpisodeEnded(_REASONS[error.code], error.message)
        elif error.code == pb.BAD_REQUEST:
            raise ValueError(error.message)
        else:
            raise gymnasium.error.Error(f"{self.description.env_id}: {pb.Code.Name(error.code)}: {error.message}")

    async def _restore(self) -> Connection:
        """A connection whose server has the episode as we left it, after a replay if necessary."""
        connection = self.connection
        if connection is not None and self.is_alive and not connection.is_blocked:
            return connection
        if self.digests and not self.is_deterministic:
            return await self._own_server()
        connection = await self.client.servers.pick(connection, self.tried)
        self._go_to(connection)
        self.is_alive, self.worker = not self.digests, connection.worker
        if self.is_alive:  # a reset: there is nothing to bring back
            return connection
        count = sum(size <= _REPLAY_BYTES for size in itertools.accumulate(map(len, self.actions)))
        item = self._reset_item()
        item.actions.extend(self.actions[:count])
        item.digest = self.digests[count]
        result = await connection.ask("Reset", item)
        worker = connection.worker
        for seq in range(count, len(self.actions) + 1):
            if result.HasField("error"):
                raise _EpisodeEnded("env_lost", f"{pb.Code.Name(result.error.code)}: {result.error.message}")
            if result.digest != self.digests[seq]:
                raise _EpisodeEnded("env_lost", "the replay gave another digest")
            if seq < len(self.actions):
                result = await connection.ask("Step", self._step_item(seq, self.actions[seq]))
        self.is_alive, self.worker = True, worker
        return connection

    async def _own_server(self) -> Connection:
        """The server of an episode that cannot be replayed, once it has come back."""
        connection = self.connection
        if connection is None:
            raise _EpisodeEnded("env_lost", "its server no longer has it, and it cannot be replayed")
        try:
            async with asyncio.timeout(self.client.access.call_timeout + _COME_BACK):
                while connection.is_blocked:
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise _EpisodeEnded("env_lost", f"{connection.trouble}; it cannot be replayed") from None
        self.is_alive = True
        return connection

    def _go_to(self, connection: Connection | None) -> None:
        if self.connection is not None:
            self.connection.sessions.discard(self)
        if connection is not None:
            connection.sessions.add(self)
        self.connection = connection

    def _end(self, reason: str, why: str) -> StepTuple:
        """The last step of an episode that cannot continue: the action's failure, or one of ours."""
        is_ours = reason != "step_timeout"
        self.is_open = False
        info = {"task_id": self.task_id, "seed": self.seed, "turn": len(self.actions) + 1, "action_valid": True}
        info |= {"role": "user", "rewards": {}, "success": False, "stop_reason": reason, "valid": not is_ours}
        return f"{_TEXTS[reason]}: {why}", 0.0, not is_ours, is_ours, info

    def _step_item(self, taken: int, action: bytes) -> "pb.StepItem":
        return pb.StepItem(session=self.key, episode=self.episode, seq=taken + 1, action=action)

    def _reset_item(self) -> "pb.ResetItem":
        env_id = self.description.env_id
        item = pb.ResetItem(session=self.key, episode=self.episode, env_id=env_id, kwargs=self.kwargs)
        item.seed, item.options = self.seed, self.options
        return item


class AsyncClient:
    """A client of one server or of several interchangeable ones, for use on one event loop.

    Args:
        address: `host:port`, a list of them, or `dns:///name:port`, which stands for every address of that name.
        **access: `token`, `tls`, `tls_ca`, `tls_cert`, `tls_key`, `connect_timeout`, `rpc_timeout` and
            `step_timeout`; see `Access`.
    """

    def __init__(self, address: str | Sequence[str], **access: Any) -> None:
        self.access = Access(**access)
        self.servers = ServerPool(split_addresses(address), self.access)
        self._descriptions: dict[tuple[str, bytes], pb.Description] = {}
        self._closing: set[asyncio.Future[Any]] = set()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channels, after the servers have been notified of closed sessions."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=1.0)
        self.servers.close()

    async def describe(self, env_id: str, **kwargs: Any) -> "pb.Description":
        """The description of an environment; see `envs.proto`.

        Raises:
            gymnasium.error.Error: If it is not served, or its kwargs or the client's token are refused.
            EnvFault: If no server answers.
        """
        key = env_id, _encode_json(kwargs)
        try:
            async with asyncio.timeout(self.access.step_timeout):
                while key not in self._descriptions:
                    with contextlib.suppress(ConnectionLost):
                        connection = await self.servers.pick()
                        answer = await connection.ask("Describe", pb.DescribeItem(env_id=env_id, kwargs=key[1]))
                        if answer.HasField("error"):
                            raise gymnasium.error.Error(answer.error.message)
                        self._descriptions[key] = answer
        except (NoServer, TimeoutError) as error:
            raise EnvFault(str(error) or self.servers.trouble) from None
        return self._descriptions[key]

    async def session(self, env_id: str, **kwargs: Any) -> ClientSession:
        """A session of the environment; it holds nothing on a server before its first reset.

        Raises: see `describe`.
        """
        return ClientSession(self, await self.describe(env_id, **kwargs), _encode_json(kwargs))

    def deadline(self) -> float:
        """When a step or reset that begins now is given up, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.access.step_timeout

    async def step_many(self, sessions: Sequence[ClientSession], actions: Sequence[str]) -> list[StepTuple]:
        """Take one step in each of several sessions, in one call for each server.

        Raises: see `ClientSession.step`; then no step is taken.
        """
        encoded, deadline = [session.encode(action) for session, action in zip(sessions, actions)], self.deadline()
        sent = [session.send(action) for session, action in zip(sessions, encoded)]
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        results: list[Any] = [one.accept(data, given) for one, data, given in zip(sessions, encoded, outcomes)]
        late = [index for index, result in enumerate(results) if result is None]
        endings = (sessions[index].finish(encoded[index], outcomes[index], deadline) for index in late)
        for index, result in zip(late, await asyncio.gather(*endings)):
            results[index] = result
        return results

    def notify_close(self, connection: Connection, key: bytes) -> None:
        """Tell a session's server that it is closed; if that fails, the server sweeps the idle session itself."""
        closing = connection.send("Close", key)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _encode_json(value: dict[str, Any]) -> bytes:
    """Arguments or options as they are sent.

    Raises:
        TypeError: If they are not JSON values.
    """
    try:
        return json.dumps(value, sort_keys=True).encode() if value else b""
    except (TypeError, ValueError) as error:
        raise TypeError(f"kwargs and options of a remote environment are JSON values: {error}") from None
