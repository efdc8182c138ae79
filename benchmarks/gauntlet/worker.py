"""The process in which a grader runs: a case a line in, a verdict a line out, until the input ends or it is killed."""

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def verdict(grade: Callable[[str, Any], Any], case: dict[str, Any]) -> dict[str, Any]:
    """Whether the grader pays, its time in seconds, and what it raised."""
    begun = time.perf_counter()
    try:
        paid, error = float(grade(case["reply"], case["reference"]) or 0.0) >= 0.5, None
    except Exception as raised:
        paid, error = False, f"{type(raised).__name__}: {raised}"[:200]
    return {"paid": paid, "seconds": time.perf_counter() - begun, "error": error}


def in_thread(grade: Callable[[str, Any], Any], case: dict[str, Any]) -> dict[str, Any]:
    """The same in a thread that is not the main one."""
    found: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: found.append(verdict(grade, case)))
    thread.start()
    thread.join()
    return found[0]


def main() -> None:
    """Serve the grader that the first argument names."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a grader prints is no verdict
    sys.path.insert(0, os.environ["GAUNTLET_PATH"])  # `my_module` is a file where the command was given
    module, _, name = sys.argv[1].partition(":")
    try:
        grade = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as missing:
        print(json.dumps({"nonce": "ready", "ready": False, "error": str(missing)}), file=out, flush=True)
        return
    print(json.dumps({"nonce": "ready", "ready": True}), file=out, flush=True)
    for line in sys.stdin:
        case = json.loads(line)  # its nonce ends the verdict, after whatever a program wrote on this descriptor
        told = in_thread(grade, case) if case["thread"] else verdict(grade, case)
        print("\n" + json.dumps({**told, "nonce": case["nonce"]}), file=out, flush=True)


if __name__ == "__main__":
    main()
