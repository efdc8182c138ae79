"""The calculator: exact arithmetic as people write it, on `simpleeval`; what would take too long is refused.

`+ - * / // % ^ **`, brackets, `pi`, `e` and the functions below. `1,000` is a thousand (within a function's brackets
a comma separates arguments), `5%` is 0.05, `5% of 200` is 10, `17 % 5` is 2, `5!` is 120, `×`, `÷` and `−` are
understood. Whole numbers and fractions are exact; irrational results have 12 digits.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from mrlm_envs.tools.registry import ToolError, tool

try:
    from simpleeval import FunctionNotDefined, InvalidExpression, NameNotDefined, SimpleEval
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("the calculator needs simpleeval: pip install 'mrlm[tools]'", name=missing.name) from None

Number = int | Fraction | float

MAX_LENGTH = 500  # characters of an expression
MAX_BITS = 4096  # of a number on the way, above and below the fraction bar: 1,233 digits
_MAX_FACTORIAL = 400
_DIGITS = 12

_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "^": "\0", "$": " ", "\u00a0": " "})
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?![\d,])")
_PERCENT = re.compile(r"%(?=\s*(?:of\b|$|[)*/+\-,\0%]))")
_SIGNED_MODULO = re.compile(r"\s%\s*-\s*(?=[\d(])")
_FACTORIAL = re.compile(r"(?<![\w.)])(\d{1,9})!(?!=)")
_BRACKET = re.compile(r"([A-Za-z_]\w*\s*\(|[()])")


def calculate(expression: str) -> str:
    """The value of an expression as text.

    Args:
        expression: See the module.

    Raises:
        ToolError: It is not arithmetic, has no real value, or its value is too large.
    """
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"the expression is longer than {MAX_LENGTH} characters")
    try:
        text = _normalised(expression)
        value = _Evaluator().eval(text, ast.parse(text, mode="eval").body)
        if isinstance(value, bool) or not isinstance(value, int | Fraction | float):
            raise ToolError("the expression is not a number")
        return _text(_checked(value))
    except ToolError:
        raise
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the value is too large") from None
    except FunctionNotDefined as error:
        raise ToolError(f"there is no function {error.func_name!r}; there are {', '.join(FUNCTIONS)}") from None
    except NameNotDefined as error:
        raise ToolError(f"{error.name!r} is not a number") from None
    except (SyntaxError, InvalidExpression, AttributeError):
        raise ToolError(f"{expression[:100]!r} is not an arithmetic expression") from None
    except (RecursionError, MemoryError):
        raise ToolError("the expression is too deeply nested") from None
    except (ValueError, TypeError) as error:
        raise ToolError(f"cannot evaluate {expression[:100]!r}: {str(error)[:200]}") from None


@tool
def calculator(expression: str) -> str:
    """Evaluates an arithmetic expression exactly.

    Args:
        expression: Such as "(3 + 4) * 12", "sqrt(16)", "2^10" or "5% of 200".
    """
    return calculate(expression)


def _normalised(expression: str) -> str:
    """The expression as Python writes it."""
    text = _thousands(expression.translate(_SIGNS).strip())
    text = _SIGNED_MODULO.sub(" \1 -", text)  # `17 % -5` is a remainder, `17% - 5` a percentage
    text = _PERCENT.sub("/100", text)
    text = re.sub(r"/100\s*of\b", "/100*", text)
    text = _FACTORIAL.sub(r"factorial(\1)", text)
    return text.replace("\1", "%").replace("\0", "**")


def _thousands(text: str) -> str:
    """Without thousands separators, except within a function's brackets, where a comma separates arguments."""
    pieces = _BRACKET.split(text)
    brackets: list[bool] = []  # whether each open bracket is a function's
    for i, piece in enumerate(pieces):
        if i % 2 == 0:  # between two brackets
            if not (brackets and brackets[-1]):
                pieces[i] = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), piece)
        elif piece == ")":
            del brackets[-1:]
        else:
            brackets.append(piece != "(")
    return "".join(pieces)


def _checked(value: Any) -> Any:
    """The value itself, when it is real and small enough to print.

    Raises:
        ToolError: It is not.
    """
    if isinstance(value, complex):
        raise ToolError("the value is not a real number")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ToolError("the value is too large, or not a number")
    elif isinstance(value, int | Fraction) and max(map(int.bit_length, value.as_integer_ratio())) > MAX_BITS:
        raise ToolError("the value is too large")
    return value


def _text(value: Number) -> str:
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}" if value != int(value) or abs(value) >= 1e15 else str(int(value))
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    decimal = Decimal(value.numerator) / Decimal(value.denominator)
    if len(decimal.as_tuple().digits) <= 20 and Fraction(decimal) == value:  # a decimal that ends
        return f"{decimal:f}"
    return f"{float(value):.{_DIGITS}g}"


def _exact(value: Any) -> Number:
    """A literal as a number: a decimal is the fraction it is written as."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ToolError("only numbers are allowed")
    return _checked(value if isinstance(value, int) else Fraction(repr(_checked(value))))


def _checking(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: _checked(function(*arguments))


def _divide(a: Number, b: Number) -> Number:
    return a / b if isinstance(a, float) or isinstance(b, float) else Fraction(a) / b


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        exponent = int(exponent)
    if isinstance(exponent, int) and not isinstance(base, float):
        base = Fraction(base)
        if abs(base) in (0, 1):
            return base ** (exponent if base == 0 else exponent % 2)
        bits = max(map(int.bit_length, base.as_integer_ratio())) - 1
        if bits * abs(exponent) <= MAX_BITS:
            return base**exponent
        if base.denominator == 1:
            raise ToolError("the value is too large" if exponent > 0 else "the value is too small")
    value = float(base) ** float(exponent)
    if value == 0 and base != 0:
        raise ToolError("the value is too small")
    return value


def _sqrt(value: Number) -> Number:
    if value < 0:
        raise ToolError("the square root of a negative number is not real")
    if isinstance(value, float):
        return math.sqrt(value)
    value = Fraction(value)
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    return root if root * root == value else math.sqrt(value)


def _whole(value: Number) -> int:
    if not 0 <= value <= _MAX_FACTORIAL:
        raise ToolError(f"expected a whole number from 0 to {_MAX_FACTORIAL}")
    return _integer(value)


def _integer(value: Number) -> int:
    if value != int(value):
        raise ToolError("expected whole numbers")
    return int(value)


def _round(value: Number, digits: Number = 0) -> Number:
    """Half away from zero, as people round."""
    places = int(digits)
    if abs(places) > 100:
        raise ToolError("at most 100 digits")
    scaled = abs(Fraction(value)) * Fraction(10) ** places
    rounded = Fraction(math.floor(scaled + Fraction(1, 2))) / Fraction(10) ** places
    return rounded if value >= 0 else -rounded


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": _sqrt,
    "abs": abs,
    "round": _round,
    "min": min,
    "max": max,
    "gcd": lambda *values: math.gcd(*map(_integer, values)),
    "lcm": lambda *values: math.lcm(*map(_integer, values)),
    "factorial": lambda n: math.factorial(_whole(n)),
    "comb": lambda n, k: math.comb(_whole(n), _whole(k)),
    "ln": math.log,
}
for _name in ("floor", "ceil", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan"):
    FUNCTIONS[_name] = getattr(math, _name)
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: lambda a, b: math.floor(_divide(a, b)),
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_NODES = (ast.Expr, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name)


class _Evaluator(SimpleEval):
    """`simpleeval` cut down to numbers: exact literals, no text, no containers, no attributes, no assignments."""

    def __init__(self) -> None:
        operators = {node: _checking(function) for node, function in _OPERATORS.items()}
        functions = {name: _checking(function) for name, function in FUNCTIONS.items()}
        super().__init__(operators, functions, {"pi": math.pi, "e": math.e})
        self.nodes = {node: self.nodes[node] for node in _NODES} | {ast.Constant: lambda node: _exact(node.value)}
