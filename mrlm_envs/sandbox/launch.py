"""Starting sandboxed processes: forked from a template under Landlock and seccomp, or one by one under bubblewrap.

Each launcher gives a `Process`: a pid, a sure way to kill it, and our end of the channel.
Not exercised by our tests where `bwrap` is not installed: the bubblewrap backend.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mrlm_envs.sandbox.results import Limits
from mrlm_envs.sandbox.workspace import Workspace, hidden_directories, library_trees

_TEMPLATE = str(Path(__file__).with_name("template.py"))
_RUN = "import sys; exec(compile(open(sys.argv[1], encoding='utf-8').read(), 'template.py', 'exec'))"
_PYTHON_FLAGS = ["-s", "-P", "-S", "-B", "-X", "utf8"]
_SCRIPT = [*_PYTHON_FLAGS, "-c", _RUN, _TEMPLATE]
_HANDSHAKE_S = 20.0


class TemplateDied(RuntimeError):
    """The template process is gone, and every child with it."""


class LaunchFailed(RuntimeError):
    """A child could not be started; the message says why."""


def environment() -> dict[str, str]:
    """The environment of a sandboxed interpreter: nothing of ours, and string hashes that replay."""
    kept = {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
    return {"PYTHONHASHSEED": "0", **kept}


def _start(command: list[str], fd: int, **where: Any) -> "subprocess.Popen[Any]":
    return subprocess.Popen(command, env=environment(), pass_fds=(fd,), start_new_session=True, **where)


class Process:
    """A sandboxed process, seen from outside."""

    def __init__(self, pid: int, pidfd: int, channel: socket.socket, owner: "Worker | subprocess.Popen[Any]") -> None:
        self.pid, self.channel = pid, channel
        self._pidfd, self._owner = pidfd, owner

    def signal(self, number: int) -> None:
        """Sends a signal, to this process and no other."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
        elif isinstance(self._owner, subprocess.Popen) and self._owner.poll() is None:
            os.killpg(self.pid, number)

    def threads(self) -> int:
        """The number of its threads, 0 when unknown."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return int(file.read().rpartition(b")")[2].split()[17])
        except (OSError, IndexError):
            return 0

    def ends_within(self, seconds: float) -> bool:
        """Waits for its death, and says whether it came."""
        if self._pidfd >= 0:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            return bool(poller.poll(seconds * 1000))
        if isinstance(self._owner, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._owner.wait(seconds)
                return True
        return False

    def end(self, want_status: bool = False) -> int | None:
        """Kills it, waits until it is dead and has it reaped.

        Returns:
            Its exit code, negative for a signal, when asked for.

        Raises:
            TemplateDied: The process that would reap it is gone.
        """
        self.signal(signal.SIGKILL)
        self.ends_within(30.0)
        self.channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1  # the number may soon be another file's
        if isinstance(self._owner, Worker):
            return self._owner.reap(self.pid, want_status)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._owner.wait()


class _Control:
    """A control socket to a template or a worker; one request and its reply at a time."""

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(_HANDSHAKE_S)

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Sends a request."""
        try:
            socket.send_fds(self.socket, [message], fds)
        except OSError as error:
            raise TemplateDied("the template process is gone") from error

    def receive(self, expected: bytes) -> tuple[bytes, list[int]]:
        """Receives a reply, which begins with `expected`."""
        try:
            data, received, _, _ = socket.recv_fds(self.socket, 4096, 1)
        except OSError as error:
            raise TemplateDied("the template process does not answer") from error
        if not data:
            raise TemplateDied("the template process is gone")
        if not data.startswith(expected):
            raise LaunchFailed(data[1:].decode(errors="replace"))
        return data, received

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.send(b"Q")
        self.socket.close()
        self.theirs.close()


class Worker:
    """A process locked into one workspace, which forks a child for each run there, the next one ahead of time."""

    def __init__(self, control: _Control, limits: Limits, template: int) -> None:
        self._control, self.limits, self.template = control, limits, template
        self._next: socket.socket | None = None

    def prepare(self) -> None:
        """Has the next child forked, without waiting for it."""
        if self._next is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._control.send(b"F", [theirs.fileno()])
            self._next = ours

    def start(self) -> Process:
        """The child that was forked ahead, or a new one."""
        was_ahead = self._next is not None
        self.prepare()
        ours, self._next = self._next, None  # whatever the reply, it is the only one to that request
        assert ours is not None
        try:
            data, received = self._control.receive(b"P")
        except BaseException as error:
            ours.close()
            if was_ahead and isinstance(error, LaunchFailed):  # it failed then; it need not fail now
                return self.start()
            raise
        return Process(int.from_bytes(data[1:5], "big"), received[0], ours, self)

    def reap(self, pid: int, want_status: bool) -> int | None:
        """Frees a dead child's pid, and returns its exit code when asked."""
        self._control.send((b"S" if want_status else b"R") + pid.to_bytes(4, "big"))
        if not want_status:
            return None
        data, _ = self._control.receive(b"S")
        return int.from_bytes(data[1:5], "big", signed=True)

    def close(self) -> None:
        """Ends the process, and with it its children."""
        self._control.close()
        if self._next is not None:
            self._next.close()


class TemplateLauncher:
    """Starts processes by a template process and workers forked from it; a template that died is replaced."""

    with_landlock = True

    def __init__(self, scratch_root: str) -> None:
        self._root, self._lock = scratch_root, threading.Lock()
        self._popen: subprocess.Popen[Any] | None = None
        self._control: _Control | None = None

    @property
    def pid(self) -> int:
        """The template's process id, 0 when it does not run."""
        return self._popen.pid if self._popen is not None else 0

    def start(self, workspace: Workspace, limits: Limits) -> Process:
        """Starts a process, locked in by the time it says that it is ready.

        Raises:
            LaunchFailed: It could not be started.
            TemplateDied: A process of ours was killed; a new one will take the next call.
        """
        worker, wanted = workspace.worker, (limits.kernel, self.pid)
        if worker is not None and (worker.limits.kernel, worker.template) == wanted:
            try:
                return worker.start()
            except TemplateDied:  # since its last run; no program of this run has been started yet
                self.forget_dead()
        if worker is not None:
            worker.close()
            workspace.worker = None
        workspace.worker = self._worker(workspace, limits)
        return workspace.worker.start()

    def _worker(self, workspace: Workspace, limits: Limits) -> Worker:
        worker = _Control()
        with contextlib.ExitStack() as undo:
            undo.callback(worker.close)
            with self._lock:
                template = self._control or self._begin()
                message = b"W" + b"".join(bound.to_bytes(8, "big") for bound in limits.kernel)
                fds = [workspace.stdin, workspace.stdout, workspace.stderr]
                fds += [worker.theirs.fileno(), workspace.ruleset, workspace.directory]
                try:
                    template.send(message, fds)
                    template.receive(b"W")
                except TemplateDied:
                    self._end()
                    raise
            worker.theirs.close()
            worker.receive(b"H")
            undo.pop_all()
        return Worker(worker, limits, self.pid)

    def _begin(self) -> _Control:
        control = self._control = _Control()
        fd, nothing = control.theirs.fileno(), subprocess.DEVNULL
        command = [sys.executable, *_SCRIPT, "serve", str(fd), str(os.getpid()), self._root]
        try:
            self._popen = _start(command, fd, cwd="/", stdin=nothing, stdout=nothing, stderr=nothing)
            control.theirs.close()
            control.receive(b"H")
        except BaseException as error:
            self._end()
            if isinstance(error, OSError):
                raise LaunchFailed(f"{sys.executable} does not start: {error.strerror}") from error
            if isinstance(error, TemplateDied):
                raise LaunchFailed(f"{sys.executable} did not start as a template") from error
            raise
        return control

    def _end(self) -> None:
        popen, control, self._popen, self._control = self._popen, self._control, None, None
        if control is not None:
            control.close()
        if popen is not None:
            try:
                popen.wait(2.0)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()

    def forget_dead(self) -> None:
        """Drops the template when its process is gone."""
        with self._lock:
            if self._popen is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._popen.wait(0.1)  # its workers die a moment before it can be waited for
                    self._end()

    def close(self) -> None:
        """Ends the template and everything forked from it."""
        with self._lock:
            self._end()


class CommandLauncher:
    """Starts every process anew: in bubblewrap, or with no isolation at all."""

    with_landlock = False

    def __init__(self, backend: str) -> None:
        self._backend = backend
        if backend == "bwrap" and shutil.which("bwrap") is None:
            raise LaunchFailed("bwrap is not installed")
        # bubblewrap's --die-with-parent means the thread that started it, so one long-lived thread starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
        self._starter.submit(int).result()  # the thread starts here, so that no later `submit` can fail half-way

    def start(self, workspace: Workspace, limits: Limits) -> Process:
        """Starts a process, as `TemplateLauncher.start` does."""
        ours, theirs = socket.socketpair()
        with theirs:
            fd, streams = theirs.fileno(), {name: getattr(workspace, name) for name in ("stdin", "stdout", "stderr")}
            command = self._command(fd, limits)
            try:
                popen = self._starter.submit(_start, command, fd, cwd=workspace.scratch, **streams).result()
            except OSError as error:
                ours.close()
                raise LaunchFailed(str(error)) from error
        pidfd = os.pidfd_open(popen.pid) if hasattr(os, "pidfd_open") else -1
        return Process(popen.pid, pidfd, ours, popen)

    def _command(self, channel: int, limits: Limits) -> list[str]:
        layers = "seccomp" if self._backend == "bwrap" else "bare"
        python = [sys.executable, *_SCRIPT, "once", str(channel), layers, *map(str, limits.kernel)]
        if self._backend != "bwrap":
            return python
        command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        command += ["--tmpfs", "/", "--dev", "/dev"]
        trees, hidden = library_trees(), hidden_directories()
        masked = [str(p) for p in hidden if any(t in p.parents for t in trees) and not hidden & {*p.parents}]
        for path in dict.fromkeys(map(str, trees)):
            command += ["--ro-bind", path, path]
        for path in masked:  # a bind for each file beside them would take a tenth of a second
            command += ["--tmpfs", path]
        for path in {*_interpreter_paths(), str(Path(_TEMPLATE).parent)}:
            command += ["--ro-bind", path, path]
        for path in masked:
            command += ["--remount-ro", path]
        for link in ("/lib", "/lib64", "/bin", "/usr/bin/python3"):
            if os.path.islink(link):
                command += ["--symlink", os.readlink(link), link]
        command += ["--size", str(limits.disk_mb << 20), "--tmpfs", "/scratch", "--remount-ro", "/"]
        return [*command, "--chdir", "/scratch", "--", *python]

    def forget_dead(self) -> None:
        """Nothing: no process outlives its program."""

    def close(self) -> None:
        """Ends the starting thread."""
        self._starter.shutdown(wait=False)


Launcher = TemplateLauncher | CommandLauncher
"""A way of starting sandboxed processes."""


def _interpreter_paths() -> set[str]:
    """The interpreter's binary, by every name on the way to it."""
    paths, path = set(), sys.executable
    while path not in paths:
        paths.add(path)
        if os.path.islink(path):
            path = os.path.join(os.path.dirname(path), os.readlink(path))
    config = Path(sys.prefix) / "pyvenv.cfg"
    return paths | ({str(config)} if config.exists() else set())
