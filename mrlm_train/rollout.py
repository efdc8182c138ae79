"""Rollouts: a policy plays episodes in text environments and leaves token-exact `Episode`s.

`Rollout(policy, envs, sampling).run(requests)` serves training, evaluation and collecting. Environments step off the
decoding thread; ids only ever grow; what the policy sampled is never tokenised again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from mrlm_envs.core import EnvFault, clean
from mrlm_train.chat import Chat
from mrlm_train.environments import EnvEntry, EnvLike, EnvPool, entries, fit
from mrlm_train.episodes import Episode, tokenizer_hash
from mrlm_train.generate import End, Feed, Sampling, Wait
from mrlm_train.policy import Policy

_FIRST_TRAINING_SEED = 2**24  # evaluation takes seeds from 0 up: endless sources without splits never meet it


@dataclass(frozen=True)
class Request:
    """One episode to play.

    Attributes:
        entry: index of the environment.
        seed: the episode seed, which picks the task.
        draw: tells apart episodes of the same seed (members of a group, later epochs): each samples by itself.
        options: passed to `reset`.
    """

    entry: int
    seed: int
    draw: int = 0
    options: dict[str, Any] = field(default_factory=dict)


class InvalidEpisodes(RuntimeError):
    """Too many episodes failed for reasons that are not the policy's."""


class Rollout:
    """Plays episodes with one policy in a set of environments.

    Attributes:
        seconds: wall time of the last `run`.
        sampled_tokens: tokens the policy sampled in it.
    """

    def __init__(
        self,
        policy: Policy,
        envs: EnvLike | Iterable[EnvLike] | EnvPool,
        sampling: Sampling,
        threads: int = 16,
        max_invalid_share: float = 0.25,
    ) -> None:
        """
        Args:
            policy: who acts.
            envs: where; `Request.entry` is an index into it. A pool is taken over, and closed by `close`.
            sampling: budgets and temperature. Stop ids and the context limit are the policy's unless given.
            threads: environments stepped at once.
            max_invalid_share: share of invalid episodes above which `run` raises.
        """
        self.policy = policy
        self.sampling = dataclasses.replace(
            sampling,
            stop_ids=sampling.stop_ids or policy.chat.stop_ids,
            max_context=sampling.max_context or policy.max_context,
        )
        self.pool = envs if isinstance(envs, EnvPool) else EnvPool(entries(envs), threads)
        self.envs = self.pool.envs
        self.max_invalid_share = max_invalid_share
        self.seconds, self.sampled_tokens = 0.0, 0
        self._settings = dataclasses.asdict(self.sampling)

    def run(self, requests: Iterable[Request], progress: Callable[[Episode], object] | None = None) -> list[Episode]:
        """Play the requested episodes.

        Args:
            requests: taken one by one as rows become free.
            progress: called with each episode as it ends.

        Returns: the episodes, in the order of the requests.

        Errors: InvalidEpisodes when more than `max_invalid_share` of them are invalid.
        """
        plays: list[_Play] = []

        def start() -> Iterator[_Play]:
            for request in requests:
                plays.append(_Play(self, request, progress))
                yield plays[-1]

        begin = time.perf_counter()
        with self.policy.engine(self.sampling) as engine:
            engine.run(start())
        episodes = [play.episode for play in plays]
        self.seconds = time.perf_counter() - begin
        self.sampled_tokens = sum(episode.sampled_tokens for episode in episodes)
        check_validity(episodes, self.max_invalid_share)
        return episodes

    def close(self) -> None:
        """Close the environments and their threads."""
        self.pool.close()

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_validity(episodes: Sequence[Episode], max_share: float) -> None:
    """Errors: InvalidEpisodes when more than `max_share` of the episodes are invalid; it names the first."""
    invalid = [episode for episode in episodes if not episode.valid]
    if invalid and len(invalid) > max_share * len(episodes):
        first = invalid[0]
        raise InvalidEpisodes(
            f"rollout: {len(invalid)} of {len(episodes)} episodes invalid, above max_invalid_share={max_share}; "
            f"the first: {first.env_id} seed {first.seed}: {first.info.get('error', first.stop_reason)}"
        )


class _Play:
    """One episode being played: a `generate.Conversation` on one side, an environment on the other."""

    def __init__(self, rollout: Rollout, request: Request, progress: Callable[[Episode], object] | None) -> None:
        entry = rollout.envs[request.entry]
        self._chat, self._sampling, self._pool = rollout.policy.chat, rollout.sampling, rollout.pool
        self._index, self._progress = request.entry, progress
        self._reshape = rollout.pool.rewards[request.entry]
        self._env: gymnasium.Env | None = None
        self._over = False
        self.prefix = entry.group_id(request.seed, request.options)
        self.seed = int(np.random.SeedSequence([request.seed, request.draw]).generate_state(1, np.uint64)[0])
        self.episode = Episode(
            env_id=entry.id,
            kwargs=entry.record,
            seed=request.seed,
            options=request.options,
            group_id=self.prefix,
            policy=rollout.policy.name,
            tokenizer_hash=tokenizer_hash(self._chat.tokenizer),
            sampling={**rollout._settings, "draw": request.draw},
        )
        self._ids: list[int] = []
        self._mask: list[int] = []
        self._log_probs: list[float | None] | None = []
        self._prompt_length = 0
        self._pending: Future[Any] | None = self._pool.submit(self._index, "reset", self._reset)
        self._hear = self._hear_reset

    @property
    def budget(self) -> int:
        """Most tokens of the coming turn."""
        return min(self._sampling.max_turn_tokens, self._room[0])

    @property
    def _room(self) -> tuple[int, str]:
        """Tokens left for the episode, and the limit that will be met first."""
        left = self._sampling.max_episode_tokens - len(self._ids)
        if self._sampling.max_context is not None:
            context = self._sampling.max_context - self._prompt_length - len(self._ids)
            if context < left:
                return context, "context_limit"
        return left, "token_limit"

    def poll(self) -> Feed | Wait | End:
        """See `generate.Conversation`."""
        if self._over:
            return End()
        if self._pending is not None:
            if not self._pending.done():
                return Wait(self._pending)
            pending, self._pending = self._pending, None
            try:
                heard = pending.result()
            except EnvFault as fault:
                self._fail("env_fault", fault)
            except Exception as error:  # a third-party environment may raise anything, and none of it ends the run
                self._fail("env_error", error)
            else:
                if ids := self._hear(*heard):
                    return Feed(ids)
        return End()

    def submit(self, ids: list[int], log_probs: list[float] | None) -> None:
        """See `generate.Conversation`."""
        episode = self.episode
        self._ids += ids
        self._mask += [1] * len(ids)
        if log_probs is None or self._log_probs is None:
            self._log_probs = None
        else:
            self._log_probs += log_probs
        episode.turn_ends.append(len(self._ids) - 1)
        episode.turn_rewards.append(0.0)
        action = self._chat.action_text(ids)
        episode.messages.append({"role": "assistant", "content": action})
        if ids[-1] not in self._sampling.stop_ids:
            episode.info["cut_turns"] = episode.info.get("cut_turns", 0) + 1
            left, limit = self._room
            if left < 1:
                self._end(limit, truncated=True)
                return
        self._hear = self._hear_step
        self._pending = self._pool.submit(self._index, "step", lambda: self._step(action))

    def _reset(self) -> tuple[str, dict[str, Any]]:
        self._env = self._pool.take(self._index)
        observation, info = self._env.reset(seed=self.episode.seed, options=self.episode.options or None)
        return _text(observation), info

    def _step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert self._env is not None
        observation, reward, terminated, truncated, info = self._env.step(fit(self._env.action_space, action))
        observation = _text(observation)
        if self._reshape is not None:
            heard = [*self.episode.messages, {"role": info.get("role", "user"), "content": observation}]
            reward = self._reshape(heard, float(reward), info)
        if not math.isfinite(reward):
            raise ValueError(f"reward is {reward}")
        return observation, float(reward), bool(terminated), bool(truncated), info

    def _hear_reset(self, observation: str, info: dict[str, Any]) -> list[int]:
        episode = self.episode
        episode.info |= info
        episode.task_id = info.get("task_id")
        episode.messages = self._chat.opening(observation, info)
        episode.prompt_ids = self._chat.prompt_ids(episode.messages, info.get("tools"))
        self._prompt_length = len(episode.prompt_ids)
        left, limit = self._room
        if left < 1:
            self._end(limit, truncated=True)
            return []
        return episode.prompt_ids

    def _hear_step(
        self, observation: str, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> list[int]:
        episode = self.episode
        episode.turn_rewards[-1] += reward
        episode.info |= info
        role = info.get("role", "user")
        episode.messages.append({"role": role, "content": observation})
        if terminated or truncated:
            self._end(info.get("stop_reason"), truncated=truncated and not terminated)
            return []
        if len(episode.turn_ends) == self._sampling.max_turns:
            self._end("turn_limit", truncated=True)
            return []
        ids = self._chat.reply_ids(observation, role, self._ids[-1])
        left, limit = self._room
        if left <= len(ids):
            self._end(limit, truncated=True)
            return []
        self._ids += ids
        self._mask += [0] * len(ids)
        if self._log_probs is not None:
            self._log_probs += [None] * len(ids)
        return ids

    def _end(self, stop_reason: str | None, truncated: bool) -> None:
        episode = self.episode
        success = episode.info.get("success", episode.info.get("is_success"))
        episode.success = None if success is None else bool(success)
        if truncated and success is None and "seed" in episode.info:
            episode.success = False  # an environment of ours was cut before it could say so
        episode.valid = bool(episode.info.get("valid", True))
        episode.truncated, episode.terminated = truncated, not truncated
        if stop_reason is None:
            by_success = {True: "success", False: "failure", None: "terminated"}
            stop_reason = "time_limit" if truncated else by_success[episode.success]
        episode.stop_reason = stop_reason
        self._close()

    def _fail(self, stop_reason: str, error: Exception) -> None:
        episode = self.episode
        episode.valid, episode.truncated, episode.stop_reason = False, True, stop_reason
        episode.info["error"] = f"{type(error).__name__}: {error}"
        if self._env is not None:
            self._pool.drop(self._env)  # whatever state it is in, no other episode gets it
            self._env = None
        self._close()

    def _close(self) -> None:
        self._over = True
        self.episode.completion_ids, self.episode.action_mask = self._ids, self._mask
        self.episode.logprobs = self._log_probs
        if self._env is not None:
            self._pool.give(self._index, self._env)
            self._env = None
        if self._progress is not None:
            self._progress(self.episode)


def _text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"observation is {type(observation).__name__}, not text")
    return clean(observation)


def training_tasks(pool: EnvPool, count: int, seed: int) -> tuple[list[int], list[int]]:
    """The tasks of a whole training run: `(entry, episode seed)` of each, drawn from `seed`.

    Environments are drawn by weight. An endless source never repeats a seed. A finite one goes through its n tasks in a
    new order each pass: seed `p·n + i` is task `i` in pass `p`. A longer plan begins with the shorter.
    """
    weights = np.array([entry.weight for entry in pool.envs], dtype=np.float64)
    draws = np.random.default_rng(seed).random(count)
    picks = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], draws, side="right")
    seeds = np.zeros(count, dtype=np.int64)
    for index in range(len(pool.envs)):
        places = np.flatnonzero(picks == index)
        rng = np.random.default_rng([seed, index])
        size = pool.num_tasks(index)
        if size is None:
            seeds[places] = np.arange(len(places)) + rng.integers(_FIRST_TRAINING_SEED, 2**30)
        else:
            passes = [p * size + rng.permutation(size) for p in range(math.ceil(len(places) / size))]
            seeds[places] = np.concatenate([*passes, np.zeros(0, np.int64)])[: len(places)]
    return picks.tolist(), seeds.tolist()


def group_requests(pool: EnvPool, tasks: int, group_size: int, seed: int) -> list[Request]:
    """`group_size` attempts at each of `tasks` tasks drawn as for training; a group comes one after another.

    Request i has draw i, so that it can be told from all others.
    """
    drawn = zip(*training_tasks(pool, tasks, seed), strict=True)
    return [
        Request(entry, task, draw=group * group_size + member)
        for group, (entry, task) in enumerate(drawn)
        for member in range(group_size)
    ]


def expert_episodes(
    envs: EnvLike | Iterable[EnvLike],
    n: int,
    seed: int = 0,
    chat: Chat | None = None,
    keep: Callable[[Episode], bool] | None = None,
) -> list[Episode]:
    """Episodes of the environments' own experts (`env.unwrapped.expert()`) on tasks drawn as for training.

    Args:
        envs: with an expert.
        n: how many episodes.
        seed: draws the tasks.
        chat: makes their ids; None leaves them as messages.
        keep: only episodes it accepts count (default: all valid ones).

    Errors: ValueError when an environment has no expert, or when `keep` accepts too few.
    """
    pool = EnvPool(entries(envs), threads=1)
    kept: list[Episode] = []
    tries = 20 * n if keep else n + 100
    try:
        for index, task in zip(*training_tasks(pool, tries, seed), strict=True):
            if len(kept) == n:
                break
            episode = _play_expert(pool.envs[index], pool, index, task)
            if episode.valid and (keep is None or keep(episode)):
                kept.append(episode if chat is None else chat.with_ids(episode))
    finally:
        pool.close()
    if len(kept) < n:
        raise ValueError(f"experts: only {len(kept)} of {tries} episodes passed the filter, {n} were asked for")
    return kept


def _play_expert(entry: EnvEntry, pool: EnvPool, index: int, seed: int) -> Episode:
    env = pool.take(index)
    inner: Any = env.unwrapped
    if not callable(getattr(inner, "expert", None)):
        raise ValueError(f"environment {entry.id} has no expert(); collect with a policy, or give an episodes file")
    episode = Episode(entry.id, entry.record, seed, group_id=entry.group_id(seed, {}), policy="expert")
    observation, info = env.reset(seed=seed)
    episode.task_id = info.get("task_id")
    system = info.get("system")
    episode.messages = [{"role": "system", "content": system}] if system else []
    episode.messages.append({"role": "user", "content": observation})
    episode.info |= info
    terminated = truncated = False
    while not (terminated or truncated):
        action = inner.expert()
        if action is None:
            raise ValueError(f"environment {entry.id}: expert() has no action for seed {seed}")
        observation, reward, terminated, truncated, info = env.step(action)
        episode.messages.append({"role": "assistant", "content": action})
        episode.messages.append({"role": info.get("role", "user"), "content": observation})
        episode.turn_rewards.append(float(reward))
        episode.info |= info
    success = episode.info.get("success", episode.info.get("is_success"))
    episode.success = None if success is None else bool(success)
    episode.valid = bool(episode.info.get("valid", True))
    episode.terminated, episode.truncated = terminated, truncated and not terminated
    episode.stop_reason = str(episode.info.get("stop_reason", "time_limit" if truncated else "terminated"))
    pool.give(index, env)
    return episode
