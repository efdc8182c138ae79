"""The public face of the sandbox: a pool that runs untrusted Python programs."""

import atexit
import collections
import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from mrlm_envs.sandbox.launch import CommandLauncher, Launcher, LaunchFailed, TemplateDied, TemplateLauncher
from mrlm_envs.sandbox.program import Program
from mrlm_envs.sandbox.results import Answer, Failure, Limits, Result, SandboxFault, SandboxUnavailable
from mrlm_envs.sandbox.workspace import Workspace

Backend = Literal["auto", "landlock", "bwrap", "unsafe"]
FunctionCall = tuple[str, Sequence[Any]] | tuple[str, Sequence[Any], Mapping[str, Any]]
"""A function's name, its arguments, and optionally its keyword arguments."""

T = TypeVar("T")
_TRUSTED_USES = 500  # before a fresh process, in case the trusted code leaks
_TRUSTED_S = 120.0
_NO_LIMIT_S = 1e9
_CANARY = "def double(x):\n    return 2 * x\n"


class Sandbox(contextlib.AbstractContextManager["Sandbox"]):
    """Runs untrusted Python programs, each in a process of its own. Thread-safe: many threads share the pool.

    ```python
    with Sandbox() as sandbox:
        result = sandbox.run("def add(a, b):\\n    return a + b", calls=[("add", [2, 3])])
        assert result.values == [5]
    ```

    Nothing starts before the first run. In a forked process the pool starts afresh.

    Args:
        backend: "landlock" (Landlock and seccomp), "bwrap" (bubblewrap), "unsafe" (none: only for code you trust), or
            "auto": the first of the first two that works.
        workers: Programs that run at the same time; when None, one for each CPU we may use. Further threads wait.

    Raises:
        SandboxUnavailable: No isolation works here.
    """

    def __init__(self, backend: Backend = "auto", workers: int | None = None) -> None:
        if backend not in ("auto", "landlock", "bwrap", "unsafe"):
            raise ValueError(f"unknown sandbox {backend!r}; choose auto, landlock, bwrap or unsafe")
        if backend == "unsafe":
            warnings.warn('sandbox="unsafe": programs run without isolation, with all your rights', stacklevel=2)
        if sys.platform == "win32":
            raise SandboxUnavailable(f"no sandbox on {sys.platform}: model code runs on Linux only")
        self._backend: Backend = backend
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._workers = workers or available
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._permits = threading.BoundedSemaphore(self._workers)
        self._workspaces: list[Workspace] = []
        self._janitor = ThreadPoolExecutor(1, thread_name_prefix="sandbox-janitor")
        self._cleaning: collections.deque[Future[None]] = collections.deque()
        self._programs: set[Program] = set()
        self._trusted: list[tuple[contextlib.ExitStack, Limits, int, Program]] = []
        self._sessions: weakref.WeakSet[InterpreterSession] = weakref.WeakSet()
        self._launcher: Launcher | None = None
        self._root, self._owner = "", os.getpid()

    @classmethod
    def shared(cls, backend: Backend = "auto") -> "Sandbox":
        """The pool that everything in this process shares; it is closed when the process ends."""
        with _shared_lock:
            if backend not in _shared:
                _shared[backend] = cls(backend)
            return _shared[backend]

    def run(
        self,
        code: str,
        calls: Iterable[FunctionCall] = (),
        stdin: str | None = None,
        limits: Limits | None = None,
        seed: int = 0,
    ) -> Result:
        """Runs a program in a fresh process and calls functions in it, one after the other.

        Args:
            code: Python source. Without `calls` it runs as a script (`__name__ == "__main__"`).
            calls: The functions to call once it has loaded, with their arguments.
            stdin: The program's standard input.
            limits: What it may use; the defaults of `Limits` when None.
            seed: Seeds the program's `random`.

        Raises:
            SandboxFault: The sandbox itself is broken.
            SandboxUnavailable: No isolation works here.
        """
        calls = list(calls)
        for call in calls:
            if not isinstance(call, tuple | list) or not 2 <= len(call) <= 3 or not isinstance(call[0], str):
                raise ValueError(f"a call must be (name, args) or (name, args, kwargs), got {call!r}")
        started = time.monotonic()

        def once() -> Result:
            with self.open(limits, stdin, seed) as program:
                failure = program.load(code, "solution" if calls else "__main__")
                answers: list[Answer] = []
                if failure is None:
                    made = [(name, args, named[0] if named else {}) for name, args, *named in calls]
                    answers += program.calls(made)
                if failure is None or program.failure is None:
                    with contextlib.suppress(TemplateDied):
                        program.close()  # kill it first: one of its threads may still print
                stdout, stderr = (printed.decode("utf-8", "replace") for printed in program.output())
                return Result(answers, failure, stdout, stderr, time.monotonic() - started)

        return self.attempt(once) or Result(failure=KILLED_SANDBOX, seconds=time.monotonic() - started)

    def attempt(self, job: Callable[[], T]) -> T | None:
        """Does a job that opens programs, and repeats it once if the sandbox breaks during it.

        Returns:
            The job's result, or None if the sandbox broke twice although a trusted program still runs well in it: then
            the job's program is to blame.

        Raises:
            SandboxFault: A trusted program fails too.
        """
        reason: Exception | None = None
        for _ in range(2):
            try:
                return job()
            except (TemplateDied, LaunchFailed) as error:
                reason = error
                if (launcher := self._launcher) is not None:
                    launcher.forget_dead()
        try:
            with self.open(Limits(timeout_s=20.0)) as program:
                if program.load(_CANARY) is None and program.call("double", [21]).value == 42:
                    return None
        except (TemplateDied, LaunchFailed) as error:
            reason = error
        raise SandboxFault(f"the sandbox is broken: {reason}") from reason

    @contextlib.contextmanager
    def open(
        self,
        limits: Limits | None = None,
        stdin: str | None = None,
        seed: int = 0,
        total_s: float | None = None,
        queue: bool = True,
    ) -> Iterator[Program]:
        """Opens a fresh process, for callers that decide call by call. Wrap its use in `attempt`.

        Args:
            limits: As in `run`.
            stdin: As in `run`.
            seed: As in `run`.
            total_s: Seconds in total, if less than the limits allow.
            queue: Wait for a free worker. False only for a process that mostly waits for another one and is opened
                while that one is held.
        """
        launcher, owner, limits = self._start(), os.getpid(), limits or Limits()
        with self._permits if queue else contextlib.nullcontext():
            workspace = self._take_workspace(limits)
            program = None
            try:
                if stdin:
                    workspace.feed(stdin)
                process = launcher.start(workspace, limits)
                program = Program(process, workspace, limits, seed, min(limits.total, total_s or limits.total))
                with self._lock:
                    self._programs.add(program)
                yield program
            finally:
                if owner == os.getpid():  # in a forked child, this runs when its copy is discarded
                    self._give_back(workspace, program)

    @contextlib.contextmanager
    def open_trusted(self, memory_mb: int) -> Iterator[Program]:
        """Opens a process for trusted code that handles untrusted values, such as a dataset's asserts.

        It is isolated like any other, but reused for the next trusted code. Open it while holding an untrusted one, and
        wrap its use in `attempt`.

        Args:
            memory_mb: Its memory beyond the interpreter's own, in MiB.
        """
        with self._lock:
            held = self._trusted.pop() if self._trusted else None
        if held is None or held[1].memory_mb != memory_mb or held[2] >= _TRUSTED_USES:
            if held is not None:
                held[0].close()
            stack, limits = contextlib.ExitStack(), Limits(_TRUSTED_S, _NO_LIMIT_S, memory_mb)
            held = stack, limits, 0, stack.enter_context(self.open(limits, queue=False))
        stack, limits, uses, program = held
        with stack:  # ends the process, unless it is kept for the next
            yield program
            program.finish_load()
            with self._lock:
                if program.failure is None and self._launcher is not None:
                    self._trusted.append((stack.pop_all(), limits, uses + 1, program))

    def start(self) -> "Sandbox":
        """Starts the pool now rather than with the first run, so that an environment can fail early.

        Raises:
            SandboxUnavailable: No isolation works here.
        """
        self._start()
        return self

    def session(self, limits: Limits | None = None, seed: int = 0) -> "InterpreterSession":
        """A program that is kept between runs, like an interactive interpreter.

        Args:
            limits: `timeout_s` holds for each run, `total_s` for the sum of them (no limit when None).
            seed: Seeds the session's `random`.
        """
        session = InterpreterSession(self, limits or Limits(), seed)
        self._sessions.add(session)
        return session

    def _take_workspace(self, limits: Limits) -> Workspace:
        while True:
            with self._lock:
                for workspace in reversed(self._workspaces):
                    if workspace.worker is not None and workspace.worker.limits.kernel == limits.kernel:
                        self._workspaces.remove(workspace)
                        return workspace
                if len(self._workspaces) > self._workers:
                    return self._workspaces.pop(0)
                cleaning = self._cleaning.popleft() if len(self._cleaning) > self._workers else None
                root, landlock = self._root, self._launcher is not None and self._launcher.with_landlock
            if cleaning is None:
                return Workspace(root, landlock)
            cleaning.result()

    def _give_back(self, workspace: Workspace, program: Program | None) -> None:
        """Kills a program, without waiting for its death or for its workspace to be cleaned."""
        if program is not None:
            program.kill()
        pending = [workspace]

        def make_ready() -> None:
            with contextlib.suppress(IndexError):  # a `submit` that fails may have queued the job all the same
                self._make_ready(pending.pop(), program)

        with self._lock:
            while self._cleaning and self._cleaning[0].done():
                self._cleaning.popleft()
            try:
                self._cleaning.append(self._janitor.submit(make_ready))
                return
            except RuntimeError:  # no thread can start, or the interpreter is shutting down
                pass
        make_ready()

    def _make_ready(self, workspace: Workspace, program: Program | None) -> None:
        with contextlib.suppress(TemplateDied):
            if program is not None:
                with self._lock:
                    self._programs.discard(program)
                program.close()
            workspace.clean()
            if workspace.worker is not None:
                workspace.worker.prepare()
            with self._lock:
                if self._launcher is not None and len(self._workspaces) <= 2 * self._workers:
                    self._workspaces.append(workspace)
                    return
        workspace.close()

    def _start(self) -> Launcher:
        if self._owner != os.getpid():
            self._reset()
        with self._lock:
            if self._launcher is None:
                self._root = tempfile.mkdtemp(prefix="mrlm-sandbox-")
                try:
                    self._launcher = self._choose()
                except BaseException:
                    shutil.rmtree(self._root, ignore_errors=True)
                    raise
            return self._launcher

    def _choose(self) -> Launcher:
        if self._backend == "unsafe":
            return CommandLauncher("unsafe")
        reasons: list[str] = []
        for backend in ("landlock", "bwrap") if self._backend == "auto" else (self._backend,):
            try:
                launcher: Launcher
                launcher = TemplateLauncher(self._root) if backend == "landlock" else CommandLauncher(backend)
                self._probe(launcher)
                return launcher
            except (LaunchFailed, TemplateDied, OSError, RuntimeError) as error:
                reasons.append(f"{backend}: {error}")
        raise SandboxUnavailable(
            f"no sandbox here: {'; '.join(reasons)}; use Linux 5.13 or newer with Landlock, or install bubblewrap, "
            'or pass sandbox="unsafe" to run model code without isolation'
        )

    def _probe(self, launcher: Launcher) -> None:
        """Runs a trusted program through a launcher, so that what does not work shows at the start."""
        limits = Limits(timeout_s=20.0)
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as end:
            undo.callback(launcher.close)
            workspace = Workspace(self._root, launcher.with_landlock)
            end.callback(workspace.close)
            program = Program(launcher.start(workspace, limits), workspace, limits, 0, limits.total)
            end.callback(program.close)
            failure = program.load(_CANARY)
            if failure is not None or program.call("double", [21]).value != 42:
                raise LaunchFailed(f"a trusted program fails: {failure}")
            undo.pop_all()

    def close(self) -> None:
        """Ends every process and removes every file; a later run starts afresh."""
        if self._owner != os.getpid():
            return
        with self._lock:
            launcher, self._launcher = self._launcher, None
            workspaces, self._workspaces = self._workspaces, []
            programs = list(self._programs)
            trusted, self._trusted = self._trusted, []
        for held in [*self._sessions, *(stack for stack, *_ in trusted)]:
            held.close()
        self._janitor.shutdown()
        for program in programs:
            with contextlib.suppress(TemplateDied):
                program.close()
        if launcher is not None:
            launcher.close()
        for workspace in workspaces:
            workspace.close()
        if self._root:
            shutil.rmtree(self._root, ignore_errors=True)
        self._reset()

    def __exit__(self, *_: object) -> None:
        self.close()


KILLED_SANDBOX = Failure("crash", "the sandbox died twice while this program ran")


class InterpreterSession(contextlib.AbstractContextManager["InterpreterSession"]):
    """A program that is kept between runs. Not thread-safe; use it as a context manager or close it.

    Between runs it is stopped, so none of its threads keeps running. A time-out or a crash ends it; the next run then
    starts an empty one and sets `restarted`.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits, seed: int) -> None:
        self._sandbox, self._seed = sandbox, seed
        self._limits = dataclasses.replace(limits, total_s=limits.total_s or _NO_LIMIT_S)
        self._held: contextlib.ExitStack | None = None
        self._program: Program | None = None
        self._printed = (0, 0)
        self.restarted = False

    def run(self, code: str, timeout_s: float | None = None) -> Result:
        """Executes a chunk of code in the namespace of the earlier chunks.

        Args:
            code: Python source. The value of a final expression is the answer's `value` and, as `repr`, its `shown`.
            timeout_s: Seconds for this run; the limits' when None.

        Returns:
            A result with one answer; `stdout` and `stderr` hold what this run printed.

        Raises:
            SandboxFault: The sandbox itself is broken.
        """
        started = time.monotonic()
        self.restarted = False

        def once() -> Result:
            program = self._alive()
            try:
                with self._sandbox._permits:
                    program.resume()
                    answer = program.repl(code, timeout_s or self._limits.timeout_s)
                    if program.failure is None:
                        program.pause()
            except TemplateDied:  # and the program with it
                self.close()
                raise
            stdout, stderr = program.output(self._printed)
            self._printed = self._printed[0] + len(stdout), self._printed[1] + len(stderr)
            if program.failure is not None:
                self.close()
            printed = stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
            return Result([answer], None, *printed, time.monotonic() - started)

        return self._sandbox.attempt(once) or Result([Answer(failure=KILLED_SANDBOX)])

    @property
    def is_alive(self) -> bool:
        """Whether the next run finds the variables of the last one."""
        return self._program is not None

    def _alive(self) -> Program:
        if self._program is None:
            self.restarted = self._held is not None
            self._held = contextlib.ExitStack()
            self._printed = (0, 0)
            self._program = self._held.enter_context(self._sandbox.open(self._limits, seed=self._seed, queue=False))
        return self._program

    def close(self) -> None:
        """Ends the process; a later run starts an empty one."""
        self._program = None
        if self._held is not None:
            self._held.close()

    def __exit__(self, *_: object) -> None:
        self.close()


_all: "weakref.WeakSet[Sandbox]" = weakref.WeakSet()
_shared: dict[Backend, Sandbox] = {}
_shared_lock = threading.Lock()


@atexit.register
def _close_all() -> None:
    for sandbox in list(_all):
        sandbox.close()


def _forget_after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for sandbox in list(_all):
        sandbox._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
