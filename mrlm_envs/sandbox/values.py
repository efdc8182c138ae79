"""Python values as tagged JSON, between a sandbox and its judge.

Only base types cross: `None`, `bool`, `int`, `float`, `complex`, `str`, `bytes`, `list`, `tuple`, `set`, `frozenset`
and `dict`. A subclass is reduced through its base type, so an `int` whose `__eq__` always says yes arrives as a plain
`int`. Anything else crosses as `Opaque`, which equals nothing. There is no pickle and no hook a program could override
on the judge's side. The file imports the standard library only: the sandbox loads it by path, outside the package.

The wire: `null`, `true`, `1`, `1.5` and `"text"` stand for themselves; everything else is `[tag, …]` (see `_decode`).
"""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 150
"""Containers nest at most this deep, in both directions: what can be decoded can be encoded again."""

_MAX_BRACKETS = 2 * MAX_DEPTH + 16  # a dict takes two levels of JSON; the rest is the message around the value
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one level in, one level out

_SAFE_INT = 1 << 63
_SAME_HASH = 64


class ValueRefused(ValueError):
    """The bytes are no value of ours, or one built to hang whoever rebuilds it."""


class Opaque:
    """A value that cannot cross, e.g. an object of the program's own class. It equals nothing, not even itself.

    Attributes:
        type_name: Name of the value's type, as the program gave it.
        ref: The number under which the program that made it keeps it; -1 when it cannot be handed back.
    """

    __slots__ = ("ref", "type_name")
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, type_name: str, ref: int = -1) -> None:
        self.type_name = type_name
        self.ref = ref

    def __eq__(self, other: object) -> bool:
        return False

    def __bool__(self) -> bool:
        raise TypeError(f"a {self.type_name} object of the program has no truth value here")

    def __repr__(self) -> str:
        return f"<{self.type_name} object>"


def encode(value: Any, foreign: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """Turns a Python value into its tagged JSON form.

    Args:
        value: Any object.
        foreign: Gives the third element of `["o", type name, …]` for an object that is not of a base type: a reference
            number, or a list from which `decode`'s `resolve` makes it again. -1 when None.
        depth: How many containers are around it.

    Raises:
        ValueRefused: The value nests deeper than `MAX_DEPTH` or contains itself.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_SAFE_INT < value < _SAFE_INT else ["i", hex(value)]
    if kind is float:
        return value if value - value == 0.0 else ["f", repr(value)]
    if kind is bytes:
        return ["b", value.hex()]
    if kind is complex:
        return ["c", encode(value.real, None, depth), encode(value.imag, None, depth)]
    tag = _TAGS.get(kind)
    if tag is None:
        for base, reduce in _BASES:
            if base in kind.__mro__:
                return encode(reduce(value), foreign, depth)
        if any(base is Opaque for base in kind.__mro__):  # by identity: a metaclass may call anything equal
            return ["o", value.type_name, value.ref]
        return ["o", type_name(kind), foreign(value) if foreign else -1]
    if depth >= MAX_DEPTH:
        raise ValueRefused(f"the value nests deeper than {MAX_DEPTH} levels or contains itself")
    if tag == "d":
        return ["d", *[[encode(k, foreign, depth + 1), encode(v, foreign, depth + 1)] for k, v in value.items()]]
    return [tag, *[encode(item, foreign, depth + 1) for item in value]]


def type_name(kind: type) -> str:
    """The name of a type, without asking its metaclass."""
    name = type.__getattribute__(kind, "__name__")
    return name[:80] if type(name) is str else "object"


_KINDS: dict[str, type] = {"l": list, "t": tuple, "s": set, "z": frozenset}
_TAGS: dict[type, str] = {kind: tag for tag, kind in _KINDS.items()} | {dict: "d"}

# How a subclass becomes its base type without asking the subclass anything. Booleans have no subclasses.
_BASES: list[tuple[type, Callable[[Any], Any]]] = [
    (int, lambda v: int.__add__(v, 0)),
    (float, lambda v: float.__pos__(v)),
    (complex, lambda v: complex.__pos__(v)),
    (str, lambda v: str.__str__(v)),
    (bytes, lambda v: bytes.__getitem__(v, slice(None))),
    (list, lambda v: list.__getitem__(v, slice(None))),
    (tuple, lambda v: tuple(tuple.__iter__(v))),
    (set, lambda v: set(set.__iter__(v))),
    (frozenset, lambda v: frozenset(frozenset.__iter__(v))),
    (dict, lambda v: dict(dict.items(v))),
]


def decode(wire: Any, resolve: Callable[[str, Any], Any] | None = None) -> Any:
    """Rebuilds a value from its tagged JSON form, from exact base types.

    Args:
        wire: What `loads` gave.
        resolve: Turns `(type name, reference or list)` into an object; an `Opaque` when None.

    Raises:
        ValueRefused: `wire` is malformed, nests deeper than `MAX_DEPTH`, or holds many set members or keys of one hash
            (which would take quadratic time to rebuild).
    """
    try:
        return _decode(wire, resolve or _opaque, 0)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ValueRefused(str(error) if isinstance(error, ValueRefused) else "a malformed value") from error


def _opaque(name: str, handle: Any) -> Opaque:
    return Opaque(name, handle if type(handle) is int else -1)


def _decode(wire: Any, resolve: Callable[[str, Any], Any], depth: int) -> Any:
    kind = type(wire)
    if wire is None or kind is bool or kind is int or kind is float or kind is str:
        return wire
    if kind is not list:
        raise ValueRefused("a malformed value")
    tag = wire[0]
    if (tag in _KINDS or tag == "d") and depth >= MAX_DEPTH:
        raise ValueRefused(f"the value nests deeper than {MAX_DEPTH} levels")
    if tag in _KINDS:
        items = [_decode(item, resolve, depth + 1) for item in wire[1:]]
        if tag == "s" or tag == "z":
            _check_hashes(items)
        return items if tag == "l" else _KINDS[tag](items)
    if tag == "d":
        pairs = [(_decode(k, resolve, depth + 1), _decode(v, resolve, depth + 1)) for k, v in wire[1:]]
        _check_hashes([k for k, _ in pairs])
        return dict(pairs)
    if tag == "i":
        return int(wire[1], 16)
    if tag == "f":
        return {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}[wire[1]]
    if tag == "b":
        return bytes.fromhex(wire[1])
    if tag == "c":
        return complex(*[part if type(part) is float else _decode(["f", part[1]], resolve, 0) for part in wire[1:]])
    if tag == "o" and type(wire[1]) is str and type(wire[2]) in (int, list):
        return resolve(wire[1], wire[2])
    raise ValueRefused("a malformed value")


def _check_hashes(keys: list[Any]) -> None:
    """Refuses crafted collisions, found by sorting so that finding them is not quadratic itself."""
    if len(keys) <= _SAME_HASH:
        return
    hashes = sorted(map(hash, keys))
    for low, high in zip(hashes, hashes[_SAME_HASH:]):
        if low == high:
            raise ValueRefused("too many keys of one hash")


def dumps(message: Any) -> bytes:
    """One message as compact ASCII JSON; lone surrogates survive as escapes."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def loads(data: bytes) -> Any:
    """Parses one message.

    Raises:
        ValueRefused: Not JSON, or nested too deep, or an object (we send none).
    """
    # Counted before parsing: the parser recurses in C, and a caller may have raised the interpreter's recursion limit.
    steps = memoryview(_STRING.sub(b"", data).translate(_STEPS, _NO_BRACKETS)).cast("b")
    if max(itertools.accumulate(steps), default=0) > _MAX_BRACKETS:
        raise ValueRefused("the message nests too deep")
    try:
        return _DECODER.decode(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ValueRefused("not a message") from error


def _no_objects(pairs: list[tuple[str, Any]]) -> Any:
    raise ValueRefused("a malformed value")


def _short_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueRefused("a malformed value")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_no_objects, parse_int=_short_int, parse_constant=_short_int)
