"""Generated tasks past mental reach: arithmetic for the calculator, computations for the interpreter.

The templates are in `computing.yaml`, which says how they are written.
"""

import math
import re
from typing import Any

import numpy as np

from mrlm_envs.tasks import packaged
from mrlm_envs.tools.calculator import calculate
from mrlm_envs.tools.calls import Call
from mrlm_envs.tools.task import Task

_SMALLEST = 100  # answers of computations; a smaller one could be met by chance
_NAMES = re.compile(r"\{(\w+(?:[,*+]\w*)*)\}")

Values = dict[str, list[int]]


def _draw(rng: np.random.Generator, ranges: dict[str, list[Any]], level: int) -> Values:
    """The numbers of a template, by name."""
    values: Values = {}
    for name, numbers in ranges.items():
        low, high, *more = (_at(number, level) for number in numbers)
        if isinstance(numbers[-1], str) and numbers[-1].startswith("x "):
            values[name] = list(dict.fromkeys(rng.integers(low, high + 1, more[0]).tolist()))
        elif more:
            values[name] = [int(rng.choice(numbers))]
        else:
            values[name] = [int(rng.integers(low, high + 1))]
    return values


def _at(number: int | str, level: int) -> int:
    return number if isinstance(number, int) else level * int(number.removeprefix("x ").removesuffix(" per level"))


def _filled(template: str, values: Values) -> str:
    def number(match: re.Match[str]) -> str:
        numbers = [value for name in re.split(r"[,*+]", match[1]) for value in values.get(name, ())]
        if "*" in match[1]:
            numbers = [math.prod(numbers)]
        elif "+" in match[1]:
            numbers = [sum(numbers)]
        return ",".join(map(str, sorted(numbers))) if "," in match[1] else ", ".join(map(str, numbers))

    return _NAMES.sub(number, template)


def calculator_task(rng: np.random.Generator, level: int) -> Task:
    """A question that one call of the calculator answers."""
    templates = packaged(__file__, "computing.yaml")["calculator"][level - 1]
    while True:
        template = templates[int(rng.integers(len(templates)))]
        values = _draw(rng, template["draw"], level)
        question = _filled(template["question"], values)
        expression = _filled(template.get("expression", template["question"]), values)
        answer = calculate(expression)
        if abs(float(answer)) >= _SMALLEST:
            call = Call("calculator", {"expression": expression})
            content = _filled(template["content"], values)
            return Task(f"calculator/{content}", f"What is {question}?", answer, ((call,),))


def python_task(rng: np.random.Generator, level: int) -> Task:
    """A question that a few lines of Python answer; from level 3 on some take two steps with kept variables."""
    templates = packaged(__file__, "computing.yaml")["python"]
    while True:
        template = templates[int(rng.integers(len(templates)))]
        values = _draw(rng, template["draw"], level)
        asked, cells, content = template, [template["code"]], template["content"]
        if level >= 3 and "then" in template:
            asked = template["then"]
            cells, content = [*cells, asked["code"]], f"{content}/then"
        cells = [f"{_filled(cell, values)}\nresult" for cell in cells]
        answer = _run(cells)
        if answer >= _SMALLEST:
            question = _filled(f"{template.get('rule', '')} {asked['question']}".strip(), values)
            turns = tuple((Call("python", {"code": cell}),) for cell in cells)
            return Task(f"python/{_filled(content, values)}", question, str(answer), turns)


def _run(cells: list[str]) -> int:
    """What the reference computes. The code is our own text with our own numbers."""
    namespace: dict[str, int] = {}
    for cell in cells:
        exec(cell, namespace)  # type: ignore[arg-type]
    return namespace["result"]
