"""A grader against the cases: in a process of its own that is killed when it misses the deadline."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gauntlet.cases import Case

START_S = 120.0  # seconds for the imports of a grader
THREADED = 20  # honest cases that are tried again in a thread
HEADER = """\
| grader | honest paid | wrong paid | hacks paid | worst time | works in a thread | leaves nothing behind |
| --- | --- | --- | --- | --- | --- | --- |"""


@dataclass
class Score:
    """What the table shows; `paid` and `tried` are by label.

    Attributes:
        paid: Replies that got the reward.
        tried: Replies.
        worst_s: The longest time for one reply, in seconds; infinite when it missed the deadline.
        hung: Replies at which the grader missed the deadline or its process died.
        threaded: Honest replies that are paid in a thread as in the main one, of those tried.
        left: What was there after it had ended: processes and files.
        missing: Why it could not be imported.
    """

    paid: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("honest", "wrong", "hack"), 0))
    tried: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("honest", "wrong", "hack"), 0))
    worst_s: float = 0.0
    hung: int = 0
    threaded: tuple[int, int] = (0, 0)
    left: list[str] = field(default_factory=list)
    missing: str | None = None


class Worker:
    """The process of a grader, with a temporary folder of its own as the current one.

    Args:
        spec: `module:function`.

    Raises:
        ImportError: It cannot be imported.
    """

    def __init__(self, spec: str) -> None:
        self.mark = uuid.uuid4().hex  # in the environment of every process that descends from it
        self.folder = Path(tempfile.mkdtemp(prefix="gauntlet-"))
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"GAUNTLET": self.mark, "GAUNTLET_PATH": os.getcwd(), "PYTHONPATH": path, "TMPDIR": str(self.folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gauntlet.worker", spec],
            env={**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        ready = self._next(START_S, "ready") or {"ready": False, "error": f"it did not start within {START_S:g} s"}
        if not ready["ready"]:
            self.kill()
            raise ImportError(ready["error"])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def _next(self, deadline_s: float, nonce: str) -> dict[str, Any] | None:
        """The verdict with this nonce; a program that writes on every descriptor does not know it."""
        until = time.monotonic() + deadline_s
        while (remaining := until - time.monotonic()) > 0:
            try:
                line = self.lines.get(timeout=remaining)
            except queue.Empty:
                return None
            if not line:
                return None
            with contextlib.suppress(ValueError, KeyError, TypeError):
                told = json.loads(line)
                if told["nonce"] == nonce:
                    return told
        return None

    def ask(self, case: Case, deadline_s: float, thread: bool = False) -> dict[str, Any] | None:
        """The verdict; None when it misses the deadline or its process dies."""
        assert self.process.stdin is not None
        nonce = uuid.uuid4().hex
        asked = {"reply": case.reply, "reference": case.reference, "thread": thread, "nonce": nonce}
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        except OSError:
            return None
        return self._next(deadline_s, nonce)

    def finish(self) -> list[str]:
        """Let it end by itself; returns the processes and files that are left after that, and removes them."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        left = []
        try:
            self.process.wait(START_S)
        except subprocess.TimeoutExpired:
            left.append("it did not exit")
        until = time.monotonic() + 5
        while (alive := self._descendants()) and time.monotonic() < until:
            time.sleep(0.1)  # those that are about to end
        left += [f"{len(alive)} processes"] if alive else []
        files = [path for path in self.folder.rglob("*") if not path.is_dir()]
        left += [f"{len(files)} files"] if files else []
        self.kill()
        return left

    def _descendants(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                with contextlib.suppress(OSError):
                    if f"GAUNTLET={self.mark}".encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """End it with all its descendants and remove its folder."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self._descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def score(spec: str, tried: Sequence[Case], deadline_s: float = 10.0) -> Score:
    """Try every case on a grader.

    Args:
        spec: `module:function`.
        tried: The cases.
        deadline_s: Seconds for one reply; a grader that misses it is killed, and the reply is not paid.
    """
    result, worker = Score(), None
    plain = next((case for case in tried if case.label == "honest"), tried[0])

    def start() -> Worker:
        fresh = Worker(spec)
        told = fresh.ask(plain, START_S)  # what it imports and starts at its first call is not the time of a reply
        if told and (told["error"] or "").startswith(("ModuleNotFoundError", "ImportError")):
            fresh.kill()
            raise ImportError(told["error"])
        return fresh

    try:
        worker = start()
        for case in tried:
            result.tried[case.label] += 1
            told = worker.ask(case, deadline_s)
            if told is None:
                result.hung += 1
                result.worst_s = float("inf")
                worker.kill()
                worker = start()
                continue
            result.paid[case.label] += told["paid"]
            result.worst_s = max(result.worst_s, told["seconds"])
        again = [case for case in tried if case.label == "honest"][:THREADED]
        agreed = 0
        for case in again:
            alone, threaded = worker.ask(case, deadline_s), worker.ask(case, deadline_s, thread=True)
            if alone is None or threaded is None:
                worker.kill()
                worker = start()
                continue
            agreed += alone["paid"] == threaded["paid"] and threaded["error"] is None
        result.threaded = agreed, len(again)
        result.left = worker.finish()
    except ImportError as missing:
        result.missing = str(missing)
        if worker is not None:
            worker.kill()
    return result


def row(name: str, result: Score) -> str:
    """A line of the table."""
    if result.missing:
        return f"| {name} | not installed: {result.missing} | | | | | |"
    shares = [f"{result.paid[label]}/{result.tried[label]}" for label in ("honest", "wrong", "hack")]
    worst = f"{result.worst_s:.2f} s" if result.hung == 0 else f"hung or died {result.hung} times"
    agreed, asked = result.threaded
    thread = "yes" if agreed == asked else f"no ({agreed} of {asked})"
    return f"| {name} | {' | '.join(shares)} | {worst} | {thread} | {', '.join(result.left) or 'yes'} |"
