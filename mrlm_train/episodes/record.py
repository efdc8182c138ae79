"""The `Episode` record: one agent's view of one episode, token-exact, and its views.

Everything downstream (GRPO, PPO, evaluation, SFT rows, the report) reads Episodes. They are kept as JSON lines.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

Message = dict[str, Any]
Row = TypeVar("Row")


@dataclass
class Episode:
    """One agent's view of one episode.

    Attributes:
        env_id: what `gymnasium.make` takes, or the factory's name.
        kwargs: the environment's keyword arguments.
        seed: the episode seed; with `kwargs` and the actions it replays the episode.
        options: what `reset` was given besides the seed.
        group_id: episodes with the same id share env, kwargs, reward, wrappers and seed.
        agent: which agent of a game, None in a single-agent environment.
        task_id: the environment's name for the task, None if it has none.
        messages: the conversation as chat messages, the last observation included.
        prompt_ids: token ids before the first sampled token; None for experts and chat endpoints.
        completion_ids: everything after: sampled ids exactly as sampled, with the observations between them.
        action_mask: 1 where the policy sampled the id, 0 where the environment or the template put it.
        logprobs: log-prob of each sampled id under the distribution it was drawn from, None at mask 0; the list is None
            where the engine gives none.
        turn_rewards: reward of each turn; a reward that arrives before the agent's next turn belongs to its last.
        turn_ends: index in `completion_ids` of the last sampled token of each turn.
        state_keys: `state_key()` of the environment before each turn and at the end, where credit was asked to know it.
        costs_to_go: likewise `cost_to_go()`; infinite where the task is lost, None where the environment does not know.
        success: the task was solved; None where the environment does not say. In a game that does not: the agent's
            return is above all others'.
        valid: False when the environment failed, not the agent: leave the episode out of everything.
        terminated: the task ended by its own rules.
        truncated: an outside limit ended it. Never both.
        stop_reason: the environment's own, or "token_limit", "context_limit", "turn_limit", "time_limit",
            "step_timeout", "env_fault", "env_error", "endpoint_error" (the policy's endpoint did not answer),
            "render_error" (the chat template failed on an observation).
        policy: name of the policy that acted.
        tokenizer_hash: `tokenizer_hash` of the tokenizer that made the ids.
        sampling: the sampling settings as JSON values.
        info: further JSON values: the last `info` of the environment.
        token_figures: `text` of each completion token, and its `advantage`, `value` and `kl` (log-prob less the
            reference's) where the policy sampled it and the trainer knows them; only in what a training saves.
        name: What statistics call the environment if not by its id: `id#2` is the second entry of a run with that id.
    """

    env_id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    group_id: str = ""
    agent: str | None = None
    task_id: str | None = None
    messages: list[Message] = field(default_factory=list)
    prompt_ids: list[int] | None = None
    completion_ids: list[int] | None = None
    action_mask: list[int] | None = None
    logprobs: list[float | None] | None = None
    turn_rewards: list[float] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)
    state_keys: list[str | None] = field(default_factory=list)
    costs_to_go: list[float | None] = field(default_factory=list)
    success: bool | None = None
    valid: bool = True
    terminated: bool = False
    truncated: bool = False
    stop_reason: str = ""
    policy: str = ""
    tokenizer_hash: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    token_figures: dict[str, list[Any]] = field(default_factory=dict)
    name: str = ""

    @property
    def label(self) -> str:
        """The name under which statistics count it: the environment, and in a game of several agents the agent."""
        name = self.name or self.env_id
        return name if self.agent is None else f"{name}/{self.agent}"

    @property
    def reward(self) -> float:
        """Undiscounted return: the sum over turns."""
        return float(sum(self.turn_rewards))

    @property
    def sampled_tokens(self) -> int:
        """Tokens the policy sampled (0 without ids)."""
        return sum(self.action_mask or ())

    def to_json(self) -> str:
        """One line of JSON, with the return as `reward`; values JSON does not know are made plain (`jsonable`)."""
        row = {**dataclasses.asdict(self), "reward": self.reward}
        return json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Episode:
        """The Episode of a line of `to_json`.

        Raises:
            ValueError: If a field is unknown or missing.
        """
        row = json.loads(line)
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(row, dict) or "env_id" not in row:
            raise ValueError("field 'env_id' is missing: not an episode")
        row.pop("reward", None)  # the sum of `turn_rewards`
        if unknown := sorted(set(row) - known):
            raise ValueError(f"unknown field {unknown[0]!r}: not an episode")
        if "costs_to_go" in row:  # JSON has no infinity
            row["costs_to_go"] = [None if cost is None else float(cost) for cost in row["costs_to_go"]]
        return cls(**row)


def jsonable(value: Any) -> Any:
    """`value` in JSON's own types: numpy unpacked, NaN and infinity as strings, what JSON does not know by `str`."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return jsonable(value.tolist())
    return str(value)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file to write that appears whole or not at all: readers see the old file or the new one, never half."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], episodes: Iterable[Episode]) -> int:
    """Write a JSONL file, whole or not at all; returns how many episodes were written."""
    count = 0
    with whole_file(path) as file:
        for episode in episodes:
            file.write(episode.to_json() + "\n")
            count += 1
    return count


def read(path: str | os.PathLike[str]) -> Iterator[Episode]:
    """Episodes of a JSONL file, one at a time.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is not an Episode.
    """
    return read_lines(path, "episodes", Episode.from_json, "; `mrlm collect` writes one")


def read_lines(path: str | os.PathLike[str], what: str, parse: Callable[[str], Row], hint: str = "") -> Iterator[Row]:
    """The lines of a JSONL file, parsed one at a time.

    Args:
        path: The file; blank lines count, and are left out.
        what: What its rows are, for errors.
        parse: Makes a row of a line; raises `ValueError` or `TypeError` where it is none.
        hint: Ends the error about a missing file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no row; it names the file and the row, counted from 1.
    """
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"{what} {target}: no such file{hint}")
    with target.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield parse(line)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{what} {target}, row {number}: {error}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{what} {target}: not JSON lines (a Parquet file is for other tools)") from None


_HASHES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def tokenizer_hash(tokenizer: Any) -> str:
    """Sixteen hex digits that two tokenizers share when every token has the same id in both."""
    if tokenizer not in _HASHES:
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
        _HASHES[tokenizer] = hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
    return _HASHES[tokenizer]


def check_tokenizer(episode: Episode, tokenizer: Any) -> None:
    """Check that an episode's ids, if it has any, are of a tokenizer.

    Raises:
        ValueError: If they come from another tokenizer.
    """
    if episode.prompt_ids is not None and episode.tokenizer_hash != tokenizer_hash(tokenizer):
        raise ValueError(
            f"episode {episode.env_id} seed {episode.seed}: its ids are of tokenizer {episode.tokenizer_hash}, not of "
            f"{tokenizer_hash(tokenizer)}; collect again with this model, or drop prompt_ids to re-tokenise"
        )


def sft_rows(episodes: Iterable[Episode], tokenizer: Any = None) -> Iterator[dict[str, list[int]]]:
    """Rows for TRL's `SFTTrainer`: `input_ids` and `completion_mask` (1 where the policy sampled).

    Invalid episodes are left out.

    Args:
        episodes: with ids (`rollout`, or `chat.with_ids` for experts).
        tokenizer: checked against the episodes' ids when given.

    Raises:
        ValueError: If an episode has no ids, or ids of another tokenizer.
    """
    for episode in episodes:
        if not episode.valid:
            continue
        if tokenizer is not None:
            check_tokenizer(episode, tokenizer)
        if episode.prompt_ids is None or episode.completion_ids is None or episode.action_mask is None:
            raise ValueError(
                f"episode {episode.env_id} seed {episode.seed} has no token ids; make them with chat.with_ids"
            )
        yield {
            "input_ids": episode.prompt_ids + episode.completion_ids,
            "completion_mask": [0] * len(episode.prompt_ids) + episode.action_mask,
        }


def reward_stds(episodes: Iterable[Episode]) -> dict[str, float]:
    """The population standard deviation of each group's rewards, by `group_id`; invalid episodes do not count."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        rewards[episode.group_id] += [episode.reward] if episode.valid else []
    return {group_id: float(np.std(values)) if values else 0.0 for group_id, values in rewards.items()}
