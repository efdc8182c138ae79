"""One episode in progress: an environment session on one side, and on the other an engine or an expert.

`Dialogue` turns what a session observes and rewards into an `Episode` of messages; an expert acts in text.
`EpisodeConversation` adds the token ids: what an engine samples and what the environment answers, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np

from mrlm_envs.core import EnvFault, clean
from mrlm_envs.llm.client import ChatError, ChatReply
from mrlm_train.episodes.chat import opening
from mrlm_train.episodes.record import Episode, tokenizer_hash
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.inference.types import End, Feed, Wait
from mrlm_train.rollout.pool import EnvPool, StepTimeout, fit

ScoreFunction = Callable[[str, float, dict[str, Any]], float]
"""`(observation, reward, info) -> reward`: the reward of a step as the episode keeps it; raises if it is not finite."""


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


class Session(Protocol):
    """What a dialogue talks to: an environment of its own, or one agent's side of a game."""

    def reset(self, score: ScoreFunction) -> Future[Any]:
        """The first observation: `(observation, info, terminated, truncated)`.

        `score` is called on the environment's thread, in every step.
        """
        ...

    def step(self, action: str) -> Future[Any]:
        """`(observation, reward, terminated, truncated, info)`."""
        ...

    def stop_acting(self) -> Future[Any] | None:
        """The policy has no budget left: the final result, as from `step`, if there is one to wait for."""
        ...

    def expert(self) -> str | None:
        """The environment's own reference action, None if it has none."""
        ...

    def close(self, has_failed: bool) -> None:
        """The episode is over."""
        ...


class EnvironmentSession:
    """A single-agent environment of the pool."""

    def __init__(self, pool: EnvPool, request: Request) -> None:
        self._pool, self._request = pool, request
        self._env: gymnasium.Env | None = None
        self.privileged: dict[str, list[Any]] = {name: [] for name in pool.privileged}

    def reset(self, score: ScoreFunction) -> Future[Any]:
        self._score = score
        return self._pool.submit(self._reset)

    def step(self, action: str) -> Future[Any]:
        return self._pool.submit(lambda: self._step(action))

    def stop_acting(self) -> None:
        return None

    def expert(self) -> str | None:
        assert self._env is not None
        expert: Any = getattr(self._env.unwrapped, "expert", None)
        return None if expert is None else expert()

    def close(self, has_failed: bool) -> None:
        if self._env is None:
            return
        if has_failed:
            self._pool.drop(self._env)  # in whatever state it is, no other episode gets it
        else:
            self._pool.give(self._request.entry, self._env)
        self._env = None

    def _reset(self) -> tuple[str, dict[str, Any], bool, bool]:
        env = self._env = self._pool.take(self._request.entry)
        observation, info = env.reset(seed=self._request.seed, options=self._request.options or None)
        self._record_privileged(env)
        return _text(observation), info, False, False

    def _step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        env = self._env
        assert env is not None
        observation, reward, terminated, truncated, info = env.step(fit(env.action_space, action))
        self._record_privileged(env)
        observation = _text(observation)
        return observation, self._score(observation, float(reward), info), bool(terminated), bool(truncated), info

    def _record_privileged(self, env: gymnasium.Env) -> None:
        for name, values in self.privileged.items():
            method = getattr(env.unwrapped, name, None)
            values.append(method() if callable(method) else None)


class Dialogue:
    """An episode in messages. Where its agent is to act, `poll` returns `Feed` and `act` takes the action.

    Attributes:
        session: Where it is played.
        episode: The record, complete after `End`.
    """

    def __init__(
        self,
        pool: EnvPool,
        request: Request,
        session: Session,
        policy: str,
        progress: Callable[[Episode], object] | None = None,
        agent: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        """
        Args:
            pool: Of the environment.
            request: The episode asked for.
            session: Where it is played.
            policy: Name of who acts.
            progress: Called with the episode at its end.
            agent: Which agent of a game.
            system_prompt: Replaces the environment's own.
        """
        entry = pool.envs[request.entry]
        self.session, self._reward_function = session, pool.rewards[request.entry]
        self._progress, self._system_prompt = progress, system_prompt
        self._is_over = False
        self._limit: str | None = None  # the budget that is spent
        self.episode = Episode(
            env_id=entry.id,
            kwargs=entry.record,
            seed=request.seed,
            options=request.options,
            group_id=entry.group_id(request.seed, request.options) + (f"/{agent}" if agent is not None else ""),
            agent=agent,
            name="" if pool.names[request.entry] == entry.id else pool.names[request.entry],
            policy=policy,
        )
        self._result: Future[Any] | None = session.reset(self._score)
        self._has_begun = False

    def poll(self) -> Feed | Wait | End:
        """What to do next; see `inference.types.Conversation`. The ids of `Feed` are the subclass's."""
        if self._is_over or self._result is None:
            self._notify()
            return End()
        if not self._result.done():
            return Wait(self._result)
        result, self._result = self._result, None
        heard: Any
        try:
            heard = result.result()
        except EnvFault as fault:
            return self._fail("env_fault", fault)
        except StepTimeout as error:
            if not self._has_begun:
                return self._fail("env_error", error)
            # a policy must not be able to void an episode: the action that hangs has failed
            heard = "", 0.0, True, False, {"stop_reason": "step_timeout"}
        except Exception as error:  # a third-party environment may raise anything, and none of it ends the run
            return self._fail("env_error", error)
        try:
            ids = self._on_step(*heard) if self._has_begun else self._on_reset(*heard)
        except Exception as error:  # and so may a third party's chat template
            return self._fail("render_error", error)
        return self.poll() if ids is None else Feed(ids)

    def act(self, action: str) -> None:
        """Take the agent's turn."""
        self._add_turn(action)
        self._result = self.session.step(action)

    def render_opening(self, messages: list[dict[str, Any]], info: dict[str, Any]) -> list[int]:
        """Ids to feed for the opening messages."""
        return []

    def render_reply(self, observation: str, role: str) -> list[int]:
        """Ids to feed for an observation."""
        return []

    def take(self, ids: list[int]) -> str | None:
        """Take ids into the context, or name the limit that leaves no room for them and another turn."""
        return None

    def _add_turn(self, action: str) -> None:
        self.episode.messages.append({"role": "assistant", "content": action})
        self.episode.turn_rewards.append(0.0)

    def _on_reset(self, observation: str, info: dict[str, Any], terminated: bool, truncated: bool) -> list[int] | None:
        episode, self._has_begun = self.episode, True
        episode.info |= info
        episode.task_id = info.get("task_id")
        episode.messages = opening(observation, info, self._system_prompt)
        ids = self.render_opening(episode.messages, info)
        if terminated or truncated:  # a game that was over before the agent's first turn
            self._end(info.get("stop_reason"), truncated=truncated)
            return None
        return self._feed(ids, limit=self.take([]))

    def _on_step(
        self, observation: str, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> list[int] | None:
        episode = self.episode
        if episode.turn_rewards:
            episode.turn_rewards[-1] += reward
        episode.info |= info
        role = info.get("role", "user")
        episode.messages.append({"role": role, "content": observation})
        if terminated or truncated or self._limit is not None:
            is_cut = self._limit is not None or (truncated and not terminated)
            self._end(self._limit or info.get("stop_reason"), truncated=is_cut)
            return None
        ids = self.render_reply(observation, role)
        return self._feed(ids, limit=self.take(ids))

    def _feed(self, ids: list[int], limit: str | None) -> list[int] | None:
        if limit is None:
            return ids
        self._stop(limit)
        return None

    def _score(self, observation: str, reward: float, info: dict[str, Any]) -> float:
        if self._reward_function is not None:
            heard = [*self.episode.messages, {"role": info.get("role", "user"), "content": observation}]
            reward = self._reward_function(heard, float(reward), info)
        if not math.isfinite(reward):
            raise ValueError(f"reward is {reward}")
        return float(reward)

    def _stop(self, limit: str) -> None:
        """A budget is spent: the episode ends now, or, in a game, when the others have finished it."""
        self._limit, self._result = limit, self.session.stop_acting()
        if self._result is None:
            self._end(limit, truncated=True)

    def _end(self, stop_reason: str | None, truncated: bool) -> None:
        episode = self.episode
        success = episode.info.get("success", episode.info.get("is_success"))
        episode.success = None if success is None else bool(success)
        if (truncated or stop_reason == "step_timeout") and success is None and "seed" in episode.info:
            episode.success = False  # an environment of ours was cut off before it could say so
        episode.valid = bool(episode.info.get("valid", True))
        episode.truncated, episode.terminated = truncated, not truncated
        if stop_reason is None:
            by_success = {True: "success", False: "failure", None: "terminated"}
            stop_reason = "time_limit" if truncated else by_success[episode.success]
        episode.stop_reason = stop_reason
        self._close(has_failed=stop_reason == "step_timeout")

    def _fail(self, stop_reason: str, error: Exception) -> End:
        episode = self.episode
        episode.valid, episode.truncated, episode.stop_reason = False, True, stop_reason
        episode.info["error"] = f"{type(error).__name__}: {error}"
        self._close(has_failed=True)
        self._notify()
        return End()

    def _close(self, has_failed: bool) -> None:
        self._is_over = True
        privileged: dict[str, list[Any]] = getattr(self.session, "privileged", {})
        self.episode.state_keys = list(privileged.get("state_key", ()))
        self.episode.costs_to_go = list(privileged.get("cost_to_go", ()))
        self.session.close(has_failed)

    def _notify(self) -> None:
        """Call `progress`, once. What it raises stops the run, and must not pass for a fault of the episode."""
        progress, self._progress = self._progress, None
        if progress is not None and self._is_over:
            progress(self.episode)


class EpisodeConversation(Dialogue):
    """A dialogue of a policy, token by token: an `inference.types.Conversation`."""

    def __init__(
        self,
        pool: EnvPool,
        request: Request,
        session: Session,
        policy: Policy,
        sampling: Sampling,
        settings: dict[str, Any],
        progress: Callable[[Episode], object] | None = None,
        agent: str | None = None,
        number: int = 0,
    ) -> None:
        """
        Args:
            pool: As of `Dialogue`, like `request`, `session`, `progress` and `agent`.
            request: The episode asked for.
            session: Where it is played.
            policy: Who acts.
            sampling: Its budgets.
            settings: What the Episode keeps of them.
            progress: Called with the episode at its end.
            agent: Which agent of a game.
            number: Distinguishes its samples from those of the other agents; 0 outside of games.
        """
        self._chat, self._sampling = policy.chat, sampling
        self._prompt_length = 0
        super().__init__(pool, request, session, policy.name, progress, agent, policy.chat.system_prompt)
        self.prefix = self.episode.group_id
        entropy = [request.seed, request.draw, *([number] if number else [])]
        self.seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        self.episode.tokenizer_hash = tokenizer_hash(self._chat.tokenizer)
        self.episode.sampling = {**settings, "draw": request.draw}
        self._ids: list[int] = []
        self._mask: list[int] = []
        self._log_probs: list[float | None] | None = []
        self.episode.completion_ids, self.episode.action_mask = self._ids, self._mask
        self.episode.logprobs = self._log_probs

    @property
    def budget(self) -> int:
        """Most tokens of the coming turn."""
        return min(self._sampling.max_turn_tokens, self._room[0])

    @property
    def _room(self) -> tuple[int, str]:
        """Tokens left for the episode, and the limit that is reached first."""
        left = self._sampling.max_episode_tokens - len(self._ids)
        if self._sampling.max_context is not None:
            context = self._sampling.max_context - self._prompt_length - len(self._ids)
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

    def render_opening(self, messages: list[dict[str, Any]], info: dict[str, Any]) -> list[int]:
        ids = self.episode.prompt_ids = self._chat.prompt_ids(messages, info.get("tools"))
        self._prompt_length = len(ids)
        return ids

    def render_reply(self, observation: str, role: str) -> list[int]:
        return self._chat.reply_ids(observation, role, self._ids[-1])

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
        self._mask += [mask] * len(ids)
        self._log_probs = None if log_probs is None or self._log_probs is None else self._log_probs + log_probs
        self.episode.logprobs = self._log_probs


class ChatDialogue(Dialogue):
    """A dialogue of a policy behind an endpoint, in messages alone: an `inference.endpoint.ChatConversation`.

    `episode.info` counts the tokens read and written (`prompt_tokens`, `completion_tokens`), as the endpoint does.
    """

    def __init__(
        self,
        pool: EnvPool,
        request: Request,
        session: Session,
        policy: Policy,
        sampling: Sampling,
        settings: dict[str, Any],
        progress: Callable[[Episode], object] | None = None,
        agent: str | None = None,
        number: int = 0,
    ) -> None:
        """As of `EpisodeConversation`."""
        self._sampling, self._first, self._spent = sampling, 0, 0
        super().__init__(pool, request, session, policy.name, progress, agent)
        self.episode.sampling = {**settings, "draw": request.draw}

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
        """Most tokens of the coming turn."""
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
        """The endpoint has no answer: that is not the policy's failure, so the episode is invalid."""
        self._fail("endpoint_error", error)

    def take(self, ids: list[int]) -> str | None:
        if len(self.episode.turn_rewards) == self._sampling.max_turns:
            return "turn_limit"
        return "token_limit" if self.budget < 1 else None


def _text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"observation is {type(observation).__name__}, not text")
    return clean(observation)
