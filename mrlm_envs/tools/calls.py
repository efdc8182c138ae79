"""Call formats: how a model writes tool calls, and how we read them.

| format | looks like | who writes it |
| --- | --- | --- |
| hermes | `<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>` | Qwen, Hermes, SmolLM3 |
| react | `Action: f` and `Action Input: {"a": 1}` on two lines | prompted models |
| pythonic | `[f(a=1), g(b="x")]` at the start of a line | Llama 3.2 and 4, Olmo |
| llama | `{"name": "f", "parameters": {"a": 1}}` | Llama 3 |
| auto | any of these, the first in this order that is found | |

`parse` takes any text, never raises, and never executes anything. Thoughts are dropped first; a call inside a code
fence is a mistake that is named, not a call.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrlm_envs.answers import after_thinking
from mrlm_envs.core import clean

FORMATS = ("auto", "hermes", "llama", "pythonic", "react")

HOW = {
    "hermes": '<tool_call>{"name": TOOL, "arguments": {ARGUMENT: VALUE}}</tool_call>',
    "llama": '{"name": TOOL, "parameters": {ARGUMENT: VALUE}}',
    "pythonic": "[TOOL(ARGUMENT=VALUE)]",
    "react": 'Action: TOOL\nAction Input: {"ARGUMENT": VALUE}',
}
HOW["auto"] = HOW["hermes"]
"""How to call, as a model is told."""

MAX_CALLS = 64  # calls read from one reply; no environment allows as many
_MAX_PYTHON = 65_536  # characters of a pythonic call

_FENCE = r"^[ \t]*(?P<fence>```|~~~)|"
_INPUT = re.compile(r"\n[ \t]*Action Input:\s*")
_OBSERVATION = re.compile(r"^[ \t]*Observation:", re.MULTILINE)
_TAG = re.compile(r"</?tool_call>")
_AFTER_CALL = re.compile(r"\s*</tool_call>")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A call that an agent makes: a tool's name, and its arguments by name as JSON values."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Malformed:
    """A call that cannot be read, with the reason to tell the agent."""

    problem: str


Entry = Call | Malformed
Take = Callable[[str, re.Match[str]], tuple[Sequence[Entry], int]]


def parse(text: str, call_format: str = "auto") -> list[Entry]:
    """The calls in a reply, in order; those that cannot be read are `Malformed`. Linear in the length of the text.

    Args:
        text: All that the agent wrote.
        call_format: One of `FORMATS`.

    Returns:
        An empty list when the reply makes no attempt at a call; at most `MAX_CALLS` entries.
    """
    text = after_thinking(text)
    for name in READERS if call_format == "auto" else (call_format,):
        if name == "react" and (end := _OBSERVATION.search(text)):
            text = text[: end.start()]  # what the agent imagines the tool to say, and what it would do then
        pattern, take = READERS[name]
        if entries := list(_scan(text, pattern, take)):
            return entries
    return []


def render(calls: Sequence[Call], call_format: str = "auto") -> str:
    """Calls as an agent writes them; `parse` reads them back.

    Args:
        calls: At least one.
        call_format: One of `FORMATS`; "auto" writes "hermes".

    Raises:
        ValueError: The format is pythonic and a name is not a Python identifier.
    """
    if call_format == "pythonic":
        return f"[{', '.join(_python(call) for call in calls)}]"
    if call_format == "llama":
        return "; ".join(_json({"name": call.name, "parameters": call.arguments}) for call in calls)
    if call_format == "react":
        return "\n".join(f"Action: {call.name}\nAction Input: {_json(call.arguments)}" for call in calls)
    written = (_json({"name": call.name, "arguments": call.arguments}) for call in calls)
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("think>", "think\\u003e")  # it would end the thoughts


def _python(call: Call) -> str:
    for name in (*call.name.split("."), *call.arguments):
        if not name.isidentifier():
            raise ValueError(f"{name!r} cannot be written as a pythonic call; use another call_format")
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})".replace("think>", "think\\x3e")


def _scan(text: str, pattern: re.Pattern[str], take: Take) -> Iterator[Entry]:
    """Goes from marker to marker; `take` reads the calls at one and returns where they end."""
    position = found = 0
    in_fence = False
    while found < MAX_CALLS and (marker := pattern.search(text, position)):
        position = max(marker.end(), marker.start() + 1)
        if marker["fence"]:
            in_fence = not in_fence
            continue
        entries, end = take(text, marker)
        if entries and in_fence:
            entries = [Malformed("a call inside a code fence is not made; write it without the fence")]
        found += len(entries)
        position = max(position, end)
        yield from entries


def _hermes(text: str, marker: re.Match[str]) -> tuple[Sequence[Entry], int]:
    value, end = _decode(text, marker.end())
    if isinstance(value, Malformed):
        following = _TAG.search(text, marker.end())
        return [value], following.start() if following else len(text)
    if not (close := _AFTER_CALL.match(text, end)):
        return [Malformed("the JSON object must be followed by </tool_call>")], end
    return [_call(value)], close.end()


def _llama(text: str, marker: re.Match[str]) -> tuple[Sequence[Entry], int]:
    value, end = _decode(text, marker.end())
    if isinstance(value, Malformed):
        return [value], end
    if not isinstance(value, dict) or not {"parameters", "arguments"} & value.keys():
        return [], end  # JSON that is not a call
    return [_call(value)], end


def _react(text: str, marker: re.Match[str]) -> tuple[Sequence[Entry], int]:
    if not (line := _INPUT.match(text, marker.end())):
        return [Malformed("'Action:' must be followed by a line 'Action Input:' with a JSON object")], marker.end()
    value, end = _decode(text, line.end())
    if isinstance(value, Malformed):
        return [value], max(end, line.end())
    return [_call({"name": marker["name"].strip(), "arguments": value})], end


def _pythonic(text: str, marker: re.Match[str]) -> tuple[Sequence[Entry], int]:
    start, problem = marker.end(), "the closing ] is missing"
    line_end = text.find("\n", start)
    line = text[start : len(text) if line_end < 0 else line_end].rstrip()
    ends = dict.fromkeys((start + len(line), text.rfind("]", start) + 1))  # most calls are a line; code may be more
    for end in ends:
        if not text.endswith("]", start, end):
            continue
        if end - start > _MAX_PYTHON:
            return [Malformed("the call is too long")], end
        try:
            tree = ast.parse(text[start:end], mode="eval").body
            return [_from_python(node) for node in getattr(tree, "elts", ())][:MAX_CALLS], end
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error).partition(": <ast.")[0]
            problem = f"not a list of calls with literal arguments: {reason[:200]}"
    return [Malformed(problem)], max(ends)


def _from_python(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("every element must be a call")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("give every argument by name")
    arguments = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    return Call(clean(ast.unparse(node.func)), arguments)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    return _plain(ast.literal_eval(node))


def _call(value: Any) -> Entry:
    """A call from an object with `name` and `arguments` or `parameters`, which may be JSON text themselves."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return Malformed('expected a JSON object with "name" and "arguments"')
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments, _ = _decode(arguments, 0)
    if isinstance(arguments, Malformed):
        return arguments
    if not isinstance(arguments, dict):
        return Malformed(f"the arguments must be a JSON object, got {type(arguments).__name__}")
    try:
        return Call(clean(value["name"]), _plain(arguments))
    except (RecursionError, ValueError) as error:
        return Malformed(str(error)[:200])


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at a position and where it ends; `Malformed` when there is none."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return Malformed(f"malformed JSON: {error.msg} at character {error.pos - start}"), start
    except (RecursionError, ValueError):  # too deep; an integer of thousands of digits
        return Malformed("malformed JSON: too deeply nested, or a number too long"), start


def _plain(value: Any) -> Any:
    """A literal as a JSON value that encodes as UTF-8.

    Raises:
        ValueError: It has none.
    """
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {clean(key): _plain(item) for key, item in value.items()}
    raise ValueError(f"{type(value).__name__} is not a JSON value")


# For each format: what starts a call, and what reads it.
READERS: dict[str, tuple[re.Pattern[str], Take]] = {
    "hermes": (re.compile(_FENCE + r"<tool_call>\s*", re.MULTILINE), _hermes),
    "react": (re.compile(_FENCE + r"^[ \t]*Action:(?P<name>[^\n]*)", re.MULTILINE), _react),
    "pythonic": (re.compile(_FENCE + r"^[ \t]*(?=\[[ \t]*[A-Za-z_][\w.]{0,99}\()", re.MULTILINE), _pythonic),
    "llama": (re.compile(_FENCE + r'(?=\{\s{0,20}"(?:name|type)"\s{0,20}:)', re.MULTILINE), _llama),
}
