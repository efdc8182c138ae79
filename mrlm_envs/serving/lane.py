"""One server as a client sees it: a channel, and a queue that turns concurrent items into batches.

Everything here runs on one event loop. The channel is gRPC's threaded one: the asyncio one does not survive a fork of
its process, even where the child never touches it.
"""

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import gymnasium

from mrlm_envs.serving import envs_pb2 as pb

BLOCKED = 2.0  # seconds for which a lost server is avoided
_CALLS = 2  # batches under way per server and method: one is computed while the next is collected
_PATIENCE = 0.01  # seconds; batches that take longer (slow steps) do not hold up the next ones
_ITEMS = 1024
_BYTES = 1 << 20
_SERVICE = pb.DESCRIPTOR.services_by_name["Environments"].full_name
_MESSAGES: dict[str, tuple[Any, Any]] = {
    "Describe": (pb.DescribeRequest, pb.DescribeReply),
    "Reset": (pb.ResetRequest, pb.ResetReply),
    "Step": (pb.StepRequest, pb.StepReply),
    "Close": (pb.CloseRequest, pb.CloseReply),
}
_OPTIONS = (
    ("grpc.enable_retries", 0),  # we send again ourselves; gRPC's retries stop, silently, at 256 KiB
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

_lanes: "weakref.WeakSet[Lane]" = weakref.WeakSet()
_fork_lock = threading.RLock()  # held while a call starts, and across a fork


class LaneLost(Exception):
    """The server did not answer; whether it ran the item is unknown.

    Attributes:
        is_cut: We hung up ourselves, because the process forks.
        was_reached: There was a connection.
    """

    def __init__(self, message: str, is_cut: bool = False) -> None:
        super().__init__(message)
        self.is_cut = is_cut
        self.was_reached = not is_cut and "failed to connect" not in message.lower()


class RemoteError(gymnasium.error.Error):
    """The server refused the call, and would again: a wrong token, another protocol."""


@dataclass(frozen=True)
class Access:
    """How a client gets in.

    Attributes:
        token: The bearer token, or None.
        tls: Use TLS; implied by the certificates.
        tls_ca: Path of PEM certificates to trust instead of the system's.
        tls_cert: Path of the client's certificate chain (mTLS).
        tls_key: Path of the client's private key (mTLS).
    """

    token: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def channel(self, address: str, host: str | None) -> grpc.Channel:
        """A channel to `address`, whose certificate names `host`."""
        options: list[tuple[str, Any]] = [*_OPTIONS]
        if not (self.tls or self.tls_ca or self.tls_cert):
            return grpc.insecure_channel(address, options)
        if host is not None:
            options.append(("grpc.ssl_target_name_override", host))
        read = [_read(path) for path in (self.tls_ca, self.tls_key, self.tls_cert)]
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(*read), options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


class Lane:
    """The way to one server.

    Args:
        address: `host:port`.
        access: Token and certificates.
        host: The name in the server's certificate, where it is not the address's.
        timeout: Seconds after which a call without an answer means that the server is lost.

    Attributes:
        blocked_until: On the clock of `time.monotonic`; the server was lost and is avoided until then.
        load: Sessions that have this lane as their first choice.
        is_closed: It takes no more calls.
    """

    def __init__(self, address: str, access: Access, host: str | None, timeout: float) -> None:
        self.address, self.timeout = address, timeout
        self.blocked_until = 0.0
        self.load = 0
        self.is_closed = False
        self._access, self._host = access, host
        self._loop = asyncio.get_running_loop()
        self._channel: grpc.Channel | None = None
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable] = {}
        self._calls: set[Any] = set()
        self._queues = {(method, again): _Queue(self, method, again) for method in _MESSAGES for again in (False, True)}
        _lanes.add(self)

    @property
    def is_blocked(self) -> bool:
        """The server was lost a moment ago."""
        return self.blocked_until > time.monotonic()

    def send(self, method: str, item: Any, *, again: bool = False, size: int = 0) -> "asyncio.Future[Any]":
        """Send one item with whatever else is sent now; the future gives its result, `LaneLost` or `RemoteError`.

        Args:
            method: "Reset", "Step" or another of the service.
            item: The item's message.
            again: The item was answered "still running": its call may take long, and holds up no others.
            size: Bytes of the item, about.
        """
        return self._queues[method, again].add(item, size)

    async def call(self, method: str, items: Sequence[Any], wait_ms: int = 0) -> Sequence[Any]:
        """One call.

        Raises:
            LaneLost: If there is no answer.
            RemoteError: If the server refused.
        """
        request_class, reply_class = _MESSAGES[method]
        if method == "Close":
            request = request_class(sessions=items)
        elif wait_ms:
            request = request_class(items=items, wait_ms=wait_ms)
        else:
            request = request_class(items=items)
        future: asyncio.Future[None] = self._loop.create_future()
        with _fork_lock:
            if self.is_closed:
                raise RemoteError(f"{self.address}: the client is closed")
            if self._channel is None:
                self._channel = self._access.channel(self.address, self._host)
                self._methods = {}
            if method not in self._methods:
                self._methods[method] = self._channel.unary_unary(
                    f"/{_SERVICE}/{method}",
                    request_serializer=request_class.SerializeToString,
                    response_deserializer=reply_class.FromString,
                )
            call: Any = self._methods[method].future(request, self.timeout, self._access.metadata)
            self._calls.add(call)
        call.add_done_callback(lambda _: self._wake(future))
        try:
            await future
        finally:
            if not call.done():
                call.cancel()
            self._calls.discard(call)
        code = call.code()
        if code is grpc.StatusCode.OK:
            results = call.result().results
            if len(results) == len(items):
                return results
            raise RemoteError(f"{self.address}: {len(items)} items got {len(results)} results")
        text = f"{self.address}: {code.name}: {call.details()}"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" not in text:
            error = pb.Error(code=pb.OVERLOADED, message=text, retry_after_ms=100)
            return [pb.Result(error=error)] * len(items)
        if code in _FATAL:
            raise RemoteError(text)
        if code is grpc.StatusCode.CANCELLED:
            raise LaneLost(text, is_cut=True)
        self._block(text)
        raise LaneLost(text)

    def _wake(self, future: "asyncio.Future[None]") -> None:
        """On a thread of gRPC's."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(_set, future)

    def _block(self, why: str) -> None:
        """Avoid the server for a while; what has not been sent to it yet goes elsewhere at once."""
        self.blocked_until = time.monotonic() + BLOCKED
        for queue in self._queues.values():
            queue.fail(LaneLost(why))

    def close(self, patience: float = 0.0) -> None:
        """Close the channel; calls under way end as lost. On any thread; the next call opens it again."""
        with _fork_lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
                end = time.monotonic() + patience
                while time.monotonic() < end and not all(call.done() for call in self._calls):
                    time.sleep(0.001)


class _Queue:
    """Items of one method, gathered into batches."""

    def __init__(self, lane: Lane, method: str, again: bool) -> None:
        self._lane, self._method = lane, method
        self._limit = 1_000_000 if again else _CALLS
        self._items: deque[tuple[Any, asyncio.Future[Any], int]] = deque()
        self._open = 0
        self._is_due = False
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, item: Any, size: int) -> "asyncio.Future[Any]":
        future = self._loop.create_future()
        self._items.append((item, future, size))
        if not self._is_due and self._open < self._limit:
            self._is_due = True
            self._loop.call_soon(self._flush)
        return future

    def fail(self, error: Exception) -> None:
        while self._items:
            _fail(self._items.popleft()[1], error)

    def _flush(self) -> None:
        self._is_due = False
        while self._items and self._open < self._limit:
            batch: list[tuple[Any, asyncio.Future[Any], int]] = []
            total = 0
            while self._items and len(batch) < _ITEMS:
                total += self._items[0][2]
                if batch and total > _BYTES:
                    break
                entry = self._items.popleft()
                if not entry[1].done():  # cancelled
                    batch.append(entry)
            if batch:
                self._open += 1
                task = self._loop.create_task(self._send(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: "list[tuple[Any, asyncio.Future[Any], int]]") -> None:
        is_open = True

        def release() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self._open -= 1
                self._flush()

        timer = self._loop.call_later(_PATIENCE, release)
        wait_ms = int(1000 * _PATIENCE) if self._method in ("Reset", "Step") else 0
        try:
            results = await self._lane.call(self._method, [item for item, _, _ in batch], wait_ms)
        except (LaneLost, RemoteError) as error:
            for _, future, _ in batch:
                _fail(future, error)
        except BaseException as error:
            for _, future, _ in batch:
                _fail(future, LaneLost(repr(error)))
            raise
        else:
            for (_, future, _), result in zip(batch, results):
                if not future.done():
                    future.set_result(result)
        finally:
            timer.cancel()
            release()


_FATAL = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever waited may have gone


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


def _before_fork() -> None:
    """Nothing of gRPC's may be under way in a process that forks, or the child's gRPC hangs."""
    _fork_lock.acquire()
    for lane in list(_lanes):
        lane.close(patience=1.0)


def _after_in_parent() -> None:
    _fork_lock.release()


def _after_in_child() -> None:
    global _fork_lock
    _fork_lock = threading.RLock()
    _lanes.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
