"""Is an episode a pure function of seed and actions? determinism, replay, interleaving, threads, pickling."""

import pickle
import random
import sys
import threading
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import gymnasium
import numpy as np

from mrlm_envs.checks import child
from mrlm_envs.checks.playing import Crash, Played, Trace, episode, follow, play
from mrlm_envs.checks.subject import Fail, Skip, Subject
from mrlm_envs.core import TextEnv

SEEDS = 6  # episodes that are recorded and replayed
THREADS = 4
DEADLINE = 60.0  # seconds for another process, or for a thread


def determinism(subject: Subject) -> str:
    """Two instances, same bytes; and nothing but the seed decides."""
    if not subject.is_deterministic:
        raise Skip("the environment declares metadata['deterministic'] False")
    for seed in subject.seeds(SEEDS):
        drawn = _global_draws()
        one, two = subject.make(), subject.make()
        first = play(one, subject.policy(seed), seed)
        if _global_draws() != drawn:
            evidence = "the environment draws from the global generator of random or numpy; use one of its own"
            raise Fail(evidence, seed, next(iter(first.actions), None))
        again, other = (play(env, follow(first.actions), seed).trace for env in (one, two))
        subject.episodes.append(first)
        if other != first.trace:
            difference = _difference("a second instance", first, other)
            asked = ([Played(shown, first.actions, [])] for shown in (seed, seed, seed + 1))
            fresh, again, other = (_in_child(subject, jobs, 1) for jobs in asked)
            if fresh != again or fresh == other or "lost" in fresh[-1]:  # the seed decides neither here nor there
                raise difference
            subject.interference = difference
            return "fresh processes replay the same bytes; within one, see interleaving"
        if again != first.trace:
            raise _difference("the same instance", first, again)
    tasks = {subject.task(subject.env, seed) for seed in subject.seeds(16)}
    if len(tasks) == 1 and getattr(subject.env.unwrapped, "num_tasks", None) != 1:
        raise Fail("seeds 0 to 15 all give the same task: the seed is ignored", 1)
    return f"{len(subject.episodes)} episodes, the same bytes on two instances"


def replay(subject: Subject) -> str:
    """Other processes, other hash seeds, same bytes."""
    first, second = (_in_child(subject, subject.episodes, hash_seed) for hash_seed in (1, 2))
    for done, one, other in zip(subject.episodes, first, second):
        if lost := one.get("lost") or other.get("lost"):
            raise Skip(f"the environment cannot be played in another process: {lost}")
        if one != other:
            traces = ([["crashed", found["crash"]]] if "crash" in found else found["trace"] for found in (one, other))
            raise _difference("a process with another PYTHONHASHSEED", done, *traces)
    return f"{len(first)} episodes, the same bytes in two processes with different hash seeds"


def interleaving(subject: Subject) -> str:
    """Two instances stepped in turns do not disturb each other."""
    if subject.interference is not None:
        raise subject.interference
    members = subject.make(), subject.make()
    for pair in zip(subject.episodes, subject.episodes[1:] + subject.episodes[:1]):
        steps = (episode(env, follow(done.actions), done.seed) for env, done in zip(members, pair))
        try:
            traces = list(zip(*zip_longest(*steps)))
        except Crash as crash:
            raise Fail(f"two instances stepped in turns: {crash}", crash.seed, crash.action) from None
        for done, trace in zip(pair, traces):
            if (found := [entry for entry in trace if entry is not None]) != done.trace:
                raise _difference("an instance stepped in turns with another", done, found)
    if held := _episode_on_the_class(subject):
        raise Fail(f"{held} holds the state of the last episode that was reset, for all instances", 0)
    return f"{len(subject.episodes)} pairs of episodes, stepped in turns, play as alone"


def threads(subject: Subject) -> str:
    """An instance made here plays in a worker thread, and several do at once."""
    if subject.interference is not None:
        raise Skip("not judged: instances share state (see interleaving)")
    rounds = [subject.episodes[:1]]
    if subject.passed("interleaving"):
        rounds += [[subject.episodes[(i + k) % len(subject.episodes)] for k in range(THREADS)] for i in range(SEEDS)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for chosen in rounds:
            where = "a worker thread" if len(chosen) == 1 else f"one of {THREADS} threads at once"
            for done, found in zip(chosen, _in_threads(subject, chosen)):
                if isinstance(found, str):
                    raise Fail(f"{where}: {found}", done.seed, done.actions[0])
                if found != done.trace:
                    raise _difference(where, done, found)
    finally:
        sys.setswitchinterval(switch)
    at_once = f", and {THREADS} at once" if len(rounds) > 1 else "; several at once not judged (see interleaving)"
    return f"episodes in worker threads play as in the main thread{at_once}"


def pickling(subject: Subject) -> str:
    """The spec and a fresh instance pickle, and the copy plays the same."""
    if subject.is_remote:
        raise Skip("cannot be known from outside")
    env = subject.make()
    copy: Any = None
    for what, value in (("the spec", env.spec), ("a fresh instance", env)):
        try:
            copy = pickle.loads(pickle.dumps(value))
        except Exception as error:
            raise Fail(f"{what} does not pickle: {type(error).__name__}: {error}") from None
    if subject.passed("determinism") and subject.passed("interleaving"):
        done = subject.episodes[0]
        if (found := play(copy, follow(done.actions), done.seed).trace) != done.trace:
            raise _difference("a pickled copy", done, found)
    return "the spec and a fresh instance pickle, and the copy plays the same"


def _global_draws() -> Any:
    state: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), state[1].tobytes(), state[2]


def _difference(who: str, done: Played, found: Sequence[Any], expected: Sequence[Any] | None = None) -> Fail:
    """The first entry in which two traces differ."""
    pairs = zip_longest(done.trace if expected is None else expected, found, fillvalue=("the end",))
    turn, one, other = next((i, a, b) for i, (a, b) in enumerate(pairs) if a != b)
    wanted, seen = next((a, b) for a, b in zip_longest(one, other, fillvalue="") if a != b)
    evidence = (
        f"{who} plays seed {done.seed} differently at turn {turn}: {str(seen)[:120]!r}, not {str(wanted)[:120]!r}"
    )
    return Fail(evidence, done.seed, done.actions[turn - 1] if 0 < turn <= len(done.actions) else None)


def _in_child(subject: Subject, episodes: Sequence[Played], hash_seed: int) -> list[Any]:
    jobs: list[child.Job] = [(done.seed, done.actions) for done in episodes]
    return child.run(subject.env_id, subject.kwargs, jobs, hash_seed, DEADLINE)


def _episode_on_the_class(subject: Subject) -> str | None:
    """A class attribute that is one value after seed 0, another after seed 1, and the first again after seed 0."""
    env = subject.make()
    own = [cls for cls in type(env.unwrapped).__mro__ if cls not in (*TextEnv.__mro__, *gymnasium.Env.__mro__)]
    seen: list[dict[str, str]] = []
    for seed in (0, 1, 0):
        env.reset(seed=seed)
        held = ((f"{cls.__name__}.{key}", value) for cls in own for key, value in vars(cls).items())
        seen.append({key: repr(value) for key, value in held if not callable(value) and "__" not in key})
    return next((key for key in seen[0] if seen[0][key] == seen[2].get(key) != seen[1].get(key)), None)


def _in_threads(subject: Subject, chosen: Sequence[Played]) -> list[Trace | str]:
    """The traces of episodes played at the same time, each in a thread of its own; text where one failed."""
    results: list[Trace | str] = [f"no end within {DEADLINE:g} s"] * len(chosen)

    def work(number: int, env: gymnasium.Env[str, str]) -> None:
        try:
            results[number] = play(env, follow(chosen[number].actions), chosen[number].seed).trace
        except BaseException as error:
            results[number] = f"{type(error).__name__}: {error}"

    envs = [subject.make() for _ in chosen]  # made here, played there
    workers = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(envs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE)
    return results
