"""Where math problems come from: `generate` draws one from the generators, `problem` reads one from a dataset.

Distinct tasks of each kind (met in 20,000 draws; from difficulty 4 on more than 5,000 of every kind). One in five
belongs to the test split; a split that holds fewer than 200 warns when the environment is made.

| kind | difficulty 1 | 2 | 3 |
| --- | ---: | ---: | ---: |
| addition | 55 | 4,944 | > 5,000 |
| subtraction | 55 | 4,944 | > 5,000 |
| multiplication | 36 | 756 | 4,756 |
| division | 64 | 784 | > 5,000 |
| arithmetic | > 5,000 | > 5,000 | > 5,000 |
| fractions | 752 | 982 | 3,763 |
| percentages | 1,100 | 1,650 | 4,598 |
| sequences | 2,743 | 2,793 | > 5,000 |
| linear_equations | 1,458 | > 5,000 | > 5,000 |
| quadratic_equations | 400 | 852 | 1,335 |
| inequalities | > 5,000 | > 5,000 | > 5,000 |
| systems | 1,701 | > 5,000 | > 5,000 |
| geometry | 1,988 | 2,495 | 3,864 |
| number_theory | 1,512 | 4,042 | > 5,000 |
| word_problems | 1,805 | > 5,000 | > 5,000 |
| multi_step | 1,138 | > 5,000 | > 5,000 |
"""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mrlm_envs import answers, tasks
from mrlm_envs.math import algebra, generators
from mrlm_envs.math.generators import Draw, Kind, Problem
from mrlm_envs.math.geometry import geometry
from mrlm_envs.math.multi_step import multi_step
from mrlm_envs.math.number_theory import number_theory
from mrlm_envs.math.percentages import percentages
from mrlm_envs.math.sequences import sequences
from mrlm_envs.math.word_problems import word_problems
from mrlm_envs.tasks import in_split, text_field

__all__ = ["KINDS", "Problem", "check_range", "generate", "problem"]

_GENERATORS: list[Kind] = [
    generators.addition, generators.subtraction, generators.multiplication, generators.division, generators.arithmetic,
    generators.fractions, percentages, sequences, algebra.linear_equations, algebra.quadratic_equations,
    algebra.inequalities, algebra.systems, geometry, number_theory, word_problems, multi_step,
]  # fmt: skip
KINDS = {make.__name__: make for make in _GENERATORS}
"""Every generator by name."""

FEW = 200
"""A split with fewer distinct tasks than this warns."""


def check_range(kinds: Sequence[str], difficulty: Sequence[int]) -> tuple[int, int]:
    """`mrlm_envs.tasks.check_range` for these kinds and difficulties 1 to 10."""
    return tasks.check_range(kinds, difficulty, KINDS, 10)


def generate(rng: np.random.Generator, kinds: Sequence[str], difficulty: tuple[int, int]) -> Problem:
    """Draw a problem of one of the kinds, at a difficulty uniform in the inclusive range.

    Raises:
        ValueError: As `check_range`.
    """
    return draw_problem(Draw(rng), kinds, check_range(kinds, difficulty))


def draw_problem(draw: Draw, kinds: Sequence[str], difficulty: tuple[int, int]) -> Problem:
    """`generate` for arguments that `check_range` has passed."""
    low, high = difficulty
    make = KINDS[kinds[0] if len(kinds) == 1 else draw.choice(kinds)]
    level = low if low == high else draw.between(low, high)
    return make(draw, level)._replace(difficulty=level)


@lru_cache(maxsize=256)
def count_tasks(kinds: tuple[str, ...], difficulty: tuple[int, int], split: str) -> int:
    """How many distinct tasks a split holds, counted up to `FEW` and until 4,000 draws bring no new one."""
    draw, found, idle = Draw(np.random.default_rng(0)), set(), 0
    while len(found) < FEW and idle < 4_000:
        task_id, before = draw_problem(draw, kinds, difficulty).task_id, len(found)
        if in_split(task_id, split):
            found.add(task_id)
        idle = 0 if len(found) > before else idle + 1
    return len(found)


@lru_cache(maxsize=256)
def warn_if_few(kinds: tuple[str, ...], difficulty: tuple[int, int], split: str) -> None:
    """Warn, once a configuration, when a split holds fewer than `FEW` distinct tasks."""
    if (count := count_tasks(kinds, difficulty, split)) < FEW:
        warnings.warn(
            f"mrlm/Math-v0: split {split!r} of {', '.join(kinds)} at difficulty {difficulty[0]} to {difficulty[1]} "
            f"holds only {count} distinct tasks; raise the difficulty or add kinds",
            stacklevel=3,
        )


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
        source: The name of the source, for errors and ids.

    Raises:
        ValueError: A field is missing, empty or of the wrong type; the message names source, row and field.
    """
    where = f"tasks {source}, row {number}"
    question = text_field(row, "problem" if "problem" in row and "question" not in row else "question", where)
    solution = "" if row.get("solution") is None else text_field(row, "solution", where)
    if row.get("answer") is not None or not solution:
        gold = _answer(row, where)
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


def _answer(row: Mapping[str, Any], where: str) -> str:
    """The field `answer`, which may also be a number."""
    value: Any = row.get("answer")
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    return text_field(row, "answer", where)
