"""`AsyncClient`: episodes on served environments, exactly once, across lost servers.

Concurrent `step()`s travel together. A server that is lost is replaced by replaying the episode's seed and actions on
another, and the chained digest shows that it is the same episode.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from mrlm_envs.core import EnvFault, clean
from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.fleet import Fleet, NoServer, split_addresses
from mrlm_envs.serving.lane import BLOCKED, Access, Lane, LaneLost, RemoteError

Info = dict[str, Any]
StepTuple = tuple[str, float, bool, bool, Info]

_DEATHS = 3  # servers lost under one step before the step itself is held to be the cause
_REPLAY_BYTES = 4 << 20  # of actions in one reset; the rest is stepped
_decode = json.JSONDecoder().decode  # `json.loads` guesses the encoding first


class _EnvLost(Exception):
    """The episode cannot be brought back."""


@dataclass
class Description:
    """What an environment is like; see `envs.proto`."""

    env_id: str
    observation_length: int
    action_length: int
    action_charset: str
    metadata: dict[str, Any]
    num_tasks: int | None

    @property
    def is_deterministic(self) -> bool:
        """Its episodes can be replayed."""
        return bool(self.metadata.get("deterministic", True))


@dataclass(eq=False)
class Session:
    """One environment on a server; made by `AsyncClient.session`.

    Attributes:
        episode: Number of the episode, from 1.
        seq: Steps taken in it.
        digest: The chained digest of everything the episode has shown so far.
        is_open: An episode is under way.
    """

    client: "AsyncClient"
    description: Description
    kwargs: bytes
    key: bytes = b""
    episode: int = 0
    is_open: bool = False
    actions: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    seed: int | None = None
    options: bytes = b""
    task_id: str = ""
    home: Lane | None = None  # the first choice of its key, when that was chosen
    lane: Lane | None = None
    is_alive: bool = False  # the lane has answered for this session
    deaths: int = 0  # of servers that were alive, under the current step

    @property
    def seq(self) -> int:
        """Steps taken in the episode."""
        return len(self.actions)

    @property
    def digest(self) -> bytes:
        """The digest of the newest result; equal for equal episodes."""
        return self.digests[-1] if self.digests else b""

    async def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        """Begin an episode; see `AsyncClient.reset`."""
        return await self.client.reset(self, seed=seed, options=options)

    async def step(self, action: str) -> StepTuple:
        """Take a step; see `AsyncClient.step`."""
        return await self.client.step(self, action)

    async def close(self) -> None:
        """Give the session up."""
        self.client.release(self)

    def copy(self, client: "AsyncClient") -> "Session":
        """A second session in the same state, of `client`, which replays the episode when it is first used."""
        other = Session(client, self.description, self.kwargs, episode=self.episode, is_open=self.is_open)
        other.actions, other.digests = list(self.actions), list(self.digests)
        other.seed, other.options, other.task_id = self.seed, self.options, self.task_id
        return other


class AsyncClient:
    """A client of one server or a fleet of equal ones, for use on one event loop.

    Args:
        address: `host:port`, a list of them, or `dns:///name:port`, which is every address of that name.
        token: The bearer token; by default the environment variable `MRLM_TOKEN`, if set.
        tls: Use TLS; implied by the certificates below.
        tls_ca: Path of PEM certificates to trust instead of the system's.
        tls_cert: Path of the client's own certificate (mTLS).
        tls_key: Path of the client's own key (mTLS).
        rpc_timeout: Seconds without an answer after which a server counts as lost. Slow steps do not count: a live
            server answers within two seconds that a step still runs.
        step_timeout: Seconds for one step or reset, fail-over included.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        token: str | None = None,
        tls: bool = False,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        rpc_timeout: float = 10.0,
        step_timeout: float = 300.0,
    ) -> None:
        self.rpc_timeout, self.step_timeout = rpc_timeout, step_timeout
        access = Access(token or os.environ.get("MRLM_TOKEN") or None, tls, tls_ca, tls_cert, tls_key)
        self._fleet = Fleet(split_addresses(address), access, rpc_timeout)
        self._descriptions: dict[tuple[str, bytes], Description] = {}
        self._jitter = random.Random(int.from_bytes(os.urandom(8), "big"))
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channels, after sessions given up have been told to the servers."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=1.0)
        self._fleet.close()

    async def describe(self, env_id: str, **kwargs: Any) -> Description:
        """What the environment is like.

        Raises:
            gymnasium.error.Error: If it is not served, or its kwargs are refused.
            EnvFault: If no server answers.
        """
        key = env_id, _json(kwargs)
        if key not in self._descriptions:
            item = pb.DescribeItem(env_id=env_id, kwargs=key[1])
            answer = await self._ask_any("Describe", item)
            self._descriptions[key] = Description(
                answer.env_id,
                answer.observation_length,
                answer.action_length,
                answer.action_charset,
                json.loads(answer.metadata),
                answer.num_tasks if answer.HasField("num_tasks") else None,
            )
        return self._descriptions[key]

    async def session(self, env_id: str, **kwargs: Any) -> Session:
        """A session of the environment; it holds nothing on a server before its first reset.

        Raises:
            gymnasium.error.Error: If the environment is not served, or its kwargs are refused.
            EnvFault: If no server answers.
        """
        description = await self.describe(env_id, **kwargs)
        return Session(self, description, _json(kwargs))

    async def reset(
        self, session: Session, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, Info]:
        """Begin an episode.

        Args:
            session: From `session()`.
            seed: The episode seed, 0 or more and below 2**64; by default one is drawn here, so that the episode can
                be replayed.
            options: JSON values for the environment's reset.

        Raises:
            ValueError: If the environment refuses the seed or the options.
            EnvFault: If the environment fails, or no server answers within `step_timeout`.
        """
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "big") >> 1
        elif not 0 <= seed < 2**64:
            raise gymnasium.error.Error(f"seed must be a non-negative integer below 2**64, got {seed!r}")
        session.is_open, session.episode, session.seed = False, session.episode + 1, seed
        session.actions, session.digests, session.deaths = [], [], 0
        session.options = _json(options or {})
        deadline = time.monotonic() + self.step_timeout
        session.lane = None
        while True:
            try:
                lane = session.lane = await self._pick(session, deadline)
                result = await self._send(lane, "Reset", self._reset_item(session), deadline)
            except LaneLost as lost:
                session.deaths += lost.was_reached
                if session.deaths > _DEATHS:
                    raise EnvFault(f"{session.deaths} servers were lost under one reset; the last: {lost}") from None
                continue
            except NoServer as error:
                raise EnvFault(f"{session.description.env_id}: {error}") from None
            if result.HasField("error"):
                raise _refusal(session.description.env_id, result.error)
            break
        info = json.loads(result.info)
        session.is_open, session.is_alive, session.digests = True, True, [result.digest]
        session.task_id = str(info.get("task_id", ""))
        return result.observation, info

    async def step(self, session: Session, action: str) -> StepTuple:
        """Take a step. It is taken once, whatever is lost on the way.

        An episode that cannot be brought back (its environment cannot be replayed, or no server answers within
        `step_timeout`) ends truncated, with `info["valid"]` False and `info["stop_reason"]` "env_lost"; one whose
        environment raised ends the same way with "env_fault".

        Raises:
            gymnasium.error.ResetNeeded: Before a reset, or after the end of the episode.
            TypeError: If `action` is not a `str`.
            RemoteError: If the server refuses the client.
        """
        encoded = self._encode(session, action)
        result = lost = None
        future = self._offer(session, encoded)
        if future is not None:
            try:
                result = await future
            except LaneLost as error:
                lost = error
        if result is not None and not result.HasField("error"):
            return self._accept(session, encoded, result)
        return await self._finish(session, encoded, result, lost)

    async def step_many(self, sessions: Sequence[Session], actions: Sequence[str]) -> list[StepTuple]:
        """Take one step in each of several sessions, in one call for each server.

        Raises: see `step`; then no step is taken.
        """
        encoded = [self._encode(session, action) for session, action in zip(sessions, actions)]
        sent = [self._offer(session, action) for session, action in zip(sessions, encoded)]
        results: list[StepTuple | None] = []
        late: list[tuple[int, asyncio.Future[StepTuple]]] = []
        for session, action, future in zip(sessions, encoded, sent):
            result = lost = None
            if future is not None:
                try:
                    result = await future
                except LaneLost as error:
                    lost = error
            if result is not None and not result.HasField("error"):
                results.append(self._accept(session, action, result))
            else:
                late.append((len(results), asyncio.ensure_future(self._finish(session, action, result, lost))))
                results.append(None)
        for index, future in late:
            results[index] = await future
        return results  # pyright: ignore[reportReturnType]

    def release(self, session: Session) -> None:
        """Give a session up; the server is told as soon as may be."""
        session.is_open = False
        if session.home is not None:
            session.home.load -= 1
            session.home = None
        lane, session.lane = session.lane, None
        if lane is not None and session.is_alive:
            session.is_alive = False
            task = asyncio.ensure_future(_forget(lane, session.key))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _encode(self, session: Session, action: str) -> bytes:
        if not session.is_open:
            raise ResetNeeded(f"{session.description.env_id}: the episode is not open; call reset() before step()")
        if not isinstance(action, str):
            raise TypeError(f"{session.description.env_id}: an action is a str, got {type(action).__name__}")
        return clean(action[: session.description.action_length]).encode()

    def _offer(self, session: Session, action: bytes) -> "asyncio.Future[Any] | None":
        """Send a step if all is well with the session's server."""
        lane = session.lane
        if lane is None or not session.is_alive or lane.is_blocked:
            return None
        return lane.send("Step", _step_item(session, action), size=len(action))

    def _accept(self, session: Session, action: bytes, result: "pb.Result") -> StepTuple:
        session.actions.append(action)
        session.digests.append(result.digest)
        session.deaths = 0
        terminated, truncated = result.terminated, result.truncated
        if terminated or truncated:
            session.is_open = False
        return result.observation, result.reward, terminated, truncated, _decode(result.info.decode())

    async def _finish(self, session: Session, action: bytes, result: Any, lost: LaneLost | None) -> StepTuple:
        """Bring a step to its end that did not go well at once; `result` is an error, or None if there is no answer."""
        deadline = time.monotonic() + self.step_timeout
        again = False
        lost_at = None
        try:
            while True:
                if lost is not None and not lost.is_cut:
                    lost_at = lost_at or time.monotonic()
                    self._mourn(session, lost, lost_at)
                lost = None
                if result is None:
                    try:
                        lane = await self._bring_back(session, deadline)
                        result = await self._send(lane, "Step", _step_item(session, action), deadline, again)
                    except LaneLost as error:
                        lost = error
                        continue
                    session.is_alive, lost_at = True, None
                if not result.HasField("error"):
                    return self._accept(session, action, result)
                error, result = result.error, None
                if error.HasField("retry_after_ms"):
                    again = error.code == pb.STEP_TIMEOUT
                    await self._pause(error, deadline)
                elif error.code in (pb.UNKNOWN_SESSION, pb.BAD_SEQ):
                    session.is_alive = False
                    session.deaths += error.code == pb.BAD_SEQ
                    self._check(session, error.message)
                    session.lane = None
                elif error.code in (pb.ENV_FAILED, pb.STEP_TIMEOUT):
                    return self._end(session, "env_fault", f"The environment failed: {error.message}")
                elif error.code == pb.EPISODE_OVER:
                    raise _EnvLost(error.message)
                else:
                    raise _refusal(session.description.env_id, error)
        except (_EnvLost, NoServer) as error:
            return self._end(session, "env_lost", f"The environment was lost: {error}")

    def _mourn(self, session: Session, lost: LaneLost, since: float) -> None:
        """The session's server has been lost since that time; decide whether to go on trying."""
        session.deaths += session.is_alive
        session.is_alive = False
        if session.deaths > _DEATHS:
            raise _EnvLost(f"{session.deaths} servers were lost under step {session.seq + 1}")
        # Only its own server can go on with what cannot be replayed; one that is gone must not cost the whole time-out.
        if not session.description.is_deterministic and time.monotonic() > since + BLOCKED + self.rpc_timeout:
            raise _EnvLost(f"{lost}; the environment cannot be replayed")

    def _check(self, session: Session, why: str) -> None:
        if not session.description.is_deterministic:
            raise _EnvLost(f"{why}; the environment cannot be replayed")
        if session.deaths > _DEATHS:
            raise _EnvLost(why)

    async def _bring_back(self, session: Session, deadline: float) -> Lane:
        """A lane on which the session is where we left it, after a replay if need be."""
        lane = session.lane
        if lane is not None and session.is_alive and not lane.is_blocked:
            return lane
        if not session.description.is_deterministic:
            if lane is None:
                raise _EnvLost("the environment cannot be replayed")
            await self._sleep(lane.blocked_until - time.monotonic(), deadline, lane.address)
            return lane
        lane = session.lane = await self._pick(session, deadline)
        item = self._reset_item(session)
        size, count = 0, 0
        for action in session.actions:
            size += len(action)
            if size > _REPLAY_BYTES:
                break
            count += 1
        item.actions.extend(session.actions[:count])
        item.digest = session.digests[count]
        await self._replayed(await self._send(lane, "Reset", item, deadline), session.digests[count])
        for seq in range(count, len(session.actions)):
            step = pb.StepItem(session=session.key, episode=session.episode, seq=seq + 1, action=session.actions[seq])
            await self._replayed(await self._send(lane, "Step", step, deadline), session.digests[seq + 1])
        session.is_alive = True
        return lane

    async def _replayed(self, result: "pb.Result", digest: bytes) -> None:
        if result.HasField("error"):
            raise _EnvLost(f"{pb.Code.Name(result.error.code)}: {result.error.message}")
        if result.digest != digest:
            raise _EnvLost("the replay gave another digest")

    def _end(self, session: Session, reason: str, text: str) -> StepTuple:
        session.is_open = False
        info = {
            "task_id": session.task_id,
            "seed": session.seed,
            "turn": session.seq + 1,
            "action_valid": True,
            "role": "user",
            "rewards": {},
            "success": False,
            "stop_reason": reason,
            "valid": False,
        }
        return text, 0.0, False, True, info

    async def _send(self, lane: Lane, method: str, item: Any, deadline: float, again: bool = False) -> Any:
        """Send an item until the answer is not "ask again"."""
        while True:
            result = await lane.send(method, item, again=again, size=item.ByteSize())
            if not result.HasField("error") or not result.error.HasField("retry_after_ms"):
                return result
            again = result.error.code == pb.STEP_TIMEOUT
            await self._pause(result.error, deadline)

    async def _pause(self, error: "pb.Error", deadline: float) -> None:
        wait = error.retry_after_ms / 1000
        await self._sleep(wait * self._jitter.uniform(0.5, 1.5), deadline, error.message)

    async def _sleep(self, seconds: float, deadline: float, why: str) -> None:
        if time.monotonic() + seconds > deadline:
            raise NoServer(f"gave up after {self.step_timeout:g} s: {why}")
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _reset_item(self, session: Session) -> "pb.ResetItem":
        return pb.ResetItem(
            session=session.key,
            episode=session.episode,
            env_id=session.description.env_id,
            kwargs=session.kwargs,
            seed=session.seed,
            options=session.options,
        )

    async def _ask_any(self, method: str, item: Any) -> Any:
        deadline = time.monotonic() + self.step_timeout
        key = os.urandom(16)
        while True:
            try:
                lane = await self._fleet.pick(key, deadline)
                answer = await self._send(lane, method, item, deadline)
            except LaneLost:
                continue
            except NoServer as error:
                raise EnvFault(str(error)) from None
            if answer.HasField("error"):
                raise gymnasium.error.Error(answer.error.message)
            return answer

    async def _pick(self, session: Session, deadline: float) -> Lane:
        if not session.key:
            session.key, session.home = await self._fleet.draw()
        return await self._fleet.pick(session.key, deadline)


def _step_item(session: Session, action: bytes) -> "pb.StepItem":
    return pb.StepItem(session=session.key, episode=session.episode, seq=len(session.actions) + 1, action=action)


def _refusal(env_id: str, error: "pb.Error") -> Exception:
    if error.code == pb.BAD_REQUEST:
        return ValueError(error.message)
    if error.code in (pb.ENV_FAILED, pb.STEP_TIMEOUT):
        return EnvFault(error.message)
    return gymnasium.error.Error(f"{env_id}: {pb.Code.Name(error.code)}: {error.message}")


async def _forget(lane: Lane, key: bytes) -> None:
    try:
        await lane.send("Close", key)
    except (LaneLost, RemoteError):
        return  # the server sweeps idle sessions itself


def _json(value: dict[str, Any]) -> bytes:
    if not value:
        return b""
    try:
        return json.dumps(value, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"kwargs and options of a remote environment are JSON values: {error}") from None
