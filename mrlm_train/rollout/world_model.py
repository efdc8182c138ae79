"""A world model: a language model that predicts what the environment answers.

Given the conversation up to an action, it samples the observation and the reward, as text:

    higher
    [reward 0]

`world_rows` makes the rows that it learns from; `evaluate` compares its answers with those of episodes that it has not
seen. Both give it the true history, each earlier answer with its reward.

Shape letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling, decoding
from mrlm_train.inference.types import End, Feed

_ROOM = 16  # tokens; an answer that exceeds the true one by more is truncated
_SCORED_AT_ONCE = 8  # answers; their logits are a whole vocabulary for each token


@dataclass(frozen=True)
class Answer:
    """One answer of an environment.

    Attributes:
        context: Token ids before it.
        said: Its token ids, with the token that ends it.
        text: Its text.
    """

    context: list[int]
    said: list[int]
    text: str


def answer_text(observation: str, reward: float) -> str:
    """An observation and its reward, as the model should answer."""
    return f"{observation}\n[reward {reward:g}]"


def answers(episode: Episode, chat: Chat) -> Iterator[Answer]:
    """Every answer of an episode's environment. The first observation is the task, not an answer."""
    messages = episode.messages
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    ids = chat.prompt_ids(messages[:first], episode.info.get("tools"))
    turns = zip(messages[first::2], messages[first + 1 :: 2], episode.turn_rewards, strict=False)
    for action, observation, reward in turns:  # a final action without an answer is left out
        ids = [*ids, *chat.action_ids(action["content"])]
        text = answer_text(observation["content"], reward)
        opening, said = chat.observation_ids(text, observation["role"], ids[-1])
        context = [*ids, *opening]
        yield Answer(context, said, text)
        ids = [*ids, *chat.reply_ids(text, observation["role"], ids[-1])]


def world_rows(episodes: Iterable[Episode], chat: Chat) -> Iterator[dict[str, list[int]]]:
    """A row per episode for TRL's `SFTTrainer`: mask 1 on observations and rewards. Invalid episodes are left out."""
    for episode in episodes:
        found = list(answers(episode, chat)) if episode.valid else []
        if not found:
            continue
        ids = [*found[-1].context, *found[-1].said]
        mask = [0] * len(ids)
        for answer in found:
            start = len(answer.context)
            mask[start : start + len(answer.said)] = [1] * len(answer.said)
        yield {"input_ids": ids, "completion_mask": mask}


def evaluate(
    policy: Policy,
    episodes: Iterable[Episode],
    sampling: Sampling | None = None,
    progress: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Ask a world model for every answer of the episodes, greedily.

    Returns:
        `n`, the number of answers; `exact_match`, the share that is right word for word, reward included;
        `observation_match` and `reward_match`, for each alone; `perplexity` per token of the true answers.

    Raises:
        ValueError: If the episodes hold no answer.
    """
    asked = [answer for episode in episodes if episode.valid for answer in answers(episode, policy.chat)]
    if not asked:
        raise ValueError("no episode holds an answer of its environment; collect some with mrlm collect")
    longest = max(len(answer.said) for answer in asked) + _ROOM
    base = sampling or Sampling(temperature=0.0)
    chosen = dataclasses.replace(base, max_turn_tokens=longest, stop_ids=policy.chat.stop_ids)
    questions = [_Question(answer, policy.chat, progress) for answer in asked]
    with policy.engine(chosen) as engine:
        engine.run(iter(questions))
    pairs = [(question.given, answer.text) for question, answer in zip(questions, asked, strict=True)]
    parts = [(given.rpartition("\n[reward "), true.rpartition("\n[reward ")) for given, true in pairs]
    return {
        "n": len(asked),
        "exact_match": sum(given == true for given, true in pairs) / len(pairs),
        "observation_match": sum(given[0] == true[0] for given, true in parts) / len(parts),
        "reward_match": sum(given[2] == true[2] for given, true in parts) / len(parts),
        "perplexity": perplexity(policy, asked),
    }


def perplexity(policy: Policy, asked: list[Answer]) -> float:
    """exp of the mean negative log-likelihood per token of the true answers."""
    model, total, count = policy.model, 0.0, 0
    ordered = sorted(asked, key=lambda answer: len(answer.context) + len(answer.said))
    with decoding(model):
        rows = min(policy.rows, _SCORED_AT_ONCE)
        for start in range(0, len(ordered), rows):
            batch = ordered[start : start + rows]
            ids = [torch.tensor([*answer.context, *answer.said]) for answer in batch]
            labels = [torch.tensor([-100] * len(answer.context) + answer.said) for answer in batch]
            ids_BT = pad_sequence(ids, batch_first=True).to(model.device)
            labels_BT = pad_sequence(labels, batch_first=True, padding_value=-100).to(model.device)[:, 1:]
            seen_BT = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(model.device)
            logits_BTV = model(input_ids=ids_BT, attention_mask=seen_BT).logits[:, :-1]
            is_said_BT = labels_BT != -100
            total += cross_entropy(logits_BTV[is_said_BT].float(), labels_BT[is_said_BT], reduction="sum").item()
            count += sum(len(answer.said) for answer in batch)
    return math.exp(total / count)


class _Question:
    """A conversation of one turn (see `inference.types.Conversation`): the model answers for the environment."""

    prefix = None
    seed = 0

    def __init__(self, answer: Answer, chat: Chat, progress: Callable[[], object] | None) -> None:
        self._answer, self._chat, self._progress = answer, chat, progress
        self._asked = False
        self.given = ""
        self.budget = len(answer.said) + _ROOM

    def poll(self) -> Feed | End:
        if self._asked:
            return End()
        self._asked = True
        return Feed(self._answer.context)

    def submit(self, ids: list[int], log_probs: list[float] | None) -> None:
        self.given = self._chat.action_text(ids)
        if self._progress is not None:
            self._progress()
