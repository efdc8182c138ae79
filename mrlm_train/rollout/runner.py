"""Rollouts: a policy plays episodes in text environments; the results are token-exact `Episode`s.

`Rollout(policy, envs, sampling).run(requests)` serves training, evaluation, collecting and self-play. Environments step
off the decoding thread, contexts only grow, and sampled ids are never tokenised again. In a game of several agents each
agent has a conversation of its own; the conversations of a frozen model are decoded by an engine of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np

from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode
from mrlm_train.inference.batch_engine import BatchEngine
from mrlm_train.inference.endpoint import EndpointPolicy
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.branches import Branch, BranchConversation, BranchSession
from mrlm_train.rollout.conversation import (
    ChatDialogue,
    EnvironmentSession,
    EpisodeConversation,
    ExpertConversation,
    Progress,
    Request,
)
from mrlm_train.rollout.environments import EnvLike, entries
from mrlm_train.rollout.games import AgentSession, GameRunner
from mrlm_train.rollout.opponents import Opponents
from mrlm_train.rollout.pool import STEP_TIMEOUT, EnvPool

__all__ = ["InvalidEpisodes", "Request", "Rollout", "expert_episodes", "group_requests", "training_tasks"]

_FIRST_TRAINING_SEED = 2**24  # evaluation takes seeds from 0 up, so training never meets its tasks


class InvalidEpisodes(RuntimeError):
    """Too many episodes failed for reasons that are not the policy's, or no prompt fits into the context."""


class Rollout:
    """Plays episodes with one policy in a set of environments.

    Attributes:
        seconds: Wall time of the last `run`.
        sampled_tokens: Tokens that the policy sampled in it.
    """

    def __init__(
        self,
        policy: Policy,
        envs: EnvLike | Iterable[EnvLike] | EnvPool,
        sampling: Sampling,
        threads: int = 16,
        max_invalid_share: float = 0.25,
        opponents: Opponents | None = None,
        step_timeout: float = STEP_TIMEOUT,
    ) -> None:
        """
        Args:
            policy: Who acts.
            envs: Where; `Request.entry` is an index into it. A pool is taken over, and closed by `close`.
            sampling: Budgets and temperature. Stop ids and the context limit are the policy's unless given.
            threads: Environments stepped at once.
            max_invalid_share: Share of invalid episodes above which `run` raises.
            opponents: The frozen models of games; loaded by path unless given.
            step_timeout: Most seconds of a reset or a step, unless `envs` is a pool. A step that takes longer ends
                its episode with reward 0 and `stop_reason` "step_timeout"; the episode is valid.
        """
        self.policy = policy
        self.sampling = _fitted(sampling, policy)
        self.pool = envs if isinstance(envs, EnvPool) else EnvPool(entries(envs), threads, step_timeout)
        self.envs = self.pool.envs
        self.max_invalid_share = max_invalid_share
        self.opponents = Opponents(policy, self.pool.agents) if opponents is None else opponents
        self._frozen()  # a missing model is an error now, not in the middle of a run
        self.seconds, self.sampled_tokens = 0.0, 0
        self._has_sampled = False
        self._asked = sampling

    def run(self, requests: Iterable[Request], progress: Progress | None = None) -> list[Episode]:
        """Play the requested episodes.

        Args:
            requests: Taken one by one as rows become free.
            progress: Called with each episode as it ends.

        Returns:
            The episodes, in the order of the requests. A game gives one for each agent that the policy plays, in the
            order of its agents, and none for the others.

        Raises:
            InvalidEpisodes: If more than `max_invalid_share` of them are invalid, or, before the first token has been
                sampled, all prompts are longer than the context.
        """
        begin = time.perf_counter()
        schedule = _Schedule(self, requests, progress)
        self._decode(schedule)
        episodes = [conversation.episode for conversation in schedule.returned]
        self.seconds = time.perf_counter() - begin
        self.sampled_tokens = sum(episode.sampled_tokens for episode in episodes)
        self._has_sampled = self._has_sampled or self.sampled_tokens > 0
        check_validity(episodes, self.max_invalid_share)
        self._check_prompts(episodes)
        return episodes

    def _check_prompts(self, episodes: Sequence[Episode]) -> None:
        cut = [e for e in episodes if e.stop_reason == "context_limit" and not e.turn_rewards]
        if not cut:
            return
        first = cut[0]
        message = (
            f"rollout: {len(cut)} of {len(episodes)} prompts leave no room in the context of "
            f"{self.sampling.max_context} tokens, so their episodes have no turns; the first: {first.env_id} seed "
            f"{first.seed}, {len(first.prompt_ids or ())} tokens; take shorter prompts or a longer context"
        )
        if len(cut) == len(episodes) and not self._has_sampled:
            raise InvalidEpisodes(message)
        warnings.warn(message, stacklevel=3)

    def _decode(self, schedule: _Schedule) -> None:
        """Run the policy's engine here, and that of each frozen model in a thread: they wait for each other's moves."""
        frozen = self._frozen()
        with ThreadPoolExecutor(max(1, len(frozen)), "mrlm-opponent") as threads:

            def serve(model: Policy) -> None:
                try:
                    with model.engine(self.sampling_of(model)) as engine:
                        engine.run(schedule.conversations(model))
                except BaseException as error:
                    schedule.fail(error)  # the others would wait for its moves for ever
                    raise

            others = [threads.submit(serve, model) for model in frozen]
            serve(self.policy)
            for future in others:
                future.result()

    def _frozen(self) -> list[Policy]:
        """The frozen models that play, each once."""
        agents = [agent for agents in self.pool.agents for agent in agents.values()]
        models = [self.opponents(agent) for agent in agents if agent.function is None]
        return list({id(model): model for model in models if model is not self.policy}.values())

    def sampling_of(self, model: Policy) -> Sampling:
        """The settings with a model's own stop ids and context limit."""
        return self.sampling if model is self.policy else _fitted(self._asked, model)

    def close(self) -> None:
        """Close the environments and their threads."""
        self.pool.close()

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _fitted(sampling: Sampling, policy: Policy) -> Sampling:
    return dataclasses.replace(
        sampling,
        stop_ids=sampling.stop_ids or policy.chat.stop_ids,
        max_context=sampling.max_context or policy.max_context,
    )


class _Schedule:
    """Starts the episodes of each request when an engine first has room, and assigns each engine its conversations.

    Attributes:
        returned: The conversations of the agents that the policy plays, in the order of the requests.
    """

    def __init__(self, rollout: Rollout, requests: Iterable[Request], progress: Progress | None) -> None:
        self.returned: list[EpisodeConversation] = []
        self._rollout, self._requests, self._progress = rollout, iter(requests), progress
        self._started: list[list[tuple[Policy, EpisodeConversation]]] = []  # by request
        self._games: list[GameRunner] = []
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def conversations(self, model: Policy) -> Iterator[EpisodeConversation]:
        """The conversations of a model's engine."""
        for number in itertools.count():
            with self._lock:
                if number == len(self._started):
                    request = next(self._requests, None)
                    if request is None or self._failure is not None:
                        return
                    self._started.append(self._start(request))
            for owner, conversation in self._started[number]:
                if owner is model:
                    yield conversation

    def fail(self, error: BaseException) -> None:
        """An engine has stopped: end every game, so that the other engines stop as well."""
        with self._lock:
            self._failure = error
            games = list(self._games)
        for game in games:
            game.fail(error)

    def _start(self, request: Request) -> list[tuple[Policy, EpisodeConversation]]:
        rollout, pool = self._rollout, self._rollout.pool
        agents = pool.agents[request.entry]
        if not agents:
            make = BranchSession if isinstance(request, Branch) else EnvironmentSession
            return [self._conversation(rollout.policy, make(pool, request), is_returned=True)]
        game = GameRunner(pool, request, {name: agent.function for name, agent in agents.items()})
        self._games.append(game)
        return [
            self._conversation(rollout.opponents(agent), game.sessions[name], agent.trains)
            for name, agent in agents.items()
            if agent.function is None
        ]

    def _conversation(
        self, model: Policy, session: EnvironmentSession | AgentSession, is_returned: bool
    ) -> tuple[Policy, EpisodeConversation]:
        progress = self._progress if is_returned else None
        kind: Any = ChatDialogue if isinstance(model, EndpointPolicy) else EpisodeConversation
        if isinstance(session, BranchSession):
            kind = BranchConversation
        conversation = kind(session, model, self._rollout.sampling_of(model), progress)
        if is_returned:
            self.returned.append(conversation)
        return model, conversation


def check_validity(episodes: Sequence[Episode], max_share: float) -> None:
    """Stop when too many episodes are invalid.

    Raises:
        InvalidEpisodes: If more than `max_share` of them are; it names the first.
    """
    invalid = [episode for episode in episodes if not episode.valid]
    if invalid and len(invalid) > max_share * len(episodes):
        first = invalid[0]
        raise InvalidEpisodes(
            f"rollout: {len(invalid)} of {len(episodes)} episodes invalid, above max_invalid_share={max_share}; "
            f"the first: {first.env_id} seed {first.seed}: {first.info.get('error', first.stop_reason)}"
        )


def training_tasks(pool: EnvPool, count: int, seed: int) -> tuple[list[int], list[int]]:
    """The tasks of a whole training run: the entry and the episode seed of each, drawn from `seed`.

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
    """`group_size` attempts at each of `tasks` tasks drawn as for training; the members of a group are consecutive.

    Request i has draw i, so that no two have the same samples.
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

    In a game, `expert(agent)` acts for every agent; each agent that the policy plays gives an episode.

    Args:
        envs: With an expert.
        n: How many episodes.
        seed: Draws the tasks.
        chat: Makes their ids; None leaves them as messages.
        keep: Only episodes that it accepts count (default: all valid ones).

    Raises:
        ValueError: If an environment has no expert, or `keep` accepts too few episodes.
    """
    kept: list[Episode] = []
    tries = 20 * n if keep else n + 100
    error = ""
    with closing(EnvPool(entries(envs), threads=1)) as pool:
        for index, task in zip(*training_tasks(pool, tries, seed), strict=True):
            for episode in _play_expert(pool, Request(index, task)):
                if episode.valid and (keep is None or keep(episode)):
                    kept.append(episode if chat is None else chat.with_ids(episode))
                error = error or str(episode.info.get("error", ""))
            if len(kept) >= n:
                return kept[:n]
    why = f"; the first failure: {error}" if error else ""
    raise ValueError(f"experts: only {len(kept)} of {tries} episodes passed the filter, {n} were asked for{why}")


def _play_expert(pool: EnvPool, request: Request) -> list[Episode]:
    """The episodes of one request, played by the environment's expert; in a game, those of the policy's agents."""
    agents = pool.agents[request.entry]
    sessions: list[EnvironmentSession | AgentSession]
    if agents:
        sessions = list(GameRunner(pool, request, dict.fromkeys(agents)).sessions.values())
    else:
        sessions = [EnvironmentSession(pool, request)]
    conversations = [ExpertConversation(session, "expert") for session in sessions]
    BatchEngine(lambda rows: [([0], None)] * len(rows), Sampling()).run(conversations)
    episodes = [conversation.episode for conversation in conversations]
    return [episode for episode in episodes if episode.agent is None or agents[episode.agent].trains]
