"""A PettingZoo game as the Gymnasium environment of its first agent."""

from typing import Any

import gymnasium


class GameSide(gymnasium.Env[str, str]):
    """The first agent's side of a game; the others play the game's `expert(agent)`, and are silent where it has none.

    Args:
        game: Any PettingZoo environment of text, AEC or parallel.
    """

    def __init__(self, game: Any) -> None:
        if not hasattr(game, "agent_iter"):
            from pettingzoo.utils.conversions import parallel_to_aec

            game = parallel_to_aec(game)
        self.game, self.agent = game, game.possible_agents[0]
        self.metadata = {"expert": "honest" if hasattr(game.unwrapped, "expert") else None, **game.metadata}
        self.observation_space, self.action_space = game.observation_space(self.agent), game.action_space(self.agent)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a game; the observation is that of the agent's first turn."""
        self.game.reset(seed=seed, options=options)
        observation, _, _, _, info = self._until_turn()
        return observation, dict(info)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act, and let the others act until it is the agent's turn again."""
        self.game.step(action)
        return self._until_turn()

    def expert(self, agent: str | None = None) -> str | None:
        """The game's own action, for this agent or another."""
        method = getattr(self.game.unwrapped, "expert", None)
        return None if method is None else method(agent or self.agent)

    def _until_turn(self) -> tuple[str, float, bool, bool, dict[str, Any]]:
        while (acting := self.game.agent_selection) != self.agent:
            _, _, terminated, truncated, _ = self.game.last()
            self.game.step(None if terminated or truncated else self.expert(acting) or "")
        return self.game.last()

    def close(self) -> None:
        """Close the game."""
        self.game.close()
