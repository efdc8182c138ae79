"""`Unicode`: the space of all strings up to a length.

Gymnasium's `Text` checks every character against a charset (381 µs for 8,000 characters) and hands
`AsyncVectorEnv` a shared-memory buffer that returns garbage for characters outside that charset. `Unicode` is a
`Text` whose charset is everything: membership is a type and a length check, and it brings its own shared-memory
functions (UTF-8 bytes behind a length).
"""

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Space, Text
from gymnasium.vector.utils import create_shared_memory, read_from_shared_memory, write_to_shared_memory

_LENGTH_BYTES = 4
_SAMPLED = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?-+*/=()<>{}[]\\\"'\n\u00e9\u4e2d\U0001f600"
)

_ALPHABET = Text(1, min_length=0, charset=_SAMPLED)


class Unicode(Text):
    """Every `str` of at most `max_length` characters, the empty one included.

    `sample()` draws short strings from a small alphabet with a few non-ASCII characters.

    Args:
        max_length: The most characters (code points) a member may have.
        seed: The seed of `sample()`.
    """

    def __init__(self, max_length: int = 65_536, *, seed: int | np.random.Generator | None = None) -> None:
        if not isinstance(max_length, int | np.integer) or max_length < 1:
            raise ValueError(f"max_length must be an integer of at least 1, got {max_length!r}")
        vars(self).update(vars(_ALPHABET))  # Text's character tables, shared: making them takes 100 µs
        self.min_length, self.max_length = 0, int(max_length)
        Space.__init__(self, dtype=str, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a `str` of at most `max_length` characters."""
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw a string of 0 to 64 characters; masks are not supported.

        Raises:
            ValueError: If `mask` or `probability` is given.
        """
        if mask is not None or probability is not None:
            raise ValueError("Unicode.sample takes no mask and no probability: its alphabet is open")
        length = int(self.np_random.integers(0, min(self.max_length, 64) + 1))
        return "".join(_SAMPLED[i] for i in self.np_random.integers(0, len(_SAMPLED), size=length))

    @property
    def is_np_flattenable(self) -> bool:
        """Never: an open alphabet has no one-hot encoding."""
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode) and self.max_length == other.max_length

    def __hash__(self) -> int:
        return hash((Unicode, self.max_length))

    def __repr__(self) -> str:
        return f"Unicode({self.max_length})"


def _slot_bytes(space: Unicode) -> int:
    return _LENGTH_BYTES + 4 * space.max_length  # UTF-8 takes at most four bytes a character


@create_shared_memory.register(Unicode)
def _create(space: Unicode, n: int = 1, ctx: Any = multiprocessing) -> Any:
    return ctx.Array("B", n * _slot_bytes(space))


@write_to_shared_memory.register(Unicode)
def _write(space: Unicode, index: int, values: str, shared_memory: Any) -> None:
    data = values.encode("utf-8", "surrogatepass")
    start = index * _slot_bytes(space)
    memory = memoryview(shared_memory.get_obj()).cast("B")
    memory[start : start + _LENGTH_BYTES] = len(data).to_bytes(_LENGTH_BYTES, "little")
    memory[start + _LENGTH_BYTES : start + _LENGTH_BYTES + len(data)] = data


@read_from_shared_memory.register(Unicode)  # pyright: ignore[reportArgumentType]
class SharedTexts(Sequence[str]):
    """A live view of n strings in shared memory; a copy of it is a plain tuple of what they are now.

    `AsyncVectorEnv` reads its buffer once, at the start, and returns a deep copy of that object after each step, so
    the object has to follow the memory (a plain tuple would keep the initial empty strings).
    """

    def __init__(self, space: Unicode, shared_memory: Any, n: int = 1) -> None:
        self._space, self._memory, self._n = space, shared_memory, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._n)))
        start = range(self._n)[index] * _slot_bytes(self._space)
        memory = memoryview(self._memory.get_obj()).cast("B")
        end = start + _LENGTH_BYTES
        size = int.from_bytes(memory[start:end], "little")
        return bytes(memory[end : end + size]).decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __copy__(self) -> tuple[str, ...]:
        return tuple(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)
