"""`mrlm play`: a person plays an environment in the terminal."""

import json
from collections.abc import Callable
from typing import Any

import gymnasium

HELP = (
    "Type your reply; a line that is only ``` opens and closes a reply of several lines. "
    "/expert shows the reference, /quit leaves."
)


def play(
    env: gymnasium.Env[str, str],
    seed: int | None,
    ask: Callable[[str], str] = input,
    tell: Callable[[str], None] = print,
) -> float:
    """Play one episode.

    Args:
        env: Any environment with text observations and actions.
        seed: The episode seed, None for a random one.
        ask: Reads a line after a prompt; raises `EOFError` at the end of the input.
        tell: Shows a text.

    Returns:
        The sum of rewards.
    """
    observation, info = env.reset(seed=seed)
    tell(HELP)
    if info.get("system"):
        tell(f"\n[system]\n{info['system']}")
    if info.get("tools"):
        tell("\n[tools]\n" + "\n".join(json.dumps(tool) for tool in info["tools"]))
    total, is_over = 0.0, False
    while not is_over:
        tell(f"\n[{info.get('role', 'user')}]\n{observation}\n")
        action = _read(env, ask, tell)
        if action is None:
            break
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        is_over = terminated or truncated
    if is_over:
        outcome = "solved" if info.get("success") else info.get("stop_reason", "over")
        tell(f"\n[{info.get('role', 'user')}]\n{observation}\n\n{outcome}; return {total:g}{_parts(info)}")
    return total


def _read(env: gymnasium.Env[str, str], ask: Callable[[str], str], tell: Callable[[str], None]) -> str | None:
    try:
        line = ask("> ")
        while line.strip() == "/expert":
            expert = getattr(env.unwrapped, "expert", lambda: None)()
            tell(expert if expert is not None else "this environment has no reference action")
            line = ask("> ")
        if line.strip() == "/quit":
            return None
        if line.strip() != "```":
            return line
        lines = []
        while (line := ask("| ")).strip() != "```":
            lines.append(line)
        return "\n".join(lines)
    except EOFError:
        return None


def _parts(info: dict[str, Any]) -> str:
    parts = {name: value for name, value in info.get("rewards", {}).items() if value}
    return " (" + ", ".join(f"{name} {value:g}" for name, value in parts.items()) + ")" if parts else ""
