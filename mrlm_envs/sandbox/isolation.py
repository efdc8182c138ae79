"""Locks a process in with Landlock, seccomp and resource limits. Linux only, through ctypes; no compiler needed.

Loaded by path inside the sandbox's own interpreter, so it imports the standard library only.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterable

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture


class IsolationError(RuntimeError):
    """The kernel refused a layer; the message says which."""


def _syscall(what: str, number: int, *args: object) -> int:
    assert _libc is not None, "Linux only"
    result = _libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result < 0:
        raise IsolationError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(what: str, option: int, *args: int) -> None:
    """Calls prctl(2).

    Raises:
        IsolationError: The kernel refused.
    """
    prepared_prctl(what, option, *args)()


def prepared_prctl(what: str, option: int, *args: object) -> Callable[[], None]:
    """A call of prctl(2) with converted arguments: in a new process, converting them costs more than the call."""
    assert _libc is not None, "Linux only"
    call = _libc.prctl
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*args, *[0] * (4 - len(args)))]
    made = (ctypes.c_int(option), *words)

    def prctl() -> None:
        if call(*made) != 0:
            raise IsolationError(f"{what}: {os.strerror(ctypes.get_errno())}")

    return prctl


# ---- Landlock: which files may be touched (https://docs.kernel.org/userspace-api/landlock.html) ----

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
_TRUNCATE = 1 << 14
# Every right a version knows is handled, so whatever no rule grants is refused.
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_RIGHTS = 0b11
_SCOPES = 0b11


def landlock_version() -> int:
    """The kernel's Landlock version.

    Raises:
        IsolationError: There is none, or it may not be used; the message says why and what to do.
    """
    version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_long(0), ctypes.c_long(1)) if _libc is not None else -1
    if version > 0:
        return version
    code = ctypes.get_errno() if _libc is not None else errno.ENOSYS
    raise IsolationError(_NO_LANDLOCK.get(code, f"Landlock: {os.strerror(code)}"))


_NO_LANDLOCK = {
    errno.EOPNOTSUPP: "Landlock is off in this kernel: add it to the boot parameter lsm=, e.g. lsm=landlock,…",
    errno.ENOSYS: "no Landlock in this kernel (before 5.13, or built without it), or a container's profile hides it",
    errno.EPERM: "Landlock is forbidden here by a container's seccomp profile: allow landlock_create_ruleset, "
    "landlock_add_rule and landlock_restrict_self in it",
}


def landlock_ruleset(readable: Iterable[str], scratch: str, listed: Iterable[str] = ()) -> int:
    """A ruleset that lets a process read `readable` (files or directories) and use one flat directory `scratch`.

    Args:
        readable: Files, and directories with all that is in them.
        scratch: The directory to use.
        listed: Directories whose names may be listed, and no more.

    Returns:
        A file descriptor, to be enforced by `landlock_restrict`.

    Raises:
        IsolationError: The kernel has no Landlock, or refused.
    """
    version = landlock_version()
    rights = _FS_RIGHTS[min(version, 5)]
    attributes = struct.pack("=QQQ", rights, _NET_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, attributes[:size], size, 0)
    try:
        for path in readable:
            _landlock_allow(ruleset, path, _READ_FILE | _READ_DIR, rights)
        for path in listed:
            _landlock_allow(ruleset, path, _READ_DIR, rights)
        _landlock_allow(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE, rights)
        used = _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
        _landlock_allow(ruleset, scratch, used, rights)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _landlock_allow(ruleset: int, path: str, allowed: int, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # a path that is not there needs no rule
    try:
        if not os.path.isdir(path):
            allowed &= ~(_READ_DIR | _REMOVE_FILE | _MAKE_REG)
        _syscall("landlock_add_rule", _LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed & rights, fd), 0)
    finally:
        os.close(fd)


def landlock_restrict(ruleset: int) -> None:
    """Restricts this process to `ruleset` for good (no_new_privs must be set)."""
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ruleset, 0)


# ---- seccomp: which system calls may be made ----


def _read_tables() -> dict[str, tuple[int, dict[str, int], dict[str, int]]]:
    with open(os.path.join(os.path.dirname(__file__), "syscalls.txt"), encoding="utf-8") as file:
        rows = [line.split() for line in file if line.strip() and not line.startswith("#")]
    tables = {}
    for column, (machine, architecture) in enumerate((("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)), start=1):
        known = [row for row in rows if row[column] != "-"]
        allowed = {row[0]: int(row[column]) for row in known if row[-1] != "checked"}
        checked = {row[0]: int(row[column]) for row in known if row[-1] == "checked"}
        tables[machine] = architecture, allowed, checked
    return tables


TABLES = _read_tables()
"""Machine name to (audit architecture, allowed calls, calls allowed for some arguments)."""

_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_LOAD, _JUMP_EQ, _JUMP_GE, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_THREAD_FLAGS, _CLONE_DETACHED = 0x3D0F00, 0x400000  # what pthread_create asks for, in glibc and in musl

_Program = list[tuple[int, int, int, int]]


def _ret(action: int) -> _Program:
    return [(_RETURN, 0, 0, action)]


def _load_arg(index: int, high: bool = False) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, 16 + 8 * index + (4 if high else 0))


def _any_of(index: int, values: list[int]) -> _Program:
    """Allows the call when the low word of an argument is one of `values`."""
    jumps: _Program = [(_JUMP_EQ, len(values) - i, 0, v) for i, v in enumerate(values)]
    return [_load_arg(index), *jumps, (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]


def _checks(name: str) -> _Program:
    if name == "clone3":  # its arguments lie in memory, which a filter cannot read; glibc then falls back to clone
        return _ret(_ENOSYS)
    if name == "clone":
        return [_load_arg(0), (_AND, 0, 0, ~_CLONE_DETACHED & 0xFFFFFFFF), (_JUMP_EQ, 0, 1, _THREAD_FLAGS),
                (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]  # fmt: skip
    if name == "prlimit64":  # reading a limit is fine, setting one is not
        return [_load_arg(2), (_JUMP_EQ, 0, 3, 0), _load_arg(2, high=True), (_JUMP_EQ, 0, 1, 0),
                (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]  # fmt: skip
    if name == "openat":  # read-only with O_TRUNC: Landlock before version 3 lets it empty a readable file
        return [_load_arg(2), (_AND, 0, 0, 0o1003), (_JUMP_EQ, 0, 1, 0o1000),
                (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]  # fmt: skip
    if name == "fcntl":  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; no owner, no lease, no seal
        return _any_of(1, [0, 1, 2, 3, 1030])
    if name == "ioctl":  # TCGETS (isatty), TIOCGWINSZ, FIONCLEX, FIOCLEX
        return _any_of(1, [0x5401, 0x5413, 0x5450, 0x5451])
    raise KeyError(name)


def seccomp_program(machine: str | None = None) -> bytes:
    """The allow-list as a classic BPF program, a binary search over call numbers.

    Args:
        machine: As in `TABLES`; the one we run on when None.

    Raises:
        IsolationError: There is no table for the machine.
    """
    machine = machine or platform.machine()
    if machine not in TABLES:
        raise IsolationError(f"no system call table for {machine} (there is one for {', '.join(TABLES)})")
    architecture, allowed, checked = TABLES[machine]
    leaves: dict[int, _Program] = {number: _ret(_ALLOW) for number in allowed.values()}
    leaves |= {number: _checks(name) for name, number in checked.items()}
    deny = _ret(_EPERM)
    starts: list[tuple[int, _Program]] = [(0, leaves.get(0, deny))]
    for number in range(1, max(leaves) + 2):
        leaf = leaves.get(number, deny)
        if leaf != starts[-1][1]:
            starts.append((number, leaf))
    program: _Program = [(_LOAD, 0, 0, 4), (_JUMP_EQ, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    return b"".join(struct.pack("=HBBI", *op) for op in program + _search(starts))


def _search(starts: list[tuple[int, _Program]]) -> _Program:
    if len(starts) == 1:
        return starts[0][1]
    middle = len(starts) // 2
    left, right = _search(starts[:middle]), _search(starts[middle:])
    return [(_JUMP_GE, len(left), 0, starts[middle][0]), *left, *right]


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def seccomp_restriction(program: bytes) -> Callable[[], None]:
    """A function that installs `program` for good, for the calling thread and all that it starts."""
    return prepared_prctl("seccomp", PR_SET_SECCOMP, 2, ctypes.byref(_SockFprog(len(program) // 8, program)))


# ---- the rest ----


def drop_capabilities() -> None:
    """Drops every capability, so that root is an ordinary user who owns root's files."""
    header = struct.pack("=Ii", 0x20080522, 0)
    _syscall("capset", {"x86_64": 126, "aarch64": 91}[platform.machine()], header, bytes(24))


def death_pact() -> Callable[[int], None]:
    """A function that makes the kernel kill this process when its parent, given by process id, dies."""
    ask = prepared_prctl("parent-death signal", PR_SET_PDEATHSIG, 9)

    def die_with(parent: int) -> None:
        ask()
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return die_with
