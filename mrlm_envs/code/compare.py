"""Whether what a function returned is what was expected, and how to show values.

Values that come out of the sandbox are built from exact base types, so nothing here can call a program's code.
"""

import math
import reprlib
from typing import Any, Literal

from mrlm_envs.sandbox import Opaque

Compare = Literal["strict", "equal", "close", "unordered"]
COMPARISONS: tuple[Compare, ...] = ("strict", "equal", "close", "unordered")
_TOLERANCE = 1e-6


def matches(got: Any, expected: Any, compare: Compare = "strict") -> bool:
    """Whether `got` counts as `expected`.

    Args:
        got: A value out of the sandbox.
        expected: A value from the task.
        compare: "strict": equal, and of the same types all the way down (True is not 1, a tuple is not a list).
            "equal": Python's `==`, except that a list equals a tuple of equal items (JSON cannot tell them apart).
            "close": numbers within 1e-6, relative or absolute, the rest as "equal". "unordered": a list, tuple or set
            with the same items as the expected one, in any order, each "strict"; where something else is expected, such
            as None, "strict". NaN equals NaN in all of them.
    """
    kinds = (list, tuple, set, frozenset)
    if compare == "unordered" and isinstance(expected, kinds):
        if not isinstance(got, kinds) or len(got) != len(expected):
            return False
        return sorted(map(_canonical, got)) == sorted(map(_canonical, expected))
    if compare in ("strict", "unordered"):
        return _canonical(got) == _canonical(expected)
    return _match(got, expected, compare == "close")


def _match(got: Any, expected: Any, is_close: bool) -> bool:
    if isinstance(expected, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return False
        return all(_match(g, e, is_close) for g, e in zip(got, expected))
    if isinstance(expected, dict):
        if not isinstance(got, dict) or len(got) != len(expected):
            return False
        return all(key in got and _match(got[key], value, is_close) for key, value in expected.items())
    if isinstance(expected, float) and math.isnan(expected):
        return isinstance(got, float) and math.isnan(got)
    if is_close and _is_number(got) and _is_number(expected):
        try:
            return math.isclose(got, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        except OverflowError:  # an integer beyond any float
            return got == expected
    return not isinstance(got, Opaque) and bool(got == expected)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _canonical(value: Any) -> tuple[str, Any]:
    """Type name and content, equal for strictly equal values and no others, and sortable whatever they are.

    Content is text, or a tuple of such pairs: text of text would double its quoting at every level.
    """
    name = type(value).__name__
    if isinstance(value, set | frozenset):
        return name, tuple(sorted(map(_canonical, value)))
    if isinstance(value, dict):
        return name, tuple(sorted((_canonical(k), _canonical(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return name, tuple(map(_canonical, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return name, f"{value:x}"
    if isinstance(value, Opaque):
        return name, str(id(value))
    return name, repr(value + 0) if isinstance(value, float | complex) else repr(value)  # -0.0 equals 0.0


def same_output(got: bytes, expected: str) -> bool:
    """Whether two outputs are the same but for white space at the ends of lines and of the whole.

    Args:
        got: What a program printed: megabytes of anything. It is read no further than it agrees.
        expected: The output of the task.
    """
    at = 0
    for line in expected.encode("utf-8", "surrogatepass").rstrip().split(b"\n"):
        end = got.find(b"\n", at)
        end = len(got) if end < 0 else end
        if got[at:end].rstrip() != line.rstrip():
            return False
        at = end + 1
    return not got[at:].strip()


class _Show(reprlib.Repr):
    """`repr` in bounded time and space."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 6, 300, 300, 60
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 40

    def repr_int(self, x: int, level: int) -> str:
        """Huge integers by their size: writing one out takes quadratic time, and Python refuses beyond 4300 digits."""
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"<an integer of {x.bit_length()} bits>"


def show(value: Any, limit: int = 300) -> str:
    """A value as one line of at most `limit` characters."""
    text = _SHOW.repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


_SHOW = _Show()
