"""Equations that stand in a text, such as `37 * 4 = 148`: found, recalculated, compared.

Only whole numbers (up to 12 digits), `+ - * /` and brackets are read, so nothing an agent writes costs time.
"""

import ast
import operator
import re
from fractions import Fraction
from functools import lru_cache

_RUN = re.compile(r"[0-9(][0-9 +\-*/()=]{0,200}")
_MAX_SIDE = 60  # characters of one side of an equation
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

Equation = tuple[str, Fraction, Fraction]
"""The left side without spaces, its value, and the value of the right side."""


@lru_cache(maxsize=2048)  # the claims of a bank are read again and again
def equations(text: str) -> tuple[Equation, ...]:
    """Every equation between numbers in the text; a chain `a = b = c` makes two."""
    found = []
    for run in _RUN.findall(text.replace("×", "*").replace("−", "-")):
        sides = [side.strip() for side in run.split("=")]
        values = [_value(side) for side in sides]
        for left, a, b in zip(sides, values, values[1:]):
            if a is not None and b is not None:
                found.append((left.replace(" ", ""), a, b))
    return tuple(found)


def false_equations(text: str) -> list[str]:
    """The left sides of the equations in the text that do not hold."""
    return [left for left, a, b in equations(text) if a != b]


def contradicts(text: str, theirs: str) -> bool:
    """Whether `text` gives another result than `theirs` for the same left side."""
    mine = {left: b for left, _, b in equations(text) if not left.isdigit()}
    return any(left in mine and mine[left] != b for left, _, b in equations(theirs))


def _value(side: str) -> Fraction | None:
    if not side or len(side) > _MAX_SIDE:
        return None
    try:
        return _evaluate(ast.parse(side, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 10**12:
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return Fraction(_OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    raise ValueError("not an equation between whole numbers")
