"""Endless word problems: short stories with everyday numbers, as tables of templates (see `templates.py`).

`n` bounds the numbers of a story. Its task id keeps the operands only, so two problems that differ in names, things or
units alone are the same task.
"""

from math import gcd

from mrlm_envs.math.generators import SIZE, Draw, Problem, ratio
from mrlm_envs.math.templates import drawn, read_table
from mrlm_envs.tasks import packaged

WORDS: dict[str, list[str]] = dict(packaged(__file__, "word_problems.yaml"))
WORDS["who"] = WORDS["first"] + WORDS["third"]


def word_problems(draw: Draw, difficulty: int) -> Problem:
    """One of the stories: of one step at difficulty 1, of up to two from 2, of two or three from 5, of three from 8."""
    stories = (
        ONE_STEP if difficulty < 2 else ONE_OR_TWO if difficulty < 5 else LONGER if difficulty < 8 else THREE_STEPS
    )
    return drawn("word_problems", draw.choice(stories)(draw, max(SIZE[difficulty], 10)))


def count(number: int, unit: str) -> str:
    """`1 day`, `2 days`."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def in_order(*operands: object) -> str:
    """Numbers, or pairs of them, whose order does not matter."""
    return ",".join([str(operand).strip("()").replace(" ", "") for operand in sorted(operands)])  # pyright: ignore


ONE_STEP, TWO_STEPS, THREE_STEPS = read_table("word_problems.txt", WORDS, count, gcd, in_order, ratio)
ONE_OR_TWO, LONGER = ONE_STEP + TWO_STEPS, TWO_STEPS + THREE_STEPS
