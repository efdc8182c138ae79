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

    def letter_set(self, size: int) -> str:
        """At most `size` different letters in alphabetical order."""
        return "".join(sorted(set(self.word(size, "aeioulnrst"))))

    def sentence(self, size: int) -> str:
        """`size` words separated by single spaces."""
        return " ".join(self.word(self.whole(1, 7), "abcdeilnorstu") for _ in range(size))

    def numbers_near(self, size: int, values: list[int], low: int, high: int) -> list[int]:
        """Numbers of which every second is one of `values` or next to it, where mistakes by one show."""
        near = [v + d for v in values for d in (-1, 0, 1)]
        return [self.row(*near) if self.rng.random() < 0.5 else x for x in self.numbers(size, low, high)]

    def number_near_power(self, exponent: int, base: int) -> int:
        """A number that is often a power of the base or next to one."""
        if self.rng.random() < 0.5:
            return self.whole(0, base**exponent)
        return max(0, base ** self.whole(0, exponent) + self.whole(-1, 1))

    def walk(self, size: int, step: int) -> list[int]:
        """Numbers of which many differ by about `step`."""
        walk = [self.whole(0, 9)]
        for _ in range(size):
            change = self.whole(step - 1, step + 1) if self.rng.random() < 0.6 else self.whole(-2 * step, step)
            walk.append(walk[-1] + change)
        return walk[:size]

    def intervals_near(self, size: int, gap: int) -> list[list[int]]:
        """Intervals of which many are about `gap` apart, in any order."""
        intervals, at = list[list[int]](), self.whole(0, 20)
        for _ in range(size):
            intervals.append([at, at + self.whole(0, 15)])
            overlaps = self.rng.random() < 0.4
            at = self.whole(at, at + 20) if overlaps else intervals[-1][1] + max(0, gap + self.whole(-1, 1))
        return [intervals[i] for i in self.rng.permutation(size)]

    def grid_row(self, size: int, threshold: int) -> list[int]:
        """A row of a grid in which a little less than half of the numbers reach the threshold."""
        return [
            self.whole(threshold, 9) if self.rng.random() < 0.4 else self.whole(0, threshold - 1) for _ in range(size)
        ]

    def brackets(self, size: int, pairs: list[str]) -> str:
        """Brackets and other characters, often balanced."""
        text: list[str] = []
        stack: list[str] = []
        for _ in range(2 * size):
            pair = pairs[self.whole(0, len(pairs) - 1)]
            kind = self.rng.random()
            if stack and kind < 0.4:
                text.append(stack.pop())
            elif kind < 0.85:
                text.append(pair[0])
                stack.append(pair[1])
            else:
                text.append("x")
        text += reversed(stack)
        if text and self.rng.random() < 0.4:
            text.pop(self.whole(0, len(text) - 1) if self.rng.random() < 0.5 else -1)  # the last one closes
        return "".join(text)

    def tokens(self, size: int) -> str:
        """A program of a stack machine that never lacks an operand."""
        tokens: list[str] = []
        depth = 0
        for _ in range(2 * size):
            if depth >= 2 and self.rng.random() < 0.5:
                tokens.append("+-*"[self.whole(0, 2)])
                depth -= 1
            else:
                tokens.append(str(self.whole(-9, 30)))
                depth += 1
        return " ".join(tokens)


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
