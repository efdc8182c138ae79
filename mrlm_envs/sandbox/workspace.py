"""The workspace that sandboxed processes use in turn: a scratch directory, output files, the paths they may read."""

import contextlib
import functools
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mrlm_envs.sandbox import isolation

if TYPE_CHECKING:
    from mrlm_envs.sandbox.launch import Worker

_MAX_MAPS = 1 << 19  # bytes of /proc/PID/maps; a few hundred mappings are usual


class Workspace:
    """A flat scratch directory and files that capture output, used by one process at a time."""

    def __init__(self, root: str, with_landlock: bool) -> None:
        self.scratch = os.path.realpath(tempfile.mkdtemp(prefix="run-", dir=root))
        self.worker: Worker | None = None
        self.directory = self.stdin = self.stdout = self.stderr = self.ruleset = -1
        try:
            self.directory = os.open(self.scratch, os.O_RDONLY | os.O_CLOEXEC)
            self.stdin, self.stdout, self.stderr = (_memory_file(name) for name in ("stdin", "stdout", "stderr"))
            if with_landlock:
                self.ruleset = isolation.landlock_ruleset(readable_paths(), self.scratch, listed_directories())
        except BaseException:
            self.close()
            raise

    def feed(self, stdin: str) -> None:
        """Fills the next process's standard input."""
        data = memoryview(stdin.encode("utf-8", "surrogatepass"))
        while data:
            data = data[os.write(self.stdin, data) :]
        os.lseek(self.stdin, 0, os.SEEK_SET)

    def usage(self, pid: int, file_bytes: int) -> tuple[int, int]:
        """Bytes and files that a process holds in the scratch directory, deleted ones included.

        Args:
            pid: The process; a deleted file counts while it is open or mapped there.
            file_bytes: The size to assume for a deleted file that is only mapped.
        """
        size = count = 0
        with os.scandir(self.directory) as entries:
            for entry in entries:
                count += 1
                with contextlib.suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
        deleted: dict[int, int] = {}  # inode to bytes
        with contextlib.suppress(OSError):  # the process is dead, or /proc is hidden from us
            for fd in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(fd.path).startswith(self.scratch + "/"):
                        status = os.stat(fd.path)
                        deleted |= {} if status.st_nlink else {status.st_ino: status.st_blocks * 512}
            with open(f"/proc/{pid}/maps", "rb") as file:
                maps = file.read(_MAX_MAPS)
            for line in maps.splitlines() if b"(deleted)" in maps else ():
                _, _, _, _, inode, *path = line.split(maxsplit=5)
                if path and path[0].startswith(os.fsencode(self.scratch)) and path[0].endswith(b"(deleted)"):
                    deleted.setdefault(int(inode), file_bytes)
            count += _MAX_MAPS if len(maps) == _MAX_MAPS else 0  # too many to look through
        return size + sum(deleted.values()), count + len(deleted)

    def clean(self) -> None:
        """Empties it for the next process, and resets file positions and times. The previous process must be dead."""
        for fd in (self.stdin, self.stdout, self.stderr):
            if os.fstat(fd).st_size:
                os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            os.utime(fd)
        for name in os.listdir(self.directory):
            try:
                os.unlink(name, dir_fd=self.directory)
            except IsADirectoryError:  # only without Landlock
                shutil.rmtree(os.path.join(self.scratch, name), ignore_errors=True)
        os.utime(self.directory)

    def close(self) -> None:
        """Ends the worker and removes everything."""
        if self.worker is not None:
            self.worker.close()
        for fd in (self.directory, self.stdin, self.stdout, self.stderr, self.ruleset):
            if fd >= 0:
                os.close(fd)
        shutil.rmtree(self.scratch, ignore_errors=True)


def _memory_file(name: str) -> int:
    """A file in memory, or an unlinked one, opened for appending."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name)
        import fcntl

        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
        return fd
    fd, path = tempfile.mkstemp()
    os.close(fd)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    os.unlink(path)
    return fd


@functools.lru_cache(maxsize=1)
def readable_paths() -> tuple[str, ...]:
    """What a sandboxed interpreter may read: the standard library and the shared libraries it needs.

    Installed packages are left out, and ours wherever it is: some of them contain data sets with their solutions.
    """
    found = [path for tree in library_trees() for path in _without(tree, hidden_directories())]
    return tuple(p for p in dict.fromkeys(found) if not any(p != q and p.startswith(q + "/") for q in found))


@functools.lru_cache(maxsize=1)
def listed_directories() -> tuple[str, ...]:
    """Directories that an import lists, although only part of their contents may be read."""
    above = {parent for path in hidden_directories() for parent in path.parents}
    return tuple(sorted(str(d) for d in above if any(d == tree or tree in d.parents for tree in library_trees())))


def library_trees() -> list[Path]:
    """Files and directories of the standard library and the shared libraries."""
    library = sysconfig.get_config_var("MULTIARCH") or ""
    wanted = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("LIBDIR") or ""]
    wanted += [f"/usr/lib/{library}", f"/lib/{library}"] if library and Path(f"/usr/lib/{library}").is_dir() else []
    wanted += ["/lib64", "/usr/lib64"] if wanted[3:] else ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    wanted += ["/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/urandom"]
    return [Path(path).resolve() for path in wanted if path and os.path.exists(path)]


def hidden_directories() -> set[Path]:
    """Our package, and every `site-packages` and `dist-packages` in a tree."""
    installed = {path for tree in library_trees() for at in ("", "python*/") for path in tree.glob(f"{at}*-packages")}
    return {Path(__file__).resolve().parents[1], *installed}


def _without(path: Path, hidden: set[Path]) -> list[str]:
    if path in hidden:
        return []
    if not any(path in each.parents for each in hidden):
        return [str(path)]
    return [p for child in sorted(path.iterdir()) if not child.is_symlink() for p in _without(child, hidden)]
