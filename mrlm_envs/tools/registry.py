"""`ToolRegistry`: what an agent may call, as OpenAI function schemas, and the results of its calls.

A tool is a typed function: `@tool` makes its schema from signature and docstring. Tools that share a state which is
reset with each episode (an interpreter, a file system) are a `Toolset`.
"""

import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast, overload

from mrlm_envs.core import EnvFault, clean
from mrlm_envs.sandbox import printable

try:
    import docstring_parser

    if importlib.util.find_spec("jsonschema") is None:  # imported when a call is checked, as it takes a while
        raise ModuleNotFoundError(name="jsonschema")
    from pydantic import PydanticUserError, TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(f"tools need {missing.name}: pip install 'mrlm[tools]'", name=missing.name) from None

Schema = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

MAX_RESULT = 4000  # characters of a tool's result that the agent gets to see
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


class ToolError(Exception):
    """A tool refuses what it was asked; the agent reads the message."""


@dataclass(frozen=True)
class Outcome:
    """The result of a call: what the agent reads, and whether the tool exists and the arguments fit it."""

    text: str
    valid: bool = True


class Tool:
    """A function with a name, a description and a JSON schema of its arguments.

    Args:
        function: Called with the arguments by name. What it returns is shown: text as it is, other values as JSON.
            It raises `ToolError` to refuse, `EnvFault` when an outside service is down.
        name: Letters, digits, `_` and `-`; the function's name unless given.
        description: One or two sentences; the head of the docstring unless given.
        parameters: JSON schema of the arguments; made from signature and docstring unless given.

    Raises:
        TypeError: An argument's type has no JSON schema, or is missing; or the function is `async`.
        ValueError: A malformed name.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        description: str | None = None,
        parameters: Schema | None = None,
    ) -> None:
        self.function = function
        self.name = name or function.__name__
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"tool name {self.name!r}: expected up to 64 letters, digits, '_' and '-'")
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"tool {self.name}: an async function is never awaited; give a plain one")
        head, sections = _docstring(function)
        self.description = head if description is None else description
        self.parameters = _parameters(function, sections) if parameters is None else parameters
        self._validator: Any = None

    @property
    def schema(self) -> Schema:
        """The OpenAI function schema."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def complaint(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with the arguments, None when they fit the schema."""
        if self._validator is None:
            from jsonschema.validators import validator_for

            self._validator = validator_for(self.parameters)(self.parameters)
        try:
            error = next(self._validator.iter_errors(dict(arguments)), None)
        except RecursionError:
            return "too deeply nested"
        except (OverflowError, ValueError):
            return "a number that is too large, or none"
        where = f"argument {error.absolute_path[0]!r}: " if error is not None and error.absolute_path else ""
        return None if error is None else f"{where}{error.message[:300]}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)


@overload
def tool(function: F) -> F: ...
@overload
def tool(*, name: str | None = None, description: str | None = None) -> Callable[[F], F]: ...
def tool(function: Any = None, *, name: str | None = None, description: str | None = None) -> Any:
    """Mark a typed function or method as a tool, and check at once that it has a schema.

    The function itself does not change. pydantic makes the schema of its type hints (`str`, `int`, `float`, `bool`,
    `list[T]`, `dict[str, T]`, `Literal`, unions …); arguments arrive as the JSON values that they are. Descriptions
    come from the docstring, Google style.

    Args:
        function: The function.
        name: Name of the tool; the function's unless given.
        description: What it does; the head of the docstring unless given.
    """

    def mark(function: F) -> F:
        function.__mrlm_tool__ = {"name": name, "description": description}  # pyright: ignore[reportFunctionMemberAccess]
        Tool(function, name, description)
        return function

    return mark if function is None else mark(function)


class Toolset:
    """Tools with a common state that is reset with each episode. The tools are the methods marked with `@tool`."""

    @property
    def tools(self) -> list[Tool]:
        """The tools, in the order in which they are written."""
        methods = {name: value for cls in reversed(type(self).__mro__) for name, value in vars(cls).items()}
        return [
            Tool(getattr(self, name), **value.__mrlm_tool__)
            for name, value in methods.items()
            if hasattr(value, "__mrlm_tool__")
        ]

    def reset(self, seed: int) -> None:
        """Start an episode."""

    def close(self) -> None:
        """Release what the episode holds; a `reset` may follow."""


class ToolRegistry:
    """Tools by name.

    Args:
        tools: Functions, `Tool`s and `Toolset`s.

    Raises:
        ValueError: Two tools of one name.
    """

    def __init__(self, tools: Iterable[Tool | Toolset | Callable[..., Any]] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        self._sets: list[Toolset] = []
        for entry in tools:
            self.add(entry)

    def add(self, entry: Tool | Toolset | Callable[..., Any]) -> None:
        """Add a function, a `Tool`, or every tool of a `Toolset`.

        Raises:
            ValueError: There is a tool of that name.
        """
        if isinstance(entry, Toolset):
            self._sets.append(entry)
        elif not isinstance(entry, Tool):
            entry = Tool(entry, **getattr(entry, "__mrlm_tool__", {}))
        for new in entry.tools if isinstance(entry, Toolset) else [entry]:
            if new.name in self._tools:
                raise ValueError(f"two tools are named {new.name!r}; give one of them another name")
            self._tools[new.name] = new

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    @property
    def names(self) -> list[str]:
        """Names of the tools."""
        return list(self._tools)

    def schemas(self) -> list[Schema]:
        """OpenAI function schemas of all tools, as chat templates and endpoints take them."""
        return [tool.schema for tool in self._tools.values()]

    def call(self, name: str, arguments: Mapping[str, Any]) -> Outcome:
        """Call a tool. Never raises for what the agent wrote.

        Args:
            name: Of the tool.
            arguments: By name.

        Returns:
            The result, or the error, as the agent reads it. The outcome is not valid when there is no such tool or the
            arguments do not fit it.

        Raises:
            EnvFault: An outside service is down.
        """
        if name not in self._tools:
            known = ", ".join(self._tools) or "none"
            return Outcome(_shown(f"error: there is no tool {name[:100]!r}; the tools are: {known}"), valid=False)
        tool = self._tools[name]
        if (complaint := tool.complaint(arguments)) is not None:
            return Outcome(_shown(f"error: {name}: {complaint}. Usage: {usage(tool)}"), valid=False)
        try:
            result = tool.function(**arguments)
            if not isinstance(result, str):
                result = json.dumps(result, ensure_ascii=False, default=str)
        except EnvFault:
            raise
        except ToolError as error:
            return Outcome(_shown(f"error: {error}"))
        except (Exception, SystemExit) as error:  # a tool of the user's own may raise anything; the agent reads it
            return Outcome(_shown(f"error: {type(error).__name__}: {error}"))
        return Outcome(_shown(result))

    def reset(self, seed: int) -> None:
        """Start an episode in every toolset."""
        for toolset in self._sets:
            toolset.reset(seed)

    def close(self) -> None:
        """Release what the toolsets hold."""
        for toolset in self._sets:
            toolset.close()


def usage(tool: Tool) -> str:
    """A tool's arguments in a line: `replace_in_file(path: string, all?: boolean)`."""
    required = set(tool.parameters.get("required", ()))
    parts = []
    for name, schema in tool.parameters.get("properties", {}).items():
        options = schema.get("anyOf", [schema]) if isinstance(schema, Mapping) else [{}]
        kind = "|".join(str(option.get("type", "any")) for option in options)
        parts.append(f"{name}{'' if name in required else '?'}: {kind}")
    return f"{tool.name}({', '.join(parts)})"


def _shown(text: str) -> str:
    """Text of others made fit for a prompt: no control characters, no special tokens, not too long."""
    return printable(clean(text), MAX_RESULT)


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Head of a Google-style docstring, and the descriptions under `Args:` by name."""
    parsed = docstring_parser.parse(inspect.getdoc(function) or "", docstring_parser.DocstringStyle.GOOGLE)
    described = {param.arg_name.lstrip("*"): " ".join((param.description or "").split()) for param in parsed.params}
    return " ".join((parsed.description or "").split()), described


class _Untitled(GenerateJsonSchema):
    """Schemas without a title for each argument, which only repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _parameters(function: Callable[..., Any], described: Mapping[str, str]) -> Schema:
    """The JSON schema of a function's arguments, by pydantic."""
    name = getattr(function, "__name__", "tool")
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: argument {parameter.name!r} must be one that can be given by name")
        if parameter.annotation is parameter.empty:
            raise TypeError(f"tool {name}: argument {parameter.name!r} has no type hint")
    try:
        schema = TypeAdapter(cast(Any, function)).json_schema(schema_generator=_Untitled)
    except (PydanticUserError, NameError) as error:
        raise TypeError(f"tool {name}: no JSON schema: {str(error).splitlines()[0]}") from None
    properties = {p.name: schema["properties"][p.name] for p in parameters}  # without the self of an unbound method
    for argument in properties.keys() & described.keys():
        properties[argument]["description"] = described[argument]
    required = [argument for argument in schema.get("required", ()) if argument in properties]
    return {**schema, "properties": properties, "required": required}
