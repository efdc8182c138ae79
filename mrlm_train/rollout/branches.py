"""Values of the states of played episodes, estimated from fresh episodes that branch off there.

VinePPO (Kazemnejad et al., 2024, arXiv:2410.01679): no critic; V(s) is the mean return of a few episodes that the
policy plays from s on. A branch replays the actions up to s in an environment of its own, so the environment must be
deterministic (`metadata["deterministic"]`); each replayed observation is compared with the original. The policy
continues from exactly the token ids that it had at s.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mrlm_train.episodes.record import Episode
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.conversation import EnvironmentSession, EpisodeConversation, Progress, Request, Result
from mrlm_train.rollout.pool import EnvPool, as_text, fit

if TYPE_CHECKING:
    from mrlm_train.rollout.runner import Rollout

State = tuple[str, tuple[str, ...]]  # the task, and the actions since its start


@dataclass(frozen=True, kw_only=True)
class Branch(Request):
    """An episode that continues from a turn of another.

    Attributes:
        origin: The other episode, with its token ids.
        turn: The first turn that is played again.
    """

    origin: Episode = field(repr=False)
    turn: int


class BranchSession(EnvironmentSession):
    """An environment session that is replayed up to the start of a branch."""

    request: Branch

    def _reset(self) -> Result:
        origin = self.request.origin
        messages, spoken = origin.messages, _spoken(origin)
        observation, _, is_over, _, info = super()._reset()
        for turn in range(self.request.turn + 1):
            if is_over or observation != messages[spoken[turn] - 1]["content"]:
                raise ValueError(f"the replay differs from turn {turn + 1} on: the environment is not deterministic")
            if turn < self.request.turn:
                action = fit(self.env.action_space, messages[spoken[turn]]["content"])
                heard, _, terminated, truncated, info = self.env.step(action)
                observation, is_over = as_text(heard), terminated or truncated
        return observation, 0.0, False, False, dict(info)


class BranchConversation(EpisodeConversation):
    """A conversation whose prompt is everything that the policy saw and said before the branch."""

    def __init__(
        self, session: BranchSession, policy: Policy, sampling: Sampling, progress: Progress | None = None
    ) -> None:
        origin, turn = session.request.origin, session.request.turn
        assert origin.prompt_ids and origin.completion_ids and origin.action_mask
        start = origin.turn_ends[turn - 1] + 1 if turn else 0
        while not origin.action_mask[start]:  # what the environment said before the turn
            start += 1
        self._prompt_ids = origin.prompt_ids + origin.completion_ids[:start]
        self._opening = origin.messages[: _spoken(origin)[turn]]
        turns = None if sampling.max_turns is None else sampling.max_turns - turn
        left = dataclasses.replace(sampling, max_turns=turns, max_episode_tokens=sampling.max_episode_tokens - start)
        super().__init__(session, policy, left, progress)
        self.prefix = f"{self.prefix}/{hash(tuple(self._prompt_ids))}"  # the branches of a state share their prompt

    def render(self) -> list[int]:
        if self._ids:
            return super().render()
        self.episode.messages, self.episode.prompt_ids = list(self._opening), list(self._prompt_ids)
        return list(self._prompt_ids)


def require_replay(pool: EnvPool) -> None:
    """Refuse environments that cannot be replayed.

    Raises:
        ValueError: An environment does not declare itself deterministic.
    """
    for index, entry in enumerate(pool.envs):
        env = pool.take(index)
        pool.give(index, env)
        if not (getattr(env.unwrapped, "metadata", None) or {}).get("deterministic"):
            raise ValueError(
                f"credit: branch replays episodes, and environment {entry.id} does not declare itself deterministic "
                '(metadata["deterministic"]); choose credit: turn or episode'
            )


def branch_values(
    rollout: Rollout, played: Sequence[Episode], branches: int, draw: int, from_start: bool = False
) -> list[list[float]]:
    """The value of the state before each turn: the mean return of fresh episodes from there on.

    Turns that follow the same actions in the same task have the same state.

    Args:
        rollout: Plays them.
        played: Episodes of single-agent environments, in whole groups; invalid ones get zeros.
        branches: Fresh episodes from each state.
        draw: First draw of the fresh episodes, whose draws must differ from all others of the run.
        from_start: Play fresh episodes of the first state, too; otherwise its value is the mean return of the group.

    Returns:
        A value for each turn, B × K.

    Raises:
        ValueError: A replay differs from its original.
    """
    pool = rollout.pool
    entry_of = {
        e.group_id: index
        for e in played
        for index, entry in enumerate(pool.envs)
        if e.group_id == entry.group_id(e.seed, e.options)
    }
    origins: dict[State, tuple[Episode, int]] = {}
    for episode in played:
        for turn in range(0 if from_start else 1, len(episode.turn_ends) if episode.valid else 0):
            origins.setdefault(_state(episode, turn), (episode, turn))
    draws = itertools.count(draw)
    requests = [
        Branch(entry_of[e.group_id], e.seed, next(draws), e.options, origin=e, turn=turn)
        for e, turn in origins.values()
        for _ in range(branches)
    ]
    returns: dict[State, list[float]] = defaultdict(list)
    for request, episode in zip(requests, rollout.run(requests), strict=True):
        if episode.stop_reason == "env_error":
            raise ValueError(f"credit: branch: {episode.env_id} seed {episode.seed}: {episode.info['error']}")
        if episode.valid:
            returns[_state(request.origin, request.turn)].append(episode.reward)
    if not from_start:
        for episode in played:
            if episode.valid and episode.turn_ends:
                returns[_state(episode, 0)].append(episode.reward)
    means = {state: sum(values) / len(values) for state, values in returns.items()}
    return [[means.get(_state(e, turn), 0.0) for turn in range(len(e.turn_ends))] for e in played]


def _state(episode: Episode, turn: int) -> State:
    return episode.group_id, tuple(episode.messages[i]["content"] for i in _spoken(episode)[:turn])


def _spoken(episode: Episode) -> list[int]:
    """Indices of the agent's turns among the messages."""
    return [i for i, message in enumerate(episode.messages) if message["role"] == "assistant"]
