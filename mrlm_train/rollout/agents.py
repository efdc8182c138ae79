"""Who plays each agent of a game of several agents: the `agents:` of an environment entry.

    agents: {pro: policy, con: policy}                           # self-play: both agents train
    agents: {pro: policy, con: {policy: past, refresh_every: 20}}    # against itself as it was up to 20 steps ago
    agents: {pro: policy, con: runs/debate/final}                # against a frozen model, a folder or a Hub name
    agents: {pro: policy, con: "openai:NAME@http://HOST/v1"}     # against a chat endpoint (`inference/endpoint.py`)
    agents: {pro: policy, con: "my_games:cautious"}              # against a function `(messages, rng) -> str`

The policy plays the agents that are not named.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ActFunction = Callable[[list[dict[str, Any]], np.random.Generator], str]
"""An agent in Python: `(messages so far, generator seeded with the episode seed) -> action`."""

POLICY, PAST = "policy", "past"


@dataclass(frozen=True)
class AgentConfig:
    """Who plays an agent.

    Attributes:
        policy: "policy" (the policy that acts, and in training learns), "past" (a frozen copy of the policy in
            training: as it was at the start, unless `refresh_every` is set), a model folder or Hub name (frozen), a
            chat endpoint, or an `ActFunction`, also as `module:function`.
        refresh_every: Number of optimizer steps after which the frozen model becomes a copy of the current policy.
    """

    policy: str | ActFunction = POLICY
    refresh_every: int | None = None

    @property
    def trains(self) -> bool:
        """Whether the policy itself plays: its episodes are returned, and train."""
        return self.policy == POLICY

    @property
    def function(self) -> ActFunction | None:
        """The function that plays, if one does."""
        if isinstance(self.policy, str):
            is_function = ":" in self.policy and not self.policy.startswith("openai:")
            return import_name(self.policy) if is_function else None
        return self.policy

    @property
    def name(self) -> str:
        """The policy's name, as written into Episodes."""
        return self.policy if isinstance(self.policy, str) else getattr(self.policy, "__name__", "function")

    @classmethod
    def of(cls, value: Any) -> AgentConfig:
        """A configuration from a policy's name, a function, or a mapping of the fields above.

        Raises:
            ValueError: If the value is none of these.
        """
        if isinstance(value, AgentConfig):
            return value
        if isinstance(value, Mapping):
            if unknown := [key for key in value if key not in cls.__dataclass_fields__]:
                raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(cls.__dataclass_fields__)}")
            made = cls(**value)
        elif isinstance(value, str) or callable(value):
            made = cls(value)  # type: ignore[arg-type]
        else:
            raise ValueError(f"expected policy, past, a model folder or module:function, got {value!r}")
        every = made.refresh_every
        if every is not None:
            if not isinstance(every, int) or isinstance(every, bool) or every < 1:
                raise ValueError(f"refresh_every must be an integer of at least 1, got {every!r}")
            if made.trains or made.function is not None:
                raise ValueError(f"refresh_every is for past and frozen models, not for {made.name}")
        return made


def assign_agents(agents: Mapping[str, Any], possible: Sequence[str]) -> dict[str, AgentConfig]:
    """Who plays each of the `possible` agents of a game.

    Raises:
        ValueError: If an agent is unknown, its configuration is invalid, or the policy plays no agent.
    """
    if unknown := [name for name in agents if name not in possible]:
        raise ValueError(f"agents: unknown agent {unknown[0]!r}; the game has {', '.join(map(str, possible))}")
    assigned: dict[str, AgentConfig] = {}
    for name in possible:
        try:
            assigned[name] = agent = AgentConfig.of(agents.get(name, POLICY))
            _ = agent.function  # a missing function is an error now, not in the middle of a game
        except (ValueError, TypeError) as error:
            raise ValueError(f"agents.{name}: {error}") from None
    if not any(agent.trains for agent in assigned.values()):
        raise ValueError("agents: the policy plays no agent; give it one, for example {" + f"{possible[0]}: policy}}")
    return assigned


def import_name(name: str) -> Any:
    """The object that `module:name` names.

    Raises:
        ValueError: If there is no such module or name.
    """
    if ":" not in name:
        raise ValueError(f"{name!r}: expected module:name")
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r}: {error}") from None
