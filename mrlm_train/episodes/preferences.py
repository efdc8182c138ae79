"""Preference pairs: of two attempts at one task, which is better. A view of Episodes, or a JSONL file of choices.

A file has one pair a line: `prompt`, `chosen`, `rejected`, either all text, or all lists of chat messages, and with
messages `tools`, if the policy has some: their schemas, as a list or as its JSON text.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode, Message, read_lines

Row = dict[str, list[int]]
SIDES = ("chosen", "rejected")


def pairs(
    episodes: Iterable[Episode], margin: float = 0.0, length_matched: bool = False
) -> Iterator[tuple[Episode, Episode]]:
    """The best against the worst episode of each task that has both, in order of first appearance.

    Args:
        episodes: of several tasks; those with the same `group_id` (environment, kwargs and seed) and opening messages
            are of one task: what a game's second mover is asked depends on the first. Invalid ones are left out, and
            those in which the agent had no turn.
        margin: least difference of the rewards; equal rewards never make a pair.
        length_matched: among equally good and equally bad episodes, take the two that come closest in length, so that
            the policy does not learn length itself.
    """
    by_task: dict[tuple[str, str], list[Episode]] = defaultdict(list)
    for episode in episodes:
        roles = [message["role"] for message in episode.messages]
        if episode.valid and "assistant" in roles:
            opening = episode.messages[: roles.index("assistant")]
            by_task[episode.group_id, json.dumps(opening)].append(episode)
    for valid in by_task.values():
        rewards = [episode.reward for episode in valid]
        high, low = max(rewards), min(rewards)
        if high == low or high - low < margin:
            continue
        best = [episode for episode in valid if episode.reward == high]
        worst = [episode for episode in valid if episode.reward == low]
        couples = [(b, w) for b in best for w in worst] if length_matched else [(best[0], worst[0])]
        yield min(couples, key=lambda pair: abs(_length(pair[0]) - _length(pair[1])))


def pair_rows(chosen_and_rejected: Iterable[tuple[Episode, Episode]], chat: Chat) -> Iterator[Row]:
    """Pairs of episodes as token ids; observations are masked out.

    Yields:
        `prompt_ids`, `chosen_ids`, `rejected_ids`, and `chosen_mask`, `rejected_mask` (1: the policy's token).

    Raises:
        ValueError: If ids are of another tokenizer, or two episodes do not begin with the same prompt.
    """
    for pair in chosen_and_rejected:
        sides = [chat.with_ids(episode) for episode in pair]
        if sides[0].prompt_ids != sides[1].prompt_ids:
            raise ValueError(f"episodes of {pair[0].env_id} seed {pair[0].seed} do not begin with the same prompt")
        row: Row = {"prompt_ids": sides[0].prompt_ids or []}
        for name, episode in zip(SIDES, sides, strict=True):
            row[f"{name}_ids"], row[f"{name}_mask"] = episode.completion_ids or [], episode.action_mask or []
        yield row


def read_preferences(path: str | os.PathLike[str], chat: Chat) -> Iterator[Row]:
    """The rows of a preference file, as `pair_rows` gives them.

    In messages, only the assistant's messages after the prompt are the policy's. A text prompt is encoded as it is,
    without the chat template, so its special tokens count; the two replies are plain text, and end as a turn ends.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a field of a row is missing or invalid.
    """
    return read_lines(path, "preferences", lambda line: _row(json.loads(line), chat))


def is_preference_file(path: str | os.PathLike[str]) -> bool:
    """Whether a JSONL file holds preferences and not Episodes, judged by its first row."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "{}")
    try:
        row = json.loads(first)
    except ValueError:
        return False  # reading it as Episodes reports the fault
    return isinstance(row, dict) and "env_id" not in row and bool({"prompt", *SIDES} & set(row))


def _row(row: Any, chat: Chat) -> Row:
    fields = ("prompt", *SIDES)
    for name in fields:
        if not isinstance(row, dict) or not row.get(name):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"field {name!r} is missing (found: {found})")
    kinds = {type(row[name]) for name in fields}
    if kinds == {str}:
        made: Row = {"prompt_ids": chat.tokenizer.encode(row["prompt"], add_special_tokens=False)}
        for side in SIDES:
            ids = chat.action_ids(row[side])
            made[f"{side}_ids"], made[f"{side}_mask"] = ids, [1] * len(ids)
        return made
    if kinds != {list}:
        raise ValueError("prompt, chosen and rejected must be all text, or all lists of chat messages")
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    made = {}
    for side in SIDES:
        parts = _conversation(row["prompt"], row[side], tools, chat)
        made["prompt_ids"], made[f"{side}_ids"], made[f"{side}_mask"] = parts
    return made


def _conversation(
    prompt: list[Message], said: list[Message], tools: Any, chat: Chat
) -> tuple[list[int], list[int], list[int]]:
    """Ids of the prompt up to the first assistant message, ids after that, and which of them `said` added."""
    for message in (*prompt, *said):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"not a chat message: {message!r}")
    if not any(message["role"] == "assistant" for message in said):
        raise ValueError("a side says nothing: it has no assistant message")
    earlier = sum(message["role"] == "assistant" for message in prompt)
    episode = chat.with_ids(Episode("", messages=[*prompt, *said], info={"tools": tools}))
    assert episode.prompt_ids is not None and episode.completion_ids is not None and episode.action_mask is not None
    start = episode.turn_ends[earlier - 1] + 1 if earlier else 0
    mask = [0] * start + episode.action_mask[start:]
    return episode.prompt_ids, episode.completion_ids, mask


def _length(episode: Episode) -> int:
    return episode.sampled_tokens or sum(len(m["content"]) for m in episode.messages if m["role"] == "assistant")
