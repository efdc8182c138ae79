r"""Tables of problems: each row says what is drawn, what is asked, and the steps that solve it.

A row is a small program, which `read_table` compiles to a Python function at import:

    packs: a = 2..n; b = 2..n; thing; box | a b
      There are {a} {box} with {b} {thing} in each. How many {thing} are there in all?
        a * b = total

- The first line names the row and lists its draws: `a = 2..n` draws an integer, both ends included; `thing` draws one
  of the table's words of that name; `who, other` draws two different ones; anything else is an assignment. `n` is the
  largest everyday number of the difficulty, if the table does not say otherwise. After the bar stand the operands that
  the task id keeps, without spaces, behind the row's name (unless that starts with `_`).
- Lines indented by two are the question, a template as in an f-string.
- Lines indented by four are the steps. `a * b = total` is written out as `3 * 4 = 12`, and computes `total` if no draw
  has named it (`/` is then exact division, `^` a power); the name of the last equation, or `answer` where a draw sets
  it, is the answer. A line with braces is a template of its own, and a line that starts with `*` a list of steps.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrlm_envs.math.generators import Draw, Problem

Case = tuple[str, str, object, Callable[[], Sequence[str]]]
"""The canonical operands behind the row's name, the question, the answer, and a function that writes down the steps."""

Row = Callable[[Draw, Any], Case]
Rows = tuple[Row, ...]

_NAME = re.compile(r"[A-Za-z]\w*")


def drawn(kind: str, case: Case) -> Problem:
    """The problem of a row."""
    key, question, answer, steps = case
    return Problem(question, f"{answer}", lambda: "\n".join((*steps(), f"\\boxed{{{answer}}}")), f"{kind}:{key}", kind)


def read_table(name: str, words: Mapping[str, Sequence[Any]], *functions: Callable[..., Any]) -> list[Rows]:
    """Read a table that lies beside this file.

    Args:
        name: The file. A line that starts with `#` opens a section; a line that ends with a backslash continues.
        words: What a bare name in the draws chooses from.
        functions: What expressions may call.

    Returns:
        For each section its rows, as functions of `(draw, n)`.
    """
    scope = {"words": words} | {function.__name__: function for function in functions}
    text = re.sub(r"\\\n\s*", "", Path(__file__).with_name(name).read_text("utf-8"))
    sections = []
    for section in re.split(r"^#.*\n", text, flags=re.MULTILINE)[1:]:
        rows: dict[str, Row] = {}
        for row in re.split(r"\n(?=\S)", section.rstrip()):
            head, *lines = row.split("\n")
            exec(_source(head, lines), scope, rows)  # our own tables, compiled to run fast
        sections.append(tuple(rows.values()))
    return sections


def _source(head: str, lines: list[str]) -> str:
    """The Python source of a row's function."""
    name, _, rest = head.partition(": ")
    draws, _, key = rest.partition(" | ")
    body, known = [], set()
    for drawn in draws.split("; "):
        target, is_assignment, value = drawn.partition(" = ")
        if not is_assignment:
            value = f"draw.{'pair' if ',' in target else 'choice'}(words[{target.split(',')[0]!r}])"
        elif ".." in value:
            value = "draw.between({}, {})".format(*value.split(".."))
        body.append(f"{target} = {value}")
        known.update(_NAME.findall(target))
    question = " ".join(line.strip() for line in lines if not line.startswith("    "))
    steps, answer = [], ""
    for step in (line.strip() for line in lines if line.startswith("    ")):
        if step.startswith("*"):
            steps.append(step)
        elif "{" in step or " = " not in step:
            steps.append(f'rf"""{step}"""')
        else:
            expression, answer = step.rsplit(" = ", 1)
            if answer not in known:
                body.append(f"{answer} = {expression.replace('/', '//').replace('^', '**')}")
                known.add(answer)
            text = _NAME.sub(r"{\g<0>}", step)
            steps.append(f'f"{text}"')
    operands = ",".join(operand if "{" in operand else f"{{{operand}}}" for operand in key.split())
    result = "answer" if "answer" in known else answer
    start = "" if name.startswith("_") else f"{name}:"
    body.append(f'return f"{start}{operands}", rf"""{question}""", {result}, lambda: ({", ".join(steps)},)')
    return "\n    ".join([f"def {name}(draw, n):", *body])
