r"""Is this reply right? A strict grader in layers: extract, compare exactly, refuse, and only then ask sympy.

1. `mrlm_envs.answers` finds the answer: the last balanced `\boxed{}`, `####`, `<answer>`, "the answer is …", a reply
   that is nothing but a value, or the only formula of a one-sentence reply. Never "any number in the text".
2. Numbers with their units are compared as exact fractions, in microseconds (`quantity.py`).
3. Lists, tuples, sets, intervals, matrices, inequalities and equations are compared part by part. Bombs, prose,
   hedging ("3 or 4") and a list against a scalar are refused here.
4. Expressions go to math-verify in a worker process with a wall deadline (`symbolic.py`).

What counts as right:

- **An operation left to do is no answer.** To a question whose answer is computed, `17+1`, `\sqrt{324}` and `36/2` are
  wrong against `18`, and `63^2\pi`, `10!` or the quadratic formula with its numbers filled in are wrong against what
  they come to: otherwise the question itself would be the best answer. The rule is about operations between plain
  numbers, like terms (`3\pi+3\pi`) and roots of one degree (`\sqrt{2}\sqrt{3}`). Fractions, reduced or not, mixed
  numbers, scientific notation, powers of ten, `\sqrt{12}` and `(x+1)^2` are answers; a fraction that comes out whole,
  any other power and a number in another base are not. Where the reference itself leaves an operation to do (`2^{10}`,
  `\binom{5}{2}`), so may the answer. In a chain such as `x = 10/2 = 5` every value has to be right.
- **A solution wants a solution.** Against `x > 3` and `x = 3`, `2x + 3 > 9` and `2x = 6` are the question.
- **Exactly.** `0.3333333333` is not `1/3`; `3.14` is not `\pi`; `0.\overline{3}` is `1/3`.
- **Names:** two or more capitals in a row (`AB`, `TTFT`) are one name, not a product. Single letters are variables.
- **Words:** numbers may be written out ("eighteen", "3 dozen"). Other words are compared without case and punctuation;
  beside a formula (`x \text{ dollars}`) every sign and bracket counts.
- **Units:** one that only one side writes is no difference; `10 m` is `1000 cm` and not `10 cm`; `90^\circ` is `\pi/2`.
- **Percent:** `50%` is `0.5` and `1/2`, and also `50` (the answer to "what percent?"). `0.5%` is not `0.5`.
- **Assignments:** `x = 5` is `5`, `9 = 9` is not `9`, and `y = 5` is not `x = 5`.
- **Collections:** bare lists and `{…}` in any order, `(…)` in its own; brackets may be left out, but not exchanged.
"""

import itertools
import re
from collections.abc import Iterable
from functools import lru_cache

from mrlm_envs import answers
from mrlm_envs.math import symbolic
from mrlm_envs.math.quantity import TABLES, Quantity, agree, clean, quantity, unit
from mrlm_envs.math.structure import (
    Collection,
    collection,
    enclosed,
    equation,
    intervals,
    is_measure,
    is_symbol,
    matrix,
    plus_minus,
    relation_sides,
    split_top,
)

MAX_ANSWER = 2_000  # characters; a longer answer is wrong unless the reference is about as long
_MAX_EXPRESSION = 400  # characters of one expression for math-verify
_MAX_DEPTH = 4  # of collections in collections

_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_LOOSE_SPACE = re.compile(r"(?<![\w.,\s])\s+|\s+(?![\w.,\s])")
_NAME = re.compile(r"(?<![\\A-Za-z])[A-Z](?: ?[A-Z])+(?![a-z])")  # two or more capitals are a name, not a product
_TIME = re.compile(r"(\d{1,2})(?::(\d\d))?(?: ?([ap])\.?m\.?)?", re.IGNORECASE | re.ASCII)
_DECIMAL_COMMA = re.compile(r"[^\d,]*(?:0,\d+|\d+,(?!\d{3}(?!\d))\d+)[^\d,]*", re.ASCII)
_FORMULA_SIGN = re.compile(r"[\d\\^+=<>/|]|(?<![A-Za-z])-|-(?![A-Za-z])")
_BASED = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_TRAILING_UNIT = re.compile(r"(.*[^\s])(?: ([A-Za-z]{2,}[A-Za-z ./]{0,30}(?:\^\s*\{?[23]\}?)?)|\s*([°%]))")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_FUNCTIONS = frozenset(TABLES["functions"].split())
_BOMB = re.compile(
    r"\d{4,}\s*\}?\s*!|!\s*\)?\s*!"  # 99999999!, (9!)!
    r"|\^\s*\{?\s*[-+(]?\s*\d{5,}|\^\s*\{?\s*\d+(?:\.\d+)?\s*!"  # x^{99999}, 9^{9!}
    r"|\d\s*\}?\s*\^\s*\{?\s*\(?\s*\d+\s*\}?\s*\^"  # 9^{9^9}
    r"|\\(?:sum|prod|int|lim|binom|bigcup|operatorname)|\d{40,}"
    r"|(?:\\sqrt\s*(?:\[[^\]]{0,20}\]\s*)?\{?\s*){5,}"
)
_TO_LATEX = [(re.compile(pattern), put) for pattern, put in TABLES["latex"]]


def grade(reply: str, gold: str) -> bool:
    r"""Whether a reply gives the reference answer.

    Safe in any thread and after a fork. Takes no longer than 2 s on anything an agent can write, once the workers
    have started (`symbolic.warm_up`); replies that end in a number take microseconds and no worker at all.

    Args:
        reply: All that the agent wrote.
        gold: The bare reference answer, as datasets carry it: `18`, `\frac{3}{4}`, `x < 3`, `[1, 3)`, `\{1, 2\}`. A
            whole solution that ends in `#### 18` or `\boxed{18}` is read, too.

    Raises:
        EnvFault: The grader itself is broken: its workers fail on a trusted comparison.
    """
    answer = find_answer(reply)
    if not answer:
        return False
    if answer == gold:
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    if len(answer) > max(MAX_ANSWER, 2 * len(gold)):
        return False
    return _same(clean(answer), reference(gold), symbolic.Budget(), 0)


def find_answer(reply: str) -> str | None:
    """The answer in a reply: as `mrlm_envs.answers.extract` finds it, or the one formula of a short sentence."""
    return answers.extract(reply) or answers.formula(reply)


@lru_cache(maxsize=8192)
def reference(gold: str) -> str:
    r"""A dataset's answer, cleaned: what follows `####` or stands in `\boxed{}`, else all of it."""
    if "####" in gold:
        gold = answers.hashed(gold) or gold
    elif "\\boxed" in gold or "\\fbox" in gold:
        gold = answers.boxed(gold) or gold
    return clean(gold)


def is_number(gold: str) -> bool:
    """Whether a reference answer is a plain number, so that grading it never needs a worker."""
    return quantity(reference(gold), attached=False) is not None


def _same(answer: str, gold: str, budget: symbolic.Budget, depth: int) -> bool:
    """Whether two cleaned texts mean the same."""
    if not answer or not gold or depth > _MAX_DEPTH:
        return False
    if answer == gold or _LOOSE_SPACE.sub("", answer) == _LOOSE_SPACE.sub("", gold):
        return True
    answer = _approximated(answer)
    named = equation(gold) or []
    if len(named) == 2 and (is_symbol(named[0]) or is_measure(named[0])) and equation(answer) is None:
        return _same(answer, named[1], budget, depth + 1)  # `5` against `x = 5` or `|AB| = 5`
    if (time := _clock(gold)) is not None and (mine := _clock(answer)) is not None:
        return mine == time
    answer, gold = _decimal_comma(answer, gold), _decimal_comma(gold, answer)
    number = quantity(gold, attached=False)
    if number is not None:
        mine = quantity(answer)
        if mine is not None:
            return agree(mine, number)
        if number.dimension == "degree" and "\\pi" in answer:
            return _same(answer, _in_radians(number), budget, depth + 1)
        if _scalar(answer, gold, budget, depth):
            return True
        if "," not in gold:  # else perhaps a list, `100,200`
            return False
    elif "\\pi" in gold and (mine := quantity(answer)) is not None and mine.dimension == "degree":
        return _same(_in_radians(mine), gold, budget, depth + 1)
    return _structured(answer, gold, budget, depth)


def _clock(text: str) -> tuple[int, str] | None:
    """Minutes since midnight or noon, and which half of the day: `3:30 pm`, `15:30`, `3 p.m.`; None for other texts."""
    match = _TIME.fullmatch(text)
    if match is None or not (match[2] or match[3]) or int(match[1]) > 24 or int(match[2] or 0) > 59:
        return None
    hour, half = int(match[1]), (match[3] or "").lower()
    if hour > 12:
        half = "p"
    return hour % 12 * 60 + int(match[2] or 0), half


def _decimal_comma(text: str, other: str) -> str:
    """`2,74` as `2.74` when the other side writes a decimal point; `2,740` stays, since it may be a thousand."""
    return text.replace(",", ".") if "." in other and "," not in other and _DECIMAL_COMMA.fullmatch(text) else text


def _in_radians(angle: Quantity) -> str:
    turned = angle.value / 180
    return rf"\frac{{{turned.numerator}}}{{{turned.denominator}}}\pi"


def _scalar(answer: str, gold: str, budget: symbolic.Budget, depth: int) -> bool:
    """A reference number against a non-numeric answer such as `x = 5` or `(5)`; never against a computation."""
    sides = equation(answer)
    if sides is not None:
        return _assigns(sides, gold, budget, depth)
    inner = _unwrapped(answer)
    return inner != answer and _same(inner, gold, budget, depth + 1)


def _assigns(sides: list[str], gold: str, budget: symbolic.Budget, depth: int) -> bool:
    """`x = 5` or `x = 10/2 = 5` against a value: a name on the left, and every value after it right."""
    name, *steps, last = _name_first(sides)
    if not is_symbol(name) or not _same(last, gold, budget, depth + 1):
        return False
    number = quantity(gold, attached=False)
    values = [(step, quantity(step)) for step in steps]
    return all(
        _same(step, gold, budget, depth + 1)
        if value is None or number is None
        else agree(value._replace(is_open=False), number)
        for step, value in values
    )


def _name_first(sides: list[str]) -> list[str]:
    return sides[::-1] if len(sides) == 2 and is_symbol(sides[1]) and not is_symbol(sides[0]) else sides


def _value_of(text: str, other: str) -> str:
    r"""`S = \{1, 2\}` or `(x, y) = (1, 2)` without its name, when the other side has none."""
    sides = equation(text) or []
    return sides[1] if len(sides) == 2 and is_symbol(sides[0]) and "=" not in other else text


def _structured(answer: str, gold: str, budget: symbolic.Budget, depth: int) -> bool:
    """Compare part by part, as the form of the reference says."""
    answer, gold = _value_of(answer, gold), _value_of(gold, answer)
    rows, mine = matrix(gold), matrix(answer)
    if rows is not None or mine is not None:
        if rows is None or mine is None or [*map(len, rows)] != [*map(len, mine)]:
            return False
        return _all_same(itertools.chain(*mine), itertools.chain(*rows), budget, depth)

    gold_intervals, mine_intervals = intervals(gold), intervals(answer)
    if gold_intervals is not None and mine_intervals is not None:
        name, parts = gold_intervals
        my_name, my_parts = mine_intervals
        if name and my_name and name != my_name:
            return False
        return _in_any_order(
            my_parts, parts, lambda a, g: a.kind == g.kind and _all_same(a.items, g.items, budget, depth)
        )

    many, mine_many = collection(plus_minus(gold)), collection(plus_minus(answer))
    if many is not None or mine_many is not None:
        return many is not None and mine_many is not None and _same_collection(mine_many, many, budget, depth)

    inner, my_inner = _unwrapped(gold), _unwrapped(answer)
    if (inner, my_inner) != (gold, answer):
        return _same(my_inner, inner, budget, depth + 1)

    return _same_relation(answer, gold, budget, depth)


def _same_collection(answer: Collection, gold: Collection, budget: symbolic.Budget, depth: int) -> bool:
    if gold.kind == "()" and answer.kind == "":
        answer = answer.by_name()
    if answer.kind == "()" and gold.kind == "":
        gold = gold.by_name()
    kinds = {answer.kind, gold.kind}
    if len(kinds) == 2 and "" not in kinds:
        return False
    if len(kinds) == 2 and (kinds & {"(]", "[)"} or (gold.kind == "[]" and len(gold.items) == 2)):
        return False  # an interval needs its brackets
    if kinds <= {"", "{}"}:
        mine, items = [[item.replace(" ", "") for item in side.items] for side in (answer, gold)]
        if len(set(items)) == len(items):  # a value that is said twice is said
            answer = Collection(answer.kind, list(dict.fromkeys(mine)))
        return _in_any_order(answer.items, gold.items, lambda a, g: _same(a, g, budget, depth + 1))
    return len(answer.items) == len(gold.items) and _all_same(answer.items, gold.items, budget, depth)


def _all_same(answers: Iterable[str], golds: Iterable[str], budget: symbolic.Budget, depth: int) -> bool:
    return all(_same(a, g, budget, depth + 1) for a, g in zip(answers, golds))


def _in_any_order(answer: list, gold: list, same) -> bool:
    """Whether the two lists hold the same things: each of `gold` finds a partner of its own."""
    if len(answer) != len(gold):
        return False
    left = list(answer)
    for wanted in gold:
        partner = wanted if wanted in left else next((a for a in left if same(a, wanted)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _same_relation(answer: str, gold: str, budget: symbolic.Budget, depth: int) -> bool:
    """Compare two equations or inequalities, an equation with a value, or else two expressions."""
    sides, my_sides = relation_sides(gold), relation_sides(answer)
    if sides is None and my_sides is None:
        return _same_expression(answer, gold, budget, depth)
    if sides is None:  # `x = 5` against 5; an inequality is never a value
        return my_sides is not None and my_sides[0] == "=" and _assigns(my_sides[1], gold, budget, depth)
    if my_sides is None:
        name, *_, value = _name_first(sides[1])
        return sides[0] == "=" and is_symbol(name) and _same(answer, value, budget, depth + 1)
    if my_sides[0] != sides[0] or len(my_sides[1]) != 2 or len(sides[1]) != 2:
        return False
    (left, right), (my_left, my_right) = sides[1], my_sides[1]
    if is_symbol(left) and is_symbol(my_left) and not is_symbol(right):
        return left == my_left and _same(my_right, right, budget, depth + 1)
    if _is_solved(sides[1]) and not _is_solved(my_sides[1]):
        return False
    texts = _as_latex(left, right, my_left, my_right)
    if not all(_may_ask(text, gold) for text in texts[2:]):
        return False
    return symbolic.same(sides[0], texts[:2], texts[2:], budget)


def _is_solved(sides: list[str]) -> bool:
    """Whether a relation has a name on one side and, on the other, no unknowns: `x = 5`, `3 < x`; not `y = 2x`."""
    left, right = _name_first(sides)
    return is_symbol(left) and not re.search("[A-Za-z]", _COMMAND.sub(" ", right))


def _same_expression(answer: str, gold: str, budget: symbolic.Budget, depth: int) -> bool:
    based = _BASED.fullmatch(gold)
    if based is not None:  # the digits as they are, the base may be left out; a number in another base is the question
        mine = _BASED.fullmatch(answer)
        digits, base = mine.groups() if mine is not None else (answer, based[2])
        return (digits.upper(), base) == (based[1].upper(), based[2])
    (value, measure), (my_value, my_measure) = _measured(gold), _measured(answer)
    if (measure is None) != (my_measure is None):
        return _same(my_value, value, budget, depth + 1)
    if measure != my_measure:
        return False
    answer, gold = my_value, value
    if _is_text(gold) or _is_text(answer):
        return _plain_words(answer) == _plain_words(gold) != ""
    answer, gold = _as_latex(answer, gold)
    return _may_ask(answer, gold) and symbolic.same("value", [gold], [answer], budget)


def _may_ask(answer: str, gold: str) -> bool:
    """Whether an expression may go to math-verify: short, printable, no prose, no bomb, one value."""
    return (
        len(answer) <= max(_MAX_EXPRESSION, 2 * len(gold))
        and answer.isprintable()
        and "$" not in answer
        and not _is_text(answer)
        and not _BOMB.search(answer)
        and len(split_top(answer, ",;")) == 1
    )


def _is_text(text: str) -> bool:
    """Whether there are words in it (other than LaTeX commands and functions) or nothing but one capital letter."""
    return (
        text.startswith(r"\mathrm{")
        or any(word not in _FUNCTIONS and not word.isupper() for word in _prose(text))
        or (len(text.strip("()")) == 1 and text.strip("()").isupper())
    )


def _prose(text: str) -> list[str]:
    return [word for word in _WORD.findall(_COMMAND.sub(" ", text)) if len(word) > 3 or word.lower() in _SHORT_WORDS]


_SHORT_WORDS = frozenset("or and not no yes the is odd all one two six ten of to in if so day".split())  # noqa: SIM905


def _plain_words(text: str) -> str:
    """Words without case and punctuation; with a formula among them, all signs and brackets count."""
    text = text.removeprefix(r"\mathrm{").strip(" .,;:!\"'}")
    if len(choice := text.strip("()")) == 1:  # (C)
        return choice
    if _FORMULA_SIGN.search(text) or any(len(word) == 1 for word in re.findall("[A-Za-z]+", text) if word not in "aAI"):
        return text.replace(" ", "")
    return " ".join(re.findall(r"[^\s.,;:!'\"()*_-]+", text)).casefold()


def _approximated(answer: str) -> str:
    r"""The exact side of `1/3 \approx 0.333`."""
    if "\\approx" not in answer:
        return answer
    left, right = answer.split("\\approx", 1)
    return right.strip() if not left.strip() or is_symbol(left.strip()) else left.strip()


def _unwrapped(text: str) -> str:
    """`(x + 1)` without its parentheses, if they belong together and hold one thing."""
    kind, inside = enclosed(text) or ("", text)
    return inside if kind == "()" and len(split_top(inside, ",;")) == 1 else text


def _measured(text: str) -> tuple[str, tuple | None]:
    """An expression and its unit: `2\\sqrt{3} cm`."""
    if text.startswith("$"):
        return text[1:].strip(), ("usd", 1)
    match = _TRAILING_UNIT.fullmatch(text)
    if match is None or not re.search(r"[\d\\}]", match[1]):
        return text, None
    known = unit((match[2] or match[3]).strip())
    return (text, None) if known is None or known[0].startswith("?") else (match[1], known)


def _as_latex(*texts: str) -> list[str]:
    """The texts for math-verify: names such as `AB` or `TTFT` become one symbol each, `sqrt(2)` a command."""
    symbols: dict[str, str] = {}
    made = []
    for text in texts:
        text = _NAME.sub(
            lambda name: symbols.setdefault(name[0].replace(" ", ""), rf"Q_{{{900 + len(symbols)}}}"), text
        )
        for pattern, put in _TO_LATEX:
            text = pattern.sub(put, text)
        made.append(text)
    return made
