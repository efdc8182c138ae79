"""One episode in progress: an environment session on one side, and whoever acts on the other.

`Dialogue` turns what a session observes and rewards into an `Episode` of messages.
`EpisodeConversation` adds the exact token ids: those an engine samples and those of the environment's answers.
`ExpertConversation` takes the environment's own reference action for each turn, `ChatDialogue` a chat endpoint's reply.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from mrlm_envs.core import EnvFault
from mrlm_envs.llm.client import ChatError, ChatReply
from mrlm_train.episodes.chat import opening
from mrlm_train.episodes.record import Episode, tokenizer_hash
from mrlm_train.inference.types import End, Feed, Wait
from mrlm_train.rollout.pool import EnvPool, StepTimeout, as_text, fit

if TYPE_CHECKING:  # torch is slow to import, and an expert needs none
    from mrlm_train.inference.policy import Policy
    from mrlm_train.inference.sampling import Sampling

Result = tuple[str, float, bool, bool, dict[str, Any]]
"""`(observation, reward, terminated, truncated, info)`, also of a reset, whose reward is 0."""

ScoreFunction = Callable[[str, float, dict[str, Any]], float]
"""`(observation, reward, info) -> reward`: the reward of a step as the episode keeps it; raises if it is not finite."""

Progress = Callable[[Episode], object]
"""Called with each episode at its end. An exception that it raises stops the run."""


@dataclass(frozen=True)
class Request:
    """One episode to play.

    Attributes:
        entry: Index of the environment.
        seed: The episode seed, which picks the task.
        draw: Distinguishes episodes of the same seed (members of a group, later epochs): each has its own samples.
        options: Passed to `reset`.
    """

    entry: int
    seed: int
    draw: int = 0
    options: dict[str, Any] = field(default_factory=dict)


class EnvironmentSession:
    """One episode of a single-agent environment of the pool; of a game's agent it is a `games.AgentSession`.

    Attributes:
        pool: Where the environment comes from, and the threads that step it.
        request: The episode asked for.
        agent: The agent of a game that acts in the session, None outside of games.
        number: The agent's place in its game, from 1; 0 outside of games.
        env: The environment, while the episode is played.
        privileged: For each method in `pool.privileged`, its values at the reset and after each step.
    """

    agent: str | None = None
    number = 0

    def __init__(self, pool: EnvPool, request: Request) -> None:
        self.pool, self.request = pool, request
        self.privileged: dict[str, list[Any]] = {name: [] for name in pool.privileged}
        self.env: Any = None

    def reset(self, score: ScoreFunction) -> Future[Result]:
        """The first observation. `score` is called on the environment's thread, in every step."""
        self._score = score
        return self.pool.submit(self._reset)

    def step(self, action: str) -> Future[Result]:
        """Take an action; the result comes when the agent is to act again, or when the episode is over."""
        return self.pool.submit(lambda: self._step(action))

    def stop_acting(self) -> Future[Result] | None:
        """End the agent's actions, as its budget is spent; returns the final result, if there is one to wait for."""
        return None

    def expert(self) -> str | None:
        """The environment's own reference action, None if it has none."""
        expert = getattr(self.env.unwrapped, "expert", None)
        return None if expert is None else expert(*([] if self.agent is None else [self.agent]))

    def close(self, has_failed: bool) -> None:
        """The episode is over."""
        if self.env is None:
            return
        if has_failed:
            self.pool.drop(self.env)  # its state is unknown, so no other episode may use it
        else:
            self.pool.give(self.request.entry, self.env)
        self.env = None

    def _reset(self) -> Result:
        self.env = self.pool.take(self.request.entry)
        observation, info = self.env.reset(seed=self.request.seed, options=self.request.options or None)
        self._record_privileged(self.env)
        return as_text(observation), 0.0, False, False, dict(info)

    def _step(self, action: str) -> Result:
        env = self.env
        observation, reward, terminated, truncated, info = env.step(fit(env.action_space, action))
        self._record_privileged(env)
        observation, info = as_text(observation), dict(info)
        return observation, self._score(observation, float(reward), info), bool(terminated), bool(truncated), info

    def _record_privileged(self, env: gymnasium.Env) -> None:
        for name, values in self.privileged.items():
            method = getattr(env.unwrapped, name, None)
            values.append(method() if callable(method) else None)


class Dialogue:
    """An episode as messages. When its agent is to act, `poll` returns `Feed`, and `act` takes the action.

    Attributes:
        session: Where it is played.
        episode: The record, complete after `End`.
    """

    def __init__(
        self,
        session: EnvironmentSession,
        policy: Policy,
        sampling: Sampling | None,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            session: Where it is played.
            policy: Who acts.
            sampling: The budgets, which the Episode records; None for an expert, which has none.
            progress: Called with the episode at its end.
        """
        pool, request = session.pool, session.request
        entry, name = pool.envs[request.entry], pool.names[request.entry]
        self.session, self._chat, self._progress = session, policy.chat, progress
        self._sampling: Any = sampling
        self._reward_function = pool.rewards[request.entry]
        self._limit: str | None = None  # the budget that is spent
        self._has_begun = self._is_over = False
        self.episode = Episode(
            env_id=entry.id,
            kwargs=entry.record,
            seed=request.seed,
            options=request.options,
            group_id=entry.group_id(request.seed, request.options) + (f"/{session.agent}" if session.agent else ""),
            agent=session.agent,
            name="" if name == entry.id else name,
            policy=policy.name,
            sampling={**dataclasses.asdict(sampling), "draw": request.draw} if sampling else {},
        )
        self._result: Future[Result] = session.reset(self._score)

    def poll(self) -> Feed | Wait | End:
        """What to do next; see `inference.types.Conversation`."""
        if self._is_over:
            return End()
        if not self._result.done():
            return Wait(self._result)
        try:
            result = self._result.result()
        except StepTimeout as error:
            if not self._has_begun:
                return self._fail("env_error", error)
            # a policy must not be able to void an episode: the action that hangs has failed
            result = "", 0.0, True, False, {"stop_reason": "step_timeout"}
        except Exception as error:  # a third-party environment may raise anything, and none of it ends the run
            return self._fail("env_fault" if isinstance(error, EnvFault) else "env_error", error)
        return self._observe(*result)

    def act(self, action: str) -> None:
        """Take the agent's turn."""
        self._add_turn(action)
        self._result = self.session.step(action)

    def render(self) -> list[int]:
        """Ids to feed for the newest message, or, the first time, for the opening messages."""
        return []

    def take(self, ids: list[int]) -> str | None:
        """Append ids to the context, or name the limit that leaves no room for them and another turn."""
        return None

    def _add_turn(self, action: str) -> None:
        self.episode.messages.append({"role": "assistant", "content": action})
        self.episode.turn_rewards.append(0.0)

    def _observe(
        self, observation: str, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> Feed | Wait | End:
        episode, is_first = self.episode, not self._has_begun
        self._has_begun = True
        episode.info |= info
        if is_first:
            episode.task_id = info.get("task_id")
            episode.messages = opening(observation, info, self._chat.system_prompt)
        else:
            episode.messages.append({"role": info.get("role", "user"), "content": observation})
            if episode.turn_rewards:
                episode.turn_rewards[-1] += reward
        is_over = terminated or truncated or self._limit is not None
        ids: list[int] = []
        if is_first or not is_over:
            try:
                ids = self.render()
            except Exception as error:  # a third party's chat template may raise anything, too
                return self._fail("render_error", error)
        if is_over:
            is_cut = self._limit is not None or (truncated and not terminated)
            return self._end(self._limit or info.get("stop_reason"), truncated=is_cut)
        limit = self.take([] if is_first else ids)
        return Feed(ids) if limit is None else self._stop(limit)

    def _score(self, observation: str, reward: float, info: dict[str, Any]) -> float:
        if self._reward_function is not None:
            messages = [*self.episode.messages, {"role": info.get("role", "user"), "content": observation}]
            reward = float(self._reward_function(messages, reward, info))
        if not math.isfinite(reward):
            raise ValueError(f"reward is {reward}")
        return reward

    def _stop(self, limit: str) -> Wait | End:
        """A budget is spent: the episode ends now, or, in a game, when the others have finished it."""
        result = self.session.stop_acting()
        if result is None:
            return self._end(limit, truncated=True)
        self._limit, self._result = limit, result
        return Wait(result)

    def _end(self, stop_reason: str | None, truncated: bool) -> End:
        episode = self.episode
        success = episode.info.get("success", episode.info.get("is_success"))
        episode.success = None if success is None else bool(success)
        if (truncated or stop_reason == "step_timeout") and success is None and "seed" in episode.info:
            episode.success = False  # an environment of ours was cut off before it could say so
        episode.valid = bool(episode.info.get("valid", True))
        episode.truncated, episode.terminated = truncated, not truncated
        by_success = {True: "success", False: "failure", None: "terminated"}
        episode.stop_reason = stop_reason or ("time_limit" if truncated else by_success[episode.success])
        return self._close(has_failed=stop_reason == "step_timeout")

    def _fail(self, stop_reason: str, error: Exception) -> End:
        episode = self.episode
        episode.valid, episode.truncated, episode.stop_reason = False, True, stop_reason
        episode.info["error"] = f"{type(error).__name__}: {error}"
        return self._close(has_failed=True)

    def _close(self, has_failed: bool) -> End:
        self._is_over = True
        privileged = self.session.privileged  # copied: a step that hangs may still append to it
        self.episode.state_keys = list(privileged.get("state_key", ()))
        self.episode.costs_to_go = list(privileged.get("cost_to_go", ()))
        self.session.close(has_failed)
        if self._progress is not None:
            self._progress(self.episode)
        return End()


class EpisodeConversation(Dialogue):
    """A dialogue of a policy, token by token: an `inference.types.Conversation`."""

    def __init__(self, session: EnvironmentSession, *settings: Any) -> None:
        """As in `Dialogue`."""
        super().__init__(session, *settings)
        request, episode = session.request, self.episode
        entropy = [request.seed, request.draw, *([session.number] if session.number else [])]
        self.seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        self.prefix = episode.group_id
        episode.tokenizer_hash = tokenizer_hash(self._chat.tokenizer)
        self._ids: list[int] = []
        episode.completion_ids, episode.action_mask, episode.logprobs = self._ids, [], []

    @property
    def budget(self) -> int:
        """Maximum number of tokens of the next turn."""
        return min(self._sampling.max_turn_tokens, self._room[0])

    @property
    def _room(self) -> tuple[int, str]:
        """Tokens left for the episode, and the limit that is reached first."""
        left = self._sampling.max_episode_tokens - len(self._ids)
        if self._sampling.max_context is not None:
            context = self._sampling.max_context - len(self.episode.prompt_ids or ()) - len(self._ids)
            if context < left:
                return context, "context_limit"
        return left, "token_limit"

    def submit(self, ids: list[int], log_probs: list[float] | None) -> None:
        """Take a sampled turn; see `inference.types.Conversation`."""
        episode = self.episode
        self._append(ids, 1, log_probs)
        episode.turn_ends.append(len(self._ids) - 1)
        action = self._chat.action_text(ids)
        if ids[-1] not in self._sampling.stop_ids:
            episode.info["cut_turns"] = episode.info.get("cut_turns", 0) + 1
            left, limit = self._room
            if left < 1:
                self._add_turn(action)
                self._stop(limit)
                return
        self.act(action)

    def render(self) -> list[int]:
        episode = self.episode
        if episode.prompt_ids is None:
            episode.prompt_ids = self._chat.prompt_ids(episode.messages, episode.info.get("tools"))
            return episode.prompt_ids
        newest = episode.messages[-1]
        return self._chat.reply_ids(newest["content"], newest["role"], self._ids[-1])

    def take(self, ids: list[int]) -> str | None:
        if len(self.episode.turn_ends) == self._sampling.max_turns:
            return "turn_limit"
        left, limit = self._room
        if left <= len(ids):
            return limit
        self._append(ids, 0, [None] * len(ids))
        return None

    def _append(self, ids: list[int], mask: int, log_probs: Any) -> None:
        self._ids += ids
        self.episode.action_mask += [mask] * len(ids)  # type: ignore[operator]
        if log_probs is None or self.episode.logprobs is None:
            self.episode.logprobs = None
        else:
            self.episode.logprobs += log_probs


class ExpertConversation(Dialogue):
    """A dialogue of the environment's own expert."""

    def __init__(self, session: EnvironmentSession) -> None:
        """
        Args:
            session: Where it is played.
        """
        expert: Any = SimpleNamespace(name="expert", chat=SimpleNamespace(system_prompt=None))
        super().__init__(session, expert, None)

    def take_turn(self) -> None:
        """Act as the expert does.

        Raises:
            ValueError: If the environment has none.
        """
        action = self.session.expert()
        if action is None:
            where = f"environment {self.episode.env_id} has no expert() for seed {self.episode.seed}"
            raise ValueError(f"{where}; collect with a policy, or give an episodes file")
        self.act(action)


class ChatDialogue(Dialogue):
    """A dialogue of a policy behind an endpoint, as messages only: an `inference.endpoint.ChatConversation`.

    `episode.info` counts the tokens read and written (`prompt_tokens`, `completion_tokens`), as the endpoint reports
    them.
    """

    _first = _spent = 0  # prompt tokens of the first turn; tokens of the episode after them

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far."""
        return self.episode.messages

    @property
    def tools(self) -> list[dict[str, Any]]:
        """Schemas of the tools that the policy may call."""
        return self.episode.info.get("tools") or []

    @property
    def budget(self) -> int:
        """Maximum number of tokens of the next turn."""
        return min(self._sampling.max_turn_tokens, self._sampling.max_episode_tokens - self._spent)

    def answer(self, reply: ChatReply) -> None:
        """Take a turn."""
        self._first = self._first or reply.prompt_tokens
        self._spent = reply.prompt_tokens + reply.completion_tokens - self._first  # all after the prompt
        counted = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        counted["cut_turns"] = int(reply.finish_reason == "length")
        for name, count in counted.items():
            self.episode.info[name] = self.episode.info.get(name, 0) + count
        self.act(reply.text)

    def fail(self, error: ChatError) -> None:
        """The endpoint gave no answer: that is not the policy's failure, so the episode is invalid."""
        self._fail("endpoint_error", error)

    def take(self, ids: list[int]) -> str | None:
        if len(self.episode.turn_rewards) == self._sampling.max_turns:
            return "turn_limit"
        return "token_limit" if self.budget < 1 else None
