"""`check_text_env`: does an environment keep the contract of `TextEnv`?

MRLM tests every environment of its own with it; run it on yours:

    env = gymnasium.make("my_pkg:My/Env-v0")
    print(check_text_env(env))             # what was checked; AssertionError, in one line, on the first breach

What an environment lacks (an expert, a spec, determinism) is skipped and returned by name with the reason.
"""

import copy
import json
import math
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text
from gymnasium.utils.env_checker import check_env

from mrlm_envs.checks.playing import (
    HOSTILE,
    INJECTION,
    STEP_LIMIT,
    WORDS,
    Policy,
    Trace,
    episode,
    mixed,
)
from mrlm_envs.core import TextEnv


class Report(dict[str, str]):
    """What `check_text_env` skipped, name to reason; `checked` names what it checked."""

    def __init__(self) -> None:
        super().__init__()
        self.checked: list[str] = []

    def __str__(self) -> str:
        skipped = "; ".join(f"{name} ({reason})" for name, reason in self.items()) or "nothing"
        return f"checked: {', '.join(self.checked)}\nskipped: {skipped}"


def check_text_env(env: gymnasium.Env[Any, Any], *, episodes: int = 8, floor: float = 0.1) -> Report:
    """Check the whole contract of `mrlm_envs.core.TextEnv` on `env`.

    Args:
        env: The environment, preferably from `gymnasium.make` (so that it has a spec and can be made again).
        episodes: Episode seeds tried for each policy.
        floor: The highest mean return that the silent, the echoing, the injecting and the random policy may reach.

    Returns:
        The checks that were skipped, name to reason; printed, it also names those that were made.

    Raises:
        AssertionError: On the first breach, in one line.
    """
    skipped = Report()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    _check_spaces(env)
    twin = _check_spec(env, skipped)
    deterministic = env.unwrapped.metadata.get("deterministic", True)
    if not deterministic:
        skipped["reproducible"] = "metadata['deterministic'] is False"
    if twin is None:
        skipped["interleaved"] = "the environment has no spec, so no second instance can be made"
    expert: list[float | None] = []

    def global_generators() -> None:
        assert random.getstate() == states[0], "the environment draws from the global `random`; use self.rng"
        same = all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1]))  # noqa: NPY002
        assert same, "the environment draws from the global numpy generator; use self.rng"

    checks: dict[str, Callable[[], object]] = {
        "an episode": lambda: play(env, lambda _, __: "abc", 0),
        "Gymnasium's own checks": lambda: check_env(env.unwrapped, skip_render_check=True),
        "misuse": lambda: _check_misuse(env),
        "hostile text": lambda: _check_hostile(env),
        "infos": lambda: _check_infos(env),
        "reproducible": lambda: _check_reproducible(env, twin, episodes),
        "interleaved": lambda: _check_interleaved(env, twin) if twin is not None else None,
        "worker thread": lambda: _check_thread(env, deterministic),
        "expert": lambda: expert.append(_check_expert(env, episodes, skipped)),
        "floor": lambda: _check_floor(env, episodes, floor, expert[0]),
        "split": lambda: _check_split(env, skipped),
        "global generators": global_generators,
    }
    if not deterministic:
        del checks["interleaved"]  # two traces of it cannot be compared
    for name, check in checks.items():
        if name not in skipped:
            check()
        if name not in skipped:  # some find out only then that there is nothing to check
            skipped.checked.append(name)
    if twin is not None:
        twin.close()
    return skipped


def play(env: gymnasium.Env[Any, Any], policy: Policy, seed: int, limit: int = STEP_LIMIT) -> Trace:
    """Play one episode and return its trace: the reset's `(observation, info)`, then each step's five values.

    Raises:
        AssertionError: If the episode does not end within `limit` steps, or a step breaks the contract.
    """
    return list(_episode(env, policy, seed, limit))


def _episode(env: gymnasium.Env[Any, Any], policy: Policy, seed: int, limit: int = STEP_LIMIT) -> Iterator[Any]:
    return episode(env, policy, seed, limit, _check_step)


def _check_step(step: tuple[Any, ...], turn: int, env: gymnasium.Env[Any, Any]) -> None:
    observation, reward, terminated, truncated, info = step
    assert env.observation_space.contains(observation), f"observation is outside {env.observation_space}"
    assert isinstance(observation, str), f"observation is a {type(observation).__name__}, not a str"
    observation.encode("utf-8")
    _json(info)
    assert isinstance(reward, int | float) and math.isfinite(reward), f"reward {reward!r} is not a finite number"
    assert not (terminated and truncated), "a step is both terminated and truncated"
    for key in ("task_id", "seed", "turn", "role", "action_valid", "rewards"):
        assert key in info, f"info lacks {key!r} after a step"
    assert info["turn"] == turn, f"info['turn'] is {info['turn']}, expected {turn}"
    assert info["role"] in ("user", "tool"), f"info['role'] is {info['role']!r}, expected 'user' or 'tool'"
    parts = sum(info["rewards"].values())
    assert math.isclose(parts, reward, abs_tol=1e-9), f"info['rewards'] sums to {parts}, the reward is {reward}"
    if terminated or truncated:
        for key, kind in (("success", bool), ("stop_reason", str), ("valid", bool)):
            assert isinstance(info.get(key), kind), f"info[{key!r}] at the end is {info.get(key)!r}, not a {kind}"
        assert info["valid"] or truncated, "an invalid episode must be truncated, not terminated"
    else:
        assert "success" not in info, "info['success'] shows before the end"


def _json(info: dict[str, Any]) -> str:
    return json.dumps(info, sort_keys=True, allow_nan=False)


def _check_spaces(env: gymnasium.Env[Any, Any]) -> None:
    own = env.unwrapped
    if isinstance(own, TextEnv) and not hasattr(own, "episode_seed"):
        raise AssertionError(f"{type(own).__name__}.__init__ does not call super().__init__(**kwargs), or too late")
    for name in ("observation_space", "action_space"):
        space = getattr(env, name)
        assert isinstance(space, Text), f"{name} is {space}, expected mrlm_envs.Unicode (a gymnasium.spaces.Text)"
        assert space.contains("") and space.contains("\u4e2d"), f"{name} refuses ordinary text; use mrlm_envs.Unicode"


def _check_spec(env: gymnasium.Env[Any, Any], skipped: dict[str, str]) -> gymnasium.Env[Any, Any] | None:
    if env.spec is None:
        skipped["spec"] = "the environment has no spec; make it with gymnasium.make"
        return None
    spec = pickle.loads(pickle.dumps(env.spec))
    kwargs = spec.kwargs
    try:
        assert json.loads(json.dumps(kwargs)) == json.loads(json.dumps(copy.deepcopy(kwargs)))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"kwargs of {spec.id} are not JSON values: {error}") from None
    return gymnasium.make(spec)


def _check_misuse(env: gymnasium.Env[Any, Any]) -> None:
    env.reset(seed=0)
    for wrong in (None, 3, b"bytes", ["list"]):
        try:
            env.step(wrong)
        except Exception as error:
            assert not isinstance(error, ResetNeeded), f"an action {wrong!r} raised ResetNeeded, expected TypeError"
        else:
            raise AssertionError(f"an action of type {type(wrong).__name__} did not raise")
    play(env, lambda _, __: "", 0)
    try:
        env.step("")
    except ResetNeeded:
        return
    raise AssertionError("step() after the end did not raise gymnasium.error.ResetNeeded")


def _check_hostile(env: gymnasium.Env[Any, Any]) -> None:
    for text in HOSTILE:
        trace = play(env, lambda _, __, text=text: text, 0)
        assert not json.loads(trace[-1][-1])["success"], f"the action {text[:40]!r} solved seed 0"


def _check_infos(env: gymnasium.Env[Any, Any]) -> None:
    _, first = env.reset(seed=1)
    for key in ("task_id", "seed", "turn", "role", "system"):
        assert key in first, f"info lacks {key!r} at reset"
    assert first["seed"] == 1, f"info['seed'] is {first['seed']!r} after reset(seed=1)"
    kept = _json(first)
    _, second = env.reset(seed=1)
    assert first is not second, "reset returns the same info dict twice"
    for value in second.values():
        if isinstance(value, dict | list):
            value.clear()
    second.clear()
    _, third = env.reset(seed=1)
    assert _json(third) == kept, "editing a returned info changed the next one"
    _, unseeded = env.reset()
    _, again = env.reset(seed=unseeded["seed"])
    assert again["task_id"] == unseeded["task_id"], "reset(seed=info['seed']) gives another task"


def _check_reproducible(env: gymnasium.Env[Any, Any], twin: gymnasium.Env[Any, Any] | None, episodes: int) -> None:
    for seed in range(episodes):
        first = play(env, mixed(seed), seed)
        assert first == play(env, mixed(seed), seed), f"seed {seed} replays differently on the same instance"
        if twin is not None:
            assert first == play(twin, mixed(seed), seed), f"seed {seed} replays differently on a second instance"


def _check_interleaved(env: gymnasium.Env[Any, Any], twin: gymnasium.Env[Any, Any]) -> None:
    alone = [play(env, mixed(seed), seed) for seed in (0, 1)]
    in_turns = zip_longest(_episode(env, mixed(0), 0), _episode(twin, mixed(1), 1))
    for trace, expected in zip(zip(*in_turns), alone):
        steps = [step for step in trace if step is not None]
        assert steps == expected, "two instances stepped in turns disturb each other"


def _check_thread(env: gymnasium.Env[Any, Any], deterministic: bool) -> None:
    results: list[Trace | BaseException] = []

    def work() -> None:
        try:
            results.append(play(env, mixed(0), 0))
        except BaseException as error:
            results.append(error)

    here = play(env, mixed(0), 0)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=120)
    assert results, "an episode in a worker thread did not end within 120 s"
    assert not isinstance(results[0], BaseException), f"an episode in a worker thread raised {results[0]!r}"
    assert not deterministic or results[0] == here, "an episode in a worker thread differs from the main thread's"


def _returns(env: gymnasium.Env[Any, Any], policy: Policy, seeds: range) -> tuple[float, float]:
    """Mean return and success rate."""
    traces = [play(env, policy, seed) for seed in seeds]
    total = sum(step[1] for trace in traces for step in trace[1:])
    return total / len(traces), sum(json.loads(trace[-1][-1])["success"] for trace in traces) / len(traces)


def _check_expert(env: gymnasium.Env[Any, Any], episodes: int, skipped: dict[str, str]) -> float | None:
    kind = env.unwrapped.metadata.get("expert")
    if kind is None:
        skipped["expert"] = "metadata['expert'] is None"
        return None

    def act(env: gymnasium.Env[str, str], observation: str) -> str:
        action = env.unwrapped.expert()  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(action, str), f"expert() returned {action!r} in mid-episode, expected a str"
        assert len(action) < 8 or action not in observation, "the expert's action stands in the observation"
        return action

    mean, success = _returns(env, act, range(episodes))
    if kind == "always":
        assert success == 1.0 and mean >= 1.0 - 1e-9, f"expert() earns {mean:.3f} with {success:.0%} solved, not all"
    return mean


def _check_floor(env: gymnasium.Env[Any, Any], episodes: int, floor: float, expert: float | None) -> None:
    rng = np.random.default_rng(11)
    policies: dict[str, Policy] = {
        "silent": lambda _, __: "",
        "echoing": lambda _, observation: observation,
        "injecting": lambda _, __: INJECTION,
        "random": lambda _, __: " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), size=8)),
    }
    for name, policy in policies.items():
        mean, success = _returns(env, policy, range(episodes))
        assert mean <= floor, f"the {name} policy earns {mean:.3f} on average, above the floor of {floor}"
        assert name == "random" or success == 0.0, f"the {name} policy solves {success:.0%} of the episodes"
        assert expert is None or mean < expert, f"the {name} policy ({mean:.3f}) is as good as the expert"


def _check_split(env: gymnasium.Env[Any, Any], skipped: dict[str, str]) -> None:
    if env.spec is None or not hasattr(env.unwrapped, "split"):
        skipped["split"] = "no spec, or no `split` argument"
    elif getattr(env.unwrapped, "num_tasks", None) is not None:
        skipped["split"] = "a finite source does its own splitting"
    elif env.spec.kwargs.get("split") == "all":
        skipped["split"] = "made with split='all'"
    else:
        ids = []
        for split in ("train", "test"):
            member = gymnasium.make(env.spec, split=split)
            ids.append({member.reset(seed=seed)[1]["task_id"] for seed in range(100)})
            member.close()
        shared = ids[0] & ids[1]
        assert not shared, f"task {min(shared)!r} is in both the train and the test split"
