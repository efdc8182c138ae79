"""A zero-sum number game for two, as a PettingZoo environment of text: something to learn by playing oneself.

A pile of `low` to `high` matches lies on the table. The players take 1, 2 or 3 in turn, and who takes the last one wins
(+1, the other -1). Whoever says anything but a number that can be taken loses at once. The winning way is to leave a
multiple of four.

    mrlm train --config examples/configs/number_game.yaml
"""

from typing import Any, ClassVar

import numpy as np
from pettingzoo import AECEnv

from mrlm_envs.spaces import Unicode

MOST = 3  # matches one may take


class NumberGame(AECEnv[str, str, str | None]):
    """The game; the agents are "first" and "second"."""

    metadata: ClassVar[dict[str, Any]] = {"name": "number_game_v0", "is_parallelizable": False}

    def __init__(self, low: int = 3, high: int = 8) -> None:
        super().__init__()
        self.possible_agents = ["first", "second"]
        self.low, self.high = low, high
        self.space = Unicode()
        self.render_mode = None
        self.rng = np.random.default_rng()

    def observation_space(self, agent: str) -> Unicode:
        return self.space

    def action_space(self, agent: str) -> Unicode:
        return self.space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.left = int(self.rng.integers(self.low, self.high + 1))
        self.agents = list(self.possible_agents)
        self.agent_selection = "first"
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: {} for agent in self.agents}

    def observe(self, agent: str) -> str:
        return f"{self.left} left"

    def step(self, action: str | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(None)
            return
        other = self.possible_agents[agent == "first"]
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        taken = int(action) if action in ("1", "2", "3") else 0
        is_legal = 0 < taken <= self.left
        if is_legal:
            self.left -= taken
        if not is_legal or self.left == 0:
            self.rewards = {agent: 1.0 if is_legal else -1.0, other: -1.0 if is_legal else 1.0}
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = other
        self._accumulate_rewards()

    def expert(self, agent: str) -> str:
        """Any legal move: enough to teach the form of an answer, and nothing about winning."""
        return str(self.rng.integers(1, min(MOST, self.left) + 1))


def env(**kwargs: Any) -> NumberGame:
    """The game; `kwargs` are `NumberGame`'s."""
    return NumberGame(**kwargs)


def careless(messages: list[dict[str, str]], rng: np.random.Generator) -> str:
    """A fixed opponent: any legal move."""
    return str(rng.integers(1, min(MOST, _left(messages)) + 1))


def perfect(messages: list[dict[str, str]], rng: np.random.Generator) -> str:
    """The other end: leaves a multiple of four where it can."""
    return str(_left(messages) % (MOST + 1) or 1)


def _left(messages: list[dict[str, str]]) -> int:
    return int(messages[-1]["content"].split()[0])
