"""`mrlm play`: a person plays an environment, or a PettingZoo game, in the terminal."""

import ast
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np

from mrlm_train.rollout.environments import EnvEntry

HELP = (
    "Type your reply; a line that starts with ``` opens a reply of several lines, and ``` closes it. "
    "/expert shows the reference, /expert! says it, /quit leaves."
)
TOOL_HELP = "Call one as /NAME text, with several arguments as /NAME path='a', content='b', and answer as /answer 42."

Ask = Callable[[str], str]
Tell = Callable[[str], None]


def run(entry: EnvEntry, seed: int | None, ask: Ask = input, tell: Tell = print) -> None:
    """Play one episode.

    Args:
        entry: The environment. In a game, agents that `entry.agents` does not name are the person's.
        seed: The episode seed, None for a random one.
        ask: Reads a line after a prompt; raises `EOFError` at the end of the input.
        tell: Shows a text.
    """
    with closing(entry.build()) as env:
        if entry.is_game:
            _play_game(entry, env, seed, ask, tell)
        else:
            play(env, seed, ask, tell)


def play(env: gymnasium.Env[str, str], seed: int | None, ask: Ask = input, tell: Tell = print) -> float:
    """Play one episode of an environment; see `run`.

    Returns:
        The sum of rewards.
    """
    observation, info = env.reset(seed=seed)
    tell(HELP)
    if info.get("system"):
        tell(f"\n[system]\n{info['system']}")
    tools = {tool["function"]["name"]: tool["function"] for tool in info.get("tools") or ()}
    if tools:
        tell("\n[tools]\n" + "\n".join(_signature(tool) for tool in tools.values()) + f"\n{TOOL_HELP}")
    keys = getattr(getattr(env.unwrapped, "actions", None), "keys", {})
    if keys:
        tell(f"Or type keys, one a move: {', '.join(f'{key} {move}' for key, move in keys.items())}.")
    total, is_over = 0.0, False
    while not is_over:
        tell(f"\n[{info.get('role', 'user')}]\n{observation}\n")
        action = _read(env, tools, ask, tell)
        if action and set(action) <= set(keys):
            action = env.unwrapped.actions.write([keys[key] for key in action])  # pyright: ignore[reportAttributeAccessIssue]
        if action is None:
            tell("\nleft before the end" + (f"; return so far {total:g}" if total else ""))
            return total
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        is_over = terminated or truncated
    outcome = "solved" if info.get("success") else info.get("stop_reason", "over")
    tell(f"\n[{info.get('role', 'user')}]\n{observation}\n\n{outcome}; return {total:g}{_parts(info)}")
    is_right = (env.unwrapped.metadata or {}).get("expert") == "always"  # playing it earns the full reward
    if is_right and not info.get("success") and (reference := _expert(env)) is not None:
        tell(f"\n[a right answer]\n{reference}")
    return total


def _play_game(entry: EnvEntry, game: Any, seed: int | None, ask: Ask, tell: Tell) -> None:
    if not hasattr(game, "agent_iter"):
        from pettingzoo.utils.conversions import parallel_to_aec

        game = parallel_to_aec(game)
    agents = entry.assign(game)
    messages: dict[str, list[dict[str, Any]]] = {name: [] for name in agents}
    totals, rng = dict.fromkeys(agents, 0.0), np.random.default_rng(seed)
    game.reset(seed=seed)
    tell(f"{HELP}\nThe agents are {', '.join(agents)}.")
    for agent in game.agent_iter():
        observation, reward, terminated, truncated, info = game.last()
        totals[agent] += reward
        function = agents[agent].function
        if function is None:
            system = f"{info['system']}\n\n" if info.get("system") and not messages[agent] else ""
            tell(f"\n[to {agent}]\n{system}{observation}\n")
        messages[agent].append({"role": "user", "content": observation})
        if terminated or truncated:
            game.step(None)
            continue
        action = _read(game, {}, ask, tell) if function is None else function(messages[agent], rng)
        if action is None:
            tell("\nleft before the end")
            return
        messages[agent].append({"role": "assistant", "content": action})
        game.step(action)
    tell("\nover; returns: " + ", ".join(f"{agent} {total:g}" for agent, total in totals.items()))


def _expert(env: Any) -> str | None:
    """The reference action; a game's is that of the agent to act."""
    expert = getattr(env.unwrapped, "expert", None)
    if expert is None:
        return None
    return expert(env.agent_selection) if hasattr(env, "agent_selection") else expert()


def _read(env: Any, tools: dict[str, Any], ask: Ask, tell: Tell) -> str | None:
    """The next action, None when the person leaves."""
    try:
        while True:
            line = ask("> ")
            command, _, rest = line.strip().partition(" ")
            if command in ("/expert", "/expert!"):
                expert = _expert(env)
                tell(expert if expert is not None else "there is no reference action here")
                if command == "/expert!" and expert is not None:
                    return expert
            elif command == "/quit":
                return None
            elif tools and command == "/answer":
                return f"<answer>{rest}</answer>"
            elif tools and command.startswith("/"):
                tool = tools.get(command[1:])
                if tool is None:
                    tell(f"no tool {command[1:]!r}; there are {', '.join(tools)}")
                elif (arguments := _parse_arguments(tool, rest)) is None:
                    tell(f"it is called as {_signature(tool)}")
                else:
                    call = _call(env, tool["name"], arguments)
                    tell(call)
                    return call
            elif (fence := line.strip()).startswith("```"):
                lines = []
                while (line := ask("| ")).strip() != "```":
                    lines.append(line)
                return "\n".join(lines if fence == "```" else [fence, *lines, "```"])
            elif line.strip():
                return line
    except EOFError:
        return None


def _signature(tool: dict[str, Any]) -> str:
    schema = tool["parameters"]
    optional = set(schema.get("properties", ())) - set(schema.get("required", ()))
    names = [f"{name}?" if name in optional else name for name in schema.get("properties", ())]
    return f"{tool['name']}({', '.join(names)}): {tool.get('description', '')}"


def _parse_arguments(tool: dict[str, Any], text: str) -> dict[str, Any] | None:
    """Arguments written as in Python, or as the bare text of the only one needed; None when they do not fit."""
    known, needed = tool["parameters"].get("properties", {}), tool["parameters"].get("required", [])
    try:
        parsed: Any = ast.parse(f"f({text})", mode="eval").body
        named = {word.arg: ast.literal_eval(word.value) for word in parsed.keywords}
        if not parsed.args and set(named) <= set(known) and set(needed) <= set(named):
            return named
    except (SyntaxError, ValueError, AttributeError):
        pass  # not Python: it may be bare text
    return {needed[0]: text} if len(needed) == 1 and text else None


def _call(env: gymnasium.Env[str, str], name: str, arguments: dict[str, Any]) -> str:
    from mrlm_envs.tools.calls import Call, render

    return render([Call(name, arguments)], getattr(env.unwrapped, "call_format", "auto"))


def _parts(info: dict[str, Any]) -> str:
    parts = {name: value for name, value in info.get("rewards", {}).items() if value}
    return " (" + ", ".join(f"{name} {value:g}" for name, value in parts.items()) + ")" if parts else ""
