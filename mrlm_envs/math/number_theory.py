"""Endless problems of elementary number theory: divisors, primes, remainders, digits, bases."""

from math import gcd, isqrt, prod

from mrlm_envs.math.generators import Draw, Problem, solved

LIMIT = (0, 30, 60, 100, 200, 400, 700, 1000, 2000, 5000, 10000)
"""The largest number of each difficulty, 1 to 10."""

Case = tuple[str, ...]
"""Canonical operands, question, answer, steps."""


def number_theory(draw: Draw, difficulty: int) -> Problem:
    """One of twelve questions about whole numbers; the first five up to difficulty 2, nine up to 4."""
    case = draw.choice(CASES[:5] if difficulty < 3 else CASES[:9] if difficulty < 5 else CASES)
    key, question, answer, *steps = case(draw, LIMIT[difficulty])
    return solved("number_theory", f"{case.__name__.strip('_')}:{key}", question, answer, *steps)


def factorize(n: int) -> list[tuple[int, int]]:
    """The prime factors of `n` with their exponents, smallest first."""
    factors, p = [], 2
    while p * p <= n:
        exponent = 0
        while n % p == 0:
            n, exponent = n // p, exponent + 1
        if exponent:
            factors.append((p, exponent))
        p += 1 + p % 2
    return [*factors, (n, 1)] if n > 1 else factors


def _factored(n: int, factors: list[tuple[int, int]]) -> str:
    """`360 = 2^3 * 3^2 * 5`, or `7 is prime.`"""
    if factors == [(n, 1)]:
        return f"{n} is prime."
    return f"{n} = {' * '.join([f'{p}^{e}' if e > 1 else f'{p}' for p, e in factors])}"


def _euclid(a: int, b: int) -> list[str]:
    steps, a, b = [], max(a, b), min(a, b)
    while b:
        steps.append(f"{a} - {a // b} * {b} = {a % b}")
        a, b = b, a % b
    return steps


def _multiples(draw: Draw, limit: int) -> tuple[int, int]:
    """Two numbers with a common factor."""
    common = draw.between(2, max(6, isqrt(limit)))
    a, b = draw.pair(range(1, max(10, limit // common)))
    return common * a, common * b


def _gcd(draw: Draw, limit: int) -> Case:
    a, b = _multiples(draw, limit)
    question = f"What is the greatest common divisor of {a} and {b}?"
    return f"{min(a, b)},{max(a, b)}", question, f"{gcd(a, b)}", *_euclid(a, b)


def _lcm(draw: Draw, limit: int) -> Case:
    a, b = _multiples(draw, limit)
    common = gcd(a, b)
    answer = a * b // common
    steps = (*_euclid(a, b), f"{a} * {b} / {common} = {answer}")
    return f"{min(a, b)},{max(a, b)}", f"What is the least common multiple of {a} and {b}?", f"{answer}", *steps


def _remainder(draw: Draw, limit: int) -> Case:
    b = draw.between(2, max(9, isqrt(limit)))
    a = draw.between(b, limit)
    step = f"{a} - {a // b} * {b} = {a % b}"
    return f"{a},{b}", f"What is the remainder when {a} is divided by {b}?", f"{a % b}", step


def _digit_sum(draw: Draw, limit: int) -> Case:
    n = draw.between(10, limit * limit)
    digits = str(n)
    total = sum(map(int, digits))
    return digits, f"What is the sum of the digits of {n}?", f"{total}", f"{' + '.join(digits)} = {total}"


def _largest_prime(draw: Draw, limit: int) -> Case:
    n = draw.between(6, limit)
    factors = factorize(n)
    return f"{n}", f"What is the largest prime factor of {n}?", f"{factors[-1][0]}", _factored(n, factors)


def _divisors(draw: Draw, limit: int) -> Case:
    n = draw.between(6, limit)
    factors = factorize(n)
    count = prod([e + 1 for _, e in factors])
    steps = (_factored(n, factors), f"{' * '.join([f'({e} + 1)' for _, e in factors])} = {count}")
    return f"{n}", f"How many positive divisors does {n} have?", f"{count}", *steps


def _next_prime(draw: Draw, limit: int) -> Case:
    n = draw.between(8, limit)
    steps, candidate = [], n + 1
    while (smallest := factorize(candidate)[0][0]) != candidate:
        steps.append(f"{candidate} = {smallest} * {candidate // smallest}")
        candidate += 1
    question = f"What is the smallest prime number greater than {n}?"
    return f"{n}", question, f"{candidate}", *steps, f"{candidate} is prime."


def _units_digit(draw: Draw, limit: int) -> Case:
    a, b = draw.between(2, max(20, isqrt(limit))), draw.between(5, limit)
    cycle = [a % 10]
    while (digit := cycle[-1] * a % 10) != cycle[0]:
        cycle.append(digit)
    position = b % len(cycle)
    steps = [f"The units digits of the powers of {a} repeat: {', '.join(map(str, cycle))}."]
    if len(cycle) > 1:
        steps.append(f"{b} - {b // len(cycle)} * {len(cycle)} = {position}")
    return f"{a}^{b}", f"What is the units digit of {a}^{b}?", f"{cycle[position - 1]}", *steps


def _count_multiples(draw: Draw, limit: int) -> Case:
    k, low = draw.between(2, max(9, isqrt(limit))), draw.between(2, limit)
    high = low + draw.between(k, limit * 2)
    below, upto = (low - 1) // k, high // k
    steps = (
        f"There are {upto} positive multiples of {k} up to {high}, and {below} below {low}.",
        f"{upto} - {below} = {upto - below}",
    )
    question = f"How many integers from {low} to {high}, both included, are divisible by {k}?"
    return f"{low},{high},{k}", question, f"{upto - below}", *steps


def _divisor_sum(draw: Draw, limit: int) -> Case:
    n = draw.between(6, limit)
    factors = factorize(n)
    total = prod([(p ** (e + 1) - 1) // (p - 1) for p, e in factors])
    sums = " * ".join([f"({' + '.join([str(p**i) for i in range(e + 1)])})" for p, e in factors])
    steps = (_factored(n, factors), f"{sums} = {total}")
    return f"{n}", f"What is the sum of all positive divisors of {n}?", f"{total}", *steps


def _modular_power(draw: Draw, limit: int) -> Case:
    m, b = draw.between(5, max(20, isqrt(limit))), draw.between(5, min(limit, 300))
    a = draw.between(2, m - 1)
    steps, power, value = [], 1, a % m
    for bit in f"{b:b}"[1:]:
        # One line per binary digit of the exponent: square, and multiply once more for a 1.
        square = value * value * (a if bit == "1" else 1)
        power = 2 * power + (bit == "1")
        steps.append(
            f"{a}^{power}: {value} * {value}{f' * {a}' if bit == '1' else ''} - {square // m} * {m} = {square % m}"
        )
        value = square % m
    return f"{a}^{b}%{m}", f"What is the remainder when {a}^{b} is divided by {m}?", f"{value}", *steps


def _base(draw: Draw, limit: int) -> Case:
    n, base = draw.between(10, limit), draw.between(2, 9)
    steps, digits, rest = [], "", n
    while rest:
        steps.append(f"{rest} - {rest // base} * {base} = {rest % base}")
        digits, rest = f"{rest % base}{digits}", rest // base
    if draw.below(2):
        powers = " + ".join([f"{d} * {base}^{len(digits) - 1 - i}" for i, d in enumerate(digits)])
        question = f"Which number in base 10 is written {digits} in base {base}?"
        return f"{digits},{base}", question, f"{n}", f"{powers} = {n}"
    question = f"How is {n} written in base {base}? Give just the digits."
    return f"{n},{base}", question, digits, *steps, "Read the remainders from the last to the first."


CASES = (
    _gcd, _remainder, _digit_sum, _lcm, _largest_prime, _divisors, _next_prime, _units_digit, _count_multiples,
    _divisor_sum, _modular_power, _base,
)  # fmt: skip
