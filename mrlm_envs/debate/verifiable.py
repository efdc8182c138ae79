"""Questions with a known answer, and a case each for the true answer and for a false one.

Both cases are laid out alike: a few steps, each a claim with a source (`questions.yaml`). The true one is right
throughout. The false one makes a slip of a kind that people make, and goes on from there: a wrong product or sum (which
anyone who recalculates can see), a number misread or left out (which shows only when the claims are held against the
question), or a wrong idea of what was asked (which shows in no sum at all).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mrlm_envs.draws import Draw, Values
from mrlm_envs.tasks import packaged

Steps = tuple[tuple[str, str], ...]

KINDS = ("product", "shopping", "remainder", "equation", "total", "evens")
"""The kinds of questions, as in `questions.yaml`."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and (answer, (claim, source) of each step) for the true and for the false answer."""

    text: str
    task_id: str
    true: tuple[str, Steps]
    false: tuple[str, Steps]


class _Draw(Draw):
    """What the blocks of `questions.yaml` may call."""

    def slip(self, value: int) -> int:
        """A wrong result near `value`: off by one, two or ten, and above zero."""
        off = self.choice((-10, -2, -1, 1, 2, 10))
        return value + off if value + off > 0 else value + abs(off)

    def running(self, added: list[int], error: int) -> list[dict[str, int]]:
        """The lines of adding numbers up from the left; the second line is wrong by `error`."""
        lines, before = [], added[0]
        for i, number in enumerate(added[1:], start=1):
            after = before + number + (error if i == 2 else 0)
            lines.append({"number": number, "before": before, "after": after, "line": i})
            before = after
        return lines

    def case(self, form: dict[str, Any], drawn: Values, wrong: Values) -> Values:
        """The values of a case: what was drawn, and what follows from it, except for what is wrong."""
        values = dict(drawn)
        for name, expression in form["values"].items():
            values[name] = wrong[name] if name in wrong else self(f"value = {expression}", values)["value"]
        return values


def generate(rng: np.random.Generator, kind: str | None = None) -> Question:
    """Draw a question of a kind, by default of any of `KINDS`."""
    kind = kind or KINDS[int(rng.integers(len(KINDS)))]
    form, draw = packaged(__file__, "questions.yaml")[kind], _Draw(rng)
    drawn = draw(form["draw"], {})
    true = draw.case(form, drawn, {})
    false = draw.case(form, drawn, draw(form["slip"], true)["wrong"])
    filled = []
    for case in (true, false):
        lines = case.get("lines") or [{}] * len(form["steps"])
        templates = form["steps"] if len(form["steps"]) > 1 else form["steps"] * len(lines)
        steps = tuple((t[0].format(**case, **line), t[1].format(**line)) for t, line in zip(templates, lines))
        filled.append((form["answer"].format(**case), steps))
    return Question(form["question"].format(**true), f"{kind}:{true['key']}", *filled)
