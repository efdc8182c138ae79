"""The gRPC server: one asyncio loop for calls, health and reflection; steps run in a `Pool`."""

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.catalog import Catalog
from mrlm_envs.serving.metrics import Metrics
from mrlm_envs.serving.pool import Pool
from mrlm_envs.serving.protocol import CALLS, SERVICE, ItemError
from mrlm_envs.serving.sessions import CallRefused, Inspection, Job, Sessions, Tenant
from mrlm_envs.serving.settings import Refused, Settings

logger = logging.getLogger("mrlm.serve")

_HOLD = 1.0  # seconds; a call is answered after this even if all of its items still run: slow is not dead
_MARGIN = 0.2  # seconds, at most a quarter of the time left, kept for the reply when a call waits until its deadline
_SWEEP = 0.25  # seconds between looks at late steps
_LINGER = 0.3  # seconds for which a drained server still answers UNAVAILABLE
_PATIENCE = 10e-3  # seconds; the event loop blocks on steps that together take less: a wake-up costs more than a step
_DECAY = 0.97  # factor on an environment's `slow_s` with every step
_DESCRIPTIONS = 256  # descriptions kept
_MAKERS = 4  # constructors of one environment that run at once for Describe
_AGAIN = pb.Error(code=pb.STEP_TIMEOUT, message="it is still running, or the reply is full", retry_after_ms=0)
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would share connections, not sessions
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_connection_idle_ms", 300_000),  # connections without calls are closed; clients open them again
    ("grpc.server_handshake_timeout_ms", 10_000),  # and those that do not speak HTTP/2
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


class Server:
    """The service of one server process; make and use it on a running event loop.

    Args:
        settings: What to serve, and how.
        board: Before each step, its `label` is set to the session's, for the supervisor of this process.

    Attributes:
        port: The port it listens on, after `start`.
        sessions: Its sessions.
        metrics: Its Prometheus metrics.

    Raises:
        Refused: If the settings cannot be served.
        OSError: If a file of the settings cannot be read.
    """

    def __init__(self, settings: Settings, board: Any = None) -> None:
        self.settings = settings
        self.catalog = Catalog(settings)
        self.port = settings.port
        self._tenants = _read_tokens(settings.token_file.read_text()) if settings.token_file else {}
        self._worker = os.urandom(8)
        self._board = board
        self._progressed = asyncio.Event()
        self._inspections: dict[tuple[str, bytes], Inspection] = {}
        self._pool = Pool(settings.threads, self._progress, self._run)
        self.sessions = Sessions(self.catalog, settings, self._pool.executor.submit)
        self.metrics = Metrics(
            {
                ("mrlm_sessions", "Open sessions"): lambda: self.sessions.count,
                ("mrlm_tenants", "Tenants with open sessions"): lambda: len(self.sessions.tenants),
                ("mrlm_queue_depth", "Steps and resets that wait or run"): lambda: self._pool.busy,
                ("mrlm_lost_threads", "Threads in steps that were given up"): lambda: self._pool.lost,
            }
        )
        self._step_seconds = cache(self.metrics.steps.labels)
        self._open_calls = 0
        self._health: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        options = (*_OPTIONS, ("grpc.max_allowed_incoming_connections", settings.max_connections))
        self._grpc = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_calls)
        self._grpc.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        return self.settings.address(self.port)

    async def start(self, local: str | None = None) -> None:
        """Listen.

        Args:
            local: Another address, without TLS: a Unix socket that only the process's user can open.

        Raises:
            Refused: If the address cannot be bound.
        """
        settings = self.settings
        try:
            if settings.tls_cert is None or settings.tls_key is None:
                self.port = self._grpc.add_insecure_port(self.address)
            else:
                own = settings.tls_key.read_bytes(), settings.tls_cert.read_bytes()
                ca = settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None
                credentials = grpc.ssl_server_credentials([own], ca, require_client_auth=ca is not None)
                self.port = self._grpc.add_secure_port(self.address, credentials)
            if local is not None:
                self._grpc.add_insecure_port(local)
        except RuntimeError as error:
            raise Refused(f"cannot listen on {self.address}: {error}; is the port taken?") from None
        await self._grpc.start()
        if settings.metrics_port is not None:
            self.metrics.serve(settings.host, settings.metrics_port)
        await self._set_health(True)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def stop(self, grace: float | None = None) -> None:
        """Answer new work with UNAVAILABLE, let running steps finish (for `grace` seconds), and stop."""
        end = time.monotonic() + (self.settings.grace if grace is None else grace)
        self.sessions.is_draining = True
        await self._set_health(False)
        while (self._pool.busy > 0 or self._open_calls) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await asyncio.sleep(min(_LINGER, max(0.0, end - time.monotonic())))
        await self._grpc.stop(0.1)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.metrics.stop()
        self.sessions.sweep(math.inf, also_running=True)
        self._pool.executor.shutdown(wait=False)  # running jobs are not interrupted

    async def _set_health(self, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await self._health.set(name, status.SERVING if is_serving else status.NOT_SERVING)

    def _handlers(self) -> grpc.GenericRpcHandler:
        sessions = self.sessions
        admit = {"Describe": self._describe, "Reset": sessions.reset, "Step": sessions.step, "Close": sessions.close}
        make = grpc.unary_unary_rpc_method_handler
        handlers = {
            name: make(partial(self._serve, admit[name], reply), partial(_parse, request), reply.SerializeToString)
            for name, (request, reply) in CALLS.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _serve(self, admit: Any, reply_class: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Answer a call, or refuse it as a whole.

        Args:
            admit: Takes a tenant, an item and the time; returns the job that answers the item.
            reply_class: Class of the reply.
            request: The request; None if it cannot be parsed.
            context: Context of the call.
        """
        self._open_calls += 1
        try:
            tenant = self.sessions.tenant(self._authenticate(context))
            if request is None:
                raise CallRefused("INVALID_ARGUMENT", "the bytes are not this call's request message")
            reply = reply_class()
            await self._answer(partial(admit, tenant), request, reply, context)
            if reply_class is pb.ResetReply:
                reply.worker = self._worker
            return reply
        except CallRefused as refusal:
            self.metrics.refusals.labels(refusal.status).inc()
            await context.abort(grpc.StatusCode[refusal.status], str(refusal))
        finally:
            self._open_calls -= 1

    def _authenticate(self, context: grpc.aio.ServicerContext) -> str:
        """The call's tenant, by its token."""
        if not self._tenants:
            return ""
        tokens = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        scheme, _, token = tokens[0].partition(" ") if tokens else ("", "", "")
        if scheme.lower() != "bearer" or _hash(token) not in self._tenants:
            raise CallRefused("UNAUTHENTICATED", f"the bearer token is {'wrong' if tokens else 'missing'}")
        return self._tenants[_hash(token)]

    def _describe(self, _: Tenant, item: "pb.DescribeItem", __: float) -> Inspection:
        """The job that describes an environment, new or already known."""
        self.sessions.refuse_if_draining()
        registration, known = self.catalog.find(item.env_id), self._inspections
        key = registration.id, item.kwargs
        if key in known and not known[key].has_failed:  # else the next one tries again
            return known[key]
        if sum(one.registration is registration and not one.is_settled for one in known.values()) >= _MAKERS:
            raise ItemError(pb.OVERLOADED, f"{registration.id}: its constructors are slow", retry_after=0.1)
        known[key] = Inspection(registration, item.kwargs, self.settings.max_action_bytes // 4)
        if len(known) > _DESCRIPTIONS:
            del known[next(iter(known))]
        return known[key]

    async def _answer(
        self, admit: Callable[[Any, float], Job], request: Any, reply: Any, context: grpc.aio.ServicerContext
    ) -> None:
        """Run the new items of a call, wait, and fill in the reply's results, in order."""
        items: Sequence[Any] = request.sessions if isinstance(request, pb.CloseRequest) else request.items
        now, settings, busy = time.monotonic(), self.settings, self._pool.busy
        jobs: list[Job] = []
        new: list[Job] = []
        for item in items:
            try:
                if len(jobs) >= settings.max_batch:
                    message = f"the call has {len(items)} items; the limit is {settings.max_batch}"
                    raise ItemError(pb.TOO_LARGE, message)
                self.sessions.is_full = busy + len(new) >= settings.max_queue
                job = admit(item, now)
            except ItemError as failure:
                job = Job(error=failure.error)
            jobs.append(job)
            if job.is_new:
                job.is_new = False
                new.append(job)
        if new:
            expected = len(new) * max(job.registration.slow_s if job.is_step else math.inf for job in new)
            self._pool.submit(new, _PATIENCE if expected < _PATIENCE and not busy else 0.0)
        running = [job for job in jobs if not job.is_settled]
        if running:
            await self._wait(running, len(jobs), context, getattr(request, "wait_ms", 1000 * _HOLD) / 1000)
        size = 0
        for job in jobs:
            if not job.is_settled or size > settings.max_message_bytes:
                reply.results.add(error=_AGAIN)
                continue
            job.answer(reply.results)
            size += job.size
            if job.has_failed:
                self.metrics.errors.labels(pb.Code.Name(reply.results[-1].error.code)).inc()
                self.sessions.forget(job)
        if new:
            self.metrics.waits.observe(max(0.0, new[0].started - now))

    def _run(self, job: Job) -> None:
        """Run one job, on a thread of the pool."""
        if self._board is not None and job.session is not None:
            self._board.label = job.session.label
        job.run()
        if job.is_step:
            seconds = time.monotonic() - job.started
            job.registration.slow_s = max(seconds, _DECAY * job.registration.slow_s)
            if self.settings.metrics_port is not None:  # else nobody reads it
                self._step_seconds(job.registration.id).observe(seconds)
        elif job.session is not None:
            self.metrics.resets.labels(job.registration.id).inc()

    async def _wait(self, running: list[Job], count: int, context: grpc.aio.ServicerContext, wait: float) -> None:
        """Wait for all jobs of a call.

        Args:
            running: The jobs that are not settled.
            count: Number of all jobs of the call.
            context: Context of the call, which has a deadline.
            wait: Seconds after which one settled job is enough, and a second later none is needed; 0 for never.
        """
        now, left = time.monotonic(), context.time_remaining()
        left = 2 * self.settings.step_timeout if left is None else left
        end = now + left - min(_MARGIN, left / 4)
        all_until = end if not wait or self.sessions.is_draining else min(now + wait, end)
        any_until = min(all_until + _HOLD, end)
        while True:
            while running and running[-1].is_settled:
                running.pop()
            now = time.monotonic()
            is_some = len(running) < count or any(job.is_settled for job in running)
            if not running or now >= any_until or (now >= all_until and is_some):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((all_until if now < all_until else any_until) - now):
                    await self._progressed.wait()

    def _progress(self) -> None:
        self._progressed.set()
        self._progressed = asyncio.Event()

    async def _sweep(self) -> None:
        """Give up late steps, close idle sessions, and report NOT_SERVING once `threads` threads are lost."""
        settings, next_idle = self.settings, 0.0
        while True:
            await asyncio.sleep(_SWEEP)
            for job in self._pool.give_up(settings.step_timeout):
                logger.warning("gave up after %s s: %s", settings.step_timeout, job.what, extra=job.names)
            now = time.monotonic()
            if now >= next_idle:
                next_idle = now + min(10.0, settings.idle_ttl / 4)
                self.sessions.sweep(now - settings.idle_ttl)
            if not self.sessions.is_draining:
                await self._set_health(self._pool.lost < settings.threads)


def _parse(message: Any, data: bytes) -> Any:
    """The message, or None if the bytes are not one."""
    with contextlib.suppress(DecodeError):
        return message.FromString(data)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _read_tokens(text: str) -> dict[bytes, str]:
    """The tenant of each token's hash, from lines of `TENANT TOKEN`, or of a token alone, which gets its own tenant.

    Raises:
        Refused: If a line has more than two words, or there is no token at all.
    """
    tenants: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split("#", 1)[0].split()
        if len(parts) > 2:
            raise Refused(f"token file, line {number}: expected TENANT TOKEN, or TOKEN alone")
        if parts:
            key = _hash(parts[-1])
            tenants[key] = parts[0] if len(parts) == 2 else key.hex()[:16]
    if not tenants:
        raise Refused("token file: it holds no token")
    return tenants
