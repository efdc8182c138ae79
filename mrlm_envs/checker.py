"""`check_text_env`: does an environment keep the contract of `TextEnv`?

MRLM tests every environment of its own with it; run it on yours:

    env = gymnasium.make("my_pkg:My/Env-v0")
    print(check_text_env(env))             # what was checked; AssertionError, in one line, on the first breach

What an environment lacks (an expert, a spec, determinism) is skipped and returned by name with the reason.
"""

import json
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text
from gymnasium.utils.env_checker import check_env

from mrlm_envs.checks import rewards
from mrlm_envs.checks.playing import HOSTILE, STEP_LIMIT, Policy, Trace, episode, mixed, say
from mrlm_envs.checks.reproducibility import determinism, global_states, interleaving, refuse_draws, threads
from mrlm_envs.checks.rewards import oracle
from mrlm_envs.checks.subject import Fail, Limits, Skip, Subject
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

    What the contract shares with the quality card (`mrlm check`) is checked by the card's own functions.

    Args:
        env: The environment, preferably from `gymnasium.make` (so that it has a spec and can be made again).
        episodes: Episode seeds tried for each policy.
        floor: The highest mean return that a policy may reach that does not solve tasks.

    Returns:
        The checks that were skipped, name to reason; printed, it also names those that were made.

    Raises:
        AssertionError: On the first breach, in one line.
    """
    skipped = Report()
    before = global_states()
    limits = Limits(floor=floor, tasks=1, episodes=episodes, seconds=0.5, hang_s=240.0)
    env_id, kwargs = (env.spec.id, env.spec.kwargs) if env.spec else ("", {})
    subject = Subject(env_id, kwargs, limits, env, _check_step)
    checks: dict[str, Callable[[Subject], object]] = {
        "spaces": _check_spaces,
        "spec": _check_spec,
        "an episode": lambda _: play(env, say("abc"), 0),
        "Gymnasium's own checks": lambda _: check_env(env.unwrapped, skip_render_check=True),
        "misuse": _check_misuse,
        "hostile text": _check_hostile,
        "infos": _check_infos,
        "reproducible": determinism,
        "interleaved": _check_interleaved,
        "worker thread": _check_thread,
        "expert": _check_expert,
        "floor": _check_floor,
        "split": _check_split,
        "global generators": lambda _: refuse_draws(before),
    }
    for name, check in checks.items():
        subject.start()
        try:
            check(subject)
        except Fail as breach:
            raise AssertionError(f"{name}: {breach.args[0]}") from None
        except Skip as reason:
            skipped[name] = str(reason)
        else:
            skipped.checked += [name] * (name not in ("spaces", "spec"))
    return skipped


def play(env: gymnasium.Env[Any, Any], policy: Policy, seed: int, limit: int = STEP_LIMIT) -> Trace:
    """Play one episode and return its trace: the reset, then each step.

    Raises:
        AssertionError: If the episode does not end within `limit` steps, or a step breaks the contract.
    """
    return list(episode(env, policy, seed, limit, _check_step))


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


def _check_spaces(subject: Subject) -> None:
    own = subject.env.unwrapped
    if isinstance(own, TextEnv) and not hasattr(own, "episode_seed"):
        raise AssertionError(f"{type(own).__name__}.__init__ does not call super().__init__(**kwargs), or too late")
    for name in ("observation_space", "action_space"):
        space = getattr(subject.env, name)
        assert isinstance(space, Text), f"{name} is {space}, expected mrlm_envs.Unicode (a gymnasium.spaces.Text)"
        assert space.contains("") and space.contains("\u4e2d"), f"{name} refuses ordinary text; use mrlm_envs.Unicode"


def _check_spec(subject: Subject) -> None:
    if subject.env.spec is None:
        raise Skip("the environment has no spec; make it with gymnasium.make")
    spec = pickle.loads(pickle.dumps(subject.env.spec))
    try:
        json.dumps(spec.kwargs)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"kwargs of {spec.id} are not JSON values: {error}") from None


def _check_misuse(subject: Subject) -> None:
    env: gymnasium.Env[Any, Any] = subject.env
    env.reset(seed=0)
    for wrong in (None, 3, b"bytes", ["list"]):
        try:
            env.step(wrong)
        except Exception as error:
            assert not isinstance(error, ResetNeeded), f"an action {wrong!r} raised ResetNeeded, expected TypeError"
        else:
            raise AssertionError(f"an action of type {type(wrong).__name__} did not raise")
    subject.play(say(""), 0)
    try:
        env.step("")
    except ResetNeeded:
        return
    raise AssertionError("step() after the end did not raise gymnasium.error.ResetNeeded")


def _check_hostile(subject: Subject) -> None:
    for text in HOSTILE:
        done = subject.play(say(text), 0)
        assert not done.ended["success"], f"the action {text[:40]!r} solved seed 0"


def _check_infos(subject: Subject) -> None:
    env = subject.env
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


def _check_interleaved(subject: Subject) -> None:
    if subject.env.spec is None:
        raise Skip("the environment has no spec, so no second instance can be made")
    if not subject.is_deterministic:
        raise Skip("metadata['deterministic'] is False")
    interleaving(subject)


def _check_thread(subject: Subject) -> None:
    subject.episodes = subject.episodes or [subject.play(mixed(0), 0)]
    threads(subject)


def _check_expert(subject: Subject) -> None:
    oracle(subject)
    for done in subject.solved:
        for before, step in pairwise(done.trace):
            is_shown = len(step.action or "") >= 8 and str(step.action) in before.observation
            assert not is_shown, f"the expert's action stands in the observation (seed {done.seed})"


def _check_floor(subject: Subject) -> None:
    rewards.floor(subject)
    for name in ("silence", "echo", "a prompt injection", "random words"):
        played = subject.lazy[name]
        is_worse = not subject.solved or rewards.mean(played) < rewards.mean(subject.solved)
        assert is_worse, f"the policy {name} earns as much as the expert"
        solved = sum(done.ended["success"] for done in played)
        assert name == "random words" or not solved, f"the policy {name} solves {solved} of {len(played)} episodes"


def _check_split(subject: Subject) -> None:
    env = subject.env
    if env.spec is None or not hasattr(env.unwrapped, "split"):
        raise Skip("no spec, or no `split` argument")
    if getattr(env.unwrapped, "num_tasks", None) is not None:
        raise Skip("a finite source does its own splitting")
    if env.spec.kwargs.get("split") == "all":
        raise Skip("made with split='all'")
    ids = []
    for split in ("train", "test"):
        member = subject.make(split=split)
        ids.append({member.reset(seed=seed)[1]["task_id"] for seed in range(100)})
        member.close()
    shared = ids[0] & ids[1]
    assert not shared, f"task {min(shared)!r} is in both the train and the test split"
