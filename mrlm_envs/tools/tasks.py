"""Where ToolUse tasks come from: `generate` draws one from the generators, `task` reads one from a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mrlm_envs.tasks import text_field
from mrlm_envs.tools.calls import Call
from mrlm_envs.tools.computing import calculator_task, python_task
from mrlm_envs.tools.edits import files_task
from mrlm_envs.tools.filesystem import VirtualFiles
from mrlm_envs.tools.lookups import lookup_task, mixed_task
from mrlm_envs.tools.task import Task

__all__ = ["HIGHEST", "KINDS", "Kind", "Task", "generate", "task"]

HIGHEST = 5
"""The highest difficulty of a generated task."""


@dataclass(frozen=True)
class Kind:
    """A family of generated tasks: how one is drawn at a level from 1 to 5, and the built-in tools it needs."""

    make: Callable[[np.random.Generator, int], Task]
    needs: tuple[str, ...]


KINDS: dict[str, Kind] = {
    "calculator": Kind(calculator_task, ("calculator",)),
    "lookup": Kind(lookup_task, ("knowledge",)),
    "python": Kind(python_task, ("python",)),
    "files": Kind(files_task, ("files",)),
    "mixed": Kind(mixed_task, ("calculator", "knowledge", "files")),
}
"""Every generator by name."""


def generate(rng: np.random.Generator, kinds: Sequence[str], difficulty: tuple[int, int]) -> Task:
    """Draws a task of one of the kinds, at a difficulty uniform in the inclusive range."""
    kind = kinds[int(rng.integers(len(kinds)))]
    level = int(rng.integers(difficulty[0], difficulty[1] + 1))
    return replace(KINDS[kind].make(rng, level), drawn_as={"kind": kind, "difficulty": level})


def task(row: Mapping[str, Any], number: int, source: str) -> Task:
    """Reads a row of a user's own tasks.

    | field | meaning |
    | --- | --- |
    | `question` or `task` | what the agent is asked |
    | `answer` or `expected_answer` | the right answer, text or number |
    | `files`, `files_after` | content by path, at the start and at the end; `files_after` counts when it is there |
    | `calls` | the reference: a list of `{"name", "arguments"}`, or of lists of them (one for each turn) |
    | `task_id` or `id` | its name; source and row number unless given |

    `question` and one of `answer` and `files_after` must be there. Without `calls` the reference answers at once, or
    deletes and writes the files that differ, as many in a turn as are allowed.

    Args:
        row: The fields; others are ignored.
        number: The row's number, from 1.
        source: Where the row comes from, as errors and ids name it.

    Raises:
        ValueError: Names source, row and the field that is missing or does not fit.
    """
    where = f"tasks {source}, row {number}"
    question = text_field(row, "task" if "task" in row and "question" not in row else "question", where)
    answer = row.get("answer", row.get("expected_answer"))
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise ValueError(f"{where}: field 'answer' must be text or a number, got {answer!r}")
    files = _files(row, "files", where) or {}
    after = _files(row, "files_after", where)
    if answer is None and after is None:
        raise ValueError(f"{where}: field 'answer' is missing, and so is 'files_after'")
    turns = _turns(row.get("calls"), where)
    if not turns and after is not None:
        changed = {path: text for path, text in after.items() if files.get(path) != text}
        written = [Call("write_file", {"path": path, "content": text}) for path, text in changed.items()]
        deleted = [Call("delete_file", {"path": path}) for path in files if path not in after]
        turns = ((*deleted, *written),) if deleted or written else ()
    name = row.get("task_id", row.get("id"))
    return Task(str(name) if name is not None else f"{source}/{number}", question, answer, turns, files, after)


def _files(row: Mapping[str, Any], field: str, where: str) -> dict[str, str] | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(x, str) for pair in value.items() for x in pair):
        raise ValueError(f"{where}: field {field!r} must be an object of texts by path, got {value!r:.60}")
    try:
        return VirtualFiles(value).files
    except ValueError as error:
        raise ValueError(f"{where}: field {field!r}: {error}") from None


def _turns(value: Any, where: str) -> tuple[tuple[Call, ...], ...]:
    if value is None:
        return ()
    try:
        turns = [turn if isinstance(turn, list | tuple) else [turn] for turn in value]
        return tuple(tuple(Call(str(call["name"]), dict(call.get("arguments", {}))) for call in turn) for turn in turns)
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ValueError(f"{where}: field 'calls' must be a list of {{name, arguments}}, got {value!r:.60}") from None
