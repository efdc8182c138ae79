"""The gRPC server: one asyncio loop for calls, health and reflection; environments step in a `Pool`, never on it."""

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import gymnasium
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.catalog import Catalog, Refused
from mrlm_envs.serving.metrics import Metrics
from mrlm_envs.serving.pool import Call, Pool
from mrlm_envs.serving.sessions import Failure, Limits, Sessions, Work, plain

logger = logging.getLogger("mrlm.serve")

SERVICE = pb.DESCRIPTOR.services_by_name["Environments"].full_name
_HOLD = (
    1.0  # seconds; a call whose items all still run is answered after this, so that a client can tell slow from dead
)
_MARGIN = 0.2  # of the call's time left, kept for the reply when a call waits until its deadline
_SWEEP = 0.25  # seconds between looks at late steps
_DESCRIPTIONS = 256  # kept
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would share connections, not sessions
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True)
class Settings:
    """Everything a server process is told.

    Attributes:
        environments: Names of the environments served.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        allow_kwargs: Keyword arguments clients may set; `("*",)` for all.
        preset: Keyword arguments the operator sets, by environment.
        tokens: Bearer token to tenant; empty lets everyone in.
        tls: PEM bytes of the private key and the certificate chain.
        tls_client_ca: PEM bytes; clients must then show a certificate signed by it.
        metrics_port: Where Prometheus reads; None for nowhere.
        threads: Steps that run at once.
        calls: Calls that may be open at once.
        grace: Seconds that running steps get after a stop.
        limits: See `Limits`.
    """

    environments: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 50051
    allow_kwargs: Sequence[str] = ()
    preset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)
    tls: tuple[bytes, bytes] | None = None
    tls_client_ca: bytes | None = None
    metrics_port: int | None = None
    threads: int = 64
    calls: int = 512
    grace: float = 30.0
    limits: Limits = field(default_factory=Limits)


class _Watch:
    """A call that waits for its works: for all of them, and once relaxed for any."""

    __slots__ = ("future", "is_relaxed", "pending")

    def __init__(self, pending: list[Work], future: asyncio.Future[None]) -> None:
        self.pending, self.future, self.is_relaxed = pending, future, False

    def look(self) -> None:
        pending = self.pending
        while pending and (pending[-1].done or pending[-1].given_up):
            pending.pop()
        if not self.future.done() and (
            not pending or (self.is_relaxed and any(work.done or work.given_up for work in pending))
        ):
            self.future.set_result(None)

    def relax(self) -> None:
        self.is_relaxed = True
        self.look()

    def end(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Server:
    """One server process's service; make and use it on a running event loop.

    Args:
        settings: What to serve, and how.

    Attributes:
        port: The port it listens on, after `start`.
        sessions: Its sessions.
        metrics: What it counts.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.catalog = Catalog(settings.environments, settings.allow_kwargs, settings.preset)
        self.port = settings.port
        self._tenants = {_hash(token): tenant for token, tenant in settings.tokens.items()}
        self._watches: set[_Watch] = set()
        self._descriptions: OrderedDict[tuple[str, bytes], pb.Description] = OrderedDict()
        self._making: dict[tuple[str, bytes], asyncio.Future[pb.Description]] = {}
        self._makers = ThreadPoolExecutor(2, thread_name_prefix="mrlm-describe")
        self._pool = Pool(settings.threads, self._progress, self._ran)
        self.sessions = Sessions(
            self.catalog, settings.limits, lambda: self._pool.busy, lambda function: self._pool.submit([Call(function)])
        )
        self.metrics = Metrics(
            {
                ("mrlm_sessions", "Open sessions"): lambda: self.sessions.count,
                ("mrlm_queue_depth", "Steps and resets that wait or run"): lambda: self._pool.busy,
                ("mrlm_lost_threads", "Threads in steps that were given up"): lambda: self._pool.lost,
            }
        )
        self._stop_metrics: Callable[[], None] | None = None
        self._is_draining = False
        self._health: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._grpc = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=settings.calls)
        self._grpc.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        host = self.settings.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            Refused: If the address cannot be bound.
        """
        settings = self.settings
        address = self.address
        try:
            if settings.tls is None:
                self.port = self._grpc.add_insecure_port(address)
            else:
                ca = settings.tls_client_ca
                credentials = grpc.ssl_server_credentials([settings.tls], ca, require_client_auth=ca is not None)
                self.port = self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise Refused(f"cannot listen on {address}: {error}; is the port taken?") from None
        await self._grpc.start()
        if settings.metrics_port is not None:
            self._stop_metrics = self.metrics.serve(settings.host, settings.metrics_port)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new calls, let running steps finish (for `grace` seconds), and stop."""
        grace = self.settings.grace if grace is None else grace
        self._is_draining = True
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        end = time.monotonic() + grace
        await self._grpc.stop(grace)
        while self._pool.busy > 0 and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._stop_metrics is not None:
            self._stop_metrics()
        self._pool.close()
        self._makers.shutdown(wait=False, cancel_futures=True)

    async def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _handlers(self) -> grpc.GenericRpcHandler:
        calls: dict[str, tuple[Any, Any, Any]] = {
            "Describe": (self._describe, pb.DescribeRequest, pb.DescribeReply),
            "Reset": (self._reset, pb.ResetRequest, pb.ResetReply),
            "Step": (self._step, pb.StepRequest, pb.StepReply),
            "Close": (self._close, pb.CloseRequest, pb.CloseReply),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                call, request_deserializer=_parser(request), response_serializer=reply.SerializeToString
            )
            for name, (call, request, reply) in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _admit(self, request: Any, context: grpc.aio.ServicerContext) -> str:
        """The tenant of a call; ends the call if its token is wrong or its bytes are no request."""
        tenant: str | None = ""
        if self._tenants:
            tokens = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
            scheme, _, token = str(tokens[0]).partition(" ") if tokens else ("", "", "")
            tenant = self._tenants.get(_hash(token)) if scheme.lower() == "bearer" else None
            if tenant is None:
                what = "wrong" if tokens else "missing"
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"the bearer token is {what}")
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the bytes are not this call's request message")
        assert tenant is not None
        return tenant

    async def _describe(self, request: "pb.DescribeRequest", context: grpc.aio.ServicerContext) -> "pb.DescribeReply":
        await self._admit(request, context)
        reply = pb.DescribeReply()
        for index, item in enumerate(request.items):
            if index >= self.settings.limits.batch:
                reply.results.add().error.CopyFrom(self._batch_error(len(request.items)))
                continue
            key = (item.env_id, item.kwargs)
            if key not in self._descriptions:
                description = await self._made(key)
                if description.HasField("error"):
                    self.metrics.error(pb.Code.Name(description.error.code))
                    reply.results.append(description)
                    continue
                self._descriptions[key] = description
                if len(self._descriptions) > _DESCRIPTIONS:
                    self._descriptions.popitem(last=False)
            self._descriptions.move_to_end(key)
            reply.results.append(self._descriptions[key])
        return reply

    async def _made(self, key: tuple[str, bytes]) -> "pb.Description":
        """A new description, or "still running" if the environment takes long to make."""
        making = self._making.get(key)
        if making is None:
            making = asyncio.get_running_loop().run_in_executor(self._makers, self._description, *key)
            self._making[key] = making
        await asyncio.wait([making], timeout=_HOLD)
        if not making.done():
            error = pb.Error(code=pb.STEP_TIMEOUT, message="the environment is still being made", retry_after_ms=0)
            return pb.Description(error=error)
        self._making.pop(key, None)
        return making.result()

    def _description(self, env_id: str, kwargs: bytes) -> "pb.Description":
        offer = self.catalog.find(env_id)
        if offer is None:
            served = ", ".join(self.catalog.ids)
            message = f"environment {env_id!r} is not served here; served are: {served}"
            return pb.Description(error=pb.Error(code=pb.UNKNOWN_ENV, message=message))
        try:
            env = offer.make(self.catalog.kwargs(offer, kwargs))
            inner: Any = env.unwrapped
            description = pb.Description(
                env_id=offer.id,
                observation_length=env.observation_space.max_length,  # pyright: ignore[reportAttributeAccessIssue]
                action_length=min(env.action_space.max_length, self.settings.limits.action_bytes // 4),  # pyright: ignore[reportAttributeAccessIssue]
                action_charset=offer.action_charset,
                metadata=json.dumps(plain(inner.metadata)).encode(),
            )
            if getattr(inner, "num_tasks", None) is not None:
                description.num_tasks = inner.num_tasks
            env.close()
        except (ValueError, TypeError, gymnasium.error.Error) as error:
            return pb.Description(error=pb.Error(code=pb.BAD_REQUEST, message=f"{offer.id}: {error}"))
        except BaseException as error:  # an environment may even call sys.exit
            logger.warning("%s: %s", offer.id, error, exc_info=error)
            return pb.Description(error=pb.Error(code=pb.ENV_FAILED, message=f"{type(error).__name__}: {error}"))
        return description

    async def _reset(self, request: "pb.ResetRequest", context: grpc.aio.ServicerContext) -> "pb.ResetReply":
        tenant = await self._admit(request, context)
        reply = pb.ResetReply()
        works = await self._work(tenant, request, self.sessions.reset, context, reply.results)
        for item, work in zip(request.items, works):
            if isinstance(work, Work) and work.never_began:
                self.sessions.close(tenant, item.session, work)
        return reply

    async def _step(self, request: "pb.StepRequest", context: grpc.aio.ServicerContext) -> "pb.StepReply":
        tenant = await self._admit(request, context)
        reply = pb.StepReply()
        await self._work(tenant, request, self.sessions.step, context, reply.results)
        return reply

    async def _close(self, request: "pb.CloseRequest", context: grpc.aio.ServicerContext) -> "pb.CloseReply":
        tenant = await self._admit(request, context)
        reply = pb.CloseReply()
        for index, key in enumerate(request.sessions):
            result = reply.results.add()
            if index >= self.settings.limits.batch:
                result.error.CopyFrom(self._batch_error(len(request.sessions)))
            elif not self.sessions.close(tenant, key):
                result.error.CopyFrom(pb.Error(code=pb.UNKNOWN_SESSION, message=f"no session {key.hex()}"))
        return reply

    async def _work(
        self,
        tenant: str,
        request: Any,
        admit: Callable[[str, Any, float], tuple[Work, bool]],
        context: grpc.aio.ServicerContext,
        results: Any,
    ) -> list["Work | pb.Error"]:
        """Run what is new, wait, and fill in the results, in order."""
        now = time.monotonic()
        works: list[Work | pb.Error] = []
        new: list[Work] = []
        for item in request.items:
            try:
                if len(works) >= self.settings.limits.batch:
                    raise Failure(pb.TOO_LARGE, self._batch_error(len(request.items)).message)
                work, is_new = admit(tenant, item, now)
                works.append(work)
                if is_new:
                    new.append(work)
            except Failure as failure:
                works.append(failure.error)
                self.metrics.error(pb.Code.Name(failure.error.code))
        if new:
            new[-1].ends_batch = True
            self._pool.submit(new)
        pending = [work for work in works if isinstance(work, Work) and not (work.done or work.given_up)]
        if pending:
            await self._wait(pending, request.wait_ms / 1000, context.time_remaining())
        size = 0
        for work in works:
            if not isinstance(work, Work):
                results.add().error.CopyFrom(work)
            elif size > self.settings.limits.message_bytes:
                _ask_again(results, work.seq, "the reply is full")
            elif work.done or work.given_up:
                size += work.answer(results)
                if work.given_up or work.error is not None:
                    self.metrics.error(pb.Code.Name(results[-1].error.code))
            else:
                _ask_again(results, work.seq, "still running")
        return works

    async def _wait(self, pending: list[Work], wait: float, left: float | None) -> None:
        loop = asyncio.get_running_loop()
        watch = _Watch(pending, loop.create_future())
        self._watches.add(watch)
        left = 2 * self.settings.limits.step_timeout if left is None else left
        left -= min(_MARGIN, left / 4)
        timers = []
        if not wait or self._is_draining:
            timers.append(loop.call_later(left, watch.end))
        else:
            timers.append(loop.call_later(min(wait, left), watch.relax))
            timers.append(loop.call_later(min(wait + _HOLD, left), watch.end))
        try:
            await watch.future
        finally:
            self._watches.discard(watch)
            for timer in timers:
                timer.cancel()

    def _progress(self) -> None:
        for watch in self._watches:
            watch.look()

    def _ran(self, work: Any, seconds: float) -> None:
        if isinstance(work, Work) and not work.is_reset:
            self.metrics.step(work.offer.id, seconds)

    async def _sweep(self) -> None:
        """Give up late steps, close idle sessions, and say NOT_SERVING when most threads are lost."""
        settings, is_healthy, next_idle = self.settings, True, 0.0
        while True:
            await asyncio.sleep(_SWEEP)
            for work in self._pool.give_up(settings.limits.step_timeout):
                logger.warning("a step took longer than %s s and was given up: %s", settings.limits.step_timeout, work)
            now = time.monotonic()
            if now >= next_idle:
                next_idle = now + min(10.0, settings.limits.idle_ttl / 4)
                self.sessions.sweep(now)
            if is_healthy is not (self._pool.lost < settings.threads):
                is_healthy = not is_healthy
                status = health_pb2.HealthCheckResponse
                await self._set_health(status.SERVING if is_healthy else status.NOT_SERVING)

    def _batch_error(self, size: int) -> "pb.Error":
        limit = self.settings.limits.batch
        return pb.Error(code=pb.TOO_LARGE, message=f"the call has {size} items; the limit is {limit}")


def _ask_again(results: Any, seq: int, why: str) -> None:
    results.add(seq=seq, error=pb.Error(code=pb.STEP_TIMEOUT, message=why, retry_after_ms=0))


def _parser(message: Any) -> Callable[[bytes], Any]:
    """A deserializer that turns bytes that are no such message into None."""

    def parse(data: bytes) -> Any:
        with contextlib.suppress(DecodeError):
            return message.FromString(data)
        return None

    return parse


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def read_tokens(lines: Iterable[str]) -> dict[str, str]:
    """Token to tenant, from lines of `TENANT TOKEN`, or of a token alone, whose tenant is its own.

    Raises:
        Refused: If a line has more than two words, or there is none.
    """
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split("#", 1)[0].split()
        if len(words) > 2:
            raise Refused(f"token file, line {number}: expected TENANT TOKEN, or TOKEN alone")
        if words:
            tokens[words[-1]] = words[0] if len(words) == 2 else _hash(words[0]).hex()[:16]
    if not tokens:
        raise Refused("token file: it holds no token")
    return tokens
