"""From messages to token ids: a conversation is rendered once, and only grows.

The opening is rendered by the tokenizer's chat template. After that nothing is rendered again: sampled ids stay as
they are, and each observation is appended between the template's own turn delimiters, which are found by rendering a
dummy conversation. So the policy never sees, and is never trained on, a history that changed.

Contents cannot speak for the template: a special token that appears in an observation, a prompt, an expert's reply or
a tool's schema is encoded as plain text. Contents without special tokens get the ids of the ordinary rendering.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from mrlm_train.episodes.record import Episode, Message, check_tokenizer, tokenizer_hash

_USER, _ANSWER, _HEARD = "probe question", "probe answer", "probe observation"
_THOUGHT = "<think>\nprobe thought\n</think>\n\nprobe answer"
_NASTY = ' \t"it\'s" <b> & \\n é {{ x }}\n\n'  # a template that escapes or trims shows on this
_CACHED_PROMPTS = 4096
_BREAK = "\ufdd0"  # put into special tokens of contents; a Unicode noncharacter, no text holds it
_TAG = re.compile(r"<[^\s<>]+>")
_HARMONY_ENDS = ("<|return|>", "<|call|>")  # of the gpt-oss models: <|end|> closes a channel, not the turn


@dataclass(frozen=True)
class _Delimiters:
    """What the template puts around an observation: from the end of a sampled turn to the start of the next.

    Attributes:
        before: From the end of the turn to the observation.
        after: From the observation to the start of the next turn.
        verbatim: The template neither trims nor escapes the observation.
        role: Of the message: "user" where the template does not know the role asked for.
        tags: Tokens such as `</tool_response>` around the observation, which no model card calls special.
    """

    before: str
    after: str
    verbatim: bool
    role: str
    tags: re.Pattern[str]


class Chat:
    """A tokenizer, its chat template, and how the policy is addressed.

    Attributes:
        tokenizer: The tokenizer.
        closing_id: The token that closes the policy's turn, None if the template has none.
        stop_ids: Tokens that end a turn: the closing one and every end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: Any,
        template_kwargs: dict[str, Any] | None = None,
        system_prompt: str | None = None,
        eos_ids: Sequence[int] = (),
        single_turn: bool = False,
    ) -> None:
        """
        Args:
            tokenizer: With a chat template.
            template_kwargs: Passed to the template (`enable_thinking` …).
            system_prompt: Replaces every environment's own.
            eos_ids: End tokens of the model's generation config.
            single_turn: Episodes have one turn, so there is no history to rewrite.

        Raises:
            ValueError: If there is no template, or it drops messages.

        Warns:
            UserWarning: If the template rewrites earlier turns: nothing here renders them again, but a server would.
        """
        self.tokenizer, self.system_prompt = tokenizer, system_prompt
        self._kwargs = dict(template_kwargs or {})
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template; use an instruct model, or set "
                "tokenizer.chat_template (in YAML model.chat_template: a Jinja file)"
            )
        self._template: str | None = None
        try:
            keeps_history = single_turn or self._keeps_history()
            if not keeps_history:
                self._template = _training_template(tokenizer)
                keeps_history = self._template is not None and self._keeps_history()
        except (TemplateError, ValueError, TypeError) as error:
            raise ValueError(f"the chat template of {tokenizer.name_or_path!r} fails on plain text: {error}") from None
        if not keeps_history:
            self._template = None
            warnings.warn(
                f"the chat template of {tokenizer.name_or_path!r} rewrites earlier turns (thinking templates drop the "
                "thoughts); episodes keep every token as it was sampled, so serve the model with a template that does",
                stacklevel=2,
            )
        self._has_system = self._renders([{"role": "system", "content": _HEARD}, {"role": "user", "content": _USER}])
        self._delimiters: dict[str, _Delimiters] = {}
        self._prompts: dict[str, list[int]] = {}
        added = tokenizer.added_tokens_decoder
        self._special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special} | {*eos_ids}
        self._first_character_of_special = _first_character({added[i].content for i in self._special if i in added})
        self._tags = {token.content for token in added.values() if _TAG.fullmatch(token.content)}
        vocabulary = tokenizer.get_added_vocab()
        self._is_harmony = all(name in vocabulary for name in _HARMONY_ENDS)
        before = self._encode(self._around("user").before)
        self.closing_id: int | None = next((token for token in before if token in self._special), None)
        ends = [self.closing_id, tokenizer.eos_token_id, *eos_ids]
        self._answer_prefix = ""
        if self._is_harmony:
            ends = [vocabulary[name] for name in _HARMONY_ENDS]
            self.closing_id = ends[0]
            self._answer_prefix = self._before_answer()
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(token for token in ends if token is not None))
        if not self.stop_ids:
            raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no end token; set tokenizer.eos_token")

    def opening(self, observation: str, info: dict[str, Any]) -> list[Message]:
        """The first messages of an episode: the system prompt if there is one, and the first observation."""
        return opening(observation, info, self.system_prompt)

    def prompt_ids(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Ids of the opening messages up to where the policy's first turn begins."""
        key = json.dumps([messages, tools])
        if key not in self._prompts:
            if len(self._prompts) >= _CACHED_PROMPTS:
                self._prompts.clear()
            self._prompts[key] = self._encode(self._render_opening(list(messages), tools))
        return list(self._prompts[key])

    def reply_ids(self, text: str, role: str, last_id: int) -> list[int]:
        """Ids between a sampled turn and the next: the turn's closing token if it was not sampled, and the observation.

        Args:
            text: The observation.
            role: "user" or "tool"; in a template without tool messages, it becomes a user message.
            last_id: Last sampled token of the turn.
        """
        around = self._around(role)
        text = around.tags.sub(rf"\g<0>{_BREAK}", self._plain(text))
        if around.verbatim:
            rendered = around.before + text + around.after
        else:
            rendered = self._after_answer(text, around.role)
        return self._after_closing(self._encode(rendered), last_id)

    def observation_ids(self, text: str, role: str, last_id: int) -> tuple[list[int], list[int]]:
        """`reply_ids` up to the end of the observation, for a world model, which samples the observation.

        Returns:
            What opens the observation, and the observation with the token that ends it.
        """
        around = self._around(role)
        opening = self._after_closing(self._encode(around.before), last_id)
        end = next((token for token in self._encode(around.after) if token in self._special), self.stop_ids[0])
        return opening, [*self._encode(self._plain(text)), end]

    def action_text(self, ids: Sequence[int]) -> str:
        """The text of a turn, as the environment gets it: without special tokens; of harmony's, the last message."""
        if self._is_harmony:
            marker = self.tokenizer.convert_tokens_to_ids("<|message|>")
            ids = ids[max((i + 1 for i, token in enumerate(ids) if token == marker), default=0) :]
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def action_ids(self, text: str) -> list[int]:
        """Ids of a turn written by an expert, closed as the policy should close it."""
        closing = self.stop_ids[0] if self.closing_id is None else self.closing_id
        return [*self._encode(self._answer_prefix + self._plain(text)), closing]

    def with_ids(self, episode: Episode) -> Episode:
        """The episode with ids made from its messages; one that has ids of this tokenizer is returned as it is.

        Every assistant message becomes a turn (mask 1, its closing token included).

        Raises:
            ValueError: If its ids are of another tokenizer.
        """
        if episode.prompt_ids is not None:
            check_tokenizer(episode, self.tokenizer)
            return episode
        messages = episode.messages
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        first, end = (turns[0], turns[-1] + 1) if turns else (len(messages), 0)
        ids: list[int] = []
        mask: list[int] = []
        ends: list[int] = []
        for i in range(first, end):
            if i in turns:
                piece = self.action_ids(messages[i]["content"])
                ends.append(len(ids) + len(piece) - 1)
            else:
                piece = self.reply_ids(messages[i]["content"], messages[i]["role"], ids[-1])
            ids += piece
            mask += [int(i in turns)] * len(piece)
        episode.prompt_ids = self.prompt_ids(messages[:first], episode.info.get("tools"))
        episode.completion_ids, episode.action_mask, episode.turn_ends = ids, mask, ends
        episode.tokenizer_hash = tokenizer_hash(self.tokenizer)
        return episode

    def _plain(self, contents: Any) -> Any:
        """Contents (text, or messages and schemas that hold text) whose special tokens are marked to be broken up."""
        if isinstance(contents, str):
            if _BREAK in contents:
                contents = contents.replace(_BREAK, "\ufffd")
            return self._first_character_of_special.sub(rf"\g<0>{_BREAK}", contents)
        if isinstance(contents, Mapping):
            return {key: self._plain(value) for key, value in contents.items()}
        if isinstance(contents, list | tuple):
            return [self._plain(value) for value in contents]
        return contents

    def _encode(self, text: str) -> list[int]:
        """Ids of rendered text; the parts of a broken special token are encoded apart, so none comes of them."""
        return [i for part in text.split(_BREAK) for i in self.tokenizer.encode(part, add_special_tokens=False)]

    def _after_closing(self, ids: list[int], last_id: int) -> list[int]:
        """`ids` without the token that closes the policy's turn, and what precedes it, if the policy sampled it."""
        closing = next((i for i, token in enumerate(ids) if token in self._special), None)
        is_closed = closing is not None and (ids[closing] == last_id or (self._is_harmony and last_id in self.stop_ids))
        return ids[closing + 1 :] if closing is not None and is_closed else ids

    def _render(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
            **self._kwargs,
        )

    def _renders(self, messages: list[Message]) -> bool:
        try:
            text = self._render(messages)
        except Exception:  # a template may raise anything
            return False
        return all(message["content"] in text for message in messages)

    def _render_opening(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
        messages, tools = self._plain(messages), self._plain(tools)
        question = _probe()[:1]
        if tools and self._render(question, tools) == self._render(question):
            # a template that knows no tools: the policy reads them in the system prompt
            listed = "Tools:\n" + "\n".join(json.dumps(tool) for tool in tools)
            has_system = messages[0]["role"] == "system"
            system = f"{messages[0]['content']}\n\n{listed}" if has_system else listed
            messages, tools = [{"role": "system", "content": system}, *messages[has_system:]], None
        if messages[0]["role"] == "system" and not self._has_system:
            merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            messages = [{"role": "user", "content": merged}, *messages[2:]]
        return self._render(messages, tools)

    def _keeps_history(self) -> bool:
        """Whether a later turn leaves the text of earlier ones as it was, thoughts and generation prompt included."""
        start = self._render(_probe()[:1])
        return all(self._render(_probe(answer=answer)).startswith(start + answer) for answer in (_ANSWER, _THOUGHT))

    def _before_answer(self) -> str:
        """What the template puts between the generation prompt and a turn's text."""
        start, later, before = self._render(_probe()[:1]), self._render(_probe()), self._around("user").before
        return later.partition(_ANSWER + before)[0].removeprefix(start) if later.startswith(start) else ""

    def _after_answer(self, text: str, role: str) -> str:
        """The rendering of an observation after a dummy turn, from the end of that turn's text."""
        before, answer, after = self._render(_probe(text, role)).partition(_ANSWER)
        if not answer or _USER not in before:
            raise ValueError(f"the chat template of {self.tokenizer.name_or_path!r} drops earlier messages")
        return after

    def _around(self, role: str) -> _Delimiters:
        if role not in self._delimiters:
            found = self._find_delimiters(role)
            if found is None and role == "user":
                raise ValueError(f"the chat template of {self.tokenizer.name_or_path!r} drops user messages")
            self._delimiters[role] = found or self._around("user")
        return self._delimiters[role]

    def _find_delimiters(self, role: str) -> _Delimiters | None:
        """What the template puts around an observation of a role, None if it does not know the role."""
        try:
            before, heard, after = self._after_answer(_HEARD, role).partition(_HEARD)
            verbatim = self._after_answer(_NASTY, role) == before + _NASTY + after
        except Exception:  # a template may raise anything about a role that it does not know
            if role == "user":
                raise
            return None
        tags = _first_character({tag for tag in self._tags if tag in before + after})
        return _Delimiters(before, after, verbatim, role, tags) if heard else None


def _probe(text: str = _HEARD, role: str = "user", answer: str = _ANSWER) -> list[Message]:
    """A dummy conversation: a question, an answer, and an observation."""
    return [
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": answer},
        {"role": role, "content": text},
    ]


def _first_character(names: Collection[str]) -> re.Pattern[str]:
    """Finds the first character of each of these texts."""
    found = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in sorted(names) if len(name) > 1]
    return re.compile("|".join(found) or "(?!)")


def opening(observation: str, info: dict[str, Any], system_prompt: str | None = None) -> list[Message]:
    """The first messages of an episode: the first observation, after `system_prompt` or the environment's own."""
    system = info.get("system") if system_prompt is None else system_prompt
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": observation}]


def _training_template(tokenizer: Any) -> str | None:
    """TRL's history-keeping version of a well-known template, None if it knows none."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None
