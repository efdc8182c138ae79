r"""What every generator of math problems uses, and the kinds about plain numbers: sums, products, fractions.

A kind is a function `(draw, difficulty) -> Problem`, pure in its draws, for difficulties 1 (easiest) to 10. Other kinds
have files of their own, some of them as tables of templates (`templates.py`); `tasks.KINDS` names them all. Nothing
here needs more than integers, so a simple problem costs a few microseconds.
"""

import functools
from collections.abc import Callable, Sequence
from math import gcd, lcm
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Problem(NamedTuple):
    r"""A question with a known answer.

    Attributes:
        question: What the agent sees: plain text, LaTeX only where natural.
        answer: The canonical gold answer; `mrlm_envs.math.grade` accepts it.
        work: The worked solution, or the function that writes it down: most episodes never ask for it.
        task_id: The canonical content of the problem, the same for two problems that only differ in the order of a sum
            or in the names of people and variables. Problems with the same text before a `#` are always in one split.
        kind: The generator's name; empty for a dataset row.
        difficulty: It was drawn at; 0 for a dataset row.
    """

    question: str
    answer: str
    work: str | Callable[[], str]
    task_id: str
    kind: str = ""
    difficulty: int = 0

    @property
    def drawn_as(self) -> dict[str, Any]:
        """What `info` says of a generated problem: evaluations are broken down by it."""
        return {"kind": self.kind, "difficulty": self.difficulty} if self.kind else {}

    @property
    def solution(self) -> str:
        r"""A worked solution that ends in `\boxed{answer}` (datasets may end in `#### answer`)."""
        return self.work if isinstance(self.work, str) else self.work()


class Draw:
    """Uniform draws of small integers, several times cheaper than `Generator.integers`.

    One 53-bit double makes one draw, so the bias towards any value is at most n / 2**53: nothing for the n used here.
    """

    __slots__ = ("random",)

    def __init__(self, rng: np.random.Generator) -> None:
        self.random: Callable[[], float] = rng.random

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + int(self.random() * (high - low + 1))

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self.random() * len(items))]

    def pair(self, items: Sequence[T]) -> tuple[T, T]:
        """Two different items."""
        first = int(self.random() * len(items))
        second = int(self.random() * (len(items) - 1))
        return items[first], items[second + (second >= first)]

    def nonzero(self, size: int) -> int:
        """A non-zero integer in [-size, size]."""
        value = int(self.random() * 2 * size) - size
        return value + (value >= 0)


Kind = Callable[[Draw, int], Problem]

SIZE = (0, 9, 12, 20, 30, 50, 75, 100, 200, 500, 999)
"""The largest everyday number of each difficulty, 1 to 10."""


def solved(kind: str, key: str, question: str, answer: object, *steps: str) -> Problem:
    r"""A problem whose solution is the steps, a line each, and the boxed answer."""
    return Problem(question, f"{answer}", "\n".join((*steps, f"\\boxed{{{answer}}}")), f"{kind}:{key}", kind)


def ratio(numerator: int, denominator: int) -> str:
    """`numerator / denominator` in lowest terms: `3/4`, `-5/2`, or `7` when whole."""
    if denominator < 0:
        numerator, denominator = -numerator, -denominator
    common = gcd(numerator, denominator)
    return f"{numerator // common}" if common == denominator else f"{numerator // common}/{denominator // common}"


def times(coefficient: int, symbol: str) -> str:
    r"""A coefficient before a symbol, without ones: `3x`, `-x`, `\pi`."""
    return symbol if coefficient == 1 else f"-{symbol}" if coefficient == -1 else f"{coefficient}{symbol}"


def bracket(value: int) -> str:
    """A number as the second operand of a product or difference."""
    return f"({value})" if value < 0 else str(value)


def signed(value: int) -> str:
    """A term to append to a sum: ` + 3` or ` - 3`."""
    return f" - {-value}" if value < 0 else f" + {value}"


def addition(draw: Draw, difficulty: int) -> Problem:
    """The sum of two numbers of up to `difficulty` digits each, worked column by column from the right."""
    limit = 10**difficulty
    a, b = draw.below(limit), draw.below(limit)
    key = f"addition:{a}+{b}" if a < b else f"addition:{b}+{a}"
    return Problem(f"What is {a} + {b}?", f"{a + b}", functools.partial(_added, a, b), key, "addition")


def _added(a: int, b: int) -> str:
    columns, carry, x, y = [], 0, a, b
    while x or y or not columns:
        total = x % 10 + y % 10 + carry
        columns.append(f"{x % 10}+{y % 10}+1={total}" if carry else f"{x % 10}+{y % 10}={total}")
        carry, x, y = total > 9, x // 10, y // 10
    return f"{', '.join(columns)}. \\boxed{{{a + b}}}"


def subtraction(draw: Draw, difficulty: int) -> Problem:
    """The difference of two numbers of up to `difficulty` digits; never below zero up to difficulty 3."""
    limit = 10**difficulty
    a, b = draw.below(limit), draw.below(limit)
    if difficulty <= 3 and a < b:
        a, b = b, a
    work = functools.partial(_subtracted, a, b)
    return Problem(f"What is {a} - {b}?", f"{a - b}", work, f"subtraction:{a}-{b}", "subtraction")


def _subtracted(a: int, b: int) -> str:
    columns, borrow, x, y = [], 0, max(a, b), min(a, b)
    while x or y or not columns:
        top, bottom = x % 10, y % 10 + borrow
        top += 10 * (top < bottom)
        columns.append(f"{top}-{y % 10}-1={top - bottom}" if borrow else f"{top}-{bottom}={top - bottom}")
        borrow, x, y = top > 9, x // 10, y // 10
    turned = f"{a}-{b}=-({b}-{a}). " if a < b else ""
    return f"{turned}{', '.join(columns)}. \\boxed{{{a - b}}}"


def multiplication(draw: Draw, difficulty: int) -> Problem:
    """A product, 1 x 1 digit at difficulty 1 to 6 x 5 digits at 10, worked by partial products."""
    a = draw.between(2, 10 ** ((difficulty + 2) // 2) - 1)
    b = draw.between(2, 10 ** ((difficulty + 1) // 2) - 1)
    if draw.below(2):
        a, b = b, a
    small, large = (a, b) if a < b else (b, a)
    whole, split = (small, large) if small < 10 else (large, small)
    parts = [int(digit) * 10**i for i, digit in enumerate(reversed(str(split))) if digit != "0"]
    steps = [f"{whole} * {part} = {whole * part}" for part in parts]
    if len(parts) > 1:
        steps.append(f"{' + '.join([str(whole * part) for part in parts])} = {a * b}")
    return solved("multiplication", f"{small}*{large}", f"What is {a} * {b}?", a * b, *steps)


def division(draw: Draw, difficulty: int) -> Problem:
    """An exact quotient, worked by long division."""
    quotient = draw.between(2, 10 ** ((difficulty + 2) // 2) - 1)
    divisor = draw.between(2, 10 ** ((difficulty + 1) // 2) - 1)
    dividend = quotient * divisor
    steps, rest = [], 0
    for digit in str(dividend):
        rest = rest * 10 + int(digit)
        if rest >= divisor:
            times = rest // divisor
            steps.append(f"{rest} - {times} * {divisor} = {rest - times * divisor}")
            rest -= times * divisor
    steps.append(f"{dividend} / {divisor} = {quotient}")
    return solved("division", f"{dividend}/{divisor}", f"What is {dividend} / {divisor}?", quotient, *steps)


def arithmetic(draw: Draw, difficulty: int) -> Problem:
    """A sum of products, quotients, squares and brackets: precedence matters."""
    size, count = SIZE[difficulty] if difficulty < 7 else 99, 2 + difficulty // 3
    compound = draw.below(count)
    texts, values, keys, steps, total = [], [], [], [], 0
    for i in range(count):
        a, b = draw.between(2, size), draw.between(2, 9 if difficulty < 6 else 19)
        shape = draw.below(2 + min(difficulty, 4)) if i == compound or draw.below(2) else -1
        if shape == -1:
            text, value, key = str(a), a, str(a)
        elif shape <= 1:
            text, value = f"{a} * {b}", a * b
            key = f"{a}*{b}" if a < b else f"{b}*{a}"
        elif shape == 2:
            text, value, key = f"{a * b} / {b}", a, f"{a * b}/{b}"
        elif shape == 3:
            text, value, key = f"{b}^2", b * b, f"{b}*{b}"
        else:
            c = draw.between(2, 9)
            inner = a + b if shape == 4 else a - b
            text, value = f"({a} {'+' if shape == 4 else '-'} {b}) * {c}", inner * c
            key = f"({min(a, b)}+{max(a, b)})*{c}" if shape == 4 else f"({a}-{b})*{c}"
            steps.append(f"{text[1 : text.index(')')]} = {inner}")
            steps.append(f"{bracket(inner)} * {c} = {value}")
        if 0 <= shape <= 3:
            steps.append(f"{text} = {value}")
        minus = i > 0 and draw.below(2) == 1 and (difficulty > 3 or total >= value)
        total += -value if minus else value
        texts.append(f" - {text}" if minus else f" + {text}" if i else text)
        values.append(signed(-value if minus else value) if i else str(value))
        keys.append(f"-{key}" if minus else f"+{key}")
    steps.append(f"{''.join(values)} = {total}")
    return solved("arithmetic", "".join(sorted(keys)), f"What is {''.join(texts)}?", total, *steps)


def fractions(draw: Draw, difficulty: int) -> Problem:
    """Sums, differences, products and quotients of fractions, in lowest terms."""
    size = (0, 9, 10, 12, 14, 16, 20, 25, 30, 40, 60)[difficulty]
    a, b = _proper(draw, size)
    c, d = _proper(draw, size)
    sign = draw.choice("+-" if difficulty < 3 else "+-*/")
    if sign == "-" and difficulty < 5 and a * d < c * b:
        a, b, c, d = c, d, a, b
    question = f"{a}/{b} {sign} {c}/{d}"
    left, right = sorted((f"{a}/{b}", f"{c}/{d}")) if sign in "+*" else (f"{a}/{b}", f"{c}/{d}")
    key = f"{left}:{right}" if sign == "/" else f"{left}{sign}{right}"
    if sign in "+-":
        top, bottom, steps = _common(a, b, c if sign == "+" else -c, d)
        if difficulty > 6:
            e, f = _proper(draw, size)
            question = f"{question} + {e}/{f}"
            key = "".join(sorted((f"+{a}/{b}", f"{sign}{c}/{d}", f"+{e}/{f}")))
            top, bottom, more = _common(top, bottom, e, f)
            steps += more
    elif sign == "*":
        top, bottom = a * c, b * d
        steps = [f"{a} * {c} = {top}", f"{b} * {d} = {bottom}"]
    else:
        top, bottom = a * d, b * c
        steps = [f"{a}/{b} / ({c}/{d}) = {a}/{b} * {d}/{c}", f"{a} * {d} = {top}", f"{b} * {c} = {bottom}"]
        question = f"({a}/{b}) / ({c}/{d})"
    answer = ratio(top, bottom)
    if answer != f"{top}/{bottom}":
        steps.append(f"{top}/{bottom} = {answer}")
    return solved("fractions", key, f"What is {question}? Give the answer in lowest terms.", answer, *steps)


def _proper(draw: Draw, size: int) -> tuple[int, int]:
    """A proper fraction in lowest terms with a denominator of at most `size`."""
    bottom = draw.between(2, size)
    top = draw.between(1, bottom - 1)
    common = gcd(top, bottom)
    return top // common, bottom // common


def _common(a: int, b: int, c: int, d: int) -> tuple[int, int, list[str]]:
    """`a/b + c/d` over the least common denominator, with its steps."""
    bottom = lcm(b, d)
    x, y = a * (bottom // b), c * (bottom // d)
    steps = [f"{p}/{q} = {r}/{bottom}" for p, q, r in ((a, b, x), (abs(c), d, abs(y))) if q != bottom]
    return x + y, bottom, [*steps, f"{x}/{bottom}{signed(y)}/{bottom} = {x + y}/{bottom}"]
