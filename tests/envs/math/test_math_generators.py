"""Generated math problems: reproducible, right by a second way of computing, told apart by canonical ids."""

import ast
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrlm_envs.math import geometry, grade, number_theory, tasks, word_problems
from mrlm_envs.math.generators import Draw
from mrlm_envs.math.tasks import FEW, KINDS, Problem, check_range, count_tasks, generate
from mrlm_envs.tasks import in_split

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
NUMERIC = re.compile(r"[\d\s+\-*/^()]*\d[\d\s+\-*/^()]*")


def draws(kind: str, count: int, difficulties: range = range(1, 11)) -> Iterator[Problem]:
    for difficulty in difficulties:
        for seed in range(count):
            yield generate(np.random.default_rng([seed, difficulty]), (kind,), (difficulty, difficulty))


def value(text: str, **names: Fraction) -> Fraction:
    """The exact value of an expression; `3x` and `2(x + 1)` multiply, `^` is a power."""
    text = re.sub(r"(?<=[\d)])(?=[a-z(])", "*", text.strip()).replace("^", "**")

    def walk(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(number)):
                return Fraction(number)
            case ast.Name(id=name):
                return names[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = walk(left), walk(right)
                match op:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.Div():
                        return a / b
                    case ast.Pow():
                        return a ** int(b)
        raise ValueError(f"no arithmetic: {text}")

    return walk(ast.parse(text, mode="eval").body)


def found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    assert match, text
    return match.groups()


def integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"(?<!\d)-?\d+", text)]


# Every kind.


@EVERY_KIND
def test_the_same_seed_gives_the_same_bytes(kind: str) -> None:
    first, second = [
        [(made.question, made.answer, made.solution, made.task_id) for made in draws(kind, 100)] for _ in range(2)
    ]
    assert first == second


@EVERY_KIND
def test_a_solution_ends_in_the_boxed_answer_and_does_not_give_it_away_before(kind: str) -> None:
    for made in draws(kind, 200):
        *before, last = made.solution.split("\n")
        assert last.endswith(f"\\boxed{{{made.answer}}}")
        assert "\\boxed" not in "".join(before)
        assert "\\boxed" not in made.question
        assert made.kind == kind
        assert made.task_id.startswith(f"{kind}:")


@EVERY_KIND
def test_every_line_of_arithmetic_in_a_solution_is_true(kind: str) -> None:
    checked = 0
    for made in draws(kind, 200):
        for line in re.split(r"\n|, |\. |: ", made.solution):
            sides = [side for side in line.split("=") if NUMERIC.fullmatch(side)]
            assert len({value(side) for side in sides}) <= 1, (made.question, line)
            checked += len(sides) > 1
    assert checked > 500


@EVERY_KIND
def test_the_worked_solution_earns_full_reward(kind: str) -> None:
    for made in draws(kind, 25):
        assert grade(made.solution, made.answer), made


@EVERY_KIND
def test_the_worked_solution_of_another_answer_earns_nothing(kind: str) -> None:
    for made in draws(kind, 3):
        wrong = re.sub(r"\d+", lambda digits: str(int(digits[0]) + 1), made.answer, count=1)
        assert not grade(f"\\boxed{{{wrong}}}", made.answer), (made, wrong)


@EVERY_KIND
def test_a_task_id_stands_for_one_question_up_to_names(kind: str) -> None:
    answers: dict[str, str] = {}
    ids: dict[str, str] = {}
    for made in draws(kind, 300):
        # The letter of the unknown may differ between two problems with one id.
        answer = made.answer if "\\" in made.answer else re.sub("[a-z]", "", made.answer)
        assert answers.setdefault(made.task_id, answer) == answer, made
        assert ids.setdefault(made.question, made.task_id) == made.task_id, made


@EVERY_KIND
def test_there_are_many_different_problems(kind: str) -> None:
    assert len({made.task_id for made in draws(kind, 500, range(1, 2))}) > 30
    for difficulty in range(2, 11):
        ids = {made.task_id for made in draws(kind, 500, range(difficulty, difficulty + 1))}
        assert len(ids) > 200, difficulty


# Right by another way of computing.


@pytest.mark.parametrize("kind", ["addition", "subtraction", "multiplication", "division", "arithmetic", "fractions"])
def test_the_answer_is_the_value_of_the_expression(kind: str) -> None:
    for made in draws(kind, 200):
        expression = found(r"What is (.*)\?", made.question)[0]
        assert value(made.answer) == value(expression), made
        assert math.gcd(*map(int, made.answer.split("/"))) == 1 or "/" not in made.answer


def test_percentages_agree_with_fractions() -> None:
    for made in draws("percentages", 200):
        n = [Fraction(number) for number in integers(made.question)]
        answer, question = Fraction(made.answer), made.question
        if "then increased" in question:
            first = 1 + n[1] / 100 * (1 if "increased by" in question.split(" and ")[0] else -1)
            assert answer == n[0] * first * (1 + n[2] / 100)
        elif "What is the number" in question:
            assert answer * (100 + n[0] * (1 if "increased" in question else -1)) == 100 * n[1]
        elif "creased" in question:
            assert answer == n[0] * (100 + n[1] * (1 if "increased" in question else -1)) / 100
        elif "of what number" in question:
            assert answer * n[1] / 100 == n[0]
        elif "What percent" in question:
            assert answer * n[0] / 100 == n[1]
        else:
            assert answer == n[0] * n[1] / 100


def test_sequences_follow_the_only_rule_that_fits() -> None:
    for made in draws("sequences", 200):
        terms = integers(re.sub(r"(first|number) \d+", "", found("sequence (.*)", made.question)[0]))
        answer = int(made.answer)
        if "missing" in made.question:
            gap = found("sequence (.*)", made.question)[0].split(", ").index("?")
            terms.insert(gap, answer)
            assert len({b - a for a, b in pairwise(terms)}) == 1
        elif "arithmetic" in made.question:
            n = int(found(r"(?:number|first) (\d+)", made.question)[0])
            whole = [terms[0] + i * (terms[1] - terms[0]) for i in range(n)]
            assert answer == (sum(whole) if "sum" in made.question else whole[-1])
        else:
            full = [*terms, answer]
            steps = [b - a for a, b in pairwise(full)]
            constant = len({b - a for a, b in pairwise(steps)}) == 1  # the second differences
            fibonacci = all(full[i] == full[i - 1] + full[i - 2] for i in range(2, len(full)))
            affine = steps[0] != 0 and all(steps[i] * steps[0] == steps[1] * steps[i - 1] for i in range(1, len(steps)))
            assert constant or fibonacci or affine, made


def test_linear_equations_hold_at_the_solution_and_nowhere_else() -> None:
    for made in draws("linear_equations", 200):
        x, left, right = found(r"Solve for (\w): ([^=.]*) = ([^=.]*)", made.question)
        for shift in (0, 1):
            at = {x: Fraction(made.answer) + shift}
            assert (value(left, **at) == value(right, **at)) == (shift == 0), made


def test_quadratic_equations_have_these_roots() -> None:
    for made in draws("quadratic_equations", 200):
        left, x = found(r"(\d*([a-z])\^2.*) = 0", made.question)
        p = [value(left, **{x: Fraction(at)}) for at in (-1, 0, 1)]
        a, b, c = (p[0] + p[2]) / 2 - p[1], (p[2] - p[0]) / 2, p[1]
        spread = math.sqrt(b * b - 4 * a * c)
        roots = sorted({(-b - spread) / (2 * a), (-b + spread) / (2 * a)})
        want = roots
        if "larger" in made.question:
            want = roots[1:]
        elif "squares" in made.question:
            want = [sum(root * root for root in roots)]
        got = []
        for text in made.answer.split(","):
            surd = re.search(r"([+-]?) ?(\d*)\\sqrt\{(\d+)\}", text)
            root = 0.0 if surd is None else float(f"{surd[1]}1") * int(surd[2] or 1) * math.sqrt(int(surd[3]))
            got.append(float(value(text if surd is None else text[: surd.start()])) + root)
        assert got == pytest.approx(want), made


def test_inequalities_hold_exactly_where_the_answer_says() -> None:
    compare: dict[str, Callable[[Fraction, Fraction], bool]] = {
        "<": lambda a, b: a < b, ">": lambda a, b: a > b, "<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b,
    }  # fmt: skip

    def holds(text: str, **names: Fraction) -> bool:
        left, *rest = re.split(r" (<=|>=|<|>) ", text)
        for sign, right in zip(rest[::2], rest[1::2]):
            if not compare[sign](value(left, **names), value(right, **names)):
                return False
            left = right
        return True

    for made in draws("inequalities", 100):
        if made.question.startswith("How many"):
            x, low, middle, sign, high = found(r"integers (\w) satisfy (\S+) < (.*) (<=?) (\S+)\?", made.question)
            b, ab = (int(value(middle, **{x: Fraction(at)})) for at in (0, 1))
            values = [(ab - b) * i + b for i in range(-2500, 2501)]
            count = sum(int(low) < v < int(high) or (v == int(high) and sign == "<=") for v in values)
            assert int(made.answer) == count, made
            continue
        x, told = found(r"Solve for (\w): (.*)\. Give", made.question)
        ends = [Fraction(number) for number in re.findall(r"-?\d+(?:/\d+)?", made.answer)]
        for at in [end + shift for end in ends for shift in (-1, Fraction(-1, 99), 0, Fraction(1, 99), 1)]:
            if made.answer[0] == x:
                inside = holds(made.answer, **{x: at})
            else:
                closed = at in ends and bool(set("[]") & set(made.answer))
                between = min(ends) < at < max(ends)
                inside = closed or (at not in ends and between != ("infty" in made.answer))
            assert inside == holds(told, **{x: at}), (made, at)


def test_systems_hold_at_the_solution_and_have_no_other() -> None:
    for made in draws("systems", 200):
        names = "xyz"[: made.answer.count(",") + 1]
        at = dict(zip(names, map(Fraction, integers(made.answer))))
        equations = re.split(", | and ", found(r"system (.*)\. Give", made.question)[0])
        rows = []
        for equation in equations:
            left, right = equation.split("=")
            assert value(left, **at) == int(right), made
            rows.append([value(left, **{n: Fraction(n == name) for n in names}) for name in names])
        assert round(np.linalg.det(np.array(rows, dtype=float))) != 0, made


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


NUMBER_THEORY: dict[str, Callable[..., int]] = {
    "gcd": math.gcd,
    "lcm": math.lcm,
    "remainder": lambda a, b: a % b,
    "digit_sum": lambda n: sum(map(int, str(n))),
    "largest_prime": lambda n: max(filter(is_prime, divisors(n))),
    "divisors": lambda n: len(divisors(n)),
    "divisor_sum": lambda n: sum(divisors(n)),
    "next_prime": lambda n: next(filter(is_prime, range(n + 1, 2 * n))),
    "units_digit": lambda a, b: pow(a, b, 10),
    "count_multiples": lambda low, high, k: sum(i % k == 0 for i in range(low, high + 1)),
    "modular_power": lambda a, b, m: pow(a, b, m),
}


def test_number_theory_agrees_with_brute_force() -> None:
    cases = set()
    for made in draws("number_theory", 80):
        case = made.task_id.split(":")[1]
        cases.add(case)
        n = integers(made.question)
        if case != "base":
            assert int(made.answer) == NUMBER_THEORY[case](*n), made
        elif "base 10" in made.question:
            assert int(made.answer) == int(str(n[1]), n[2]), made
        else:
            assert int(made.answer, n[1]) == n[0], made
    assert len(cases) == len(number_theory.CASES)


GEOMETRY: dict[str, Callable[..., float]] = {
    "rectangle_area": lambda a, b: a * b,
    "rectangle_perimeter": lambda a, b: a + b + a + b,
    "rectangle_side": lambda area, a: area / a,
    "triangle_area": lambda a, h: a * h / 2,
    "trapezoid_area": lambda a, b, h: (a + b) / 2 * h,
    "hypotenuse": math.hypot,
    "leg": lambda c, a: math.sqrt((c - a) * (c + a)),
    "third_angle": lambda a, b: 180 - (a + b),
    "square_area": lambda around: (around / 4) ** 2,
    "sector": lambda r, angle: math.radians(angle) * r * r / 2,
    "box_volume": lambda a, b, c: a * b * c,
    "box_surface": lambda a, b, c: 2 * a * b + 2 * b * c + 2 * a * c,
    "cylinder": lambda r, h: math.pi * r * r * h,
    "circumference": lambda r: math.tau * r,
    "distance": lambda x, y, u, v: math.dist((x, y), (u, v)),
    "slope": lambda x, y, u, v: (v - y) / (u - x),
}


def test_geometry_agrees_with_the_formulas() -> None:
    figures = set()
    for made in draws("geometry", 200):
        figure = made.task_id.split(":")[1]
        figures.add(figure)
        n = integers(made.question)
        if figure == "midpoint":
            middle = [Fraction(number) for number in made.answer.strip("()").split(",")]
            assert middle == [Fraction(n[0] + n[2], 2), Fraction(n[1] + n[3], 2)], made
            continue
        top, pi, bottom = found(r"^(?:\\frac\{)?(-?\d*)(\\pi)?(?:\}\{(\d+)\}|/(\d+))?$", made.answer)[:3]
        bottom = bottom or made.answer.partition("/")[2] or "1"
        answer = int(top or 1) / int(bottom) * (math.pi if pi else 1)
        if figure == "circle_area":
            want = math.pi * (n[0] / (2 if "diameter" in made.question else 1)) ** 2
        elif figure == "angle_sum":
            name = found(r"angles of an? (\w+)", made.question)[0]
            want = 180 * ((n[0] if n else 3 + geometry.POLYGONS.index(name)) - 2)
        else:
            want = GEOMETRY[figure](*n)
        assert answer == pytest.approx(want), made
    assert len(figures) == len(geometry.PLANE + geometry.SOLID)


def test_every_number_of_a_story_is_used_in_its_solution() -> None:
    stories = set()
    for made in draws("word_problems", 300):
        stories.add(made.task_id.split(":")[1])
        used = re.findall(r"\d+", made.solution.rpartition("\n")[0])
        for number in re.findall(r"\d+", made.question):
            assert number in used, made
        *_, last, _ = made.solution.split("\n")
        assert value(last.rpartition("=")[2]) == value(made.answer), made
    assert len(stories) >= 40


def test_one_of_something_is_told_in_the_singular() -> None:
    for made in draws("word_problems", 2000, range(1, 4)):
        assert not re.search(r"\b1 (degrees|days|hours|minutes|cookies|seats|weeks)\b", made.question), made


def test_multi_step_chains_come_out_as_told() -> None:
    signs = {
        "+": "Add|arrive|added|wins|flow in", "-": "Subtract|shipped|die|loses|flow out",
        "*": "Multiply by|grows to|multiply to|multiplied|filled up", "/": "Divide|1/",
    }  # fmt: skip
    for made in draws("multi_step", 200):
        sentences = made.question.split(". ")
        backwards = made.question.startswith("Think of")
        number = Fraction(made.answer) if backwards else Fraction(integers(sentences[0])[0])
        for sentence in sentences[1 : -2 if backwards else -1]:
            sign = next(sign for sign, verbs in signs.items() if re.search(verbs, sentence))
            number = value(f"({number}) {sign} {integers(sentence)[-1]}")
        assert number == (integers(sentences[-2])[0] if backwards else Fraction(made.answer)), made
        # Two sums in a row could be swapped, and the same task would have two ids.
        assert not re.search(r"[+-]\d+[+-]|[*/]\d+[*/]", made.task_id), made


# Sums, the toy policy's task.


def test_sums_at_difficulty_two_are_of_two_numbers_below_a_hundred_each_as_likely() -> None:
    seen = np.zeros((2, 100))
    for made in draws("addition", 20_000, range(2, 3)):
        operands = found(r"^What is (\d{1,2}) \+ (\d{1,2})\?$", made.question)
        seen[[0, 1], list(map(int, operands))] += 1
    # 200 draws expected of each; chi-squared with 99 degrees of freedom exceeds 160 once in ten thousand.
    assert (((seen - 200) ** 2 / 200).sum(axis=1) < 160).all()


@pytest.mark.parametrize(
    ("a", "b", "solution"),
    [
        (47, 85, "7+5=12, 4+8+1=13. \\boxed{132}"),
        (47, 5, "7+5=12, 4+0+1=5. \\boxed{52}"),
        (0, 0, "0+0=0. \\boxed{0}"),
        (99, 1, "9+1=10, 9+0+1=10. \\boxed{100}"),
        (60, 7, "0+7=7, 6+0=6. \\boxed{67}"),
    ],
)
def test_a_sum_is_worked_column_by_column_with_its_carry(a: int, b: int, solution: str) -> None:
    made = KINDS["addition"](Script([a / 100 + 1e-9, b / 100 + 1e-9]), 2)
    assert (made.question, made.solution) == (f"What is {a} + {b}?", solution)


class Script(Draw):
    """Draws that come out as written."""

    def __init__(self, values: list[float]) -> None:
        self.random = iter(values).__next__


@given(st.integers(1, 10**10), st.floats(0, 1, exclude_max=True))
def test_a_draw_below_n_is_below_n(n: int, random: float) -> None:
    assert 0 <= Script([random]).below(n) < n
    assert Script([1 - 2**-53]).below(n) == n - 1


@given(st.integers(0, 2**32))
def test_draws_stay_in_their_range(seed: int) -> None:
    draw = Draw(np.random.default_rng(seed))
    assert -3 <= draw.between(-3, 3) <= 3
    assert 1 <= abs(draw.nonzero(4)) <= 4
    first, second = draw.pair("abc")
    assert first != second


# Task ids.


@pytest.mark.parametrize("kind", ["addition", "multiplication"])
def test_swapped_operands_are_the_same_task(kind: str) -> None:
    ids: dict[tuple[int, ...], set[str]] = {}
    for made in draws(kind, 1000, range(1, 3)):
        ids.setdefault(tuple(sorted(integers(made.question))), set()).add(made.task_id)
    assert all(len(same) == 1 for same in ids.values())
    assert len(set.union(*ids.values())) == len(ids)


def test_swapped_terms_and_factors_are_the_same_task() -> None:
    ids: dict[tuple[str, ...], set[str]] = {}
    for made in draws("arithmetic", 3000, range(1, 2)):
        if re.search(r" [-/] |\^", made.question):
            continue
        terms = found(r"What is (.*)\?", made.question)[0].split(" + ")
        canonical = tuple(sorted("*".join(sorted(term.split(" * "))) for term in terms))
        ids.setdefault(canonical, set()).add(made.task_id)
    assert len(ids) < 1500  # some did come twice
    assert all(len(same) == 1 for same in ids.values())


def test_names_things_and_unknowns_stay_out_of_task_ids() -> None:
    words = {word for kind in ("who", "thing", "goods") for word in word_problems.WORDS[kind]}
    for made in draws("word_problems", 200):
        operands = made.task_id.split(":")[2]
        assert re.fullmatch(r"[\d,]+", operands)
        assert not words & set(re.split(r"\W", made.task_id))
    for kind in ("linear_equations", "quadratic_equations", "inequalities"):
        for made in draws(kind, 50):
            assert not re.search("[tzpkwnxy]", made.task_id.split(":")[1].split("#")[0]), made


# Splits.


def test_an_equation_in_the_training_split_is_not_asked_about_in_another_way_in_the_test_split() -> None:
    sides: dict[str, set[bool]] = {}
    asked: dict[str, set[str]] = {}
    for made in draws("quadratic_equations", 2000, range(1, 5)):
        equation = found(r"([^ ]*[a-z]\^2.* = 0)", re.sub("[tzpkwny]", "x", made.question))[0]
        sides.setdefault(equation, set()).add(in_split(made.task_id, "test"))
        asked.setdefault(equation, set()).add(made.task_id)
    assert max(map(len, asked.values())) > 1
    assert {len(split) for split in sides.values()} == {1}


def test_splits_of_few_tasks_are_counted_and_of_many_up_to_a_bound() -> None:
    sums = {f"addition:{a}+{b}" for a in range(10) for b in range(a, 10)}
    for split in ("train", "test", "all"):
        assert count_tasks(("addition",), (1, 1), split) == sum(in_split(key, split) for key in sums)
    assert count_tasks(("addition",), (2, 3), "test") == FEW


@pytest.mark.slow
def test_the_documented_numbers_of_tasks_are_the_counted_ones() -> None:
    assert tasks.__doc__ is not None
    for kind in KINDS:
        told = [cell.strip() for cell in found(rf"\| {kind} \|(.*)\|", tasks.__doc__)[0].split("|")]
        for difficulty, cell in enumerate(told, start=1):
            rng = np.random.default_rng(0)
            count = len({generate(rng, (kind,), (difficulty, difficulty)).task_id for _ in range(20_000)})
            assert cell == (f"{count:,}" if count < 5_000 else "> 5,000"), (kind, difficulty)


# Bad input.


@pytest.mark.parametrize(
    ("kinds", "difficulty", "message"),
    [
        (["additon"], (1, 2), "unknown kind 'additon'; did you mean 'addition'?"),
        (["addition", "qqq"], (1, 2), "unknown kind 'qqq'; choose from addition, subtraction"),
        ([], (1, 2), "kinds must be a list of at least one"),
        ("addition", (1, 2), "kinds must be a list"),
        (["addition"], (0, 2), r"1 <= low <= high <= 10; got \(0, 2\)"),
        (["addition"], (1, 11), r"got \(1, 11\)"),
        (["addition"], (5, 2), r"got \(5, 2\)"),
        (["addition"], (1.5, 2), r"got \(1.5, 2\)"),
        (["addition"], (True, 2), r"got \(True, 2\)"),
        (["addition"], (1, 2, 3), r"got \(1, 2, 3\)"),
        (["addition"], 3, "got 3"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(kinds: list[str], difficulty: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_range(kinds, difficulty)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)


def test_generate_refuses_what_it_cannot_draw() -> None:
    for kinds, difficulty in ((["additon"], (1, 2)), (["addition"], (0, 2)), (["addition", "x"], (1, 1))):
        with pytest.raises(ValueError, match=r"unknown kind|difficulty must"):
            generate(np.random.default_rng(0), kinds, difficulty)
    assert check_range(["addition"], [1, 3]) == (1, 3)
