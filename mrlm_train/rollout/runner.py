"""Rollouts: a policy plays episodes in text environments; the results are token-exact `Episode`s.

`Rollout(policy, envs, sampling).run(requests)` serves training, evaluation, collecting and self-play. Environments step
off the decoding thread, contexts only grow, and sampled ids are never tokenised again. In a game of several agents each
agent has a conversation of its own; the conversations of a frozen model are decoded by an engine of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mrlm_train.episodes.record import Episode
from mrlm_train.inference.endpoint import EndpointPolicy
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.branches import Branch, BranchConversation, BranchSession
from mrlm_train.rollout.conversation import (
    ChatDialogue,
    EnvironmentSession,
    EpisodeConversation,
    Progress,
    Request,
)
from mrlm_train.rollout.environments import EnvLike, entries
from mrlm_train.rollout.experts import expert_episodes
from mrlm_train.rollout.games import GameRunner
from mrlm_train.rollout.opponents import Opponents
from mrlm_train.rollout.pool import STEP_TIMEOUT, EnvPool
from mrlm_train.rollout.tasks import group_requests, training_tasks

__all__ = ["InvalidEpisodes", "Request", "Rollout", "expert_episodes", "group_requests", "training_tasks"]


class InvalidEpisodes(RuntimeError):
    """Too many episodes failed for reasons that are not the policy's, or no prompt fits into the context."""


class Rollout:
    """Plays episodes with one policy in a set of environments.

    Attributes:
        seconds: Wall time of all calls of `run`.
        sampled_tokens: Tokens that the policy sampled in them.
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
            step_timeout: Time limit of a reset or a step in seconds, unless `envs` is a pool. A slower step ends its
                episode with reward 0 and `stop_reason` "step_timeout"; the episode is valid.
        """
        self.policy, self._asked = policy, sampling
        self.sampling = _fitted(sampling, policy)
        self.pool = envs if isinstance(envs, EnvPool) else EnvPool(entries(envs), threads, step_timeout)
        self.envs = self.pool.envs
        self.max_invalid_share = max_invalid_share
        self.opponents = Opponents(policy, self.pool.agents) if opponents is None else opponents
        self._frozen()  # a missing model is an error now, not in the middle of a run
        self.seconds, self.sampled_tokens = 0.0, 0

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
        episodes = self._play(_Schedule(self, requests, progress))
        self.seconds += time.perf_counter() - begin
        self.sampled_tokens += sum(episode.sampled_tokens for episode in episodes)
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
            f"{first.seed}, {len(first.prompt_ids or ())} tokens; use shorter prompts or a longer context"
        )
        if len(cut) == len(episodes) and not self.sampled_tokens:
            raise InvalidEpisodes(message)
        warnings.warn(message, stacklevel=3)

    def _play(self, schedule: _Schedule) -> list[Episode]:
        """Run the policy's engine here, and that of each frozen model in a thread: they wait for each other's moves."""
        frozen = self._frozen()
        with ThreadPoolExecutor(max(1, len(frozen)), "mrlm-opponent") as threads:

            def serve(model: Policy) -> None:
                try:
                    with model.engine(self.sampling_of(model)) as engine:
                        engine.run(schedule.conversations(model))
                except BaseException as error:
                    schedule.fail(error)  # the others would wait for its moves forever
                    raise

            others = [threads.submit(serve, model) for model in frozen]
            serve(self.policy)
            for future in others:
                future.result()
        return [conversation.episode for conversation in schedule.returned]

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
    stop_ids, max_context = sampling.stop_ids or policy.chat.stop_ids, sampling.max_context or policy.max_context
    return dataclasses.replace(sampling, stop_ids=stop_ids, max_context=max_context)


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
        self, model: Policy, session: EnvironmentSession, is_returned: bool
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
