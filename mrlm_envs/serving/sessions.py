"""The sessions of a server: which step comes next, which answer is kept, and how much each tenant may have.

All of `Sessions` runs on the event loop. `Job.run` writes only to its own `Job`, on whichever thread runs it, and
sets `done` last.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from mrlm_envs.core import EnvFault, clean, plain
from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.catalog import Catalog, Registration, json_object
from mrlm_envs.serving.protocol import ActionFailed, ItemError, chained_digest, encode_info
from mrlm_envs.serving.settings import Settings

logger = logging.getLogger("mrlm.serve")

LABEL = 240  # bytes
_PARSED = 4  # bytes held for each byte of kwargs or options: as sent, parsed, in the environment, in its first info
_REFUSALS = (ValueError, TypeError, gymnasium.error.Error)  # what an environment raises for wrong arguments


class CallRefused(Exception):
    """A call is refused as a whole, with a gRPC status."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Job:
    """The work of a thread for one item of a call; every failure becomes `error`. A plain `Job` does nothing.

    Args:
        registration: The environment's registration, if the item concerns one.
        session: The item's session, if it has one.
        error: The error of the item, if it is known from the start.

    Attributes:
        is_new: It has yet to be handed to the pool.
        started: When it began, on the monotonic clock.
        done: It has run; set last.
        given_up: It took too long, and nobody waits for it any more.
        result: The answer, a message.
        size: Approximate size of the answer in bytes.
        is_step: It takes one step.
    """

    __slots__ = ("done", "error", "given_up", "is_new", "registration", "result", "session", "size", "started")
    what, is_step = "the step", False

    def __init__(
        self, registration: Any = None, session: "Session | None" = None, error: "pb.Error | None" = None
    ) -> None:
        self.registration: Registration = registration
        self.session, self.error = session, error
        self.started, self.given_up, self.size = 0.0, False, 0
        self.done = registration is None
        self.is_new = not self.done
        self.result: Any = pb.CloseResult()

    @property
    def is_settled(self) -> bool:
        """It has an answer."""
        return self.done or self.given_up

    @property
    def has_failed(self) -> bool:
        """Its answer is an error."""
        return self.given_up or self.error is not None

    @property
    def names(self) -> dict[str, str]:
        """Session and environment, for logs."""
        return self.session.names if self.session else {"env": self.registration.id}

    def run(self) -> None:
        """Act, and keep the answer or the error."""
        try:
            self._act()
        except ItemError as failure:
            self.error = failure.error
        except ActionFailed as failure:
            self.error = pb.Error(code=pb.STEP_TIMEOUT, message=f"{self.registration.id}: {failure}")
        except BaseException as error:  # an environment may even call sys.exit
            if isinstance(error, _REFUSALS) and not self.is_step:
                self.error = pb.Error(code=pb.BAD_REQUEST, message=f"{self.registration.id}: {error}")
            else:
                logger.warning("%s: %s", type(error).__name__, error, exc_info=error, extra=self.names)
                self.error = pb.Error(code=pb.ENV_FAILED, message=_shown(error))
        self.done = True

    def _act(self) -> None:
        """Do the job. Nothing here: a plain job, a closed session or a refused item, has its answer from the start."""

    def answer(self, results: Any) -> None:
        """Append the answer, or the error, to a repeated field of results."""
        if self.given_up:
            message = f"{self.registration.id}: {self.what} takes too long"
            self.error = pb.Error(code=pb.STEP_TIMEOUT, message=message)
        if self.error is not None:
            results.add(error=self.error)
        else:
            results.append(self.result)


class Inspection(Job):
    """Makes an environment, describes it, and closes it.

    Args:
        registration: The environment's registration.
        kwargs: The client's arguments, as JSON.
        action_length: Maximum length of an action that the server accepts, in characters.
    """

    __slots__ = ("action_length", "kwargs")
    what = "its constructor"

    def __init__(self, registration: Registration, kwargs: bytes, action_length: int) -> None:
        super().__init__(registration)
        self.kwargs, self.action_length = kwargs, action_length

    def _act(self) -> None:
        env: Any = self.registration.make(self.kwargs)
        self.result = pb.Description(
            env_id=self.registration.id,
            observation_length=env.observation_space.max_length,
            action_length=min(env.action_space.max_length, self.action_length),
            action_charset=self.registration.action_charset,
            metadata=json.dumps(plain(env.unwrapped.metadata)).encode(),
            num_tasks=getattr(env.unwrapped, "num_tasks", None),
        )
        env.close()


class Turn(Job):
    """A step, or a reset if `reset` is set, and its answer once `done`.

    Attributes:
        digest: The digest of the episode: before the turn until it is done, then after it.
        is_over: It ended the episode.
        is_detached: Nobody wants the answer any more.
    """

    __slots__ = ("action", "digest", "env", "fingerprint", "is_detached", "is_over", "is_step", "reset", "seq")

    def __init__(
        self, registration: Registration, session: "Session", env: gymnasium.Env[str, str] | None, seq: int, data: bytes
    ) -> None:
        super().__init__(registration, session)
        self.env, self.seq, self.fingerprint = env, seq, hash(data)
        self.action, self.digest = b"", b""
        self.reset: pb.ResetItem | None = None
        self.is_step, self.is_over, self.is_detached = True, False, False

    def run(self) -> None:
        """Step or reset the environment."""
        super().run()
        self.action, self.reset = b"", None
        if self.is_detached:
            self.close()

    def _act(self) -> None:
        if self.reset is not None:
            return self._begin(self.reset)
        assert self.env is not None
        self._keep(self.seq, self.action, *self.env.step(self.action.decode()))

    def _begin(self, reset: "pb.ResetItem") -> None:
        env_id, is_fail_over = self.registration.id, _is_fail_over(reset)
        if self.env is None:
            self.env = self.registration.make(reset.kwargs)
        if is_fail_over and not self.env.unwrapped.metadata.get("deterministic", True):
            raise ItemError(pb.NOT_DETERMINISTIC, f"{env_id} with these kwargs cannot be replayed")
        actions, options = [action.decode() for action in reset.actions], json_object(reset.options, "options")
        seed = reset.seed if reset.HasField("seed") else None
        observation, info = self.env.reset(seed=seed, options=options or None)
        self._keep(0, b"", observation, 0.0, False, False, info)
        if self.session is not None:
            self.session.name_task(str(info.get("task_id", "")))
        for seq, action in enumerate(actions, start=1):
            if self.is_over:
                raise ItemError(pb.REPLAY_DIVERGED, f"{env_id}: the replay ended after step {seq - 1}")
            self.started = time.monotonic()  # the time limit is one step's
            self._keep(seq, action.encode(), *self.env.step(action))
        if is_fail_over and self.digest != reset.digest:
            raise ItemError(pb.REPLAY_DIVERGED, f"{env_id}: {self.seq} replayed steps gave another digest")

    def _keep(
        self, seq: int, action: bytes, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> None:
        if not isinstance(observation, str) or not isinstance(info, dict):
            raise EnvFault(f"expected a str and a dict, got {type(observation).__name__} and {type(info).__name__}")
        text, data, reward = clean(observation), encode_info(info), float(reward)
        seen = text.encode()
        terminated, truncated = bool(terminated), bool(truncated)
        self.digest = chained_digest(self.digest, action, seq, seen, reward, terminated | truncated << 1, data)
        self.is_over, self.size = terminated or truncated, len(seen) + len(data)
        result = self.result = pb.Result(observation=text, reward=reward, info=data, digest=self.digest, seq=seq)
        result.terminated, result.truncated = terminated, truncated

    def close(self) -> None:
        """Close the environment; may be slow."""
        env, self.env = self.env, None
        if env is not None:
            try:
                env.close()
            except Exception as error:
                logger.warning("close() raised %s", _shown(error), extra=self.names)


@dataclass(slots=True, eq=False)
class Tenant:
    """The sessions of one tenant, by session id, and approximately the bytes they hold."""

    name: str
    sessions: dict[bytes, "Session"] = field(default_factory=dict)
    size: int = 0


@dataclass(slots=True, eq=False)
class Session:
    """One environment of one tenant: its episode, and the newest turn of it (running, or the answer kept).

    Attributes:
        touched: When a client last used it.
        episode: Number of the episode, from 1.
        kwargs: The environment's arguments, as JSON.
        opening: Hash of the reset item that began the episode.
        size: Approximate bytes it holds: arguments, the conversation, the newest answer.
        label: Session, environment and task, at most `LABEL` bytes, which a worker records before each step.
    """

    tenant: Tenant
    key: bytes
    env_id: str
    touched: float
    episode: int = 0
    kwargs: bytes = b""
    opening: int = 0
    size: int = 0
    task_id: str = ""
    label: bytes = b""
    turn: Turn = field(init=False)

    @property
    def names(self) -> dict[str, str]:
        """Tenant, session, environment and task, for logs."""
        return {"tenant": self.tenant.name, "session": self.key.hex(), "env": self.env_id, "task": self.task_id}

    def name_task(self, task_id: str) -> None:
        """Record the task of the current episode."""
        self.task_id = task_id[:80]
        self.label = f"session {self.key.hex()}, {self.env_id}, task {self.task_id!r}".encode()[:LABEL]


class Sessions:
    """Every session of a server, by tenant and session id.

    Args:
        catalog: What is served.
        settings: The server's limits.
        later: Schedules a function on another thread.

    Attributes:
        is_draining: No new work is taken.
        is_full: The queue of steps is full.
    """

    def __init__(self, catalog: Catalog, settings: Settings, later: Callable[[Callable[[], None]], Any]) -> None:
        self.catalog, self.settings, self.later = catalog, settings, later
        self.tenants: dict[str, Tenant] = {}
        self.is_draining = self.is_full = False

    @property
    def count(self) -> int:
        """Open sessions."""
        return sum(len(tenant.sessions) for tenant in self.tenants.values())

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name, created if necessary."""
        return self.tenants.get(name) or self.tenants.setdefault(name, Tenant(name))

    def step(self, tenant: Tenant, item: "pb.StepItem", now: float) -> Turn:
        """The turn that answers a step item.

        Raises:
            ItemError: If the item cannot be run.
            CallRefused: If it is new, and the server is draining.
        """
        session = tenant.sessions.get(item.session)
        if session is None:
            raise ItemError(pb.UNKNOWN_SESSION, f"no session {item.session.hex()}; reset it, or replay its episode")
        session.touched = now
        last, seq, data = session.turn, item.seq, item.action
        if item.episode != session.episode:
            raise ItemError(pb.BAD_SEQ, f"the session is in episode {session.episode}, not {item.episode}")
        if seq == last.seq and seq > 0 and last.fingerprint == hash(data):
            return last
        if not last.is_settled:
            raise ItemError(pb.BAD_SEQ, f"step {last.seq} is still running, got step {seq}", expected_seq=last.seq)
        if last.is_over or last.has_failed:
            raise ItemError(pb.EPISODE_OVER, f"episode {session.episode} ended with step {last.seq}; reset first")
        if seq != last.seq + 1:
            what = f"step {seq} was taken with another action" if 0 < seq == last.seq else f"got step {seq}"
            raise ItemError(pb.BAD_SEQ, f"expected step {last.seq + 1}, {what}", expected_seq=last.seq + 1)
        self._check_length(data)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise ItemError(pb.BAD_ACTION, f"the action is not UTF-8: {error}") from None
        size = len(data) + last.size  # the environment may keep both, for its transcript
        self._admit(tenant, size)
        session.size += size
        tenant.size += size
        turn = session.turn = Turn(last.registration, session, last.env, seq, data)
        turn.action, turn.digest = data, last.digest
        return turn

    def reset(self, tenant: Tenant, item: "pb.ResetItem", now: float) -> Turn:
        """The turn that answers a reset item.

        Raises:
            ItemError: If the item cannot be run; no session is made then.
            CallRefused: If it is new, and the server is draining.
        """
        registration = self.catalog.find(item.env_id)
        if len(item.session) != 16 or item.episode < 1:
            raise ItemError(pb.BAD_REQUEST, "a session id is 16 bytes, and episodes are numbered from 1")
        opening = hash(item.SerializeToString(deterministic=True))
        session = tenant.sessions.get(item.session)
        if session is not None:
            session.touched = now
            if (repeated := _repeated_reset(session, item, opening)) is not None:
                return repeated
        for action in item.actions:
            self._check_length(action)
        size = _PARSED * (len(item.kwargs) + len(item.options)) + sum(map(len, item.actions))
        self._admit(tenant, size)
        env = None
        if session is None:
            if self.count >= self.settings.max_sessions:
                message = f"all {self.settings.max_sessions} sessions are taken"
                raise ItemError(pb.OVERLOADED, message, retry_after=1.0)
            if len(tenant.sessions) >= self.settings.max_tenant_sessions:
                message = f"the tenant has all of its {self.settings.max_tenant_sessions} sessions"
                raise ItemError(pb.QUOTA, message, retry_after=1.0)
            session = tenant.sessions[item.session] = Session(tenant, item.session, registration.id, now)
        else:
            last = session.turn
            if last.done and last.registration is registration and session.kwargs == item.kwargs:
                env = last.env if last.error is None else None
            if env is None:
                self._detach(last)
        turn = Turn(registration, session, env, len(item.actions), item.actions[-1] if item.actions else b"")
        turn.reset, turn.is_step = item, False
        tenant.size += size - session.size
        session.episode, session.kwargs, session.opening, session.size = item.episode, item.kwargs, opening, size
        session.turn = turn
        return turn

    def close(self, tenant: Tenant, key: bytes, _: float) -> Job:
        """Close a session.

        Raises:
            ItemError: If there is none.
        """
        session = tenant.sessions.get(key)
        if session is None:
            raise ItemError(pb.UNKNOWN_SESSION, f"no session {key.hex()}")
        self._close(session)
        return Job()

    def forget(self, job: Job) -> None:
        """Close the session of a reset that failed: there is no episode."""
        session = job.session
        if session is not None and session.turn is job and not job.is_step:
            self._close(session)

    def sweep(self, before: float, also_running: bool = False) -> None:
        """Close sessions that have been idle since `before`, and forget tenants without sessions."""
        for name, tenant in list(self.tenants.items()):
            for session in list(tenant.sessions.values()):
                if session.touched < before and (also_running or session.turn.is_settled):
                    self._close(session)
                elif session.turn.has_failed:
                    self.forget(session.turn)
            if not tenant.sessions:
                del self.tenants[name]

    def refuse_if_draining(self) -> None:
        """Refuse new work while the server is draining.

        Raises:
            CallRefused: If it is.
        """
        if self.is_draining:
            raise CallRefused("UNAVAILABLE", "the server is draining")

    def _close(self, session: Session) -> None:
        if session.tenant.sessions.pop(session.key, None) is session:
            session.tenant.size -= session.size
            self._detach(session.turn)

    def _check_length(self, action: bytes) -> None:
        if len(action) > self.settings.max_action_bytes:
            message = f"the action has {len(action)} bytes; the limit is {self.settings.max_action_bytes}"
            raise ItemError(pb.TOO_LARGE, message)

    def _admit(self, tenant: Tenant, size: int) -> None:
        """Check that there is room for new work that holds `size` more bytes."""
        self.refuse_if_draining()
        if self.is_full:
            raise ItemError(pb.OVERLOADED, f"{self.settings.max_queue} steps are queued", retry_after=0.1)
        if (held := tenant.size + size) > self.settings.max_tenant_bytes:
            message = f"the tenant's sessions hold {held} bytes; the limit is {self.settings.max_tenant_bytes}"
            raise ItemError(pb.QUOTA, message, retry_after=1.0)

    def _detach(self, turn: Turn) -> None:
        """Nobody wants the answer any more: close the environment when the turn has ended, never on the loop."""
        turn.is_detached = True
        if turn.done and turn.env is not None and type(turn.env).close is not gymnasium.Env.close:
            self.later(turn.close)


def _is_fail_over(item: "pb.ResetItem") -> bool:
    """Whether the episode began on another server."""
    return bool(item.digest or item.actions)


def _repeated_reset(session: Session, item: "pb.ResetItem", opening: int) -> Turn | None:
    """The session's newest turn, if it already answers a reset item; None if the reset is a new one.

    Raises:
        ItemError: If the reset comes too late: the episode has gone on, or a later one has begun.
    """
    last = session.turn
    if item.episode < session.episode:
        raise ItemError(pb.BAD_SEQ, f"the session is in episode {session.episode}, not {item.episode}")
    if item.episode > session.episode or last.given_up or (last.done and last.error is not None):
        return None
    if opening == session.opening and not last.is_step:
        return last
    if not _is_fail_over(item):
        message = f"episode {item.episode} has begun with another reset"
        raise ItemError(pb.BAD_SEQ, message, expected_seq=last.seq + 1)
    return last if last.done and last.seq == len(item.actions) and last.digest == item.digest else None


def _shown(error: BaseException) -> str:
    """An exception in one line, for a client."""
    return f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace").decode()
