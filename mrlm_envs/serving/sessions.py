"""Sessions of a server: which step is the next, which answer is kept, who may have how many.

All of `Sessions` runs on the event loop; a `Work` writes only to itself, on the pool's thread, and sets `done` last.
"""

import hashlib
import json
import logging
import math
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from mrlm_envs.core import EnvFault, clean
from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.catalog import Catalog, Offer, Refused, json_object

logger = logging.getLogger("mrlm.serve")

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_header = struct.Struct("<QIdBII").pack


@dataclass(frozen=True)
class Limits:
    """Limits of one server process.

    Attributes:
        action_bytes: UTF-8 bytes of one action.
        batch: Items of one call.
        message_bytes: A call's reply; what is beyond is answered when asked again.
        sessions: Sessions of all tenants.
        tenant_sessions: Sessions of one tenant.
        queue: Steps and resets waiting to run.
        idle_ttl: Seconds after which an unused session is closed.
        step_timeout: Seconds after which a step or reset is given up.
    """

    action_bytes: int = 1 << 20
    batch: int = 4096
    message_bytes: int = 3 << 20
    sessions: int = 20_000
    tenant_sessions: int = 20_000
    queue: int = 20_000
    idle_ttl: float = 900.0
    step_timeout: float = 120.0


class Failure(Exception):
    """An item's error, as the protocol says it."""

    def __init__(self, code: "pb.Code", message: str, *, expected_seq: int = 0, retry_after: float | None = None):
        super().__init__(message)
        self.error = pb.Error(code=code, message=message, expected_seq=expected_seq)
        if retry_after is not None:
            self.error.retry_after_ms = math.ceil(1000 * retry_after)


class Work:
    """A step, or with `reset` set a reset, and its answer once `done`.

    The answer is kept as plain fields: a protobuf message would cost an idle session half a kilobyte more.
    """

    __slots__ = (
        "action",
        "detached",
        "digest",
        "done",
        "ends_batch",
        "env",
        "error",
        "fingerprint",
        "given_up",
        "info",
        "is_reset",
        "observation",
        "offer",
        "over",
        "reset",
        "reward",
        "seq",
        "started",
        "terminated",
        "truncated",
    )

    def __init__(self, offer: Offer, env: gymnasium.Env[str, str] | None, seq: int, fingerprint: int) -> None:
        self.offer, self.env, self.seq, self.fingerprint = offer, env, seq, fingerprint
        self.action = ""
        self.reset: _Reset | None = None
        self.is_reset = False
        self.digest = b""  # the digest before, until done
        self.observation, self.info = "", b""
        self.reward, self.terminated, self.truncated = 0.0, False, False
        self.error: pb.Error | None = None
        self.started = 0.0
        self.done = self.over = self.ends_batch = self.given_up = self.detached = False

    def run(self) -> None:
        """Step or reset the environment; every failure becomes `error`."""
        try:
            if self.reset is not None:
                self._begin(self.reset)
            else:
                assert self.env is not None
                self._keep(self.seq, self.action, *self.env.step(self.action))
        except Failure as failure:
            self.error = failure.error
        except BaseException as error:  # an environment may even call sys.exit
            logger.warning("%s: %s: %s", self.offer.id, type(error).__name__, error, exc_info=error)
            self.error = pb.Error(code=pb.ENV_FAILED, message=_shown(error))
        self.action, self.reset = "", None
        self.over = self.terminated or self.truncated or self.error is not None
        self.done = True
        if self.detached:
            self.close()

    def _begin(self, reset: "_Reset") -> None:
        try:
            if self.env is None:
                self.env = self.offer.make(reset.kwargs)
            if reset.is_replay and not self.env.unwrapped.metadata.get("deterministic", True):
                raise Failure(pb.NOT_DETERMINISTIC, f"{self.offer.id} with these kwargs cannot be replayed")
            observation, info = self.env.reset(seed=reset.seed, options=reset.options)
        except (ValueError, TypeError, gymnasium.error.Error) as error:
            raise Failure(pb.BAD_REQUEST, f"{self.offer.id}: {error}") from error
        self._keep(0, "", observation, 0.0, False, False, info)
        for seq, action in enumerate(reset.actions, start=1):
            if self.terminated or self.truncated:
                raise Failure(pb.REPLAY_DIVERGED, f"{self.offer.id}: the replay ended after step {seq - 1}")
            self.started = time.monotonic()  # the time limit is one step's
            self._keep(seq, action, *self.env.step(action))
        if reset.is_replay and self.digest != reset.digest:
            raise Failure(pb.REPLAY_DIVERGED, f"{self.offer.id}: {self.seq} replayed steps gave another digest")

    def _keep(
        self, seq: int, action: str, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> None:
        if not isinstance(observation, str) or not isinstance(info, dict):
            raise EnvFault(f"expected a str and a dict, got {type(observation).__name__} and {type(info).__name__}")
        self.observation = observation = clean(observation)
        self.reward, self.terminated, self.truncated = float(reward), bool(terminated), bool(truncated)
        try:
            text = _encode(info)
        except (TypeError, ValueError):
            text = _encode(plain(info))
        self.info = info_bytes = text.encode()
        sent, seen = action.encode(), observation.encode()
        ends = self.terminated | self.truncated << 1
        header = _header(seq, len(sent), self.reward, ends, len(seen), len(info_bytes))
        self.digest = hashlib.blake2b(self.digest + header + sent + seen + info_bytes, digest_size=16).digest()

    def answer(self, results: Any) -> int:
        """Append the answer to a repeated `Result` field; returns its approximate bytes."""
        if self.given_up:
            results.add(seq=self.seq).error.CopyFrom(
                pb.Error(code=pb.STEP_TIMEOUT, message=f"{self.offer.id}: gave up step {self.seq}, it takes too long")
            )
        elif self.error is not None:
            results.add(seq=self.seq).error.CopyFrom(self.error)
        else:
            results.add(
                observation=self.observation,
                reward=self.reward,
                terminated=self.terminated,
                truncated=self.truncated,
                info=self.info,
                digest=self.digest,
                seq=self.seq,
            )
            size = len(self.observation)
            return (size if self.observation.isascii() else 4 * size) + len(self.info) + 64
        return 256

    @property
    def never_began(self) -> bool:
        """A reset that failed: there is no episode."""
        return self.is_reset and (self.given_up or (self.done and self.error is not None))

    def close(self) -> None:
        """Close the environment; may take its time."""
        env, self.env = self.env, None
        if env is not None:
            try:
                env.close()
            except Exception as error:
                logger.warning("%s: close() raised %s", self.offer.id, _shown(error))


@dataclass(slots=True)
class _Reset:
    kwargs: dict[str, Any]
    seed: int | None
    options: dict[str, Any] | None
    actions: list[str]
    digest: bytes
    is_replay: bool


class Session:
    """One environment of one tenant: its episode, and the newest work on it (running, or the answer kept)."""

    __slots__ = ("episode", "kwargs", "opening", "touched", "work")

    def __init__(self, episode: int, kwargs: bytes, opening: int, work: Work, now: float) -> None:
        self.episode, self.kwargs, self.opening, self.work, self.touched = episode, kwargs, opening, work, now


class Sessions:
    """Every session of a server, by tenant and session id.

    Args:
        catalog: What is offered.
        limits: The server's limits.
        queued: How many steps and resets wait or run.
        later: Calls a function soon, on another thread.
    """

    def __init__(
        self,
        catalog: Catalog,
        limits: Limits,
        queued: Callable[[], int],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self.catalog, self.limits, self.queued, self.later = catalog, limits, queued, later
        self.tenants: dict[str, dict[bytes, Session]] = {}
        self.count = 0

    def step(self, tenant: str, item: "pb.StepItem", now: float) -> tuple[Work, bool]:
        """The work that answers a step item, and whether it is new (and has to be run).

        Raises:
            Failure: If the item cannot be run.
        """
        session = self.tenants.get(tenant, {}).get(item.session)
        if session is None:
            raise Failure(pb.UNKNOWN_SESSION, f"no session {item.session.hex()}; reset it, or replay its episode")
        session.touched = now
        last, seq = session.work, item.seq
        if item.episode != session.episode:
            raise Failure(pb.BAD_SEQ, f"the session is in episode {session.episode}, not {item.episode}")
        fingerprint = hash(item.action)
        if seq == last.seq and seq > 0 and last.fingerprint == fingerprint:
            return last, False
        if not (last.done or last.given_up):
            raise Failure(pb.BAD_SEQ, f"step {last.seq} still runs, got step {seq}", expected_seq=last.seq)
        if last.over or last.given_up:
            raise Failure(pb.EPISODE_OVER, f"episode {session.episode} ended with step {last.seq}; reset first")
        if seq != last.seq + 1:
            what = f"step {seq} was taken with another action" if 0 < seq == last.seq else f"got step {seq}"
            raise Failure(pb.BAD_SEQ, f"expected step {last.seq + 1}, {what}", expected_seq=last.seq + 1)
        if len(item.action) > self.limits.action_bytes:
            size, limit = len(item.action), self.limits.action_bytes
            raise Failure(pb.TOO_LARGE, f"the action has {size} bytes; the limit is {limit}")
        try:
            action = item.action.decode()
        except UnicodeDecodeError as error:
            raise Failure(pb.BAD_ACTION, f"the action is not UTF-8: {error}") from None
        self._check_queue()
        work = Work(last.offer, last.env, seq, fingerprint)
        work.action, work.digest = action, last.digest
        session.work = work
        return work, True

    def reset(self, tenant: str, item: "pb.ResetItem", now: float) -> tuple[Work, bool]:
        """The work that answers a reset item, and whether it is new (and has to be run).

        Raises:
            Failure: If the item cannot be run; a session is not made then.
        """
        offer = self.catalog.find(item.env_id)
        if offer is None:
            offered = ", ".join(self.catalog.ids)
            raise Failure(pb.UNKNOWN_ENV, f"environment {item.env_id!r} is not served here; served are: {offered}")
        if len(item.session) != 16 or item.episode < 1:
            raise Failure(pb.BAD_REQUEST, "a session id is 16 bytes, and episodes are numbered from 1")
        is_replay = bool(item.digest or item.actions)
        seed = item.seed if item.HasField("seed") else None
        opening = hash((offer.id, item.kwargs, seed, item.options, tuple(item.actions), item.digest))
        mine = self.tenants.setdefault(tenant, {})
        session = mine.get(item.session)
        if session is not None:
            session.touched = now
            last = session.work
            if item.episode < session.episode:
                raise Failure(pb.BAD_SEQ, f"the session is in episode {session.episode}, not {item.episode}")
            if item.episode == session.episode:
                failed = last.given_up or (last.done and last.error is not None)
                is_same = opening == session.opening and last.is_reset
                is_there = is_replay and last.done and last.seq == len(item.actions) and last.digest == item.digest
                if (is_same or is_there) and not failed:
                    return last, False
                if not is_replay and not failed:
                    raise Failure(
                        pb.BAD_SEQ, f"episode {item.episode} has begun with another reset", expected_seq=last.seq + 1
                    )
        try:
            reset = _Reset(
                kwargs=self.catalog.kwargs(offer, item.kwargs),
                seed=seed,
                options=json_object(item.options, "options") or None,
                actions=[action.decode() for action in item.actions],
                digest=item.digest,
                is_replay=is_replay,
            )
        except (Refused, UnicodeDecodeError) as error:
            raise Failure(pb.BAD_REQUEST, str(error)) from None
        if any(len(action) > self.limits.action_bytes for action in item.actions):
            raise Failure(pb.TOO_LARGE, f"an action has more than {self.limits.action_bytes} bytes")
        self._check_queue()
        env = None
        if session is None:
            self._check_room(mine)
            self.count += 1
        elif session.work.done and session.work.offer is offer and session.kwargs == item.kwargs:
            env = session.work.env if session.work.error is None else None
        work = Work(offer, env, len(item.actions), hash(item.actions[-1]) if item.actions else 0)
        work.reset, work.is_reset = reset, True
        if session is None:
            mine[item.session] = Session(item.episode, item.kwargs, opening, work, now)
        else:
            if env is None:
                self._detach(session.work)
            session.episode, session.kwargs, session.opening, session.work = item.episode, item.kwargs, opening, work
        return work, True

    def close(self, tenant: str, key: bytes, work: Work | None = None) -> bool:
        """Forget a session (only if its newest work is `work`, when given); False if there is none."""
        session = self.tenants.get(tenant, {}).get(key)
        if session is None or (work is not None and session.work is not work):
            return False
        del self.tenants[tenant][key]
        self.count -= 1
        self._detach(session.work)
        return True

    def sweep(self, now: float) -> int:
        """Close sessions that were idle for too long or never began; returns how many."""
        before = now - self.limits.idle_ttl
        gone = [
            (tenant, key)
            for tenant, mine in self.tenants.items()
            for key, session in mine.items()
            if (session.touched < before and (session.work.done or session.work.given_up)) or session.work.never_began
        ]
        for tenant, key in gone:
            self.close(tenant, key)
        for tenant in [tenant for tenant, mine in self.tenants.items() if not mine]:
            del self.tenants[tenant]
        return len(gone)

    def _detach(self, work: Work) -> None:
        """Nobody wants the answer any more: close the environment when the work has ended, never on the loop."""
        work.detached = True
        env = work.env
        if work.done and env is not None and type(env).close is not gymnasium.Env.close:
            self.later(work.close)

    def _check_queue(self) -> None:
        if (queued := self.queued()) >= self.limits.queue:
            raise Failure(pb.OVERLOADED, f"{queued} steps are queued", retry_after=0.1)

    def _check_room(self, mine: dict[bytes, Session]) -> None:
        if self.count >= self.limits.sessions:
            raise Failure(pb.OVERLOADED, f"all {self.limits.sessions} sessions are taken", retry_after=1.0)
        if len(mine) >= self.limits.tenant_sessions:
            raise Failure(
                pb.QUOTA, f"the tenant has all of its {self.limits.tenant_sessions} sessions", retry_after=1.0
            )


def plain(value: Any) -> Any:
    """`value` as JSON can say it: numpy as numbers and lists, non-finite floats as None, the rest as text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace").decode()
