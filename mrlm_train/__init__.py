"""Thin trainers on TRL and Accelerate for any text Gymnasium environment.

`from mrlm_train import GRPOConfig, GRPOTrainer` and the like; each name is imported from its module when first used.
"""

import importlib
from typing import Any

_MODULES = {
    "SFTConfig": "sft",
    "SFTTrainer": "sft",
    "GRPOConfig": "grpo",
    "GRPOTrainer": "grpo",
    "PPOConfig": "ppo",
    "PPOTrainer": "ppo",
    "DPOConfig": "dpo",
    "DPOTrainer": "dpo",
    "Episode": "episodes",
    "Rollout": "rollout.runner",
    "Request": "rollout.runner",
    "Sampling": "inference.sampling",
    "evaluate": "rollout.evaluation",
}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        try:
            return getattr(importlib.import_module(f"mrlm_train.{_MODULES[name]}"), name)
        except ModuleNotFoundError as error:
            hint = 'is not installed; install the trainers: pip install "mrlm[train]"'
            raise ModuleNotFoundError(f"{error.name} {hint}", name=error.name) from error
    raise AttributeError(f"module 'mrlm_train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
