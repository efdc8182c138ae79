"""What the test process holds of the system: living descendants and open file descriptors."""

import os
import time
from pathlib import Path


def descendants(root: int | None = None) -> set[int]:
    """Living processes below `root`, the test process by default."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry))
    found: set[int] = set()
    todo = [root or os.getpid()]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def footprint(like: tuple[int, int] | None = None) -> tuple[int, int]:
    """How many descendants and file descriptors there are.

    Args:
        like: Give processes that are just being forked or reaped five seconds to come to this.
    """
    deadline = time.monotonic() + 5
    while True:
        now = len(descendants()), len(os.listdir("/proc/self/fd"))
        if like is None or now == like or time.monotonic() > deadline:
            return now
        time.sleep(0.01)
