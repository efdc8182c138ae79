"""The environments of a run, as YAML and Python name them.

Any Gymnasium environment whose observations and actions are text can be used: `mrlm/*`, a third party's, a remote one.
So can any PettingZoo environment of text (a *game*), AEC or parallel; `agents` says who plays each of its agents.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.spaces import Text

import mrlm_envs
from mrlm_envs.core import TextEnv
from mrlm_envs.tasks import nearest
from mrlm_train.rollout.agents import AgentConfig, assign_agents, import_name

RewardFunction = Callable[[list[dict[str, Any]], float, dict[str, Any]], float]


@dataclass(frozen=True)
class EnvEntry:
    """One environment of a run, as an `envs:` list names it.

    Attributes:
        id: what `gymnasium.make` takes (`mrlm/Math-v0`, `my_package:My/Env-v0`), a short name (`math` stands for
            `mrlm/Math-v0`), `module:function` of a function that makes a PettingZoo environment, or the name of `make`.
        kwargs: keyword arguments of the environment.
        weight: share of the episodes, relative to the other entries.
        split: "train", "test" or "all", passed on where the environment knows splits; None leaves its default.
        address: `host:port[,host:port]` of `mrlm serve`, or a list of them; None runs in this process.
        wrappers: `module:Class` names or classes, applied in order; or a single one.
        reward: `module:function` or a function `(messages, reward, info) -> reward` that replaces each step's reward.
        make: a factory called with `kwargs` in place of `gymnasium.make` (or an `EnvSpec`).
        agents: who plays each agent of a PettingZoo environment, by agent name; see `agents.py`.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    split: str | None = None
    address: str | Sequence[str] | None = None
    wrappers: str | Sequence[str | Callable[[Any], Any]] = ()
    reward: str | RewardFunction | None = None
    make: EnvSpec | Callable[..., Any] | None = None
    agents: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"environment {self.id}: weight must be above 0, got {self.weight}")
        if self.agents is not None and not isinstance(self.agents, Mapping):
            raise ValueError(f"environment {self.id}: agents must map agent names to policies, got {self.agents!r}")
        if self.make is None and self.id in mrlm_envs.ENVIRONMENTS:
            object.__setattr__(self, "id", mrlm_envs.ENVIRONMENTS[self.id][0])
        elif self.make is self.address is None and self.id.isidentifier() and self.id not in gymnasium.registry:
            raise ValueError(f"unknown environment {self.id!r}; {nearest(self.id, mrlm_envs.ENVIRONMENTS)}")
        if self.address is not None and not isinstance(self.address, str):
            object.__setattr__(self, "address", ",".join(self.address))
        object.__setattr__(
            self, "wrappers", (self.wrappers,) if isinstance(self.wrappers, str) else tuple(self.wrappers)
        )

    @classmethod
    def of(cls, value: EnvLike) -> EnvEntry:
        """An entry from an id, a mapping of the fields above, an `EnvSpec`, a factory, or an entry.

        Raises:
            TypeError: If the value is an environment instance (it cannot be copied), or anything else.
            ValueError: If a key of the mapping is unknown.
        """
        if isinstance(value, EnvEntry):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, EnvSpec):
            return cls(value.id, make=value)
        if isinstance(value, Mapping):
            known = list(cls.__dataclass_fields__)
            if unknown := [key for key in value if key not in known]:
                raise ValueError(f"environment entry: unknown key {unknown[0]!r}; known: {', '.join(known)}")
            if "id" not in value:
                raise ValueError(f"environment entry {dict(value)}: 'id' is missing")
            return cls(**value)
        if isinstance(value, gymnasium.Env | gymnasium.vector.VectorEnv):
            raise TypeError(
                f"environment {value}: an instance cannot be copied; pass its id, its spec or a function that makes it"
            )
        if callable(value):
            return cls(getattr(value, "__name__", type(value).__name__), make=value)
        raise TypeError(f"environment {value!r}: expected an id, a mapping, an EnvSpec or a factory")

    def on_split(self, split: str) -> EnvEntry:
        """The entry on `split`, unless it names its own or the environment knows none."""
        has_own = self.split is not None or "split" in self.kwargs
        return self if has_own or not self._knows_splits() else replace(self, split=split)

    @cached_property
    def is_game(self) -> bool:
        """Whether it is an environment of several agents (PettingZoo's)."""
        if self.agents is not None or self.make is not None or self.address is not None:
            return self.agents is not None
        module, _, name = self.id.rpartition(":")
        if not module or not name.isidentifier():
            return False
        try:
            made_by = getattr(importlib.import_module(module), name, None)
        except ImportError:
            return False  # `build` says what is wrong with the id
        return callable(made_by) and not (inspect.isclass(made_by) and issubclass(made_by, gymnasium.Env))

    def build(self) -> Any:
        """A fresh environment: Gymnasium's, or for a game PettingZoo's.

        Raises:
            ValueError: If there is no such environment, or an argument is invalid; it names the environment.
            TypeError: If its spaces are not text, or an argument is unknown.
        """
        try:
            env = self._make()
            for wrapper in self.wrappers:
                env = (import_name(wrapper) if isinstance(wrapper, str) else wrapper)(env)
            self._check(env)
        except ModuleNotFoundError as error:
            if not self.is_game:
                raise
            needs = f'{error.name} is not installed; for PettingZoo: pip install "mrlm[debate]"'
            raise ValueError(f"environment {self.id}: {needs}") from None
        except TypeError as error:
            raise TypeError(f"environment {self.id}: {error}") from error
        except (ValueError, gymnasium.error.Error) as error:
            raise ValueError(f"environment {self.id}: {error}") from error
        return env

    def assign(self, game: Any) -> dict[str, AgentConfig]:
        """Who plays each agent of a game."""
        return assign_agents(self.agents or {}, game.possible_agents)

    def agent_configs(self) -> dict[str, AgentConfig]:
        """Who plays each agent, asked of a temporary instance of the game; empty if it is not a game."""
        if not self.is_game:
            return {}
        with closing(self.build()) as game:
            return self.assign(game)

    def _make(self) -> Any:
        if self.is_game and self.address is not None:
            raise ValueError("a game of several agents runs in this process; remove address")
        if callable(self.make):
            return self.make(**self._kwargs)
        if self.is_game:
            if ":" not in self.id:
                raise ValueError("agents are for PettingZoo environments, named module:function")
            return import_name(self.id)(**self._kwargs)
        remote = {} if self.address is None else {"address": self.address, "env_id": self.id}
        name = "mrlm/Remote-v0" if remote else self.id
        spec = self.make or (f"mrlm_envs:{name}" if name.startswith("mrlm/") else name)
        return gymnasium.make(spec, disable_env_checker=True, **remote, **self._kwargs)

    def _check(self, env: Any) -> None:
        if self.is_game:
            if not getattr(env, "possible_agents", None):
                raise TypeError(f"{type(env).__name__} is not a PettingZoo environment with named agents")
            self.assign(env)
            spaces = {
                f"the {what} space of {agent!r}": getattr(env, f"{what}_space")(agent)
                for agent in env.possible_agents
                for what in ("observation", "action")
            }
        else:
            spaces = {f"its {what} space": getattr(env, f"{what}_space") for what in ("observation", "action")}
        for what, space in spaces.items():
            if not isinstance(space, Text):
                raise TypeError(f"{what} is {space}, not text; wrap it into one that is")

    def _knows_splits(self) -> bool:
        if self.id.startswith("mrlm/"):
            return True
        try:  # if anything else is wrong, `build` says what
            if self.address is not None:  # the server knows
                replace(self, split="train")._make().close()
                return True
            creator: Any = self.make if callable(self.make) else self._creator()
        except (ValueError, TypeError, ImportError, gymnasium.error.Error):
            return False
        is_ours = inspect.isclass(creator) and issubclass(creator, TextEnv)
        return is_ours or "split" in inspect.signature(creator).parameters

    def _creator(self) -> Any:
        """The callable that makes the environment named by the id or the spec."""
        if self.is_game:
            return import_name(self.id)
        spec = self.make
        if spec is None:
            module, _, name = self.id.rpartition(":")
            if module:  # `my_package:My/Env-v0`: importing it registers the id
                importlib.import_module(module)
            spec = gymnasium.spec(name)
        entry_point: Any = spec.entry_point  # type: ignore[union-attr]
        return entry_point if callable(entry_point) else load_env_creator(str(entry_point))

    @cached_property
    def _kwargs(self) -> dict[str, Any]:
        return self.kwargs if self.split is None else {**self.kwargs, "split": self.split}

    @cached_property
    def record(self) -> dict[str, Any]:
        """The kwargs as Episodes keep them, split included; a large value, such as a table of tasks, as its digest."""
        texts = {name: _json(value) for name, value in self._kwargs.items()}
        return {name: self._kwargs[name] if len(text) <= 2000 else _digest(text) for name, text in texts.items()}

    @cached_property
    def changes(self) -> dict[str, Any]:
        """The names of the reward and the wrappers that change the environment; {} without any."""
        named = {"reward": self.reward and _name(self.reward), "wrappers": [*map(_name, self.wrappers)]}
        return {key: value for key, value in named.items() if value}

    def group_id(self, seed: int, options: Mapping[str, Any]) -> str:
        """The common id of episodes of this environment with these kwargs, reward, wrappers, seed and options.

        Not the address: it says where a task is played, not which.
        """
        if not (self.record or options or self.agents or self.changes):
            return f"{self.id}/{seed}"
        more = "".join(_json(part) for part in (self.agents, self.changes) if part)
        return f"{self.id}/{seed}/{_digest(self._record_text + _json(dict(options)) + more)}"

    @cached_property
    def _record_text(self) -> str:
        return _json(self.record)


def _name(value: Any) -> str:
    """`module:name` of a class or function; the same in every process, as its `repr` is not."""
    made = value if hasattr(value, "__qualname__") else type(value)
    return value if isinstance(value, str) else f"{made.__module__}:{made.__qualname__}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


EnvLike = EnvEntry | EnvSpec | str | Mapping[str, Any] | Callable[..., Any]


def entries(envs: EnvLike | Iterable[EnvLike]) -> list[EnvEntry]:
    """Entries from one environment or several.

    Raises:
        ValueError: If there is none.
    """
    single = isinstance(envs, str | Mapping | EnvSpec | EnvEntry | gymnasium.Env) or callable(envs)
    made = [EnvEntry.of(env) for env in ([envs] if single else envs)]  # type: ignore[list-item, union-attr]
    if not made:
        raise ValueError("envs is empty; name at least one environment")
    return made
