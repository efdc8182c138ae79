"""Tools of an MCP server (Model Context Protocol, over stdio or HTTP) as tools of ours. Needs the `mcp` extra.

    registry.add(connect({"command": "python", "args": ["my_server.py"]}))
    registry.add(connect({"url": "http://127.0.0.1:8000/mcp"}))

All environments of a process share one connection to a server, so episodes also share what the server remembers. The
agent reads the server's refusals; a lost server is an `EnvFault`.
"""

import asyncio
import atexit
import functools
import json
import os
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

from mrlm_envs.background import run, spawn
from mrlm_envs.core import EnvFault
from mrlm_envs.tools.registry import Tool, ToolError, Toolset

_FIELDS = {"command", "args", "env", "cwd", "url"}
_START_S = 30.0  # until a server has said which tools it has


class McpTools(Toolset):
    """The tools of one MCP server. Thread-safe.

    Args:
        settings: `url`, or `command` with `args`, `env` and `cwd`.
        timeout_s: Seconds for each call.

    Raises:
        ValueError: Malformed settings, the `mcp` package is missing, or no server answers.
    """

    def __init__(self, settings: Mapping[str, Any], timeout_s: float = 30.0) -> None:
        if set(settings) - _FIELDS or ("url" in settings) == ("command" in settings):
            raise ValueError(f"mcp: give either url, or command with args, env and cwd; got {dict(settings)!r}")
        self._settings, self._timeout = dict(settings), timeout_s
        self._where = str(settings.get("url", settings.get("command")))
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        try:
            self._listed = self._connect().listed
        except EnvFault as fault:
            raise ValueError(str(fault)) from fault

    @property
    def tools(self) -> list[Tool]:
        """The server's tools, as it describes them; odd characters in a name become `_`."""
        return [
            Tool(
                functools.partial(self.call, tool.name),
                re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)[:64],
                tool.description or "",
                tool.input_schema,
            )
            for tool in self._listed
        ]

    def call(self, name: str, /, **arguments: Any) -> str:
        """Calls a tool of the server.

        Raises:
            ToolError: The server refuses, or the call takes too long though the server is well.
            EnvFault: The server is gone.
        """
        from mcp import MCPError

        connection = self._connect()
        try:
            result = connection.ask(lambda client: client.call_tool(name, arguments), self._timeout)
        except Exception as error:
            try:
                connection.ask(lambda client: client.list_tools(cache_mode="refresh"), self._timeout)
            except Exception as fault:
                self.shut(connection)
                raise EnvFault(f"mcp server {self._where} is gone: {type(fault).__name__} {fault}") from fault
            said = "took too long" if isinstance(error, TimeoutError) else str(error)
            if isinstance(error, MCPError | TimeoutError):
                raise ToolError(f"{name}: {said}") from None
            raise
        texts = [block.text if block.type == "text" else f"[{block.type}]" for block in result.content]
        if result.is_error:
            raise ToolError("\n".join(texts))
        return "\n".join(texts)

    def _connect(self) -> "_Connection":
        with self._lock:
            if self._connection is None or self._connection.pid != os.getpid():  # a parent's is not ours to use
                self._connection = _Connection(self._settings, self._where)
            return self._connection

    def shut(self, broken: "_Connection | None" = None) -> None:
        """Ends the connection, and with it a server that was started for it; the next call tries a new one.

        Args:
            broken: End nothing but this one.
        """
        with self._lock:
            connection = broken or self._connection
            if connection is self._connection:
                self._connection = None
        if connection is not None:
            connection.close()


class _Connection:
    """An MCP client on the background loop, where a task holds it open."""

    def __init__(self, settings: Mapping[str, Any], where: str) -> None:
        try:
            import mcp
        except ModuleNotFoundError:
            raise ValueError("mcp servers need the mcp package: pip install 'mrlm[mcp]'") from None
        target: Any = settings["url"] if "url" in settings else mcp.StdioServerParameters(**settings)
        self._client, self.pid = mcp.Client(target), os.getpid()
        self._stop = asyncio.Event()
        ready: Future[list[Any]] = Future()
        self._held = spawn(self._hold(ready))
        try:
            self.listed = ready.result(_START_S)
        except Exception as error:
            self.close()
            raise EnvFault(f"mcp server {where}: no connection: {_reason(error)}") from error

    async def _hold(self, ready: Future[list[Any]]) -> None:
        try:
            async with self._client as client:
                listed = await client.list_tools()
                tools = list(listed.tools)
                while listed.next_cursor:
                    listed = await client.list_tools(cursor=listed.next_cursor)
                    tools += listed.tools
                ready.set_result(tools)
                await self._stop.wait()
        except Exception as error:  # a lost server; who asks next finds the connection closed
            if not ready.done():
                ready.set_exception(error)

    def ask(self, request: Callable[[Any], Awaitable[Any]], seconds: float) -> Any:
        """The answer to a request.

        Raises:
            TimeoutError: It took too long.
            ConnectionError: The connection is closed.
        """
        if self._held.done():
            raise ConnectionError("the connection is closed")
        return run(asyncio.wait_for(request(self._client), seconds), seconds + 5)

    def close(self) -> None:
        """Ends the connection, and with it a server that was started for it."""
        run(self._end())

    async def _end(self) -> None:
        self._stop.set()
        await asyncio.wait([asyncio.wrap_future(self._held)], timeout=10)
        self._held.cancel()  # only if it hangs: else it is done


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__} {error}".strip()


_shared: dict[tuple[int, str, float], McpTools] = {}
_shared_lock = threading.Lock()


def connect(settings: Mapping[str, Any], timeout_s: float = 30.0) -> McpTools:
    """The tools of a server, through the connection that this process keeps to it.

    Args:
        settings: `url`, or `command` with `args`, `env` and `cwd`.
        timeout_s: Seconds for each call.

    Raises:
        ValueError: Malformed settings, the `mcp` package is missing, or no server answers.
    """
    key = os.getpid(), json.dumps(dict(settings), sort_keys=True, default=str), timeout_s
    with _shared_lock:
        if key not in _shared:
            _shared[key] = McpTools(settings, timeout_s)
        return _shared[key]


@atexit.register
def _shut_all() -> None:
    for (pid, *_), server in _shared.items():
        if pid == os.getpid():
            server.shut()
