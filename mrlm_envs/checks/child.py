"""A process of its own for a card, or for episodes under another hash seed: what hangs or ends it costs it alone.

The job comes as JSON on standard input. Standard output gets, a line of JSON each, `[seed, action]` before every reset
and step, and `{"told": …}` for what was found. A step that hangs, even one that holds the interpreter's lock, ends the
process by `faulthandler`, which needs no lock.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from typing import Any


class _Watch:
    """In a process of this module: the file of its answers, the deadline of a step, and when that was last set."""

    output: int | None = None
    seconds = 0.0
    since = 0.0


def watch(seed: int | None, action: str | None) -> None:
    """Note what is about to be done, and end the process if that hangs; elsewhere than in a child, do nothing."""
    if _Watch.output is not None:
        os.write(_Watch.output, b"%s\n" % json.dumps([seed, action and action[:1_000]]).encode())
        if time.monotonic() > _Watch.since + 1:  # setting it costs more than most steps
            faulthandler.dump_traceback_later(_Watch.seconds, exit=True)
            _Watch.since = time.monotonic()


def run(
    env_id: str,
    kwargs: dict[str, Any],
    limits: dict[str, float],
    only: Collection[str] = (),
    episodes: Sequence[tuple[int, list[str]]] = (),
    hash_seed: int | None = None,
) -> tuple[list[Any], tuple[str, int | None, str | None] | None]:
    """Make lines of a card, or play episodes, in a fresh process.

    Args:
        env_id: As `mrlm check` takes it.
        kwargs: The environment's arguments, JSON values.
        limits: Those of the card.
        only: Names of the checks to make.
        episodes: Seeds and actions to play.
        hash_seed: PYTHONHASHSEED of the process; of this one by default.

    Returns:
        What it told: first that the environment is made (nothing, if that raised), then the lines, then the traces. And
        how it was lost, if it was: the message, the seed and the action.

    Raises:
        TypeError: If the arguments are not JSON.
    """
    job = {"env": env_id, "kwargs": kwargs, "limits": limits, "only": only, "episodes": episodes}
    text = json.dumps(job)
    environment = dict(os.environ) if hash_seed is None else {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    if _Watch.output is not None:  # the other process has a deadline of its own
        faulthandler.cancel_dump_traceback_later()
        _Watch.since = 0.0
    program = f"import sys; sys.path[:] = {list(map(str, sys.path))}; from {__package__} import child; child.main()"
    command = [sys.executable, "-W", "ignore", "-c", program]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        done = subprocess.run(command, input=text.encode(), env=environment, stdout=output, stderr=errors, check=False)
        output.seek(0)
        errors.seek(0)
        lines = [json.loads(line) for line in output if line.endswith(b"\n")]
        said = errors.read().decode("utf-8", "replace").strip()
    told = [line["told"] for line in lines if isinstance(line, dict)]
    if done.returncode == 0:
        return told, None
    seed, action = next((line for line in reversed(lines) if isinstance(line, list)), (None, None))
    last = f"the process ended with status {done.returncode} {''.join(said.splitlines()[-1:])}".strip()
    why = f"no answer within {limits['hang_s']:g} s" if "Timeout (" in said else last
    what = "it is made" if seed is None else f"reset(seed={seed})" if action is None else f"step({action[:60]!r})"
    return told, (f"seed {seed}, {what}: {why}", seed, action)


def main() -> None:
    """Do the job on standard input."""
    from mrlm_envs.sandbox import isolation

    if sys.platform == "linux":
        isolation.prctl("die with the parent", isolation.PR_SET_PDEATHSIG, signal.SIGKILL)
    job = json.load(sys.stdin)
    _Watch.output, _Watch.seconds = os.dup(1), job["limits"]["hang_s"]
    os.dup2(2, 1)  # an environment may print
    watch(None, None)
    from mrlm_envs.checks.card import tell  # what it imports is under watch too

    for told in tell(job):
        os.write(_Watch.output, b"%s\n" % json.dumps({"told": told}, default=str).encode())
    os._exit(0)  # threads that an environment has left do not hold the answer
