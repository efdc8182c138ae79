"""Games of several agents (PettingZoo's), run so that each agent plays as in a single-agent environment.

A `GameRunner` runs one game. Each agent that a model plays has an `AgentSession` with `reset` and `step`, whose
results are futures: the result of a step comes when the agent's next turn does (AEC), or when all have acted
(parallel). So each agent is an ordinary conversation to the engines, and several engines can serve one game.

An agent that is out, or has no token budget left, gets its result when the game is over. Until then the game goes on,
and an agent without budget acts with "", so that stalling does not save it from losing.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from mrlm_train.episodes.chat import opening
from mrlm_train.episodes.record import Episode
from mrlm_train.rollout.agents import ActFunction
from mrlm_train.rollout.conversation import EnvironmentSession, Request, Result, ScoreFunction
from mrlm_train.rollout.pool import EnvPool, as_text, fit

MAX_SILENT_STEPS = 100  # a game in which no agent has budget left is stopped after this many steps


class Observed(NamedTuple):
    """What one agent observes."""

    agent: str
    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


class AecGame:
    """A PettingZoo game in which one agent acts at a time.

    Attributes:
        env: The environment.
        acting: The agents that act next; none when the game is over.
        opening: Each agent's `info` at `reset`, with what only `reset` gives (its system prompt).
    """

    def __init__(self, env: Any) -> None:
        self.env, self.acting = env, list[str]()
        self.opening: dict[str, dict[str, Any]] = {}

    def reset(self, seed: int, options: dict[str, Any] | None) -> list[Observed]:
        """Start a game; returns what agents observe until the first one is to act."""
        self.env.reset(seed=seed, options=options)
        self.opening = {agent: dict(info) for agent, info in self.env.infos.items()}
        return self._observe()

    def step(self, actions: Mapping[str, str]) -> list[Observed]:
        """Act; returns what agents observe until the next one is to act."""
        self.env.step(actions[self.acting[0]])
        return self._observe()

    def _observe(self) -> list[Observed]:
        observed: list[Observed] = []
        self.acting = []
        while self.env.agents and not self.acting:
            one = Observed(self.env.agent_selection, *self.env.last())
            observed.append(one)
            if one.terminated or one.truncated:
                self.env.step(None)
            else:
                self.acting = [one.agent]
        return observed


class ParallelGame(AecGame):
    """A PettingZoo game in which all agents act at once."""

    def reset(self, seed: int, options: dict[str, Any] | None) -> list[Observed]:
        observations, infos = self.env.reset(seed=seed, options=options)
        self.acting, self._out = list(self.env.agents), set[str]()
        return [Observed(name, observations[name], 0.0, False, False, infos.get(name, {})) for name in self.acting]

    def step(self, actions: Mapping[str, str]) -> list[Observed]:
        observations, rewards, terminations, truncations, infos = self.env.step(dict(actions))
        observed: list[Observed] = []
        for name in self.acting:
            truncated = truncations.get(name, False)
            is_gone = name not in self.env.agents and not truncated
            terminated = terminations.get(name, False) or is_gone
            reward, info = rewards.get(name, 0.0), infos.get(name, {})
            observed.append(Observed(name, observations.get(name, ""), reward, terminated, truncated, info))
        self._out |= {one.agent for one in observed if one.terminated or one.truncated}
        self.acting = [name for name in self.env.agents if name not in self._out]
        return observed


class AgentSession(EnvironmentSession):
    """One agent's side of a game, played by a model or a function.

    Attributes:
        function: The function that plays the agent; None if a model does.
        result: The next result.
        messages: The conversation so far, if a function plays.
        observation: The newest observation.
        info: The `info` that came with it.
        reward: Sum of the rewards since the last result.
        total: Sum of all rewards.
        has_begun: The first result has been given, or the function has its first message.
        is_silent: The agent has no budget left, and acts with "".
    """

    agent: str

    def __init__(self, game: GameRunner, agent: str, number: int, function: ActFunction | None) -> None:
        super().__init__(game.pool, game.request)
        self.game, self.agent, self.number, self.function = game, agent, number, function
        self.rng = np.random.default_rng([game.request.seed, number - 1])
        self.score: ScoreFunction | None = None
        self.result: Future[Result] = Future()
        self.messages: list[dict[str, Any]] = []
        self.observation, self.info = "", dict[str, Any]()
        self.reward = self.total = 0.0
        self.terminated = self.truncated = self.has_begun = self.is_silent = False

    def reset(self, score: ScoreFunction) -> Future[Result]:
        self.score = score
        return self.result

    def step(self, action: str) -> Future[Result]:
        return self.game.act(self, action)

    def stop_acting(self) -> Future[Result]:
        self.is_silent = True
        return self.game.act(self, "")

    def close(self, has_failed: bool) -> None:
        """The game goes on, and its runner gives the environment back, unless the agent has failed: the others wait."""
        if has_failed:
            self.game.fail(RuntimeError(f"agent {self.agent} of the game has failed"))

    def function_action(self, function: ActFunction) -> str:
        """The function's action after the newest observation."""
        heard = {"role": self.info.get("role", "user"), "content": self.observation}
        self.messages += [heard] if self.has_begun else opening(self.observation, self.info)
        self.has_begun = True
        action = function(list(self.messages), self.rng)
        self.messages.append({"role": "assistant", "content": action})
        return action


class GameRunner:
    """Runs one game.

    Attributes:
        sessions: The session of each agent, in the game's order.
    """

    def __init__(self, pool: EnvPool, request: Request, functions: Mapping[str, ActFunction | None]) -> None:
        """Starts the game.

        Args:
            pool: Where the environment comes from, and the threads that step it.
            request: The episode asked for.
            functions: For each agent, the function that plays it; None if a model does.
        """
        self.pool, self.request = pool, request
        self.sessions = {
            name: AgentSession(self, name, number, function)
            for number, (name, function) in enumerate(functions.items(), 1)
        }
        self._game: AecGame | None = None
        self._lock = threading.Lock()
        self._actions: dict[str, str] = {}
        self._awaited: set[str] = set()  # sessions whose actions the next step needs
        self._failure: BaseException | None = None
        self._submit(self._start)

    def fail(self, error: BaseException) -> None:
        """End the game for all sessions: it is invalid, or an action took too long."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
            for session in self.sessions.values():
                if not session.result.done():
                    session.result.set_exception(self._failure)
            game, self._game = self._game, None
        if game is not None:
            self.pool.drop(game.env)

    def act(self, session: AgentSession, action: str) -> Future[Result]:
        """Take an agent's action."""
        with self._lock:
            session.result = Future()
            if self._failure is not None:
                session.result.set_exception(self._failure)
                return session.result
            self._actions[session.agent] = action
            self._awaited.discard(session.agent)
            is_complete = not self._awaited
        if is_complete:
            self._submit(self._go_on)
        return session.result

    def _submit(self, call: Callable[[], None]) -> None:
        def check(future: Future[None]) -> None:
            if (error := future.exception()) is not None:
                self.fail(error)

        self.pool.submit(call).add_done_callback(check)

    def _start(self) -> None:
        env = self.pool.take(self.request.entry)
        is_aec = hasattr(env, "agent_selection") or hasattr(env, "agent_iter")
        game = self._game = AecGame(env) if is_aec else ParallelGame(env)
        observed = game.reset(self.request.seed, self.request.options or None)
        for name, session in self.sessions.items():
            session.env, session.info = env, game.opening.get(name, {})
        self._observe(observed)
        self._play(game)

    def _go_on(self) -> None:
        game = self._game
        assert game is not None
        self._step(game)
        self._play(game)

    def _play(self, game: AecGame) -> None:
        """Step until the action of a session is needed, or the game is over."""
        silent_steps = 0
        while game.acting and silent_steps < MAX_SILENT_STEPS:
            silent_steps += 1
            awaited = []
            for name in game.acting:
                agent = self.sessions[name]
                if agent.function is not None:
                    self._actions[name] = agent.function_action(agent.function)
                elif agent.is_silent:
                    self._actions[name] = ""
                else:
                    awaited.append(name)
            if awaited:
                with self._lock:
                    self._awaited = set(awaited)
                for name in awaited:  # from here on, a session may act at any moment
                    self._give_result(self.sessions[name])
                return
            self._step(game)
        self._finish()

    def _step(self, game: AecGame) -> None:
        actions, self._actions = self._actions, {}
        self._observe(game.step({name: fit(game.env.action_space(name), actions[name]) for name in game.acting}))

    def _observe(self, observed: Sequence[Observed]) -> None:
        for name, observation, reward, terminated, truncated, info in observed:
            agent = self.sessions[name]
            agent.observation = as_text(observation, f"observation of {name}")
            agent.info = dict(info) if agent.has_begun else {**agent.info, **info}
            agent.reward += float(reward)
            agent.total += float(reward)
            agent.terminated, agent.truncated = bool(terminated), bool(truncated) and not terminated

    def _finish(self) -> None:
        """The game is over: every session gets its result."""
        returns = {name: agent.total for name, agent in self.sessions.items()}
        leaders = [name for name, value in returns.items() if value == max(returns.values())]
        with self._lock:
            game, self._game = self._game, None
        if game is None:
            return  # it has failed in the meantime
        self.pool.give(self.request.entry, game.env)
        for name, agent in self.sessions.items():
            if agent.function is None:
                if not (agent.terminated or agent.truncated):  # stopped after MAX_SILENT_STEPS
                    agent.truncated, agent.observation = True, ""
                agent.info.setdefault("success", leaders == [name])
                agent.info["returns"] = returns
                self._give_result(agent)

    def _give_result(self, agent: AgentSession) -> None:
        reward = 0.0
        if agent.has_begun:
            assert agent.score is not None
            reward = agent.score(agent.observation, agent.reward, agent.info)
        with self._lock:
            agent.has_begun, agent.reward = True, 0.0
            if self._failure is None:
                agent.result.set_result((agent.observation, reward, agent.terminated, agent.truncated, agent.info))


def rows_by_request(tasks: Sequence[tuple[int, int]], agents: Sequence[int]) -> list[list[int]]:
    """The rows that each request fills: a game fills consecutive rows of its task, one for each trained agent.

    Args:
        tasks: `(entry, seed)` of each row.
        agents: Episodes that a request of each row gives.
    """
    requests: list[list[int]] = []
    for _, alike in itertools.groupby(range(len(tasks)), key=tasks.__getitem__):
        rows = list(alike)
        size = agents[rows[0]]
        requests += [rows[start : start + size] for start in range(0, len(rows), size)]
    return requests


def episode_by_row(
    episodes: Iterable[Episode], requests: Sequence[Sequence[int]], agents: Sequence[int]
) -> list[Episode]:
    """The episode of each row; where a game has fewer rows than trained agents, the agents take turns."""
    played: list[Episode] = []
    left = iter(episodes)
    for number, rows in enumerate(requests):
        given = list(itertools.islice(left, agents[rows[0]]))
        shift = number if len(rows) < len(given) else 0
        played += [given[(i + shift) % len(given)] for i in range(len(rows))]
    return played
