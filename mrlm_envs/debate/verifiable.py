"""Questions with a known answer, and a case for the true and for a false one.

Both cases are laid out alike: a few steps, each a claim with a source (`questions.yaml`). The true one is right
throughout. The false one makes a slip of a kind that people make, and goes on from there: a wrong product or sum (which
anyone who recalculates can see), a number misread or left out (which shows only when the claims are held against the
question), or a wrong idea of what was asked (which shows in no sum at all).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrlm_envs.tasks import packaged

Steps = tuple[tuple[str, str], ...]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and (answer, (claim, source) of each step) for the true and for the false answer."""

    text: str
    task_id: str
    true: tuple[str, Steps]
    false: tuple[str, Steps]


def generate(rng: np.random.Generator, kind: str | None = None) -> Question:
    """Draw a question of a kind, by default of any of `KINDS`."""
    kind = kind or list(KINDS)[int(rng.integers(len(KINDS)))]
    key, *cases = KINDS[kind](rng)
    form = packaged(__file__, "questions.yaml")[kind]
    filled = []
    for case in cases:
        lines = case.get("lines") or [{}] * len(form["steps"])
        templates = form["steps"] if len(form["steps"]) > 1 else form["steps"] * len(lines)
        steps = tuple((t[0].format(**case, **line), t[1].format(**line)) for t, line in zip(templates, lines))
        filled.append((form["answer"].format(**case), steps))
    return Question(form["question"].format(**cases[0]), f"{kind}:{key}", *filled)


def _slip(rng: np.random.Generator, value: int) -> int:
    """A wrong result near `value`: off by one, two or ten, and above zero."""
    off = int(rng.choice((-10, -2, -1, 1, 2, 10)))
    return value + off if value + off > 0 else value + abs(off)


def _product(rng: np.random.Generator) -> tuple[str, Values, Values]:
    """A product by partial products; the slip is in a partial product or in their sum."""
    a, b = int(rng.integers(12, 100)), int(rng.integers(12, 100))
    tens, ones = b // 10 * 10, b % 10
    if ones == 0:
        ones, b = 3, b + 3
    true = {"a": a, "b": b, "tens": tens, "ones": ones, "first": a * tens, "second": a * ones, "sum": a * b}
    place = ("first", "second", "sum")[int(rng.integers(3))]
    false = {**true, place: _slip(rng, true[place])}
    if place != "sum":
        false["sum"] = false["first"] + false["second"]
    return f"{min(a, b)}*{max(a, b)}", true, false


def _shopping(rng: np.random.Generator) -> tuple[str, Values, Values]:
    """The price of two kinds of goods; the slip is in a sum, or a number is misread."""
    (m, n), (p, q) = rng.integers(3, 13, 2).tolist(), rng.integers(4, 40, 2).tolist()
    goods = [("pens", "notebooks"), ("apples", "melons"), ("bolts", "hinges"), ("cups", "bowls")]
    x, y = goods[int(rng.integers(len(goods)))]

    def case(price: int, first: int) -> Values:
        bill = {"price": price, "first": first, "second": n * q, "sum": first + n * q}
        return {"m": m, "n": n, "p": p, "q": q, "x": x, "y": y, **bill}

    misread = p + int(rng.choice((-1, 1, 2, 10)))
    false = case(p, _slip(rng, m * p)) if rng.random() < 0.5 else case(misread, m * misread)
    return "+".join(f"({k},{v})" for k, v in sorted([(m, p), (n, q)])), case(p, m * p), false


def _remainder(rng: np.random.Generator) -> tuple[str, Values, Values]:
    """A remainder by the largest multiple; the slip is in the multiple or in the difference."""
    m, q = int(rng.integers(6, 30)), int(rng.integers(5, 40))
    r = int(rng.integers(0, m))
    n, off = m * q + r, int(rng.choice((1, 2)))

    def case(multiple: int, rest: int) -> Values:
        return {"n": n, "m": m, "q": q, "multiple": multiple, "rest": rest, "next": multiple + m}

    false = case(m * q - off, r + off) if rng.random() < 0.5 else case(m * q, r + off)
    return f"{n}/{m}", case(m * q, r), false


def _equation(rng: np.random.Generator) -> tuple[str, Values, Values]:
    """A linear equation; the slip is in the subtraction or the division."""
    a, x, b = int(rng.integers(2, 13)), int(rng.integers(2, 20)), int(rng.integers(2, 40))
    true = {"a": a, "b": b, "c": a * x + b, "x": x, "right": a * x}
    slip = int(rng.choice((-2, -1, 1, 2)))
    wrong = x + slip if x + slip > 0 else x + 3
    return f"{a}x+{b}={a * x + b}", true, {**true, "x": wrong, "right": (wrong if rng.random() < 0.5 else x) * a}


def _evens(rng: np.random.Generator) -> tuple[str, Values, Values]:
    """The sum of the even numbers among four; the slip takes an odd one in, or adds wrongly."""
    even = (2 * rng.choice(np.arange(6, 50), size=2, replace=False)).tolist()
    odd = (2 * rng.choice(np.arange(6, 50), size=2, replace=False) + 1).tolist()
    numbers = sorted(even + odd)

    def case(taken: list[int], result: int) -> Values:
        listed = {"numbers": numbers, "taken": taken, "left": [number for number in numbers if number not in taken]}
        added = {"added": " + ".join(map(str, taken)), "backwards": " + ".join(map(str, reversed(taken)))}
        return {name: ", ".join(map(str, values)) for name, values in listed.items()} | added | {"sum": result}

    taken = sorted([*even, odd[int(rng.integers(2))]])
    false = case(taken, sum(taken)) if rng.random() < 0.5 else case(sorted(even), _slip(rng, sum(even)))
    return ",".join(map(str, numbers)), case(sorted(even), sum(even)), false


def _total(rng: np.random.Generator) -> tuple[str, Values, Values]:
    """The sum of five numbers, added up from the left; the slip is in a sum, or a number is left out."""
    numbers = rng.choice(np.arange(11, 100), size=5, replace=False).tolist()

    def case(added: list[int], slip: int) -> Values:
        lines, before = [], added[0]
        for i, number in enumerate(added[1:], start=1):
            after = before + number + (slip if i == 2 else 0)
            lines.append({"number": number, "before": before, "after": after, "line": i})
            before = after
        return {"listed": ", ".join(map(str, numbers[:4])), "last": numbers[4], "sum": before, "lines": lines}

    left_out = int(rng.integers(4))  # without the last one, every claim would be true
    shorter = numbers[:left_out] + numbers[left_out + 1 :]
    false = case(numbers, int(rng.choice((-10, -1, 1, 10)))) if rng.random() < 0.5 else case(shorter, 0)
    return "+".join(map(str, sorted(numbers))), case(numbers, 0), false


KINDS: dict[str, Callable[[np.random.Generator], tuple[str, Values, Values]]] = {
    "product": _product,
    "shopping": _shopping,
    "remainder": _remainder,
    "equation": _equation,
    "total": _total,
    "evens": _evens,
}
"""The kinds of questions; each draws a canonical key and the values of the true and of the false case."""
