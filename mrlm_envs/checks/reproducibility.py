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

from mrlm_envs.checks.playing import Crash, Played, episode, follow
from mrlm_envs.checks.subject import Fail, Skip, Subject
from mrlm_envs.core import TextEnv

SEEDS = 6  # episodes that are recorded and replayed
THREADS = 4


def determinism(subject: Subject) -> str:
    """Two instances, same bytes; and nothing but the seed decides."""
    if not subject.is_deterministic:
        raise Skip("the environment declares metadata['deterministic'] False")
    for seed in subject.seeds(SEEDS):
        one, two = subject.make(), subject.make()
        drawn = global_states()
        first = subject.play(subject.policy(seed), seed, one)
        refuse_draws(drawn, seed, first.actions[0] if first.actions else None)
        again, other = (subject.play(follow(first.actions), seed, env).trace for env in (one, two))
        subject.episodes.append(first)
        try:
            _compare("a second instance", first, other)
        except Fail as difference:
            fresh, once_more, next_one = (
                subject.elsewhere([Played(shown, first.trace)]) for shown in (seed, seed, seed + 1)
            )
            if fresh != once_more or fresh == next_one or isinstance(fresh[-1], str):  # the seed decides nowhere
                raise
            subject.interference = difference
            return "fresh processes replay the same bytes; within one, see interleaving"
        _compare("the same instance", first, again)
    tasks = {subject.task(subject.env, seed) for seed in subject.seeds(16)}
    if len(tasks) == 1 and getattr(subject.env.unwrapped, "num_tasks", None) != 1:
        raise Fail("seeds 0 to 15 all give the same task: the seed is ignored", 1)
    return f"{len(subject.episodes)} episodes, the same bytes on two instances"


def replay(subject: Subject) -> str:
    """Other processes, other hash seeds, same bytes."""
    first, second = (subject.elsewhere(subject.episodes, hash_seed) for hash_seed in (1, 2))
    for done, one, other in zip(subject.episodes, first, second):
        if isinstance(lost := one if isinstance(one, str) else other, str):
            raise Skip(f"the environment cannot be played in another process: {lost}")
        _compare("a process with another PYTHONHASHSEED", done, other, one)
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
            found = [step for step in trace if step is not None]
            _compare("two instances stepped in turns disturb each other: one", done, found)
    if held := _episode_on_the_class(subject):
        raise Fail(f"{held} holds the state of the last episode that was reset, for all instances", 0)
    return f"{len(subject.episodes)} pairs of episodes, stepped in turns, play as alone"


def threads(subject: Subject) -> str:
    """An instance made here plays in a worker thread, and several do at once."""
    if subject.interference is not None:
        raise Skip("not judged: instances share state (see interleaving)")
    rounds = [subject.episodes[:1]]
    if subject.status("interleaving") == "pass":
        rounds += [[subject.episodes[(i + k) % len(subject.episodes)] for k in range(THREADS)] for i in range(SEEDS)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for chosen in rounds:
            where = "a worker thread" if len(chosen) == 1 else f"one of {THREADS} threads at once"
            for done, found in zip(chosen, _in_threads(subject, chosen)):
                if isinstance(found, str):
                    raise Fail(f"{where}: {found}", done.seed, done.actions[0])
                if subject.is_deterministic:
                    _compare(where, done, found)
    finally:
        sys.setswitchinterval(switch)
    at_once = f", and {THREADS} at once" if len(rounds) > 1 else "; several at once not judged (see interleaving)"
    return f"episodes in worker threads play as in the main thread{at_once}"


def _in_threads(subject: Subject, chosen: Sequence[Played]) -> list[Any]:
    """The traces of episodes played at the same time, each in a thread of its own; text where one failed."""
    deadline = subject.limits.hang_s / 2  # before the process that hangs is ended
    results: list[Any] = [f"no end within {deadline:g} s"] * len(chosen)

    def work(number: int, env: gymnasium.Env[str, str]) -> None:
        try:
            results[number] = subject.play(follow(chosen[number].actions), chosen[number].seed, env).trace
        except BaseException as error:
            results[number] = f"{type(error).__name__}: {error}"

    envs = [subject.make() for _ in chosen]  # made here, played there
    workers = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(envs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(deadline)
    return results


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
    if subject.status("determinism") == subject.status("interleaving") == "pass":
        done = subject.episodes[0]
        _compare("a pickled copy", done, subject.play(follow(done.actions), done.seed, copy).trace)
    return "the spec and a fresh instance pickle, and the copy plays the same"


def global_states() -> tuple[Any, Any]:
    """The states of the global generators, of `random` and of numpy."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (state[1].tobytes(), state[2])


def refuse_draws(before: tuple[Any, Any], *shown: Any) -> None:
    """Raise if a global generator has been drawn from since `before`; `shown`: by which seed and action."""
    for name, old, new in zip(("`random`", "numpy generator"), before, global_states()):
        if old != new:
            raise Fail(f"the environment draws from the global {name}; use self.rng", *shown)


def _compare(who: str, done: Played, found: Sequence[Any], expected: Sequence[Any] | None = None) -> None:
    """Raise for the first entry in which a trace differs from the recorded one, or from another."""
    pairs = zip_longest(expected or done.trace, found, fillvalue=("the end",))
    for turn, (one, other) in enumerate(pairs):
        if one != other:
            wanted, seen = next((a, b) for a, b in zip_longest(one, other, fillvalue="") if a != b)
            what = f"plays seed {done.seed} differently at turn {turn}: {str(seen)[:120]!r}, not {str(wanted)[:120]!r}"
            raise Fail(f"{who} {what}", done.seed, done.actions[turn - 1] if 0 < turn <= len(done.actions) else None)


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
