"""The two-agent game: a PettingZoo environment with the agents "pro" and "con".

Both speak at once in each round and then hear each other, so the parallel environment is the game, and the AEC one
(`env()`) asks both in turn before either hears the other. `mrlm/Debate-v0` is one side of it: observations, actions,
rewards and `info` are the same for each side, and so is the topic of a seed. The rewards of both sides sum to 1.

    env = mrlm_envs.debate.parallel_env(rounds=2)
    observations, infos = env.reset(seed=0)
    observations, rewards, terminations, truncations, infos = env.step({"pro": "…", "con": "…"})
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium.error import ResetNeeded
from pettingzoo import ParallelEnv

from mrlm_envs.debate.env import DebateEnv
from mrlm_envs.debate.scoring import Judge
from mrlm_envs.debate.state import State, script
from mrlm_envs.debate.topics import SIDES
from mrlm_envs.spaces import Unicode
from mrlm_envs.tasks import Source

Texts = dict[str, str]
Infos = dict[str, dict[str, Any]]


class Observation(str):
    """A `str` with the `dtype` of its space, which PettingZoo's `api_test` compares."""

    dtype = np.dtype(str)


class DebateGame(ParallelEnv[str, str, str | None]):
    """A debate between two agents; see the module docstring.

    Args:
        topic: The id of one topic; all by default.
        rounds: Statements of each side.
        tasks: A finite source of topics.
        judge: "rules", `{"llm": {…}}`, "module:function", or a function (local only).
        format: "open" or "verifiable"; None is "open" with a `topic` or `tasks`, and else "verifiable".
        split: "train", "test" or "all".
        render_mode: "ansi" makes `render()` return the debate so far.

    Raises:
        ValueError: On an unknown topic, judge, format or split, or a row that does not fit.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "mrlm_debate_v0", "render_modes": ["ansi"], "is_parallelizable": True}

    def __init__(
        self,
        topic: str | None = None,
        rounds: int = 3,
        tasks: Source | None = None,
        judge: str | Mapping[str, Any] | Judge = "rules",
        format: str | None = None,
        split: str = "train",
        render_mode: str | None = None,
    ) -> None:
        self.possible_agents, self.agents = list(SIDES), []
        # The game from pro's side; con's statements come from the other agent.
        self._env = DebateEnv(
            topic, "pro", rounds, self._con, tasks, judge, format, split=split, render_mode=render_mode
        )
        self._statements: Texts = {}
        self.render_mode, self.num_tasks = render_mode, self._env.num_tasks
        self.observation_spaces = {side: Unicode() for side in SIDES}
        self.action_spaces = {side: Unicode(self._env.max_length) for side in SIDES}

    def _con(self, state: State, side: str, rng: np.random.Generator) -> str:
        return self._statements["con"]

    @property
    def debate(self) -> State:
        """The debate so far."""
        return self._env.debate

    def observation_space(self, agent: str) -> Unicode:
        """The space of an agent's observations, the same object each time."""
        return self.observation_spaces[agent]  # pyright: ignore[reportReturnType]

    def action_space(self, agent: str) -> Unicode:
        """The space of statements, the same object each time."""
        return self.action_spaces[agent]  # pyright: ignore[reportReturnType]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Texts, Infos]:
        """Start a debate; the episode is a function of the seed, which is in `info["seed"]`.

        Args:
            seed: The episode seed; drawn when None.
            options: `{"task_id": …}` picks a topic of a finite source; others are ignored, as in PettingZoo.
        """
        named = {"task_id": options["task_id"]} if options and "task_id" in options else {}
        _, info = self._env.reset(seed=seed, options=named)
        self.agents = list(SIDES)
        return (
            {side: Observation(self.debate.briefing(side)) for side in SIDES},
            {side: {**info, "side": side} for side in SIDES},
        )

    def step(
        self, actions: Mapping[str, str | None]
    ) -> tuple[Texts, dict[str, float], dict[str, bool], dict[str, bool], Infos]:
        """Take the statements of both sides.

        Args:
            actions: `{"pro": statement, "con": statement}`.

        Returns:
            Observations, rewards, terminations, truncations and infos by agent.

        Raises:
            gymnasium.error.ResetNeeded: Before `reset` or after the end.
            TypeError: If a statement is missing or is not a `str`.
        """
        if not self.agents:
            raise ResetNeeded("DebateGame: the debate is not open; call reset() before step()")
        for side in SIDES:
            if not isinstance(actions.get(side), str):
                raise TypeError(f"DebateGame: {side} must say a str, got {type(actions.get(side)).__name__}")
        self._statements = {side: str(actions[side]) for side in SIDES}
        text, _, terminated, truncated, common = self._env.step(self._statements["pro"])
        observations: Texts = {side: Observation(text) for side in SIDES}
        rewards: dict[str, float] = dict.fromkeys(SIDES, 0.0)
        infos: Infos = {side: {**common, "rewards": {}} for side in SIDES}
        if truncated or terminated:
            self.agents = []
        for side in () if truncated else SIDES:  # both read the same when the judge has failed
            reply = self._env.replies[side]
            observations[side] = Observation(reply.text)
            rewards[side] = float(sum(reply.rewards.values()))
            infos[side] |= {"rewards": dict(reply.rewards), **reply.info}
            if terminated:
                infos[side]["success"] = reply.success
        return observations, rewards, dict.fromkeys(SIDES, terminated), dict.fromkeys(SIDES, truncated), infos

    def expert(self, agent: str) -> str:
        """An honest statement of a side for the current round."""
        # A generator of its own: asking the expert must not change the debate.
        env = self._env
        return script(env.debate, agent, np.random.default_rng([env.episode_seed, env.turn, SIDES.index(agent)]))

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The debate so far under `render_mode="ansi"`, else None."""
        if self.render_mode is None:
            return None
        said = [f"[{side}]\n{spoken[side]}" for spoken in self.debate.rounds for side in SIDES]
        return "\n\n".join([self.debate.topic.motion, *said])

    def close(self) -> None:
        """Nothing is held open."""
