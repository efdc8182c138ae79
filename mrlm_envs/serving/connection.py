"""One server as a client sees it: a channel, a queue that turns concurrent items into batches, and its health.

Everything here runs on one event loop, and the calls themselves on threads. The channel is gRPC's threaded one: the
asyncio one does not survive a fork of its process, even where the child never touches it.
"""

import asyncio
import contextlib
import glob
import os
import random
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import gymnasium

from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.protocol import CALLS, SERVICE

_CALLS = 2  # batches in flight per server and method: one is computed while the next is collected
_PATIENCE = 0.01  # seconds; batches that take longer (slow steps) do not hold up the next ones
_ITEMS = 1024
_THREADS = 512  # calls in flight at once, as many as a server accepts; a slow step holds its thread
_BYTES = 1 << 20
_LAST_CALLS = 1.0  # seconds that gRPC gets to end before a fork; other code in the process may use it too
_SILENCE = 3.0  # seconds; no live server is silent for longer: within two it answers that a step is still running
_PROBE = 1.0  # seconds that a lost server has to answer a health check
_BACKOFF = 0.25, 8.0  # seconds before the first health check of a lost server, doubled up to the second number
_SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse(status=SERVING)
_OPTIONS = (
    ("grpc.enable_retries", 0),  # we retry ourselves; gRPC's retries silently stop at 256 KiB
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
# What gRPC says when it cannot connect, and what that means.
_CAUSES = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted; pass tls_ca",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; leave tls, tls_ca and tls_cert out",
    "CERTIFICATE_REQUIRED": "it wants a client certificate; pass tls_cert and tls_key",
    "Hostname Verification|not in peer cert": "its certificate is for another name",
    "handshake failed": "the TLS handshake failed; check tls_ca, tls_cert and tls_key",
    "Connection refused": "nothing listens there; check the port",
    "DNS|resolv|resolution": "the name is unknown; check the address",
    "ocket closed|onnection reset": "it hangs up; if it speaks TLS, pass tls=True or tls_ca",
    "DEADLINE_EXCEEDED": "it does not answer; check the address, or the server is frozen",
}

_FATAL = {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}

_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()
_jitter = random.Random()  # our own: the global generator may be seeded, and is not ours to use
_fork_lock = threading.RLock()  # held while a call starts, and across a fork


class ConnectionLost(Exception):
    """The server did not answer; whether it ran the item is unknown.

    Attributes:
        is_suspicious: The server froze or died during the call, so an item of the call may be the cause.
    """

    def __init__(self, message: str, is_suspicious: bool = False) -> None:
        super().__init__(message)
        self.is_suspicious = is_suspicious


class RemoteError(gymnasium.error.Error):
    """The server refused the call, and would again: a wrong token, another protocol."""


class _CallFailed(Exception):
    """A call failed; carries gRPC's status and details."""


@dataclass(frozen=True)
class Access:
    """How a client reaches its servers.

    Attributes:
        token: The bearer token; by default the environment variable `MRLM_TOKEN`, if set.
        tls: Use TLS; implied by the certificates.
        tls_ca: Path of PEM certificates to trust instead of the system's.
        tls_cert: Path of the client's certificate chain (mTLS).
        tls_key: Path of the client's private key (mTLS).
        connect_timeout: Seconds within which a first server must answer; after that the cause is raised.
        rpc_timeout: Seconds without an answer after which a server counts as lost, at most a third of `step_timeout`.
            Slow steps do not count: a live server answers within two seconds that a step is still running.
        step_timeout: Seconds for one step or reset, fail-over included.
    """

    token: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    connect_timeout: float = 5.0
    rpc_timeout: float = 6.0
    step_timeout: float = 300.0

    @property
    def call_timeout(self) -> float:
        """Seconds for one call: short enough that one step can lose two workers within `step_timeout`."""
        return min(self.rpc_timeout, max(1.0, self.step_timeout / 3))

    def channel(self, address: str, host: str | None) -> grpc.Channel:
        """A channel to `address`, whose certificate names `host`."""
        options: list[tuple[str, Any]] = [*_OPTIONS]
        if not (self.tls or self.tls_ca or self.tls_cert):
            return grpc.insecure_channel(address, options)
        if host is not None:
            options.append(("grpc.ssl_target_name_override", host))
        files = [Path(path).read_bytes() if path else None for path in (self.tls_ca, self.tls_key, self.tls_cert)]
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        token = self.token or os.environ.get("MRLM_TOKEN")
        return (("authorization", f"Bearer {token}"),) if token else ()


class Connection:
    """A connection to one server.

    A server that does not answer is blocked: nothing is sent to it until it has answered a health check. The checks
    run in the background and back off exponentially, so that no session waits for a server that is gone or frozen.

    Args:
        address: `host:port`.
        host: The name in the server's certificate, where it is not the address's.
        access: Token, certificates and deadlines.

    Attributes:
        is_blocked: The server was lost and has not recovered yet.
        was_reached: It has answered a call at some time.
        trouble: Why the newest call failed, or "".
        worker: Id of the server's process, which tells a restarted worker from its predecessor.
        sessions: The sessions whose episodes are on this server.
    """

    def __init__(self, address: str, host: str | None, access: Access) -> None:
        self.address = address
        self.is_blocked = self.was_reached = False
        self.trouble, self.worker = "", address.encode()
        self._suspects = asyncio.Lock()  # one at a time, so that the next loss shows which item is the cause
        self.sessions: weakref.WeakSet[Any] = weakref.WeakSet()
        self._host, self._access = host, access
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mrlm-call")
        self._channel: grpc.Channel | None = None
        self._asked: list[float] = []  # when the calls in flight began
        self._methods: dict[str, Any] = {}
        self._is_closed = False
        self._recovery: asyncio.Task[None] | None = None
        self._queues = {(method, again): _Queue(self, method) for method in CALLS for again in (False, True)}
        _connections.add(self)

    @property
    def is_silent(self) -> bool:
        """Whether the server has been silent for longer than a live one; it counts as lost if no answer comes."""
        return bool(self._asked) and self._asked[0] < time.monotonic() - _SILENCE

    def send(self, method: str, item: Any, *, again: bool = False) -> "asyncio.Future[Any]":
        """Send one item, batched with others sent now; the future gives its result, or raises as `call` does.

        Args:
            method: "Reset", "Step" or another of the service.
            item: The item's message.
            again: The item was answered "still running": its call may take long, and must not hold up others.
        """
        return self._queues[method, again].add(item)

    async def ask(self, method: str, item: Any, *, is_suspect: bool = False) -> Any:
        """Send an item, and again while the server asks for a retry; see `send`.

        Args:
            method: See `send`.
            item: See `send`.
            is_suspect: The item was in flight on a server that was lost: the first time, it is sent alone.
        """
        async with self._suspects if is_suspect else contextlib.nullcontext():
            result = await self.send(method, item, again=is_suspect)
        while result.error.HasField("retry_after_ms"):
            await pause(result.error)
            again = is_suspect or result.error.code == pb.STEP_TIMEOUT
            result = await self.send(method, item, again=again)
        return result

    async def call(self, method: str, items: Sequence[Any]) -> Sequence[Any]:
        """One call of the service.

        Raises:
            ConnectionLost: If there is no answer, or the server is blocked.
            RemoteError: If the server refuses the call.
        """
        if self.is_blocked:
            raise ConnectionLost(self.trouble)
        request, reply = CALLS[method]
        message = request(sessions=items) if method == "Close" else request(items=items)
        if method in ("Reset", "Step"):
            message.wait_ms = int(1000 * _PATIENCE)
        path, timeout = f"/{SERVICE}/{method}", self._access.call_timeout
        asked = time.monotonic()
        self._asked.append(asked)
        try:
            answer = await self._call(path, message, timeout, request.SerializeToString, reply.FromString)
        except _CallFailed as error:
            return [self._failure(*error.args)] * len(items)
        finally:
            self._asked.remove(asked)
        self.was_reached, self.trouble = True, ""
        if method == "Reset":
            self.worker = answer.worker or self.worker
        if len(answer.results) != len(items):
            raise RemoteError(f"{self.address}: {len(items)} items got {len(answer.results)} results")
        return answer.results

    def _failure(self, status: str, details: str) -> "pb.Result":
        """The outcome of a failed call for its items: a retry later, or an exception."""
        text = f"{self.address}: {status}: {details}"
        if status == "RESOURCE_EXHAUSTED" and "larger than max" not in text:
            return pb.Result(error=pb.Error(code=pb.OVERLOADED, message=text, retry_after_ms=100))
        if status in _FATAL:
            raise RemoteError(text)
        if status == "CANCELLED":  # we hung up ourselves, because the process forks
            raise ConnectionLost(text)
        self.trouble = text + next((f" ({cause})" for words, cause in _CAUSES.items() if re.search(words, text)), "")
        self._block()
        is_innocent = re.search("failed to connect|draining|DNS|resolv", details) is not None
        raise ConnectionLost(self.trouble, is_suspicious=not is_innocent)

    async def _call(self, path: str, request: Any, timeout: float, serialize: Any, deserialize: Any) -> Any:
        """Make a blocking call on a thread: gRPC's own future would cost two more thread switches."""

        def call() -> Any:
            with _fork_lock:
                self._channel = self._channel or self._access.channel(self.address, self._host)
                if path not in self._methods:
                    self._methods[path] = self._channel.unary_unary(path, serialize, deserialize)
                method = self._methods[path]
            try:
                return method(request, timeout, self._access.metadata)
            except grpc.RpcError as error:
                status, details = error.code().name, error.details() or ""  # pyright: ignore[reportAttributeAccessIssue]
            except ValueError as error:  # the channel was closed a moment ago
                status, details = "CANCELLED", str(error)
            finally:
                del method  # gRPC's own exception would keep the channel, and gRPC, alive across a fork
            raise _CallFailed(status, details)

        if self._is_closed:
            raise RemoteError(f"{self.address}: the client is closed")
        return await self._loop.run_in_executor(self._threads, call)

    def _block(self) -> None:
        """Send nothing to the server until it is healthy."""
        if not self.is_blocked:
            self.is_blocked = True
            self._recovery = self._loop.create_task(self._recover())

    async def _recover(self) -> None:
        wait, longest = _BACKOFF
        while self.is_blocked:
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)
            try:
                answer = await self._call("/grpc.health.v1.Health/Check", b"", _PROBE, None, None)
                self.is_blocked = answer != _SERVING
            except _CallFailed as error:
                self.is_blocked = error.args[0] != "UNIMPLEMENTED"
            except Exception as error:  # for the moment a certificate's file is missing, or no thread can be started
                self.trouble = f"{self.address}: {error}"

    def close(self) -> bool:
        """Close the channel; calls in flight end as lost, and the next call opens it again. Safe on any thread.

        Returns:
            Whether it was open.
        """
        with _fork_lock:
            channel, self._channel, self._methods = self._channel, None, {}
        if channel is not None:
            channel.close()
        return channel is not None

    def close_for_good(self) -> None:
        """Close the channel, and take no more calls."""
        self._is_closed = True
        if self._recovery is not None:
            self._recovery.cancel()
        self.close()
        self._threads.shutdown(wait=False)


class _Queue:
    """Items of one method, gathered into batches."""

    def __init__(self, connection: Connection, method: str) -> None:
        self._connection, self._method = connection, method
        self._items: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self._calls: set[object] = set()  # those in flight that hold up the next batches
        self._loop = asyncio.get_running_loop()

    def add(self, item: Any) -> "asyncio.Future[Any]":
        future = self._loop.create_future()
        self._items.append((item, future))
        if len(self._items) == 1:  # the others have a flush coming
            self._loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        while self._items and len(self._calls) < _CALLS:
            batch: list[tuple[Any, asyncio.Future[Any]]] = []
            size = 0
            while self._items and len(batch) < _ITEMS and size < _BYTES:
                item, future = self._items.popleft()
                if not future.done():  # not cancelled
                    batch.append((item, future))
                    size += len(item) if isinstance(item, bytes) else item.ByteSize()
            if batch:
                call = self._loop.create_task(self._send(batch))
                self._calls.add(call)
                call.add_done_callback(self._release)
                self._loop.call_later(_PATIENCE, self._release, call)

    def _release(self, call: object) -> None:
        """Let a call hold up the next batches no longer."""
        if call in self._calls:
            self._calls.discard(call)
            self._flush()

    async def _send(self, batch: "list[tuple[Any, asyncio.Future[Any]]]") -> None:
        try:
            results = await self._connection.call(self._method, [item for item, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
                future.exception()  # marks it as seen: whoever waited for it may have gone
            else:
                future.set_result(result)


async def pause(error: "pb.Error") -> None:
    """Wait for about as long as the server asks."""
    if error.retry_after_ms:
        await asyncio.sleep(error.retry_after_ms / 1000 * _jitter.uniform(0.5, 1.5))


def _before_fork() -> None:
    """End all calls, and gRPC, before the process forks; otherwise gRPC hangs in its fork handler, or in the child."""
    _fork_lock.acquire()
    if any([connection.close() for connection in list(_connections)]):
        end = time.monotonic() + _LAST_CALLS
        while _is_grpc_running() and time.monotonic() < end:
            time.sleep(0.001)


def _is_grpc_running() -> bool:
    """Whether gRPC still has threads; it ends them after the last channel (known on Linux only)."""
    for name in glob.glob("/proc/self/task/*/comm"):
        with contextlib.suppress(OSError):  # the thread has ended
            if Path(name).read_text().startswith("grpc_"):
                return True
    return False


def _after_in_child() -> None:
    global _fork_lock
    _fork_lock = threading.RLock()
    _connections.clear()


os.register_at_fork(before=_before_fork, after_in_parent=lambda: _fork_lock.release(), after_in_child=_after_in_child)
