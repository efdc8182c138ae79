"""One untrusted program in its sandbox, spoken to from outside."""

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
from mrlm_envs.sandbox.launch import LaunchFailed, Process, Slot
from mrlm_envs.sandbox.results import Answer, Failure, Limits

MAX_FRAME = 4 << 20
_SLICE_S = 0.05
_MAX_FILES = 1000
_START_S = 20.0
_AHEAD = 64 << 10  # bytes sent ahead; more could fill both directions of the channel and stop us both

Host = Callable[[list[Any], dict[str, Any]], Answer]
"""A function of ours that a *trusted* program may call by name: (args, kwargs) to an answer."""
HostCall = tuple[str, Sequence[Any], Mapping[str, Any]]
"""A function's name, its arguments and its keyword arguments."""


class _Ended(Exception):
    """The process will answer no more; carries the reason, None when it ended by itself."""

    def __init__(self, failure: Failure | None) -> None:
        self.failure = failure


class _Deadline:
    """A wall deadline that waits longer, up to three times, for a program that other load keeps from running."""

    def __init__(self, seconds: float, pid: int) -> None:
        self._seconds, self._clock = seconds, (~pid << 3) | 2  # Linux: the CPU clock of another process
        self._start, self._cpu = time.monotonic(), self._cpu_time()

    def _cpu_time(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # not Linux, or it is dead
            return float("inf")

    def excuse(self, seconds: float) -> None:
        """Puts the end off by time that the program spent waiting for us."""
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
    """A running program. Not thread-safe. After a failure other than "exception" it is dead and only says why.

    Attributes:
        failure: Why the process ended, None while it lives.
    """

    def __init__(self, process: Process, slot: Slot, limits: Limits, seed: int) -> None:
        self.failure: Failure | None = None
        self._process, self._slot, self._limits = process, slot, limits
        self._buffer = bytearray()
        self._ready = self._gone = False
        self._posted: tuple[int, Mapping[str, Host]] | None = None
        self._load_failure: Failure | None = None
        self._started = 0.0
        self._poller = select.poll()
        self._poller.register(process.channel, select.POLLIN)
        process.channel.setblocking(False)
        self._outgoing = _frame([seed, limits.recursion])

    def load(
        self, code: str, name: str = "solution", hosts: Mapping[str, Host] | None = None, prelude: str = ""
    ) -> Failure | None:
        """Executes the program's top level; as `__main__` the whole script, to its end.

        Args:
            code: Python source.
            name: The module's `__name__`.
            prelude: Source executed first in the same namespace; its lines do not count.
            hosts: Functions of ours for a trusted program.

        Raises:
            LaunchFailed: The process could not be locked in.
            TemplateDied: The template died.
        """
        message = ["load", code, name, sorted(hosts or {}), prelude]
        return next(self._requests([message], self._limits.timeout_s, hosts)).failure

    def post_load(self, code: str, hosts: Mapping[str, Host]) -> None:
        """Begins to load a trusted program without waiting; the next call waits for it."""
        ticket = secrets.randbits(60)
        self._outgoing += _frame(["load", ticket, code, "trusted", sorted(hosts), ""])
        self._posted = ticket, hosts
        with contextlib.suppress(BlockingIOError, OSError):  # what does not go now, goes with the next request
            self._outgoing = self._outgoing[self._process.channel.send(self._outgoing) :]

    def finish_load(self) -> Failure | None:
        """Waits for what `post_load` began, and says how it failed."""
        if self._posted is not None:
            (ticket, hosts), self._posted = self._posted, None
            self._load_failure = self._request(ticket, b"", self._limits.timeout_s, hosts).failure
        return self.failure or self._load_failure

    def call(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        hosts: Mapping[str, Host] | None = None,
        known: Sequence[tuple[HostCall, Answer]] = (),
        timeout_s: float | None = None,
    ) -> Answer:
        """Calls a function of the program.

        Args:
            function: A name at the program's top level.
            args: Values of base types, or `Opaque` ones that this program returned.
            kwargs: The same by name.
            hosts: As in `load`.
            known: What the hosts will be asked, and their answers, so far as that is known.
            timeout_s: Seconds for this call, hosts left out; the limits' when None.
        """
        table = [(_call(*asked)[1:4], _reply(answer)) for asked, answer in known]
        message = _call(function, args, kwargs or {}, table)
        if failure := self.finish_load():
            return Answer(failure=failure)
        return next(self._requests([message], timeout_s or self._limits.timeout_s, hosts))

    def calls(self, calls: Iterable[HostCall]) -> Iterator[Answer]:
        """Calls functions one after the other, sending what is to be called ahead; ends when the process does.

        The program could read the arguments of later calls during an earlier one, so ask together only what it may
        know together.

        Args:
            calls: Name, arguments and keyword arguments of each call.
        """
        return self._requests([_call(*call) for call in calls], self._limits.timeout_s)

    def enter(self) -> None:
        """Starts a session's namespace."""
        next(self._requests([["enter", "__main__"]], self._limits.timeout_s))

    def repl(self, code: str, timeout_s: float) -> Answer:
        """Executes a chunk in the namespace of the chunks before; a last expression is its value."""
        return next(self._requests([["repl", code]], timeout_s))

    def output(self) -> tuple[str, str]:
        """What it printed so far on standard output and standard error."""
        return self._text(self._slot.stdout), self._text(self._slot.stderr)

    def _text(self, fd: int) -> str:
        size = min(os.fstat(fd).st_size, self._limits.file_mb << 20)
        return os.pread(fd, size, 0).decode("utf-8", "backslashreplace") if size else ""

    def pause(self) -> None:
        """Stops its threads until `resume`, so that nothing runs between turns."""
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
            self._process.end(want_status=False)

    def _requests(
        self, messages: Sequence[Any], seconds: float, hosts: Mapping[str, Host] | None = None
    ) -> Iterator[Answer]:
        """Sends requests, all at once when they are small, and gives their answers until the process ends."""
        tickets = [secrets.randbits(60) for _ in messages]
        frames = [_frame([kind, ticket, *rest]) for ticket, (kind, *rest) in zip(tickets, messages)]
        if sum(map(len, frames)) <= _AHEAD:
            frames = [b"".join(frames), *[b""] * (len(frames) - 1)]
        for ticket, frame in zip(tickets, frames):
            yield self._request(ticket, frame, seconds, hosts)
            if self.failure is not None:
                return

    def _request(self, ticket: int, frame: bytes, seconds: float, hosts: Mapping[str, Host] | None) -> Answer:
        """Sends a frame, if there is one left to send, and takes the answer with this ticket."""
        if self.failure is not None:
            return Answer(failure=self.failure)
        try:
            self._await_ready()
            left = self._limits.total - (time.monotonic() - self._started)
            deadline = _Deadline(min(seconds, left), self._process.pid)
            self._send(self._outgoing + frame, deadline)
            self._outgoing = b""
            reply = self._await_answer(ticket, deadline, hosts)
            if reply[0] == "value":
                shown = reply[3] if len(reply) > 3 and type(reply[3]) is str else ""
                return Answer(values.decode(reply[2]), shown=shown)
            _, _, kind, text, trace, line = reply
            if not (type(kind) is type(text) is type(trace) is str and type(line) is int):
                raise values.ValueRefused("a malformed error")
            return Answer(failure=Failure("exit" if kind == "SystemExit" else "exception", text, kind, trace, line))
        except _Ended as ended:
            self.failure = self._bury(ended.failure)
        except (values.ValueRefused, ValueError, IndexError, TypeError):
            self.failure = self._bury(Failure("protocol", "the program wrote to the judge's channel"))
        return Answer(failure=self.failure)

    def _await_answer(self, ticket: int, deadline: _Deadline, hosts: Mapping[str, Host] | None) -> Any:
        while True:
            reply = self._receive(deadline)
            if type(reply) is not list or not reply:
                raise values.ValueRefused("not a message")
            if reply[0] == "ask" and hosts:
                _, name, args, kwargs = reply
                named = {k: values.decode(v) for k, v in kwargs}
                asked = time.monotonic()
                answer = hosts[name]([values.decode(a) for a in args], named)
                deadline.excuse(time.monotonic() - asked)
                self._send(_frame(_reply(answer)), deadline)
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
            self._bury(None)
            raise LaunchFailed(
                ended.failure.message if ended.failure else "the sandbox ended before it began"
            ) from None
        if first != ["ready"]:
            self._bury(None)
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
                if size > MAX_FRAME:
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
        """Returns when the channel is ready; ends the program when its time or its disk space is up."""
        while not self._poller.poll(min(_SLICE_S, max(0.0, deadline.left())) * 1000):
            if deadline.left() <= 0:
                raise _Ended(Failure("timeout", "the time limit was exceeded"))
            size, count = self._slot.usage()
            if size > self._limits.disk_mb << 20 or count > _MAX_FILES:
                raise _Ended(Failure("disk", "the disk limit was exceeded"))

    def _bury(self, failure: Failure | None) -> Failure:
        """Kills what is left of the process and says why it ended."""
        self._gone = True
        code = self._process.end(want_status=failure is None)
        if failure is not None:
            return failure
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            if -code == signal.SIGXCPU:
                return Failure("timeout", "the CPU time limit was exceeded")
            return Failure("crash", f"the program died of {name}")
        return Failure("exit", f"the program ended the process with exit code {code}")


def _call(function: str, args: Sequence[Any], kwargs: Mapping[str, Any], known: Sequence[Any] = ()) -> list[Any]:
    named = [[k, values.encode(v)] for k, v in kwargs.items()]
    return ["call", function, [values.encode(a) for a in args], named, list(known)]


def _frame(message: Any) -> bytes:
    payload = marshal.dumps(message)
    if len(payload) > 4 * MAX_FRAME:
        raise values.ValueRefused("the program or its arguments are too large")
    return len(payload).to_bytes(4, "big") + payload


def _reply(answer: Answer) -> list[Any]:
    if answer.failure is None:
        return ["value", values.encode(answer.value)]
    kind = answer.failure.type if answer.failure.kind == "exception" else "RuntimeError"
    return ["error", kind, answer.failure.message]
