"""Draws that stand in the YAML files of generated tasks: blocks of Python, run with a random generator."""

import builtins
import functools
import math
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

import numpy as np

Values = dict[str, Any]


class Draw:
    """Runs such blocks; they may call the public methods of this class and of its subclasses.

    Args:
        rng: All draws come from it.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        public = [name for name in dir(type(self)) if not name.startswith("_")]
        self._functions = {name: getattr(self, name) for name in public}
        self._functions |= {"gcd": math.gcd, "__builtins__": builtins}

    def __call__(self, source: str, known: Values) -> Values:
        """What a block assigns, by name, given the names that it may read. The source is our own."""
        scope = self._functions | known
        exec(_compiled(source), scope)
        return {name: value for name, value in scope.items() if not (name in self._functions or name in known)}

    def fill(self, template: str, values: Values) -> str:
        """A template filled as an f-string is."""
        return self(f'text = f"""{template}"""', values)["text"]

    def listed(self, numbers: Iterable[int], sign: str = ", ") -> str:
        """Numbers in a line."""
        return sign.join(map(str, numbers))

    def ordered(self, *numbers: int) -> str:
        """Numbers in ascending order, as the name of a task has them."""
        return self.listed(sorted(numbers), ",")

    def random(self) -> float:
        """A number from 0 up to 1."""
        return self.rng.random()

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def numbers(self, size: int, low: int = -9, high: int = 9) -> list[int]:
        """Whole numbers."""
        return self.rng.integers(low, high + 1, size=size).tolist()

    def sample(self, size: int, low: int, high: int) -> list[int]:
        """Different whole numbers, in any order."""
        return self.rng.choice(np.arange(low, high + 1), size=size, replace=False).tolist()

    def some(self, items: Sequence[Any], count: int) -> list[Any]:
        """Several of the items, in any order."""
        return [items[i] for i in self.rng.permutation(len(items))[:count]]

    def choice(self, items: Sequence[Any]) -> Any:
        """One of several texts or numbers."""
        return self.rng.choice(items).item()

    def row(self, *rows: Any) -> Any:
        """One of several values, or rows of values that belong together."""
        return rows[self.whole(0, len(rows) - 1)]


@functools.cache
def _compiled(source: str) -> CodeType:
    return compile(source, "<draw>", "exec")
