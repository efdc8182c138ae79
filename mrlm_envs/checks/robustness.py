"""Tasks, time and text: splits, speed, faults."""

import inspect
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium

from mrlm_envs.checks.playing import HOSTILE, SAID, Crash, Policy, expert, mixed, say
from mrlm_envs.checks.subject import Fail, Skip, Subject, Task

FAULTS_S = 45.0  # seconds for all hostile texts
MOST_TASKS = 2_000  # drawn of each split
Key = Callable[[Task], Any]


def faults(subject: Subject) -> str:
    """No text is an error: hostile strings, 2 MB, lone surrogates, each played to the end."""
    until = time.monotonic() + FAULTS_S

    def hurried(policy: Policy) -> Policy:  # an environment that is slow does not look as if it hung
        return lambda env, observation: policy(env, observation) if time.monotonic() < until else None

    subject.play(hurried(expert if subject.expert else mixed(0)), 0)
    texts = (*HOSTILE, *SAID)
    for number, text in enumerate(texts):
        try:
            done = subject.play(hurried(say(text)), 0)
        except Crash as crash:
            raise Fail(f"{crash}; an action is never an error", crash.seed, crash.action) from None
        if not done.actions:
            return f"{number} of {len(texts)} texts raise nothing; its time was up before all were tried"
    return f"{len(HOSTILE)} hostile texts, 2 MB and lone surrogates among them, raise nothing"


def splits(subject: Subject) -> str:
    """Enough distinct tasks in each split, and none in both, by id, by content or nearly."""
    if subject.status("determinism") == "fail":
        raise Skip("cannot be counted: the seed does not decide the task (see determinism)")
    try:
        members = {} if subject.is_remote else {split: subject.make(split=split) for split in ("train", "test")}
    except (TypeError, ValueError):  # it knows no splits
        members = {}
    # tasks are told apart by what is seen and done on the expert's way, or else by their ids, or else by text
    identity: Key = (lambda task: task[1:]) if subject.expert else (lambda task: task.id or task.text)
    drawn = {split: _tasks(subject, env, identity) for split, env in (members or {"all": subject.env}).items()}
    counts = {split: len(set(map(identity, tasks))) for split, tasks in drawn.items()}
    found = ", ".join(f"{count} distinct tasks in split {split!r}" for split, count in counts.items())
    if min(counts.values()) < subject.limits.tasks:
        seeds = max(max(tasks.values()) for tasks in drawn.values()) + 1
        raise Fail(f"{found} of {seeds} seeds; at least {subject.limits.tasks} are wanted")
    is_alike = all(len(set(pair)) == 1 for pair in zip(*(tasks.items() for tasks in drawn.values())))
    if not members or (is_alike and not _names_splits(subject.env)):
        return f"{found}; it knows no splits, so none can overlap"
    train, test = drawn.values()
    ways: dict[str, Key] = {"the same id": lambda task: task.id or task}
    if subject.expert or len({task.text for task in train}) > len(train) / 2:  # its text tells a task
        ways["the same content"] = lambda task: task[1:]
        ways["nearly the same content"] = lambda task: (_words(task.text), task.solution)
    for how, key in ways.items():
        trained = set(map(key, train))
        shared = [task for task in test if key(task) in trained]
        if len(shared) > (0.01 * len(test) if how.startswith("nearly") else 0):
            what = f"are training tasks too ({how}): {shared[0].text[:120]!r}"
            raise Fail(f"{len(shared)} of {len(test)} test tasks {what}", test[shared[0]])
    return f"{found}, none in both"


def _names_splits(env: gymnasium.Env[str, str]) -> bool:
    """Whether `split` is an argument by name; `**kwargs` swallow it where it means nothing."""
    own = type(getattr(env.unwrapped, "game", env).unwrapped)
    return any("split" in inspect.signature(cls.__init__).parameters for cls in own.__mro__)


def _tasks(subject: Subject, env: gymnasium.Env[str, str], identity: Key) -> dict[Task, int]:
    """Tasks of an environment and the first seed of each: as many as fit into the time, within bounds."""
    found: dict[Task, int] = {}
    deadline, least = time.monotonic() + subject.limits.seconds / 2, subject.limits.tasks
    for seed in range(min(getattr(env.unwrapped, "num_tasks", None) or MOST_TASKS, MOST_TASKS)):
        if time.monotonic() > deadline and (seed >= 4 * least or len(set(map(identity, found))) >= least):
            break
        found.setdefault(subject.task(env, seed), seed)
    return found


def _words(text: str) -> tuple[str, ...]:
    """A text without case, punctuation and white space, but for the gaps of a drawing."""
    return tuple(re.findall(r"\w+|[^\w\s.,;:!?]| {2,}", text.casefold()))


def speed(subject: Subject) -> str:
    """Seconds of a reset and of a step, and what episodes leave in memory."""
    limits, resets, steps, grown = subject.limits, [], [], []
    for seed in subject.seeds(limits.episodes):
        before, start = _peak_mb(), time.perf_counter()
        subject.env.reset(seed=seed)
        resets.append(time.perf_counter() - start)
        done = subject.play(mixed(seed), seed)
        steps.append(max(0.0, time.perf_counter() - start - 2 * resets[-1]) / len(done.actions))
        grown.append(_peak_mb() - before)
    reset_s, step_s, memory = statistics.fmean(resets), statistics.fmean(steps), statistics.fmean(grown[2:])
    evidence = f"reset {1e3 * reset_s:.2f} ms, step {1e3 * step_s:.2f} ms, memory {memory:+.2f} MiB an episode"
    if max(reset_s, step_s) > limits.step_s or memory > limits.memory_mb:
        raise Fail(f"{evidence}; the limits are {limits.step_s:g} s and {limits.memory_mb:g} MiB")
    return evidence


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
