"""The process that sandboxes are forked from: clean, single-threaded, standard library only, started by path.

`template.py serve CONTROL OWNER SCRATCH` waits on a control socket and forks a child for each request, which arrives
with the child's file descriptors. A child stays unreaped until the owner has done with its pid. When the owner dies,
so does everything here, and its scratch directories with it.
`template.py once CHANNEL seccomp|bare` is a single child with no template, for bubblewrap and for no isolation.
"""

import gc
import importlib
import importlib.util
import os
import select
import signal
import sys
import types

# What model code mostly imports. Each module preloaded makes every fork a little dearer, each missing one makes the
# programs that import it a lot dearer; these paid for themselves on HumanEval and MBPP.
PRELOADED = [
    "abc", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy", "enum", "functools", "heapq",
    "itertools", "json", "math", "operator", "random", "re", "resource", "string", "struct", "time", "typing",
]  # fmt: skip

_FDS = 6  # channel, stdin, stdout, stderr, Landlock ruleset, scratch directory


def _load(name: str) -> types.ModuleType:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 64 << 20


def _become_child(child: types.ModuleType, program: bytes, base_memory: int, template: int, fds: list[int]) -> None:
    channel, stdin, stdout, stderr, ruleset, scratch = fds
    os.fchdir(scratch)
    for number, fd in enumerate((stdin, stdout, stderr, channel)):
        os.dup2(fd, number, inheritable=False)
    child.serve(child.Isolation(ruleset, program, template, base_memory))


def serve(control_fd: int, owner: int, scratch_root: str) -> None:
    """Forks on request until told to quit, or until the owner is gone."""
    import _socket
    import array

    isolation, _, child = _load("isolation"), _load("values"), _load("child")
    for name in PRELOADED:
        importlib.import_module(name)
    for name in ("isolation", "values", "child"):
        del sys.modules[name]
    control = _socket.socket(fileno=control_fd)
    try:
        program = isolation.seccomp_program()
    except isolation.IsolationError as error:
        control.send(b"E" + str(error).encode())
        return
    owner_fd = os.pidfd_open(owner)
    if os.getppid() != owner:
        return
    base_memory, template = _address_space(), os.getpid()
    children: set[int] = set()
    gc.collect()
    gc.disable()
    gc.freeze()
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(owner_fd, select.POLLIN)
    ancillary = _socket.CMSG_SPACE(_FDS * 4)
    control.send(b"H")
    while True:
        ready = dict(poller.poll())
        if owner_fd in ready:
            break
        message, control_messages, _, _ = control.recvmsg(64, ancillary)
        operation, pid = message[:1], int.from_bytes(message[1:5], "big")
        if operation == b"F":
            fds = array.array("i")
            for _, _, data in control_messages:
                fds.frombytes(data)
            try:
                pid = os.fork()
            except OSError as error:
                control.send(b"E" + str(error).encode())
            else:
                if pid == 0:
                    try:
                        _become_child(child, program, base_memory, template, fds.tolist())
                    finally:
                        os._exit(1)
                children.add(pid)
                pidfd = os.pidfd_open(pid)
                rights = array.array("i", [pidfd])
                control.sendmsg([b"P" + pid.to_bytes(4, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
                os.close(pidfd)
            for fd in fds:
                os.close(fd)
        elif operation in (b"R", b"S"):
            _, status = os.waitpid(pid, 0)
            children.discard(pid)
            if operation == b"S":
                control.send(b"S" + (os.waitstatus_to_exitcode(status) & 0xFFFFFFFF).to_bytes(4, "big"))
        else:  # quit, or the owner closed its end
            break
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if owner_fd in ready:
        _remove(scratch_root)


def _remove(root: str) -> None:
    """Deletes the scratch directories (each is flat)."""
    for directory in os.scandir(root):
        for file in os.scandir(directory.path):
            os.unlink(file.path)
        os.rmdir(directory.path)
    os.rmdir(root)


def once(channel: int, layers: str) -> None:
    """Serves a single judge, with seccomp when asked and resource limits always."""
    isolation, _, child = _load("isolation"), _load("values"), _load("child")
    if channel != child.CHANNEL:
        os.dup2(channel, child.CHANNEL, inheritable=False)
    program = isolation.seccomp_program() if layers == "seccomp" else b""
    child.serve(child.Isolation(-1, program, 0, _address_space()))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        once(int(sys.argv[2]), sys.argv[3])
