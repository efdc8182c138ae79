"""Episodes of the environments' own experts. No model plays, so neither torch nor an engine is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing

from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode
from mrlm_train.inference.types import End, Feed, Wait
from mrlm_train.rollout.conversation import EnvironmentSession, ExpertConversation, Request
from mrlm_train.rollout.environments import EnvLike, entries
from mrlm_train.rollout.games import GameRunner
from mrlm_train.rollout.pool import EnvPool
from mrlm_train.rollout.tasks import training_tasks


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
        envs: Environments that have an expert.
        n: How many episodes.
        seed: Seed for the tasks.
        chat: Computes their token ids; None leaves them as messages.
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
    sessions: list[EnvironmentSession]
    if agents:
        sessions = list(GameRunner(pool, request, dict.fromkeys(agents)).sessions.values())
    else:
        sessions = [EnvironmentSession(pool, request)]
    playing = [ExpertConversation(session) for session in sessions]
    episodes = [conversation.episode for conversation in playing]
    while playing:
        steps = [(conversation, conversation.poll()) for conversation in playing]
        playing = [conversation for conversation, step in steps if not isinstance(step, End)]
        to_act = [conversation for conversation, step in steps if isinstance(step, Feed)]
        for conversation in to_act:
            conversation.take_turn()
        if not to_act:
            wait([step.ready for _, step in steps if isinstance(step, Wait)], return_when=FIRST_COMPLETED)
    return [episode for episode in episodes if episode.agent is None or agents[episode.agent].trains]
