"""What the integrations share: the check of a peer's version, the environment, and one episode of it at a time."""

import functools
import importlib
import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import gymnasium

from mrlm_envs.core import Options, TextEnv

TESTED = {
    "inspect-ai": ("0.3.", "inspect"),
    "skyrl-gym": ("0.4.", "skyrl"),
    "starlette": ("", "openenv"),
    "trl": ("1.16.", "train"),
    "verifiers": ("0.4.", "verifiers"),
    "websockets": ("", "openenv"),
}
"""The versions of each peer that the tests use ("" for any), and the extra that installs them."""


def require(package: str) -> None:
    """Check that a peer is installed in a version that the tests use.

    Raises:
        ModuleNotFoundError: It is not installed.
        ImportError: Another version is installed.
    """
    version, extra = TESTED[package]
    remedy = f'pip install "mrlm[{extra}]"'
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(f"this integration needs {package}, which is not installed; {remedy}") from None
    if not found.startswith(version):
        raise ImportError(f"this integration is tested with {package} {version}x, and {found} is installed; {remedy}")


def make(env_id: str, **kwargs: Any) -> gymnasium.Env[str, str]:
    """A fresh environment of one agent whose actions are text.

    Raises:
        ValueError: It is a game of several agents, its actions are not text, or there is no such environment.
    """
    name = f"mrlm_envs:{env_id}" if env_id.startswith("mrlm/") else env_id
    try:
        env = gymnasium.make(name, disable_env_checker=True, **kwargs)
    except gymnasium.error.Error as error:
        module, _, function = env_id.rpartition(":")
        if module and callable(getattr(importlib.import_module(module), function, None)):
            raise ValueError(
                f"{env_id}: a function that makes a game of several agents, which this protocol cannot play; "
                "use `mrlm train`, or an environment of one agent such as mrlm/Debate-v0"
            ) from None
        raise ValueError(f"{env_id}: {error}") from None
    if not isinstance(env.action_space, gymnasium.spaces.Text):
        raise ValueError(f"{env_id}: its action space is {env.action_space}, not text; wrap it into one that is")
    return env


class Episode:
    """A text environment and its current episode, as each protocol here needs it.

    AgileRL takes it as it is (`RolloutHarness.local(Episode("mrlm/ToolUse-v0"), tokenizer)`): unlike a Gymnasium
    environment it has `tools`, and evaluates on the test split.

    Args:
        env_id: What `gymnasium.make` takes.
        **kwargs: Arguments of the environment.

    Attributes:
        system_prompt: The environment's.
        tools: The tool schemas of the episode.
        rewards: The reward of each turn so far.
        is_over: No episode is open.
        is_valid: The environment has not failed; an invalid episode says nothing about the policy.
        success: Whether the task has been solved; None before the end, or where the environment does not say.
    """

    def __init__(self, env_id: str, **kwargs: Any) -> None:
        self._make = functools.partial(make, env_id, **kwargs)
        self.env = self._make()
        self._envs = {False: self.env}
        self.system_prompt: str = getattr(self.env.unwrapped, "system_prompt", "")
        self._begin()

    def _begin(self) -> None:
        self.is_over, self.is_valid, self.success = True, True, None
        self.rewards, self.tools = list[float](), list[Any]()

    def reset(
        self, seed: int | None = None, options: Options | None = None, evaluation: bool = False
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode; for an evaluation on the test split, where the environment knows splits."""
        if evaluation not in self._envs:
            split = {"split": "test"} if isinstance(self.env.unwrapped, TextEnv) else {}
            self._envs[evaluation] = self._make(**split)
        self.env = self._envs[evaluation]
        self._begin()
        observation, info = self.env.reset(seed=seed, options=options)
        self.is_over, self.tools = False, info.get("tools") or []
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one turn. After the end there is nothing to do, and the reply says so."""
        if self.is_over:
            return "The episode is over.", 0.0, True, False, {}
        self.is_over = True  # also if the step raises
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(float(reward))
        self.is_over, self.success = terminated or truncated, info.get("success")
        self.is_valid = bool(info.get("valid", True))
        return observation, float(reward), terminated, truncated, info

    @property
    def reward(self) -> float | None:
        """The return so far; None when the episode is invalid."""
        return sum(self.rewards) if self.is_valid else None

    def close(self) -> None:
        """Close the environment."""
        for env in self._envs.values():
            env.close()


def openings(env_id: str, seeds: range, **kwargs: Any) -> Iterator[tuple[int, list[dict[str, str]], dict[str, Any]]]:
    """The seed, the first messages and the `info` of each episode, the rows of a dataset."""
    episode = Episode(env_id, **kwargs)
    for seed in seeds:
        observation, info = episode.reset(seed)
        system = [{"role": "system", "content": info["system"]}] if info.get("system") else []
        yield seed, [*system, {"role": "user", "content": observation}], info
    episode.close()


def with_tools(messages: list[dict[str, str]], info: dict[str, Any]) -> list[dict[str, str]]:
    """The messages with the tools in the system prompt, for protocols that pass no tool schemas."""
    if not info.get("tools"):
        return messages
    from mrlm_envs.tools.calls import HOW  # here, because it needs the extra `tools`

    *system, user = messages
    listed = "\n".join(["Tools:", *map(json.dumps, info["tools"]), f"Call a tool as {HOW['hermes']}"])
    told = "\n\n".join([*(message["content"] for message in system), listed])
    return [{"role": "system", "content": told}, user]
