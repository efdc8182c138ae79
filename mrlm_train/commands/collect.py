"""Collecting: play N episodes and keep them as JSON lines or Parquet, for SFT, DPO, or looking at.

What is played is decided by the arguments alone, and an episode's tokens by its own seed, so a killed run goes on where
it was: finished episodes stand in `.FILE.partial`, one line each, as soon as they end; FILE itself appears whole, when
all have ended, in the order in which they were drawn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.preferences import pairs
from mrlm_train.episodes.record import Episode, jsonable, tokenizer_hash, whole_file, write
from mrlm_train.rollout.environments import EnvLike, entries
from mrlm_train.rollout.experts import expert_episodes
from mrlm_train.rollout.pool import EnvPool
from mrlm_train.rollout.tasks import group_requests

if TYPE_CHECKING:  # torch takes seconds to import, and experts need none
    from mrlm_train.inference.policy import Policy
    from mrlm_train.inference.sampling import Sampling

Progress = Callable[[Episode], object]


@dataclass(frozen=True)
class Collected:
    """What a collection came to.

    Attributes:
        played: episodes.
        resumed: how many of them an earlier run had left.
        invalid: failures of the environment; they are left out of the file.
        written: episodes in the file.
        success: share of the valid ones that solved their task, None where no environment says.
        reward: their mean reward (0 when none is valid).
        pairs: preference pairs written.
    """

    played: int
    resumed: int
    invalid: int
    written: int
    success: float | None
    reward: float
    pairs: int = 0

    def __str__(self) -> str:
        success = "" if self.success is None else f", {self.success:.1%} solved"
        again = f" ({self.resumed} from before)" if self.resumed else ""
        return f"{self.played} episodes{again}, mean reward {self.reward:.3f}{success}, {self.invalid} invalid"


def collect(
    policy: Policy,
    envs: EnvLike | Iterable[EnvLike],
    n: int,
    output: str | os.PathLike[str],
    sampling: Sampling,
    group_size: int = 1,
    filter_reward: float | None = None,
    seed: int = 0,
    threads: int = 16,
    max_invalid_share: float = 0.25,
    preferences: str | os.PathLike[str] | None = None,
    progress: Progress = lambda episode: None,
) -> Collected:
    """Play n episodes and write them.

    Args:
        policy: who acts.
        envs: where; tasks are drawn by weight, as for training.
        n: episodes to play, in games of several agents games; a multiple of `group_size`.
        output: the JSONL file (Parquet, if it ends in .parquet); one that is there is replaced when the new one is
            complete.
        sampling: budgets and temperature.
        group_size: attempts at each task.
        filter_reward: only episodes with at least this reward are written.
        seed: draws the tasks.
        threads: environments stepped at once.
        max_invalid_share: share of invalid episodes above which the run fails.
        preferences: a file for the best against the worst attempt at each task, whatever `filter_reward` says.
        progress: called with every episode, those of an earlier run included.

    Raises:
        ValueError: If a number does not fit, or a partial file is of other settings.
        InvalidEpisodes: If too many are invalid.
    """
    if n < 1 or group_size < 1 or n % group_size:
        raise ValueError(f"{n} episodes are not a whole number of groups of {group_size}")
    from mrlm_train.commands.evaluate import tell_cost
    from mrlm_train.rollout.runner import Rollout, check_validity

    pool = EnvPool(entries(envs), threads)
    with Rollout(policy, pool, sampling, max_invalid_share=1.0) as rollout:
        requests = group_requests(pool, n // group_size, group_size, seed)
        settings = {
            "envs": [
                [e.id, e.kwargs, e.split, e.weight, e.address, *(part for part in (e.agents, e.changes) if part)]
                for e in pool.envs
            ],
            "policy": policy.name,
            "tokenizer": policy.chat.tokenizer and tokenizer_hash(policy.chat.tokenizer),  # an endpoint shows none
            "sampling": dataclasses.asdict(rollout.sampling),
            "n": n,
            "group_size": group_size,
            "seed": seed,
        }
        partial = _Partial(Path(output), settings)
        left = [r for r in requests if len(partial.done.get(r.draw, ())) < pool.trained_agents(r.entry)]
        for request in left:
            partial.done.pop(request.draw, None)  # a game of which only some agents were written
        resumed = [episode for agents in partial.done.values() for episode in agents.values()]
        for episode in resumed:
            progress(episode)

        def ended(episode: Episode) -> None:
            partial.add(episode)
            progress(episode)

        if left:
            rollout.run(left, ended)
    tell_cost(policy)
    episodes = list[Episode]()
    for request in requests:  # the agents of a game end in any order
        done = partial.done[request.draw]
        episodes += [done[agent] for agent in pool.agents[request.entry] or done if agent in done]
    check_validity(episodes, max_invalid_share)
    result = _write(output, episodes, filter_reward, len(resumed))
    if preferences is not None:
        rows = [json.dumps(_preference(*pair), ensure_ascii=False) + "\n" for pair in pairs(episodes)]
        with whole_file(preferences) as file:
            file.writelines(rows)
        result = replace(result, pairs=len(rows))
    partial.path.unlink()
    return result


def collect_experts(
    envs: EnvLike | Iterable[EnvLike],
    n: int,
    output: str | os.PathLike[str],
    filter_reward: float | None = None,
    seed: int = 0,
    chat: Chat | None = None,
    progress: Progress = lambda episode: None,
) -> Collected:
    """As `collect`, with the environments' own reference solutions; `chat` gives them token ids.

    Raises:
        ValueError: If an environment has no expert.
    """

    def seen(episode: Episode) -> bool:
        progress(episode)
        return True

    return _write(output, expert_episodes(envs, n, seed, chat, seen), filter_reward, 0)


def _write(
    output: str | os.PathLike[str], episodes: list[Episode], filter_reward: float | None, resumed: int
) -> Collected:
    valid = [episode for episode in episodes if episode.valid]
    kept = [episode for episode in valid if filter_reward is None or episode.reward >= filter_reward]
    known = [episode.success for episode in valid if episode.success is not None]
    return Collected(
        played=len(episodes),
        resumed=resumed,
        invalid=len(episodes) - len(valid),
        written=_write_parquet(output, kept) if Path(output).suffix == ".parquet" else write(output, kept),
        success=sum(known) / len(known) if known else None,
        reward=sum(episode.reward for episode in valid) / max(1, len(valid)),
    )


def _write_parquet(output: str | os.PathLike[str], episodes: list[Episode]) -> int:
    """Write episodes as Parquet, whole or not at all; mappings are JSON texts. Returns how many there are."""
    import pyarrow
    from pyarrow import parquet

    rows = [json.loads(episode.to_json()) for episode in episodes or [Episode("")]]  # one names the columns
    for row in rows:
        row |= {key: json.dumps(value, ensure_ascii=False) for key, value in row.items() if isinstance(value, dict)}
    with whole_file(output) as file:
        parquet.write_table(pyarrow.Table.from_pylist(rows)[: len(episodes)], file.buffer)
    return len(episodes)


def _preference(better: Episode, worse: Episode) -> dict[str, Any]:
    """The row of two attempts at a task: TRL's conversational format, which `dpo.episodes` reads too."""
    first = next(i for i, message in enumerate(better.messages) if message["role"] == "assistant")
    tools = better.info.get("tools")  # the chat template renders them into the prompt
    return {
        "prompt": better.messages[:first],
        "chosen": better.messages[first:],
        "rejected": worse.messages[first:],
        **({"tools": json.dumps(tools)} if tools else {}),
        "chosen_reward": better.reward,
        "rejected_reward": worse.reward,
    }


class _Partial:
    """The episodes that have ended so far, by draw and agent, on disk as soon as they end.

    The first line says which collection they are of.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        """Raises:
        ValueError: If the file on disk is of another collection.
        """
        self.path = output.with_name(f".{output.name}.partial")
        text = json.dumps(jsonable(settings), sort_keys=True)
        head = json.dumps({"collection": hashlib.sha256(text.encode()).hexdigest()[:16], "settings": text})
        self.done: dict[int, dict[str | None, Episode]] = {}
        data = self.path.read_bytes() if self.path.is_file() else b""
        lines = data[: data.rfind(b"\n") + 1].splitlines()  # the last may have been cut in mid-write
        if not lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(head + "\n", "utf-8")
            return
        if lines[0].decode() != head:
            raise ValueError(
                f"{self.path} is of a collection with other settings; remove it to start anew, or repeat that one"
            )
        os.truncate(self.path, data.rfind(b"\n") + 1)
        for episode in (Episode.from_json(line.decode()) for line in lines[1:]):
            if episode.valid:  # what failed is played again
                self._keep(episode)

    def add(self, episode: Episode) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(episode.to_json() + "\n")
        self._keep(episode)

    def _keep(self, episode: Episode) -> None:
        self.done.setdefault(episode.sampling["draw"], {})[episode.agent] = episode
