"""The frozen models of games: from a folder, or copies of the policy as it was some optimizer steps ago."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mrlm_train.inference.policy import Policy, make
from mrlm_train.rollout.agents import PAST, AgentConfig

FILE = "opponents.safetensors"  # in a checkpoint: the past copies


@dataclass
class _Copy:
    """A copy of the policy.

    Attributes:
        policy: with a model of its own.
        step: the optimizer step it was taken at; -1 while a model from a folder still plays.
    """

    policy: Policy
    step: int


class Opponents:
    """The frozen models of games: each loaded when it is first needed, or a copy of the policy in training.

    `opponents["black"].model` is the model that plays the agent `black`. Outside of training, `past` is the policy.
    """

    def __init__(
        self, policy: Policy, games: Iterable[Mapping[str, AgentConfig]] = (), in_training: bool = False
    ) -> None:
        """
        Args:
            policy: The policy that acts; its `model` is never replaced.
            games: Who plays each agent, for each game.
            in_training: Hold a copy of the policy for each config that is `past` or has `refresh_every`. Set before
                the trainer wraps the model.
        """
        games = list(games)
        self.policy = policy
        self._agents = {agent: config for game in reversed(games) for agent, config in game.items()}
        self._loaded: dict[str, Policy] = {}
        self._copies: dict[AgentConfig, _Copy] = {}
        for config in (config for game in games if in_training for config in game.values()):
            is_past = config.policy == PAST
            if config not in self._copies and (is_past or config.refresh_every is not None):
                chat = copy.deepcopy(policy.chat)  # its engine has its own thread, and tokenizers are not thread-safe
                name = f"{policy.name} (past)"
                held = Policy(frozen_copy(policy.model), chat, name, policy.engine_name, policy.rows)
                self._copies[config] = _Copy(held, 0 if is_past else -1)

    def __getitem__(self, agent: str) -> Policy:
        """The policy that plays an agent; its `model` is the frozen model. If several games have it, the first counts.

        Raises:
            KeyError: If no game has this agent, or a function plays it.
        """
        config = self._agents[agent]
        if config.function is not None:
            raise KeyError(f"{agent} is played by the function {config.name}, not by a model")
        return self(config)

    def __call__(self, config: AgentConfig) -> Policy:
        """The policy that plays an agent with this configuration.

        Raises:
            ValueError: If there is no such model.
        """
        if config in self._copies and self._copies[config].step >= 0:
            return self._copies[config].policy
        if config.trains or config.policy == PAST:
            return self.policy
        path = str(config.policy)
        if path not in self._loaded:
            opponent = self._loaded[path] = make(path, engine=self.policy.engine_name, rows=self.policy.rows)
            if opponent.model is not None:  # an endpoint has none
                opponent.model.requires_grad_(False)
        return self._loaded[path]

    def refresh(self, step: int) -> None:
        """Renew the copies that are due, at every multiple of `refresh_every`; called before each rollout.

        Args:
            step: Optimizer steps done.
        """
        for config, held in self._copies.items():
            every = config.refresh_every
            if every is not None and step >= every and held.step < step - step % every:
                self._take(held, step)

    @torch.no_grad()
    def _take(self, held: _Copy, step: int) -> None:
        current = dict(self.policy.model.named_parameters())
        held.policy.model.to(next(iter(current.values())).device)
        for name, parameter in held.policy.model.named_parameters():
            parameter.copy_(current[name])
        held.step = step

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the copies, if there are any, into a checkpoint: the weights that train, and when they were taken."""
        if not self._copies:
            return
        trained = {name for name, parameter in self.policy.model.named_parameters() if parameter.requires_grad}
        weights: dict[str, torch.Tensor] = {}
        for number, held in enumerate(self._copies.values()):
            named = held.policy.model.named_parameters()
            weights |= {f"{number}.{name}": value.contiguous() for name, value in named if name in trained}
        steps = {str(number): str(held.step) for number, held in enumerate(self._copies.values())}
        save_file(weights, Path(folder) / FILE, metadata=steps)

    @torch.no_grad()
    def load(self, folder: str | os.PathLike[str]) -> None:
        """Read the copies of a checkpoint.

        Raises:
            FileNotFoundError: If it has none.
        """
        path = Path(folder) / FILE
        if not self._copies:
            return
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint {folder} has no {FILE}: it is from a run without past copies")
        with safe_open(str(path), framework="pt") as file:
            steps: dict[str, str] = file.metadata()
            names: Any = set(file.keys())
            for number, held in enumerate(self._copies.values()):
                held.step = int(steps[str(number)])
                for name, parameter in held.policy.model.named_parameters():
                    if f"{number}.{name}" in names:
                        parameter.copy_(file.get_tensor(f"{number}.{name}"))


def frozen_copy(model: Any) -> Any:
    """A copy of a model that shares nothing with it and does not train.

    TRL gives a model that it trains a `forward` of its own, as an instance attribute: a closure over the model.
    `copy.deepcopy` keeps that closure, so the copy would compute with the weights that are being trained. The copy
    therefore gets its class's `forward` back.

    Raises:
        ValueError: If TRL computes the head in float32 (`cast_lm_head_to_fp32`), which only that closure knows.
    """
    twin = copy.deepcopy(model).requires_grad_(False)
    for module in twin.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, FunctionType):
            raise ValueError("agents: a past opponent cannot be copied with cast_lm_head_to_fp32; turn it off")
        if isinstance(forward, MethodType):
            del module.forward
    return twin
