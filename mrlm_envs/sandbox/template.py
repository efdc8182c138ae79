"""The process that sandboxes are forked from: clean, single-threaded, standard library only.

`launch.py` starts it by its source, so that no frame shows our path; that path is its first argument. Then come:

- `serve CONTROL OWNER SCRATCH`: it forks workers on request. A worker is locked into a scratch directory of its own and
  forks a child for each run. So the costly steps happen once a worker, and a child only installs its seccomp filter
  (under which nothing can fork). File descriptors arrive with the requests, on Unix sockets. A child stays unreaped
  until the owner no longer needs its pid. When the owner dies, everything here dies too, and the scratch directories
  are removed.
- `once CHANNEL seccomp|bare MEMORY FILE CPU`: it is a single child with no template, for the other backends.
"""

import _socket  # the bare C module: `socket` would double the template's size
import array
import gc
import importlib
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable

# What model code mostly imports. Each preloaded module makes every fork slightly slower, each missing one makes the
# programs that import it much slower; these were worth it on HumanEval and MBPP.
PRELOADED = [
    "abc", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy", "enum", "functools", "heapq",
    "itertools", "json", "math", "operator", "random", "re", "resource", "string", "struct", "time", "typing",
]  # fmt: skip
_FORK_S = 5.0  # a program that used up the process ids is killed by its owner well within that


def _load(name: str) -> types.ModuleType:
    """Another file of this folder, as a module that knows no path of ours once it is loaded."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = os.path.join(os.path.dirname(sys.argv[1]), name + ".py")
    with open(module.__file__, encoding="utf-8") as file:
        exec(compile(file.read(), name + ".py", "exec"), module.__dict__)
    module.__file__ = name + ".py"
    return module


def _hide_paths() -> None:
    """Programs see no command line and no path of ours."""
    sys.argv, sys.orig_argv = ["solution.py"], ["python", "solution.py"]
    sys.executable = sys._base_executable = ""  # pyright: ignore[reportAttributeAccessIssue]


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 64 << 20


def serve(control_fd: int, owner: int, scratch_root: str) -> None:
    """Forks workers on request until told to quit, or until the owner is gone."""
    isolation, _, child = _load("isolation"), _load("values"), _load("child")
    hook = os.register_at_fork
    os.register_at_fork = lambda **_: None  # `random` would reseed itself in every child; we seed it there ourselves
    for name in PRELOADED:
        importlib.import_module(name)
    os.register_at_fork = hook
    for name in ("isolation", "values", "child"):
        del sys.modules[name]
    _hide_paths()
    control = _socket.socket(fileno=control_fd)
    try:
        restrict, die_with = isolation.seccomp_restriction(isolation.seccomp_program()), isolation.death_pact()
    except isolation.IsolationError as error:
        control.send(b"E" + str(error).encode())
        return
    owner_fd = os.pidfd_open(owner)
    if os.getppid() != owner:
        return
    base_memory, template = _address_space(), os.getpid()
    workers: dict[int, int] = {}  # pidfd to pid
    gc.collect()
    gc.disable()
    gc.freeze()
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(owner_fd, select.POLLIN)
    control.send(b"H")
    message = b""
    while True:
        ready = dict(poller.poll())
        if owner_fd in ready:
            break
        for fd in ready.keys() & workers.keys():
            os.waitpid(workers.pop(fd), 0)
            poller.unregister(fd)
            os.close(fd)
        if control.fileno() not in ready:
            continue
        message, fds = _receive(control, 6)
        if message[:1] != b"W":  # quit, or the owner closed its end
            break
        limits = {k: int.from_bytes(message[i : i + 8], "big") for k, i in (("memory", 1), ("file", 9), ("cpu", 17))}
        pid = _fork(control)
        if pid == 0:
            try:
                for number, fd in enumerate(fds[:4]):  # stdin, stdout, stderr, the worker's own control socket
                    os.dup2(fd, number, inheritable=False)
                die_with(template)
                _work(_socket.socket(fileno=3), child, restrict, die_with, fds[4:], limits, base_memory)
            finally:
                os._exit(1)
        if pid > 0:
            pidfd = os.pidfd_open(pid)
            workers[pidfd] = pid
            poller.register(pidfd, select.POLLIN)
            control.send(b"W")
        for fd in fds:
            os.close(fd)
    for pid in workers.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if message[:1] != b"Q":  # the owner died: its sockets close a little before its process ends
        ending = select.poll()
        ending.register(owner_fd, select.POLLIN)
        if ending.poll(5000):
            _remove(scratch_root)


def _work(
    control: _socket.socket,
    child: types.ModuleType,
    restrict: Callable[[], None],
    die_with: Callable[[int], None],
    fds: list[int],
    limits: dict[str, int],
    base_memory: int,
) -> None:
    """One worker: locked into its scratch directory, it forks a child a run, which only installs the filter."""
    try:
        ruleset, scratch = fds
        os.fchdir(scratch)
        os.umask(0o077)
        child.lock_in(ruleset, limits, base_memory)
        os.closerange(4, 1 << 16)
    except BaseException as error:
        control.send(b"E" + f"{type(error).__name__}: {error}".encode())
        return
    worker = os.getpid()
    control.send(b"H")
    while True:
        message, received = _receive(control, 1)
        operation, pid = message[:1], int.from_bytes(message[1:5], "big")
        if operation == b"F":
            pid = _fork(control)
            if pid == 0:
                try:
                    os.dup2(received[0], child.CHANNEL, inheritable=False)
                    die_with(worker)
                    child.serve(limits["cpu"], restrict)
                finally:
                    os._exit(1)
            if pid > 0:
                pidfd = os.pidfd_open(pid)
                rights = array.array("i", [pidfd])
                control.sendmsg([b"P" + pid.to_bytes(4, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
                os.close(pidfd)
            for fd in received:
                os.close(fd)
        elif operation in (b"R", b"S"):
            _, status = os.waitpid(pid, 0)
            if operation == b"S":
                control.send(b"S" + (os.waitstatus_to_exitcode(status) & 0xFFFFFFFF).to_bytes(4, "big"))
        else:
            return


def _receive(control: _socket.socket, count: int) -> tuple[bytes, list[int]]:
    """A message and the file descriptors that came with it."""
    message, ancillary, _, _ = control.recvmsg(64, _socket.CMSG_SPACE(count * 4))
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data)
    return message, fds.tolist()


def _fork(control: _socket.socket) -> int:
    """Forks, when there are too many processes a little later; reports a lasting failure to the owner as -1."""
    deadline = time.monotonic() + _FORK_S
    while True:
        try:
            return os.fork()
        except OSError as error:
            if time.monotonic() > deadline:
                control.send(b"E" + str(error).encode())
                return -1
            time.sleep(0.01)


def _remove(root: str) -> None:
    """Deletes the scratch directories (each is flat)."""
    for directory in os.scandir(root):
        for file in os.scandir(directory.path):
            os.unlink(file.path)
        os.rmdir(directory.path)
    os.rmdir(root)


def once(channel: int, layers: str, memory: int, file: int, cpu_seconds: int) -> None:
    """Serves a single judge, with seccomp when asked and resource limits always."""
    isolation, _, child = _load("isolation"), _load("values"), _load("child")
    if channel != child.CHANNEL:
        os.dup2(channel, child.CHANNEL, inheritable=False)
    _hide_paths()
    child.lock_in(-1, {"memory": memory, "file": file}, _address_space())
    if layers == "seccomp":
        isolation.prctl("no_new_privs", isolation.PR_SET_NO_NEW_PRIVS, 1)
        child.serve(cpu_seconds, isolation.seccomp_restriction(isolation.seccomp_program()))
    child.serve(cpu_seconds, lambda: None)


if __name__ == "__main__":
    if sys.argv[2] == "serve":
        serve(int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        once(int(sys.argv[3]), sys.argv[4], *map(int, sys.argv[5:8]))
