"""One untrusted program in its sandbox, driven from outside."""

import contextlib
import marshal
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mrlm_envs.sandbox import values
from mrlm_envs.sandbox.launch import LaunchFailed, Process
from mrlm_envs.sandbox.results import Answer, Failure, Limits
from mrlm_envs.sandbox.workspace import Workspace

MAX_FRAME = 4 << 20
"""Maximum bytes of one answer. All answers to one request together may have twice that."""

_MAX_SENT = 16 * MAX_FRAME
_MAX_TEXT = 4000
_SLICE_S = 0.02
_MAX_FILES = 1000
_MAX_THREADS = 64
_START_S = 20.0
_AHEAD = 64 << 10  # bytes sent ahead; more could fill both directions of the channel and block both ends

EncodedCall = tuple[str, list[Any], list[Any]]
"""A function's name, its encoded arguments, and its encoded keyword arguments as `[name, value]` pairs."""
Host = Callable[[EncodedCall], Answer]
"""Answers the calls that a *trusted* program makes to functions of ours; the answer's value stays encoded."""


class _Ended(Exception):
    """The process will not answer any more; carries the reason, None if it ended by itself."""

    def __init__(self, failure: Failure | None) -> None:
        self.failure = failure


class _Deadline:
    """A wall-clock deadline, extended up to threefold for a program that other load keeps from running."""

    def __init__(self, seconds: float, pid: int) -> None:
        self._seconds, self._clock = seconds, (~pid << 3) | 2  # Linux: the CPU clock of another process
        self._start, self._cpu = time.monotonic(), self._cpu_time()

    def _cpu_time(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # not Linux, or it is dead
            return float("inf")

    def excuse(self, seconds: float) -> None:
        """Postpones the deadline by time that the program spent waiting for us."""
        self._start += seconds

    def left(self) -> float:
        """Seconds that remain."""
        waited = time.monotonic() - self._start
        if waited < self._seconds:
            return self._seconds - waited
        used = self._cpu_time() - self._cpu
        if waited >= 3 * self._seconds or not 0.1 * waited <= used < 0.98 * self._seconds:
            return 0.0
        return min(self._seconds - used, 3 * self._seconds - waited)


class Program:
    """A running program. Not thread-safe. After a failure other than "exception" it is dead and repeats that failure.

    Attributes:
        failure: Why the process ended, None while it lives.
    """

    def __init__(self, process: Process, workspace: Workspace, limits: Limits, seed: int, total_s: float) -> None:
        self.failure: Failure | None = None
        self._process, self._workspace, self._limits, self._total_s = process, workspace, limits, total_s
        self._buffer = bytearray()
        self._allowance = 2 * MAX_FRAME
        self._ready = self._gone = False
        self._posted: tuple[int, Host] | None = None
        self._load_failure: Failure | None = None
        self._started = 0.0
        self._poller = select.poll()
        self._poller.register(process.channel, select.POLLIN)
        process.channel.setblocking(False)
        self._outgoing = _frame([seed, limits.recursion])

    def left(self) -> float:
        """Seconds that remain of the program's total time."""
        return self._total_s - (time.monotonic() - self._started if self._ready else 0.0)

    def check(self, code: str) -> Failure | None:
        """Compiles the program without running any of it, so that the failure's text is Python's own.

        Args:
            code: Python source.

        Raises:
            LaunchFailed: The process could not be isolated.
            TemplateDied: The template died.
        """
        return next(self._requests([["check", code]], self._limits.timeout_s)).failure

    def load(self, code: str, name: str = "solution", prelude: str = "") -> Failure | None:
        """Executes the program's top level; as `__main__` the whole script, to its end.

        Args:
            code: Python source.
            name: The module's `__name__`.
            prelude: Source executed first in the same namespace; it does not shift the program's line numbers.

        Raises:
            LaunchFailed: The process could not be isolated.
            TemplateDied: The template died.
        """
        return next(self._requests([["load", code, name, [], prelude]], self._limits.timeout_s)).failure

    def post_load(self, code: str, host: Host, hosted: Iterable[str]) -> None:
        """Starts to load a trusted program without waiting; the next call waits for it.

        Args:
            code: Python source.
            host: Answers the program's calls of hosted functions.
            hosted: Names of those functions.
        """
        ticket = secrets.randbits(60)
        self._outgoing += _frame(["load", ticket, code, "trusted", sorted(hosted), ""])
        self._posted = ticket, host
        with contextlib.suppress(BlockingIOError, OSError):  # the next request sends the rest
            self._outgoing = self._outgoing[self._process.channel.send(self._outgoing) :]

    def finish_load(self, timeout_s: float | None = None) -> Failure | None:
        """Waits for the load that `post_load` started, if any, and returns its failure, if it failed.

        Args:
            timeout_s: Seconds to wait, without those the host takes; the limits' when None.
        """
        if self._posted is not None:
            (ticket, host), self._posted = self._posted, None
            self._allowance = 2 * MAX_FRAME
            self._load_failure = self._request(ticket, b"", timeout_s or self._limits.timeout_s, host).failure
        return self.failure or self._load_failure

    def call(self, function: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Answer:
        """Calls a function of the program.

        Args:
            function: A name at the program's top level.
            args: Values of base types, or `Opaque` ones that this program returned.
            kwargs: Keyword arguments, likewise.
        """
        return next(self.calls([(function, args, kwargs or {})]))

    def calls(
        self, calls: Iterable[tuple[str, Sequence[Any], Mapping[str, Any]]], allowance: int = 2 * MAX_FRAME
    ) -> Iterator[Answer]:
        """Calls functions one after the other, sending calls ahead; ends when the process does.

        The program could read the arguments of later calls during an earlier one, so send only calls together that it
        may know together.

        Args:
            calls: Name, arguments and keyword arguments of each call.
            allowance: Maximum bytes of all answers together.
        """
        messages = [["call", *encoded_call(*call)] for call in calls]
        return self._requests(messages, self._limits.timeout_s, allowance=allowance, decode=values.decode)

    def forward(self, calls: Iterable[EncodedCall]) -> Iterator[Answer]:
        """Like `calls`, for calls that are encoded already; the answers' values stay encoded too."""
        return self._requests([["call", *call] for call in calls], self._limits.timeout_s)

    def run_test(self, code: str, host: Host, known: Sequence[tuple[EncodedCall, Answer]], timeout_s: float) -> Answer:
        """Runs a test in the namespace of a trusted program, loaded by `post_load`.

        Args:
            code: The test's statements.
            host: As in `post_load`.
            known: Calls that the test is expected to make, with their answers.
            timeout_s: Seconds for the test, without those the host takes.
        """
        table = [[list(call), encoded_answer(answer)] for call, answer in known]
        if failure := self.finish_load(timeout_s):
            return Answer(failure=failure)
        return next(self._requests([["run_test", code, table]], timeout_s, host))

    def repl(self, code: str, timeout_s: float) -> Answer:
        """Executes a chunk in the namespace of the earlier chunks; the value of a final expression is the answer."""
        return next(self._requests([["repl", code]], timeout_s, decode=values.decode))

    def output(self, start: tuple[int, int] = (0, 0)) -> tuple[bytes, bytes]:
        """What it printed so far on standard output and standard error, from a position in each onwards."""
        return self._read(self._workspace.stdout, start[0]), self._read(self._workspace.stderr, start[1])

    def _read(self, fd: int, start: int) -> bytes:
        size = min(os.fstat(fd).st_size, self._limits.file_mb << 20) - start
        return os.pread(fd, size, start) if size > 0 else b""

    def pause(self) -> None:
        """Stops its threads until `resume`, so that nothing runs between runs."""
        self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it run again."""
        self._process.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kills the process without waiting; `close` still has to follow."""
        if not self._gone:
            self._process.signal(signal.SIGKILL)

    def close(self) -> None:
        """Kills the process and waits for its death.

        Raises:
            TemplateDied: The template died.
        """
        if not self._gone:
            self._gone = True
            self._process.end()

    def _requests(
        self,
        messages: Sequence[Any],
        seconds: float,
        host: Host | None = None,
        allowance: int = 2 * MAX_FRAME,
        decode: Callable[[Any], Any] | None = None,
    ) -> Iterator[Answer]:
        """Sends requests, all at once when they are small, and yields their answers until the process ends."""
        tickets = [secrets.randbits(60) for _ in messages]
        frames = [_frame([kind, ticket, *rest]) for ticket, (kind, *rest) in zip(tickets, messages)]
        if sum(map(len, frames)) <= _AHEAD:
            frames = [b"".join(frames), *[b""] * (len(frames) - 1)]
        self._allowance = allowance
        for ticket, frame in zip(tickets, frames):
            yield self._request(ticket, frame, seconds, host, decode)
            if self.failure is not None:
                return

    def _request(
        self, ticket: int, frame: bytes, seconds: float, host: Host | None, decode: Callable[[Any], Any] | None = None
    ) -> Answer:
        """Sends a frame, if it has not been sent ahead, and takes the answer with this ticket."""
        if self.failure is not None:
            return Answer(failure=self.failure)
        deadline = None
        try:
            if len(frame) > _MAX_SENT:
                raise _Ended(Failure("too_large", "the program or its arguments are too large"))
            self._await_ready()
            deadline = _Deadline(min(seconds, self.left()), self._process.pid)
            self._send(self._outgoing + frame, deadline)
            self._outgoing = b""
            reply = self._await_answer(ticket, deadline, host)
            if reply[0] == "value":
                shown = reply[3][:_MAX_TEXT] if len(reply) > 3 and type(reply[3]) is str else ""
                return Answer(decode(reply[2]) if decode else reply[2], shown=shown)
            _, _, kind, text, trace, line = reply
            if not (type(kind) is type(text) is type(trace) is str and type(line) is int):
                raise values.ValueRefused("a malformed error")
            how = "exit" if kind == "SystemExit" else "exception"
            return Answer(failure=Failure(how, text[:_MAX_TEXT], kind[:80], trace[: 4 * _MAX_TEXT], line))
        except _Ended as ended:
            self.failure = self._bury(ended.failure, deadline)
        except (ValueError, IndexError, TypeError):  # `ValueRefused` among them
            self.failure = self._bury(Failure("protocol", "the program wrote to the judge's channel"))
        return Answer(failure=self.failure)

    def _await_answer(self, ticket: int, deadline: _Deadline, host: Host | None) -> Any:
        while True:
            reply = self._receive(deadline)
            if type(reply) is not list or not reply:
                raise values.ValueRefused("not a message")
            if reply[0] == "ask" and host:
                _, name, args, kwargs = reply
                asked = time.monotonic()
                answer = host((name, args, kwargs))
                deadline.excuse(time.monotonic() - asked)
                self._allowance = 2 * MAX_FRAME
                self._send(_frame(encoded_answer(answer)), deadline)
            elif reply[0] in ("value", "error") and reply[1] == ticket:
                return reply
            else:
                raise values.ValueRefused("not an answer")

    def _await_ready(self) -> None:
        """Takes the first frame, which is sent before any untrusted code runs and so can be believed."""
        if self._ready:
            return
        try:
            first = self._receive(_Deadline(_START_S, self._process.pid))
        except _Ended as ended:
            self._bury(ended.failure or _DEAD)
            reason = ended.failure.message if ended.failure else "the sandbox ended before it started the program"
            raise LaunchFailed(reason) from None
        if first != ["ready"]:
            self._bury(_DEAD)
            raise LaunchFailed(str(first[-1])[:500])
        self._ready, self._started = True, time.monotonic()

    def _send(self, data: bytes, deadline: _Deadline) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._process.channel.send(view) :]
            except BlockingIOError:
                self._poller.modify(self._process.channel, select.POLLOUT)
                try:
                    self._wait(deadline)
                finally:
                    self._poller.modify(self._process.channel, select.POLLIN)
            except OSError as error:
                raise _Ended(None) from error

    def _receive(self, deadline: _Deadline) -> Any:
        size = None
        while True:
            if size is None and len(self._buffer) >= 4:
                size = int.from_bytes(self._buffer[:4], "big") + 4
                self._allowance -= size
                if size > MAX_FRAME or self._allowance < 0:
                    raise _Ended(Failure("too_large", "the value is too large"))
            if size is not None and len(self._buffer) >= size:
                message = values.loads(bytes(self._buffer[4:size]))
                del self._buffer[:size]
                return message
            self._wait(deadline)
            try:
                data = self._process.channel.recv(1 << 18)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _Ended(None) from error
            if not data:
                raise _Ended(None)
            self._buffer += data

    def _wait(self, deadline: _Deadline) -> None:
        """Returns when the channel is ready; ends the program if it exceeds its time, disk space or threads."""
        while not self._poller.poll(min(_SLICE_S, max(0.0, deadline.left())) * 1000):
            if deadline.left() <= 0:
                raise _Ended(Failure("timeout", "the time limit was exceeded"))
            size, count = self._workspace.usage(self._process.pid, self._limits.file_mb << 20)
            if size > self._limits.disk_mb << 20 or count > _MAX_FILES:
                raise _Ended(Failure("disk", "the disk limit was exceeded"))
            if self._process.threads() > _MAX_THREADS:
                raise _Ended(Failure("threads", f"the program started more than {_MAX_THREADS} threads"))

    def _bury(self, failure: Failure | None, deadline: _Deadline | None = None) -> Failure:
        """Kills what is left of the process and returns why it ended; one that closed its channel may end by itself."""
        self._gone = True
        if failure is None and not self._process.ends_within(max(0.2, deadline.left() if deadline else 0.0)):
            failure = Failure("timeout", "the program closed its channel and went on until the time limit")
        code = self._process.end(want_status=failure is None)
        if failure is not None:
            return failure
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            if -code == signal.SIGXCPU:
                return Failure("timeout", "the CPU time limit was exceeded")
            return Failure("crash", f"the program died of {name}")
        return Failure("exit", f"the program ended the process with exit code {code}", exit_code=code)


_DEAD = Failure("crash", "the process ended before the program started")


def encoded_call(function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> EncodedCall:
    """A call as it goes over the wire.

    Raises:
        ValueRefused: An argument is nested too deeply.
    """
    return function, [values.encode(a) for a in args], [[k, values.encode(v)] for k, v in kwargs.items()]


def encoded_answer(answer: Answer) -> list[Any]:
    """An answer with an encoded value, as it goes to a trusted program."""
    if answer.failure is None:
        return ["value", answer.value]
    kind = answer.failure.type if answer.failure.kind == "exception" else "RuntimeError"
    return ["error", kind, answer.failure.message]


def _frame(message: Any) -> bytes:
    payload = marshal.dumps(message)
    return len(payload).to_bytes(4, "big") + payload
