"""What is checked: an environment by its id, the thresholds, and what the checks before have found."""

import importlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium

import mrlm_envs
from mrlm_envs.checks import child
from mrlm_envs.checks.playing import Inspect, Played, Policy, episode, expert, expert_kind, follow, inspect_step, mixed
from mrlm_envs.tasks import nearest

OPENENV = "openenv:"


@dataclass(frozen=True)
class Limits:
    """Thresholds of the card.

    Attributes:
        floor: The highest mean return of a policy that does not solve tasks.
        kind_floor: The same within one kind of task.
        tasks: Distinct tasks that a split must have.
        maximum: The return of a solved episode.
        step_s: Seconds that a reset or a step may take, in the mean.
        hang_s: Seconds after which a reset or a step counts as hung.
        memory_mb: MiB by which an episode may make the process grow, in the mean.
        episodes: Seeds tried for each question.
        seconds: Seconds after which a check takes no further seeds.
    """

    floor: float = 0.1
    kind_floor: float = 0.5
    tasks: int = 100
    maximum: float = 1.0
    step_s: float = 1.0
    hang_s: float = 60.0
    memory_mb: float = 1.0
    episodes: int = 32
    seconds: float = 6.0


class Fail(Exception):
    """A check fails. Its arguments are the evidence and, where they show it, a seed and an action."""

    status = "fail"


class Skip(Exception):
    """A check cannot be made, or does not apply. Its argument says why."""

    status = "skip"


class Unknown(ValueError):
    """There is no such environment."""


class Task(NamedTuple):
    """What a seed asks; "" where there is no such thing.

    Attributes:
        id: `info["task_id"]`.
        text: The first observation, and those that the expert's actions lead to.
        solution: All that the expert does.
    """

    id: str
    text: str
    solution: str


@dataclass
class Check:
    """One line of the card.

    Attributes:
        name: Of the check.
        status: "pass", "fail" or "skip".
        evidence: What was seen, or why the check was not made.
        seed: The episode seed that shows it.
        action: The action that shows it.
    """

    name: str
    status: str
    evidence: str
    seed: int | None = None
    action: str | None = None


@dataclass
class Subject:
    """An environment under check.

    Args:
        env_id: What `gymnasium.make` takes, `module:function` of an environment or a PettingZoo game, or
            `openenv:ADDRESS`.
        kwargs: Its arguments.
        limits: The thresholds.
        given: The environment itself, instead of one made from its id.
        inspect: What each step has to return.

    Attributes:
        env: An instance to play on.
        found: The lines of the card so far.
        episodes: The episodes that `determinism` has recorded, for the checks that replay them.
        interference: How one instance disturbs another, if `determinism` has met that.
        lazy: The episodes of policies that do not solve tasks, by policy.
        solved: The expert's episodes.
        deadline: When the check has used its time, by the monotonic clock.
    """

    env_id: str
    kwargs: dict[str, Any]
    limits: Limits
    given: gymnasium.Env[str, str] | None = None
    inspect: Inspect = inspect_step
    found: dict[str, Check] = field(default_factory=dict)
    episodes: list[Played] = field(default_factory=list)
    interference: Fail | None = None
    lazy: dict[str, list[Played]] = field(default_factory=dict)
    solved: list[Played] = field(default_factory=list)
    deadline: float = 0.0

    def __post_init__(self) -> None:
        self.env = self.given or self.make()

    @cached_property
    def expert(self) -> str | None:
        """ "always", "honest" or None, as `playing.expert_kind`; None too where `expert()` has nothing to say."""
        said: list[str | None] = []
        if kind := expert_kind(self.env):
            self.play(lambda env, observation: said.append(expert(env, observation)), 0)
        return kind if said and said[0] is not None else None

    @property
    def is_remote(self) -> bool:
        """Whether it runs behind somebody else's server."""
        return self.env_id.startswith(OPENENV)

    @property
    def is_deterministic(self) -> bool:
        """Whether it claims that seed and actions replay to the same bytes; of a server that is the question."""
        return self.is_remote or bool((self.env.unwrapped.metadata or {}).get("deterministic", True))

    def make(self, **more: Any) -> gymnasium.Env[str, str]:
        """A fresh instance, with further arguments; of an environment without a spec the one that was given."""
        if self.given is not None:
            return self.given if self.given.spec is None else gymnasium.make(self.given.spec, **more)
        return make(self.env_id, {**self.kwargs, **more})

    def play(self, policy: Policy, seed: int, env: gymnasium.Env[str, str] | None = None) -> Played:
        """An episode, to its end or until the policy stops."""
        return Played(seed, list(episode(env or self.env, policy, seed, inspect=self.inspect)))

    def elsewhere(self, episodes: Sequence[Played], hash_seed: int = 1) -> list[Any]:
        """The traces of episodes in a fresh process; the last is text if that process was lost."""
        jobs = [(done.seed, done.actions) for done in episodes]
        told, lost = child.run(self.env_id, self.kwargs, asdict(self.limits), episodes=jobs, hash_seed=hash_seed)
        return told[1:] + ([lost[0]] if lost else [] if told else ["it cannot be made there"])

    def start(self) -> None:
        """Start the clock of a check."""
        self.deadline = time.monotonic() + self.limits.seconds

    @property
    def is_late(self) -> bool:
        """Whether the check has used its time."""
        return time.monotonic() > self.deadline

    def seeds(self, count: int, first: int = 0) -> Iterator[int]:
        """Episode seeds, fewer where the environment is slow, but four at least."""
        for seed in range(first, first + count):
            if seed - first >= 4 and self.is_late:
                return
            yield seed

    def task(self, env: gymnasium.Env[str, str], seed: int) -> Task:
        """The task of a seed."""
        done = self.play(expert if self.expert else follow([]), seed, env)
        told = "\n".join(step.observation for step in done.trace)
        return Task(str(done.begun.get("task_id", "")), told, "\n".join(done.actions))

    def policy(self, seed: int) -> Policy:
        """The expert on even seeds, where there is one, and a policy of odd words on the others."""
        return expert if self.expert and seed % 2 == 0 else mixed(seed)

    def status(self, name: str) -> str:
        """Of an earlier check: "pass", "fail" or "skip"; "skip" if it crashed."""
        return self.found[name].status if name in self.found else "skip"


def make(env_id: str, kwargs: dict[str, Any]) -> gymnasium.Env[str, str]:
    """The environment of an id, as `mrlm check` takes it.

    Raises:
        Unknown: If there is no such environment.
    """
    if env_id.startswith(OPENENV):
        address = env_id.removeprefix(OPENENV)
        kwargs = {"address": address if "//" in address else f"http://{address}", **kwargs}
        env_id = "mrlm/OpenEnv-v0"
    module, _, name = env_id.rpartition(":")
    try:
        if not (module and name.isidentifier()):
            return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        factory = getattr(importlib.import_module(module), name)
    except (gymnasium.error.Error, ImportError, AttributeError) as error:
        near = "" if set(":/") & set(env_id) else f" ({nearest(env_id, mrlm_envs.ENVIRONMENTS)})"
        raise Unknown(f"environment {env_id}: {error}{near}") from error
    made = factory(**kwargs)
    if not hasattr(made, "possible_agents"):
        return made
    from mrlm_envs.checks.games import GameSide

    return GameSide(made)
