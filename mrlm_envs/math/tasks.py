"""Where math problems come from: `generate` draws one from the generators, `problem` reads one from a dataset."""

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from mrlm_envs import answers
from mrlm_envs.math import algebra, generators
from mrlm_envs.math.generators import Draw, Kind, Problem
from mrlm_envs.math.multi_step import multi_step
from mrlm_envs.math.number_theory import number_theory
from mrlm_envs.math.word_problems import word_problems

__all__ = ["KINDS", "Problem", "check_range", "generate", "problem"]

KINDS: dict[str, Kind] = {
    **generators.KINDS,
    **algebra.KINDS,
    "number_theory": number_theory,
    "word_problems": word_problems,
    "multi_step": multi_step,
}
"""Every generator by name."""


def check_range(kinds: Sequence[str], difficulty: Sequence[int]) -> tuple[int, int]:
    """The difficulty as a tuple, once both arguments are known to be what `generate` can draw from.

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
    # `type` rather than `isinstance`: True is an int too.
    if isinstance(difficulty, Sequence) and [type(bound) for bound in difficulty] == [int, int]:
        low, high = difficulty
        if 1 <= low <= high <= 10:
            return low, high
    raise ValueError(f"difficulty must be (low, high) in whole numbers, 1 <= low <= high <= 10; got {difficulty!r}")


def generate(rng: np.random.Generator, kinds: Sequence[str], difficulty: tuple[int, int]) -> Problem:
    """Draw a problem of one of the kinds, at a difficulty uniform in the inclusive range.

    Raises:
        ValueError: as `check_range`.
    """
    low, high = difficulty
    if not 1 <= low <= high <= 10 or not kinds or not KINDS.keys() >= set(kinds):
        check_range(kinds, difficulty)
    draw = Draw(rng)
    make = KINDS[kinds[0] if len(kinds) == 1 else draw.choice(kinds)]
    return make(draw, low if low == high else draw.between(low, high))


_CALCULATION = re.compile(r"<<[^<>]*>>")
_ENDING = re.compile(r"\.(jsonl|json|parquet)$")


def problem(row: Mapping[str, Any], number: int, source: str) -> Problem:
    r"""Read a row of GSM8K, MATH, MATH-500, AIME, AMC, Minerva or plain questions and answers, by its fields.

    The question is `question`, else `problem`. The gold answer is what follows the last `####` of `answer` (GSM8K),
    else `answer`, else the last box of `solution` (MATH, Minerva). A solution that does not end in the gold answer gets
    it in a box as its last line. The id is `task_id`, `unique_id` or `id`, else source and row.

    Args:
        row: The fields; others are ignored.
        number: The row's number, from 1.
        source: Where the row comes from, as errors and ids shall name it.

    Raises:
        ValueError: names the source, the row and the field that is missing, empty or of the wrong type.
    """
    where = f"tasks {source}, row {number}"
    question = _text(row, "problem" if "problem" in row and "question" not in row else "question", where)
    solution = "" if row.get("solution") is None else _text(row, "solution", where)
    if row.get("answer") is not None or not solution:
        gold = _text(row, "answer", where)
        if "####" in gold:
            solution, _, gold = gold.rpartition("####")
            solution, gold = _CALCULATION.sub("", solution).strip(), gold.strip().replace(",", "")
        elif gold.startswith("\\boxed"):
            gold = answers.boxed(gold) or ""
        if not gold:
            raise ValueError(f"{where}: field 'answer' holds no answer: {row['answer']!r}")
    elif not (gold := (answers.boxed(solution) or "").strip()):
        found = ", ".join(map(str, row))
        raise ValueError(f"{where}: field 'answer' is missing and 'solution' has no \\boxed{{}} (found: {found})")
    if answers.boxed(solution) != gold:
        solution = f"{solution}\n\\boxed{{{gold}}}".strip()
    named = [row[field] for field in ("task_id", "unique_id", "id") if row.get(field) not in (None, "")]
    return Problem(question, gold, solution, str(named[0]) if named else f"{_ENDING.sub('', source)}/{number}")


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    """The field as stripped text; an answer may also be a number."""
    value = row.get(field)
    if value is None:
        raise ValueError(f"{where}: field {field!r} is missing (found: {', '.join(map(str, row)) or 'nothing'})")
    if (
        field == "answer"
        and isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and math.isfinite(value)
    ):
        return str(int(value)) if value == int(value) else str(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} must be text, got {type(value).__name__} {value!r:.40}")
    if not value.strip():
        raise ValueError(f"{where}: field {field!r} is empty")
    return value.strip()
