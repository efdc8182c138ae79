"""Generated tasks past mental reach: arithmetic for the calculator, computations for the interpreter.

The templates are in `computing.yaml`, which says how they are written.
"""

from typing import Any

import numpy as np

from mrlm_envs.draws import Draw
from mrlm_envs.tasks import packaged
from mrlm_envs.tools.calculator import calculate
from mrlm_envs.tools.calls import Call
from mrlm_envs.tools.task import Task

_SMALLEST = 100  # answers of computations; a smaller one could be met by chance


def calculator_task(rng: np.random.Generator, level: int) -> Task:
    """A question that one call of the calculator answers."""
    templates, draw = packaged(__file__, "computing.yaml")["calculator"][level - 1], Draw(rng)
    while True:
        template = draw.row(*templates)
        values = draw(template["draw"], {"level": level})
        question = draw.fill(template["question"], values)
        expression = draw.fill(template.get("expression", template["question"]), values)
        answer = calculate(expression)
        if abs(float(answer)) >= _SMALLEST:
            call = Call("calculator", {"expression": expression})
            content = draw.fill(template["content"], values)
            return Task(f"calculator/{content}", f"What is {question}?", answer, ((call,),))


def python_task(rng: np.random.Generator, level: int) -> Task:
    """A question that a few lines of Python answer; from level 3 on some take two steps with kept variables."""
    templates, draw = packaged(__file__, "computing.yaml")["python"], Draw(rng)
    while True:
        template = draw.row(*templates)
        values = draw(template["draw"], {"level": level})
        asked, cells, content = template, [template["code"]], template["content"]
        if level >= 3 and "then" in template:
            asked = template["then"]
            cells, content = [*cells, asked["code"]], f"{content}/then"
        cells = [f"{draw.fill(cell, values)}\nresult" for cell in cells]
        namespace: dict[str, Any] = {}
        for cell in cells:  # our own text with our own numbers
            exec(cell, namespace)
        answer = namespace["result"]
        if answer >= _SMALLEST:
            question = draw.fill(f"{template.get('rule', '')} {asked['question']}".strip(), values)
            turns = tuple((Call("python", {"code": cell}),) for cell in cells)
            return Task(f"python/{draw.fill(content, values)}", question, str(answer), turns)
