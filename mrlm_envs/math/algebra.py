r"""Endless math problems with unknowns: equations, inequalities, systems; their texts are in `algebra.txt`."""

from fractions import Fraction
from math import gcd, isqrt

from mrlm_envs.math.generators import SIZE, Draw, Problem, bracket, ratio, signed, times
from mrlm_envs.math.templates import Case, drawn, read_table

VARIABLES = "xyztnkpw"
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def plus(coefficient: int, symbol: str) -> str:
    """A term to append to a polynomial: ` + 3x`, ` - x`, or nothing for zero."""
    if not coefficient:
        return ""
    return f" - {times(-coefficient, symbol)}" if coefficient < 0 else f" + {times(coefficient, symbol)}"


def linear(a: int, b: int, x: str) -> str:
    """The text of `a x + b`, without a zero constant."""
    return f"{times(a, x)}{signed(b)}" if b else times(a, x)


def quadratic(a: int, b: int, c: int, x: str) -> str:
    """The text of `a x^2 + b x + c`, without zero terms."""
    return f"{times(a, f'{x}^2')}{plus(b, x)}{signed(c) if c else ''}"


def equation(row: tuple[int, int, int, int]) -> str:
    """The text of `a x + b y + c z = d`, without zero terms."""
    terms = [times(coefficient, name) for coefficient, name in zip(row, "xyz") if coefficient]
    return f"{' + '.join(terms)} = {row[3]}".replace("+ -", "- ")


def power(root: str) -> str:
    """The text of a number's square."""
    return f"({root})^2" if root[0] == "-" or "/" in root else f"{root}^2"


def sum_of_squares(low: str, high: str) -> Fraction:
    """The sum of the squares of two numbers."""
    return Fraction(low) ** 2 + Fraction(high) ** 2


def between(low: int, high: int, closed: bool) -> str:
    """An interval."""
    return f"[{low}, {high}]" if closed else f"({low}, {high})"


def outside(low: int, high: int, closed: bool) -> str:
    """What an interval leaves of the reals, with its ends when `closed`."""
    return rf"(-\infty, {low}] \cup [{high}, \infty)" if closed else rf"(-\infty, {low}) \cup ({high}, \infty)"


FUNCTIONS = (between, bracket, equation, linear, outside, plus, power, quadratic, ratio, signed, sum_of_squares, times)
# Linear: a sum, a product, unknowns on both sides, brackets.
LINEAR, QUADRATIC, SURDS, INEQUALITIES, SYSTEMS = read_table("algebra.txt", {}, *FUNCTIONS)


def linear_equations(draw: Draw, difficulty: int) -> Problem:
    """One unknown; on both sides from difficulty 2, with brackets from 4, with a fractional solution from 6."""
    x, size = draw.choice(VARIABLES), SIZE[difficulty]
    factor = min(size, 20)
    form = draw.between(max(0, difficulty // 2 - 2), min(4, difficulty // 2 + 1))
    root, a, b = draw.between(1, size), draw.between(2, factor), draw.nonzero(size)
    if difficulty > 2:
        root = draw.nonzero(size)
    if form in (0, 1, 3):
        return drawn("linear_equations", LINEAR[form](draw, (x, factor, root, a, b)))
    if form == 2:  # the solution is whole
        c = draw.between(1, a - 1) * (-1 if difficulty > 5 and draw.below(2) else 1)
        d = (a - c) * root + b
    else:
        c = draw.nonzero(size)
        c, d = -a if c == a else c, draw.nonzero(size)
    return drawn("linear_equations", LINEAR[2](draw, (x, a, b, c, d)))


def quadratic_equations(draw: Draw, difficulty: int) -> Problem:
    """Integer roots; with a leading factor from difficulty 4, rational roots from 6, irrational ones from 8."""
    x, size = draw.choice(VARIABLES), (0, 10, 12, 15, 15, 18, 18, 20, 20, 25, 30)[difficulty]
    if difficulty >= 8 and draw.below(3) == 0:
        return drawn("quadratic_equations", _surds(draw, size, x))
    p = draw.between(2, 5) if difficulty >= 6 and draw.below(2) else 1
    m, s = draw.nonzero(size), draw.nonzero(size)
    if (common := gcd(p, m)) > 1:
        p, m = p // common, m // common
    factor = draw.between(2, 6) if difficulty >= 4 and draw.below(2) else 1
    # factor (p x - m)(x - s)
    a, b, c = factor * p, -factor * (m + p * s), factor * m * s
    low, high = sorted((Fraction(m, p), Fraction(s)))
    second = "^2" if low == high else f"({x}{signed(-s)})"
    product = f"{factor if factor > 1 else ''}({linear(p, -m, x)}){second} = 0"
    double, *pairs = QUADRATIC
    row = pairs[draw.below(3 if difficulty > 1 else 2)]
    shown = f"{quadratic(a, b, c, x)} = 0"
    case = (double if low == high else row)(draw, (x, a, b, c, shown, product, str(low), str(high)))
    return drawn("quadratic_equations", case)


def _surds(draw: Draw, size: int, x: str) -> Case:
    """`(x - h)^2 = k` written out, with k no square."""
    h, k = draw.nonzero(size), draw.between(2, 4 * size)
    if isqrt(k) ** 2 == k:
        k += 1
    square = max(i * i for i in range(1, isqrt(k) + 1) if k % (i * i) == 0)
    root = f"{isqrt(square) if square > 1 else ''}\\sqrt{{{k // square}}}"
    return SURDS[draw.below(2)](draw, (x, -2 * h, h * h - k, h, k, root))


def inequalities(draw: Draw, difficulty: int) -> Problem:
    """Linear ones, counted integer solutions from difficulty 2, quadratic ones in interval notation from 6."""
    x, size, sign = draw.choice(VARIABLES), SIZE[difficulty], draw.choice(("<", ">", "<=", ">="))
    form = draw.below(2 if difficulty < 2 else 4 if difficulty < 6 else 6)
    count, two_sided, one_sided, square = INEQUALITIES
    if form >= 4:
        low, gap = draw.between(-min(size, 30), min(size, 30)), draw.between(1, min(size, 30))
        return drawn("inequalities", square(draw, (x, sign, low, low + gap)))
    a, b = draw.between(2, min(size, 20)), draw.nonzero(size)
    if form == 3:
        return drawn("inequalities", count(draw, (x, size, a, b)))
    bound = draw.between(-size, size)
    if difficulty > 3 and form == 2:
        return drawn("inequalities", two_sided(draw, (x, sign, bound, a, b)))
    if difficulty > 1 and draw.below(2):
        a = -a
    c = a * bound + b
    if difficulty > 4:
        c += draw.between(0, abs(a) - 1)
    turned = FLIPPED[sign] if a < 0 else sign
    return drawn("inequalities", one_sided(draw, (x, sign, turned, c, a, b)))


def systems(draw: Draw, difficulty: int) -> Problem:
    """Two linear equations with an integer solution; three from difficulty 8."""
    size, factor = min(SIZE[difficulty], 60), (0, 2, 3, 4, 5, 6, 7, 8, 6, 8, 9)[difficulty]
    low = 1 if difficulty < 3 else -size
    x, y = draw.between(low, size), draw.between(low, size)
    two, three = SYSTEMS
    if difficulty >= 8 and draw.below(2):
        z = draw.between(low, size)
        return drawn("systems", three(draw, (x, y, z, [draw.nonzero(factor) for _ in range(7)])))
    a, b, c, d = (draw.nonzero(factor) for _ in range(4))
    if difficulty < 3:
        a, c, b = abs(a), abs(c), abs(b)
    if a * d == b * c:
        # Parallel lines: turning one coefficient around cannot leave them so, since none is zero.
        d = -d
    return drawn("systems", two(draw, (x, y, a, b, c, d)))
