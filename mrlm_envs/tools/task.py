"""The record of one task, generated or from a row."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mrlm_envs import answers
from mrlm_envs.math import grade
from mrlm_envs.math.verify import is_number
from mrlm_envs.tools.calls import Call

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Task:
    """Something to do that takes tools.

    Attributes:
        task_id: Canonical content.
        question: What the agent is asked.
        answer: The right answer, None when only the files count.
        turns: The reference trajectory: the calls of each turn before the answer.
        files: What the virtual file system holds at the start.
        files_after: What it must hold at the end; None when the files do not count.
        drawn_as: `kind` and `difficulty` of a generated task, for `info`; empty for a user's own.
    """

    task_id: str
    question: str
    answer: str | None
    turns: tuple[tuple[Call, ...], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    files_after: Mapping[str, str] | None = None
    drawn_as: dict[str, Any] = field(default_factory=dict)

    def solved(self, reply: str, files: Mapping[str, str]) -> bool:
        """Whether a final reply and the files at that moment are right.

        Args:
            reply: All that the agent wrote in its last turn.
            files: Content by path.
        """
        if self.files_after is not None and _plain(files) != _plain(self.files_after):
            return False
        return self.answer is None or is_right(reply, self.answer)


def is_right(reply: str, answer: str) -> bool:
    """Whether a reply gives the answer: numbers by value, text word for word whatever the case and punctuation."""
    if is_number(answer):
        return grade(reply, answer)
    given = answers.extract(reply)
    wanted = _words(answer)
    return (given is not None and _words(given) == wanted) or _words(answers.after_thinking(reply)) == wanted


def _words(text: str) -> Any:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or folded.strip()


def _plain(files: Mapping[str, str]) -> dict[str, str]:
    """Files without differences nobody sees: newlines at the end."""
    return {path: content.rstrip("\n") for path, content in files.items()}
