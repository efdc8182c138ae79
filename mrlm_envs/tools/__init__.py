"""Tools for language models: a registry, call formats, four built-in tools, any MCP server's, and `mrlm/ToolUse-v0`.

from mrlm_envs.tools import ToolRegistry, tool

@tool
def weather(city: str, days: int = 1) -> str:
    '''The weather forecast.

    Args:
        city: Name of the city.
        days: How many days ahead.
    '''
    return "sunny"

registry = ToolRegistry([weather])
registry.schemas()                                # what a chat template takes as `tools`
registry.call("weather", {"city": "Oslo"}).text   # "sunny"
"""

from mrlm_envs.tools.calls import FORMATS, Call, Malformed, parse, render
from mrlm_envs.tools.registry import Outcome, Tool, ToolError, ToolRegistry, Toolset, tool

__all__ = [
    "FORMATS", "Call", "Malformed", "Outcome", "Tool", "ToolError", "ToolRegistry", "Toolset", "parse", "render",
    "tool",
]  # fmt: skip
