"""The families of generated programming problems: lists, strings, numbers, simulations, dynamic programming.

A family is a text, a source and two draws; `families.yaml` holds them and says how they are written. `$name` in text
and source stands for a parameter, so the reference solution is the source itself.
"""

from dataclasses import dataclass
from typing import Any

from mrlm_envs import draws
from mrlm_envs.code.compare import Compare
from mrlm_envs.tasks import packaged

Params = draws.Values


class Draw(draws.Draw):
    """What the draws of `families.yaml` may call."""

    def distinct(self, size: int, low: int, high: int) -> list[int]:
        """Different numbers in ascending order."""
        return sorted(self.sample(size, low, high))

    def word(self, size: int, alphabet: str) -> str:
        """Characters of an alphabet."""
        return "".join(alphabet[i] for i in self.rng.integers(0, len(alphabet), size=size))

    def sentence(self, size: int) -> str:
        """`size` words separated by single spaces."""
        return " ".join(self.word(self.whole(1, 7), "abcdeilnorstu") for _ in range(size))


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        text: What to write; `$name` stands for a parameter.
        args: The function's parameters, as in its `def`.
        body: The reference function's body, four spaces deep already taken off.
        draw: Source that draws the parameters.
        inputs: Source that draws one test's arguments.
        level: The lowest difficulty at which the family is drawn.
        compare: How values are compared.
    """

    text: str
    args: str
    body: str
    draw: str
    inputs: str
    level: int = 1
    compare: Compare = "strict"

    def params(self, draw: Draw, level: int) -> Params:
        """Draws the parameters at a level from 1 to 5."""
        return {name.rstrip("_"): value for name, value in draw(self.draw, {"level": level}).items()}

    def test_args(self, draw: Draw, size: int, params: Params) -> tuple[Any, ...]:
        """Draws one test's arguments, of a size from 0 up."""
        drawn = draw(self.inputs, {**params, "size": size})
        return tuple(drawn[name] for name in self.args.split(", "))


FAMILIES: dict[str, Family] = {name: Family(**fields) for name, fields in packaged(__file__, "families.yaml").items()}
"""Every family by name, which is also the name of the function to write."""
