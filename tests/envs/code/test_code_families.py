"""Generated problems: the reference passes, constants and one-token mutants of it do not."""

import copy
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mrlm_envs.code import generators
from mrlm_envs.code.compare import matches
from mrlm_envs.code.families import FAMILIES, Draw
from mrlm_envs.code.generators import _compiled, generate
from mrlm_envs.code.judge import judge
from mrlm_envs.sandbox import Limits, Sandbox

SWAPS = {
    "+": "-", "-": "+", "*": "+", "//": "%", "%": "//", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=",
    "!=": "==", "and": "or", "or": "and", "min": "max", "max": "min", "True": "False", "False": "True", "+=": "-=",
    "-=": "+=", "sum": "len", "len": "sum",
}  # fmt: skip
MOST_STEPS = 30_000


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_reference_solves_every_family_and_no_constant_passes_more_than_a_third(name):
    rng = np.random.default_rng(7)
    for i in range(20):
        task = generate(rng, (name,), (FAMILIES[name].level, 5))
        if i < 2:
            assert judge(Sandbox.shared(), task, task.reference, Limits(timeout_s=30.0)).solved, task.prompt
        for tests in (task.tests, [test for test in task.tests if not test.public]):
            most = max(Counter(repr(test.expected) for test in tests).values())
            assert 3 * most <= len(tests), task.prompt


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tasks_of_other_names_are_other_functions_so_the_split_keeps_them_apart(name):
    rng = np.random.default_rng(5)
    drawn = [generate(rng, (name,), (FAMILIES[name].level, 5)) for _ in range(60)]
    inputs = [test.args for task in drawn[:30] for test in task.tests]
    known: dict[str, str] = {}
    for task in {task.task_id: task for task in drawn}.values():
        solve = _compiled(task.reference, name)
        behaviour = repr([_outcome(solve, args) for args in inputs])
        assert known.setdefault(behaviour, task.task_id) == task.task_id


def _outcome(solve, args):
    try:
        return solve(*copy.deepcopy(args))
    except (ArithmeticError, IndexError, ValueError) as error:  # inputs of a task with other parameters
        return type(error).__name__


def test_there_are_families_for_every_difficulty_and_enough_of_them():
    assert len(FAMILIES) >= 25 and {family.level for family in FAMILIES.values()} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("tasks", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_under_three_percent_of_one_token_mutants_pass(monkeypatch, tasks):
    """Those that are not equivalent: that differ from the reference on some of 150 further inputs."""
    passed, mutants = Counter[str](), 0
    for name, family in FAMILIES.items():
        rng = np.random.default_rng(tasks)
        for i in range(tasks):
            task, params = _generate(monkeypatch, rng, name, family.level + i % (6 - family.level))
            solve = _compiled(task.reference, name)
            more = [family.test_args(Draw(rng), int(size), params) for size in rng.integers(0, 14, size=150)]
            wanted = [solve(*copy.deepcopy(args)) for args in more]
            for mutant in _mutants(task.reference, name):
                if not all(_gives(mutant, test.args, test.expected) for test in task.tests):
                    mutants += 1
                elif not all(map(_gives, [mutant] * len(more), more, wanted)):
                    mutants += 1
                    passed[name] += 1
    assert mutants > 400 * tasks and passed.total() < 0.03 * mutants, passed


def _generate(monkeypatch, rng: np.random.Generator, name: str, level: int) -> tuple[Any, dict[str, Any]]:
    """A problem and its parameters."""
    drawn = []
    monkeypatch.setattr(
        generators, "_tests", lambda *args, make=generators._tests: drawn.append(args[2]) or make(*args)
    )
    task = generate(rng, (name,), (level, level))
    monkeypatch.undo()
    return task, drawn[-1]


def _mutants(source: str, name: str) -> Iterator[Callable[..., Any]]:
    """The function with one operator, name or number changed, in every way that compiles."""
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        changed = [SWAPS[token.string]] if token.string in SWAPS else []
        if token.string.isdigit():
            changed = [str(int(token.string) + 1), str(int(token.string) - 1)]
        row, column = token.start
        for text in changed:
            line = lines[row - 1]
            line = line[:column] + text + line[column + len(token.string) :]
            namespace: dict[str, Any] = {}
            exec(compile("".join([*lines[: row - 1], line, *lines[row:]]), "<mutant>", "exec"), namespace)
            yield namespace[name]


class _Endless(Exception):
    """A mutant takes too many steps."""


def _gives(function: Callable[..., Any], args: tuple[Any, ...], expected: Any) -> bool:
    """Whether a call gives a value within a bounded number of steps."""
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise _Endless
        return count

    args = copy.deepcopy(args)
    tracing = sys.gettrace()
    sys.settrace(count)
    try:
        return matches(function(*args), expected)
    except Exception:
        return False
    finally:
        sys.settrace(tracing)
