r"""Where math problems come from: `generate` draws one from the generators, `problem` reads one from a dataset's row."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from mrlm_envs.math import generators
from mrlm_envs.math.generators import Draw, Kind, Problem

__all__ = ["KINDS", "Problem", "check", "generate", "problem"]

KINDS: dict[str, Kind] = {**generators.KINDS}
"""Every generator by name."""


def check(kinds: Sequence[str], difficulty: Sequence[int]) -> None:
    """Refuse what `generate` cannot draw from.

    Raises:
        ValueError: in one line, for no kinds, an unknown kind (with the nearest name) or a difficulty out of range.
    """
    if isinstance(kinds, str) or not kinds:
        raise ValueError(f"kinds must be a list of at least one of {', '.join(KINDS)}; got {kinds!r}")
    for kind in kinds:
        if kind not in KINDS:
            near = get_close_matches(str(kind), KINDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(KINDS)}"
            raise ValueError(f"unknown kind {kind!r}; {hint}")
    # Typed tests by `type`, because True is an int and 2.0 equals one.
    if (
        len(difficulty) != 2
        or any(type(d) is not int for d in difficulty)
        or not 1 <= difficulty[0] <= difficulty[1] <= 10
    ):
        raise ValueError(
            f"difficulty must be two whole numbers (low, high) with 1 <= low <= high <= 10; got {difficulty!r}"
        )


def generate(rng: np.random.Generator, kinds: Sequence[str], difficulty: tuple[int, int]) -> Problem:
    """Draw a problem of one of the kinds, at a difficulty uniform in the inclusive range.

    Raises:
        ValueError: as `check`.
    """
    low, high = difficulty
    if not 1 <= low <= high <= 10 or not kinds or not all([kind in KINDS for kind in kinds]):
        check(kinds, difficulty)
    draw = Draw(rng)
    make = KINDS[kinds[0] if len(kinds) == 1 else draw.choice(kinds)]
    return make(draw, low if low == high else draw.between(low, high))


_ANNOTATION = re.compile(r"<<[^<>]*>>")
_ID_FIELDS = ("task_id", "unique_id", "id")


def problem(row: Mapping[str, Any], index: int, source: str) -> Problem:
    r"""Read a row of GSM8K, MATH, MATH-500, AIME, AMC, Minerva or plain question and answer, told apart by its fields.

    Args:
        row: `question` or `problem`; the gold answer is what follows the last `####` of `answer`, else `answer`, else the last
            box of `solution`. A solution that does not end in the gold answer gets it in a box as its last line.
        index: The row's position, from 0.
        source: Where the row comes from, for the task's id and for errors.

    Raises:
        ValueError: names the source, the row (from 1) and the field that is missing, empty or of the wrong type.
    """
    where = f"tasks {source}, row {index + 1}"
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with fields, got {type(row).__name__}")
    name = "problem" if "problem" in row and "question" not in row else "question"
    question = _text(row, name, where)
    if row.get("answer") is None and row.get("solution") is not None:
        solution = _text(row, "solution", where)
        gold = last_box(solution)
        if gold is None:
            raise ValueError(
                f"{where}: field 'answer' is missing and 'solution' has no \\boxed{{}} (found: {', '.join(row)})"
            )
    else:
        gold = _text(row, "answer", where)
        solution = ""
        if "####" in gold:
            solution, _, gold = gold.rpartition("####")
            solution, gold = _ANNOTATION.sub("", solution).strip(), gold.strip().replace(",", "")
            solution = f"{solution}\n#### {gold}" if solution else f"#### {gold}"
        elif isinstance(row.get("solution"), str):
            solution = row["solution"].strip()
    if not gold:
        raise ValueError(f"{where}: field 'answer' has no answer in it")
    if not solution.endswith(f"#### {gold}") and last_box(solution) != gold:
        solution = f"{solution}\n\\boxed{{{gold}}}".strip()
    named = next((row[field] for field in _ID_FIELDS if row.get(field) not in (None, "")), None)
    task_id = f"{Path(source).stem}/{index}" if named is None else str(named)
    return Problem(question, gold, solution, task_id)


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    """The field as stripped text; whole and decimal numbers are written out."""
    value = row.get(field)
    if value is None:
        found = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"{where}: field {field!r} is missing (found: {found})")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and field == "answer":
        value = str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{where}: field {field!r} is empty")
    return value.strip()


def last_box(text: str) -> str | None:
    r"""What stands in the last balanced `\boxed{}` (or `\fbox{}`) of the text, or None."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth, start = 1, match.end()
        for i in range(start, len(text)):
            if text[i] in "{}" and (i == 0 or text[i - 1] != "\\"):
                depth += 1 if text[i] == "{" else -1
                if depth == 0:
                    return text[start:i].strip()
    return None
