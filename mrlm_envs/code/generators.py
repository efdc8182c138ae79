"""Endless programming problems with reference solutions, drawn from the families."""

import functools
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mrlm_envs import tasks
from mrlm_envs.code.families import FAMILIES, Draw, Family, Params
from mrlm_envs.code.judge import Problem, Test
from mrlm_envs.code.tasks import function_prompt

__all__ = ["FAMILIES", "check_range", "generate"]

_TESTS = 16
_PUBLIC = 2
_MOST_ALIKE = 4  # tests with one answer: under a third of all, and of the hidden ones, so that no constant earns more
_MOST_DRAWS = 8 * _TESTS
_HIGHEST = 5


def check_range(kinds: Sequence[str], difficulty: Sequence[int]) -> tuple[int, int]:
    """Checks that `generate` can draw from these arguments, and returns the difficulty as a tuple.

    Raises:
        ValueError: No kinds, an unknown kind, a difficulty out of range, or only kinds above it.
    """
    low, high = tasks.check_range(kinds, difficulty, FAMILIES, _HIGHEST)
    if not _within(tuple(kinds), high):
        easiest = min(FAMILIES[kind].level for kind in kinds)
        raise ValueError(f"difficulty {difficulty!r} is below these kinds, which begin at {easiest}")
    return low, high


@functools.lru_cache(maxsize=256)
def _within(kinds: tuple[str, ...], level: int) -> tuple[str, ...]:
    return tuple(kind for kind in kinds if FAMILIES[kind].level <= level)


def generate(rng: np.random.Generator, kinds: tuple[str, ...], difficulty: tuple[int, int]) -> Problem:
    """Draws a problem at a difficulty uniform in the inclusive range, of a kind that begins at or below it."""
    easiest = min(FAMILIES[kind].level for kind in kinds)
    level = int(rng.integers(max(easiest, difficulty[0]), difficulty[1] + 1))
    fitting = _within(kinds, level)
    name = fitting[int(rng.integers(len(fitting)))]
    family = FAMILIES[name]
    draw, tests = Draw(rng), tuple[Test, ...]()
    params, source = {}, ""
    while not tests:
        params = family.params(draw, level)
        source = f"def {name}({family.args}):\n{textwrap.indent(_filled(family.body, params), '    ')}\n"
        tests = _tests(draw, family, params, _compiled(source, name), level)
    told = ",".join(f"{key}={value}" for key, value in sorted(params.items()) if f"${key}" in family.text)
    prompt = function_prompt(f"Write a function `{name}({family.args})`. {_filled(family.text, params)}", name, tests)
    drawn_as = {"kind": name, "difficulty": level}
    return Problem(f"{name}/{told}", prompt, tests, name, family.compare, source, drawn_as=drawn_as)


def _filled(text: str, params: Params) -> str:
    """Fills the parameters into a text or a source: strings quoted where they are values, else bare."""
    for key in sorted(params, key=len, reverse=True):
        value = params[key]
        bare = isinstance(value, str) and key not in _QUOTED
        text = text.replace(f"${key}", value if bare else repr(value))
    return text


_QUOTED = frozenset({"letters", "mark", "joint"})


@functools.lru_cache(maxsize=4096)
def _compiled(source: str, name: str) -> Callable[..., Any]:
    """The reference as a function. Its source is our own text with our own parameters."""
    namespace: dict[str, Any] = {}
    exec(compile(source, f"<{name}>", "exec"), namespace)
    return namespace[name]


def _tests(draw: Draw, family: Family, params: Params, solve: Callable[..., Any], level: int) -> tuple[Test, ...]:
    """Tests of several sizes, few of them with the same answer; none if the parameters do not allow that."""
    tests: list[Test] = []
    seen: Counter[str] = Counter()
    for i in range(_MOST_DRAWS):
        size = _FIRST_SIZES[i] if i < len(_FIRST_SIZES) else draw.whole(2, 4 + 2 * level)
        args = family.test_args(draw, size, params)
        answer = solve(*args)
        seen[repr(answer)] += 1
        if seen[repr(answer)] <= _MOST_ALIKE:
            tests.append(Test(args, expected=answer, public=len(tests) < _PUBLIC))
        if len(tests) == _TESTS:
            return tuple(tests)
    return ()


_FIRST_SIZES = (2, 4, 0, 1)
