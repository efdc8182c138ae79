"""Episodes in another process, with another hash seed of Python: `python -m mrlm_envs.checks.child`.

The job comes as JSON on standard input, `{"env", "kwargs", "path", "seconds", "episodes": [[seed, actions], …]}`; the
environment's being made and each episode are answered by a line of JSON: its trace, or the crash. What hangs or kills
the process costs this process alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from mrlm_envs.checks.playing import Crash, Policy, episode, expert, expert_kind, follow, mixed, say

# A seed, and the actions, or the one that is said until the end, or None: the expert or odd words act.
Job = tuple[int, list[str] | str | None]


def run(env_id: str, kwargs: dict[str, Any], episodes: Sequence[Job], hash_seed: int, timeout: float) -> list[Any]:
    """Play episodes in a fresh process that makes the environment once.

    Args:
        env_id: As `mrlm check` takes it.
        kwargs: The environment's arguments, JSON values.
        episodes: What to play.
        hash_seed: PYTHONHASHSEED of the process.
        timeout: Seconds for all of it; what is not a list of actions is stopped between two steps after half of them.

    Returns:
        For each episode `{"trace": …}` or `{"crash": message, "seed", "action"}`. `{"lost": message, "made"}` is the
        last when the process could not be started, ended early or took too long; `made`: it had made the environment.
    """
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    lost, output = "", b""
    try:
        told = {"env": env_id, "kwargs": kwargs, "path": sys.path, "seconds": timeout / 2, "episodes": episodes}
        job = json.dumps(told).encode()
        command = [sys.executable, "-W", "ignore", "-m", __name__]
        done = subprocess.run(command, input=job, env=environment, capture_output=True, timeout=timeout)
        output = done.stdout
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            lost = f"the process ended with status {done.returncode} {' '.join(last)}".strip()
    except subprocess.TimeoutExpired as late:
        lost, output = f"no answer within {timeout:g} s", late.stdout or b""
    except TypeError:
        lost = "its arguments are not JSON"
    answers = [json.loads(line) for line in output.splitlines() if line.startswith(b'{"') and line.endswith(b"}")]
    return answers[1:] + ([{"lost": lost, "made": bool(answers)}] if lost else [])


def main() -> None:
    """Do the job on standard input."""
    from mrlm_envs.checks.subject import make
    from mrlm_envs.sandbox import isolation

    if sys.platform == "linux":
        isolation.prctl("die with the parent", isolation.PR_SET_PDEATHSIG, signal.SIGKILL)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # an environment may print
    job = json.load(sys.stdin)
    sys.path[:] = job["path"]
    env = make(job["env"], job["kwargs"])
    print(json.dumps({"made": True}), file=answer, flush=True)
    until = time.monotonic() + job["seconds"]

    def hurried(policy: Policy) -> Policy:  # an environment that is slow does not look as if it hung
        return lambda env, observation: policy(env, observation) if time.monotonic() < until else None

    for seed, actions in job["episodes"]:
        if actions is None:
            policy = hurried(expert if expert_kind(env) else mixed(seed))
        else:
            policy = hurried(say(actions)) if isinstance(actions, str) else follow(actions)
        try:
            found: dict[str, Any] = {"trace": list(episode(env, policy, seed))}
        except Crash as crash:
            found = {"crash": str(crash), "seed": crash.seed, "action": crash.action}
        print(json.dumps(found), file=answer, flush=True)
    answer.flush()
    os._exit(0)  # threads that an environment has left do not hold the answer


if __name__ == "__main__":
    main()
