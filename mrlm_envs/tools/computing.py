"""Generated tasks past mental reach: arithmetic for the calculator, computations for the interpreter."""

from collections.abc import Callable

import numpy as np

from mrlm_envs.tools.calculator import calculate
from mrlm_envs.tools.calls import Call
from mrlm_envs.tools.task import Task

_SMALLEST = 100  # answers of computations; a smaller one could be met by chance


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _ordered(a: int, b: int) -> str:
    return f"{min(a, b)},{max(a, b)}"


# Arithmetic: each level draws (question, expression, canonical operands).


def _products(rng: np.random.Generator) -> tuple[str, str, str]:
    a, b, c = _between(rng, 100, 999), _between(rng, 12, 99), _between(rng, 2, 99)
    form = _between(rng, 0, 4)
    if form == 0:
        return (text := f"{a} * {b}"), text, f"product/{_ordered(a, b)}"
    if form == 1:
        return (text := f"{b} * {a}"), text, f"product/{_ordered(a, b)}"
    if form == 2:
        return (text := f"{a} * {b} + {c}"), text, f"product/{_ordered(a, b)}+{c}"
    if form == 3:
        return (text := f"{c} + {a} * {b}"), text, f"product/{_ordered(a, b)}+{c}"
    return (text := f"({a} + {c}) * {b}"), text, f"sum_product/{_ordered(a, c)}*{b}"


def _longer(rng: np.random.Generator) -> tuple[str, str, str]:
    a, b, c, d = (_between(rng, 101, 9999) for _ in range(4))
    if _between(rng, 0, 1):
        text = f"{a} * {b} - {c} * {d}"
        return text, text, f"products/{_ordered(a, b)}-{_ordered(c, d)}"
    text = f"({a} - {b}) * ({c} + {d})"
    return text, text, f"differences/{a}-{b}*{_ordered(c, d)}"


def _shares(rng: np.random.Generator) -> tuple[str, str, str]:
    percent, whole = _between(rng, 3, 97), _between(rng, 10_001, 99_999)
    if _between(rng, 0, 1):
        return f"{percent}% of {whole}", f"{percent}% of {whole}", f"percent/{percent}/{whole}"
    a, b, c = _between(rng, 101, 999), _between(rng, 101, 999), _between(rng, 12, 99)
    return (text := f"{a * c} * {b} / {c}"), text, f"quotient/{a * c}*{b}/{c}"


def _powers(rng: np.random.Generator) -> tuple[str, str, str]:
    base, exponent, modulus = _between(rng, 3, 99), _between(rng, 9, 60), _between(rng, 1001, 99_999)
    if _between(rng, 0, 1):
        question = f"the remainder when {base}^{exponent} is divided by {modulus}"
        return question, f"{base}^{exponent} % {modulus}", f"power/{base}^{exponent}%{modulus}"
    text = f"{base}^{4 + exponent % 5} - {modulus}"
    return text, text, f"power/{base}^{4 + exponent % 5}-{modulus}"


def _functions(rng: np.random.Generator) -> tuple[str, str, str]:
    form = _between(rng, 0, 2)
    if form == 0:
        a, b, c = sorted(_between(rng, 101, 999) for _ in range(3))
        return f"the least common multiple of {a}, {b} and {c}", f"lcm({a}, {b}, {c})", f"lcm/{a},{b},{c}"
    if form == 1:
        root = _between(rng, 1001, 99_999)
        return f"the square root of {root * root}", f"sqrt({root * root})", f"sqrt/{root * root}"
    n = _between(rng, 20, 60)
    k = _between(rng, 5, n - 5)
    return f"the number of ways to choose {k} of {n} people", f"comb({n}, {k})", f"comb/{n},{min(k, n - k)}"


_ARITHMETIC = (_products, _longer, _shares, _powers, _functions)


def calculator_task(rng: np.random.Generator, level: int) -> Task:
    """A question that one call of the calculator answers."""
    while True:
        question, expression, content = _ARITHMETIC[level - 1](rng)
        answer = calculate(expression)
        if abs(float(answer)) >= _SMALLEST:
            call = Call("calculator", {"expression": expression})
            return Task(f"calculator/{content}", f"What is {question}?", answer, ((call,),))


# Computations: each draws (question, cells of code, content); the last cell ends in `result`.
Drawn = tuple[str, tuple[str, ...], str]


def _primes(rng: np.random.Generator, level: int) -> Drawn:
    low = _between(rng, 100, 900 * level)
    high, digit = low + _between(rng, 300, 700), (1, 3, 7, 9)[_between(rng, 0, 3)]
    code = (
        "def is_prime(n):\n"
        "    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))\n"
        f"result = sum(n for n in range({low}, {high} + 1) if n % 10 == {digit} and is_prime(n))\n"
        "result"
    )
    question = f"What is the sum of all prime numbers from {low} to {high} whose last digit is {digit}?"
    return question, (code,), f"primes/{low}-{high}/{digit}"


def _digits(rng: np.random.Generator, level: int) -> Drawn:
    base, exponent = _between(rng, 2, 19), _between(rng, 60, 90 * level)
    code = f"result = sum(int(digit) for digit in str({base} ** {exponent}))\nresult"
    return f"What is the sum of the digits of {base}^{exponent}?", (code,), f"digits/{base}^{exponent}"


def _sequence(rng: np.random.Generator, level: int) -> Drawn:
    factor, step, modulus = _between(rng, 3, 99), _between(rng, 1, 99), _between(rng, 1009, 9999)
    start, count = _between(rng, 1, 99), _between(rng, 50, 120 * level)
    rule = (
        f"A sequence starts with {start}. Each next term is the remainder of {factor} times the last plus {step}, "
        f"divided by {modulus}."
    )
    making = (
        f"terms = [{start}]\n"
        f"while len(terms) < {count}:\n"
        f"    terms.append(({factor} * terms[-1] + {step}) % {modulus})\n"
    )
    content = f"sequence/{start},{factor},{step},{modulus},{count}"
    if level < 3:
        return f"{rule} What is term {count}?", (f"{making}result = terms[-1]\nresult",), content
    question = f"{rule} Among the first {count} terms, what is the sum of those above their average?"
    second = "average = sum(terms) / len(terms)\nresult = sum(term for term in terms if term > average)\nresult"
    return question, (f"{making}len(terms)", second), f"{content}/above"


def _counting(rng: np.random.Generator, level: int) -> Drawn:
    high, digit_sum, divisor = _between(rng, 2000, 2500 * level), _between(rng, 3, 9), _between(rng, 2, 7)
    code = (
        "result = sum(\n"
        f"    n for n in range(1, {high} + 1)\n"
        f"    if n % {divisor} == 0 and sum(map(int, str(n))) % {digit_sum} == 0\n"
        ")\nresult"
    )
    question = (
        f"What is the sum of the numbers from 1 to {high} that are divisible by {divisor} and have a sum of digits "
        f"divisible by {digit_sum}?"
    )
    return question, (code,), f"counting/{high}/{divisor}/{digit_sum}"


def _sorting(rng: np.random.Generator, level: int) -> Drawn:
    numbers = sorted({_between(rng, 1000, 99_999) for _ in range(8 + 6 * level)})
    shuffled = [numbers[i] for i in rng.permutation(len(numbers))]
    modulus, place = _between(rng, 11, 97), _between(rng, 3, len(numbers) - 2)
    listed = ", ".join(map(str, shuffled))
    question = (
        f"Sort these numbers by their remainder modulo {modulus}, the smallest first, and those with equal remainders "
        f"by size. What is the sum of the first {place}? {listed}"
    )
    code = f"numbers = [{listed}]\nresult = sum(sorted(numbers, key=lambda n: (n % {modulus}, n))[:{place}])\nresult"
    return question, (code,), f"sorting/{modulus}/{place}/{','.join(map(str, numbers))}"


def _walk(rng: np.random.Generator, level: int) -> Drawn:
    start, extra, steps = _between(rng, 1000, 9999), _between(rng, 101, 999), _between(rng, 30, 60 * level)
    rule = (
        f"Start with {start} and replace the number {steps} times by the sum of the cubes of its digits plus {extra}."
    )
    making = (
        f"n, seen = {start}, []\n"
        f"for _ in range({steps}):\n"
        f"    n = sum(int(d) ** 3 for d in str(n)) + {extra}\n"
        "    seen.append(n)\n"
    )
    content = f"walk/{start}/{extra}/{steps}"
    if level < 3:
        return f"{rule} What is it then?", (f"{making}result = n\nresult",), content
    cells = (f"{making}len(seen)", "result = sum(set(seen))\nresult")
    return f"{rule} What is the sum of the different numbers that come up?", cells, f"{content}/different"


_COMPUTATIONS: tuple[Callable[[np.random.Generator, int], Drawn], ...] = (
    _primes,
    _digits,
    _sequence,
    _counting,
    _sorting,
    _walk,
)


def python_task(rng: np.random.Generator, level: int) -> Task:
    """A question that a few lines of Python answer; from level 3 on some take two steps with kept variables."""
    while True:
        question, cells, content = _COMPUTATIONS[_between(rng, 0, len(_COMPUTATIONS) - 1)](rng, level)
        answer = _run(cells)
        if answer >= _SMALLEST:
            turns = tuple((Call("python", {"code": cell}),) for cell in cells)
            return Task(f"python/{content}", question, str(answer), turns)


def _run(cells: tuple[str, ...]) -> int:
    """What the reference computes. The code is our own text with our own numbers."""
    namespace: dict[str, int] = {}
    for cell in cells:
        exec(cell, namespace)  # type: ignore[arg-type]
    return namespace["result"]
