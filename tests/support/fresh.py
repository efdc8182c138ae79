"""A fresh interpreter for tests that fork.

A fork copies one thread of a process and all of its locks. In a test worker, neighbours' threads hold some of them at
any time, and the child waits for those for ever; in a fresh process the only threads are those of the code under test.
"""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

from tests.support.paths import ROOT


def in_fresh_process(code: str, *arguments: str, timeout: float = 240.0) -> None:
    """Run code that must succeed, with `arguments` in `sys.argv`; none of its processes outlives the call."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"no end after {timeout:g} s: {(late.stdout or b'').decode(errors='replace')}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
