"""Supervised fine-tuning on Episodes: TRL's trainer on token ids that are computed once.

    trainer = SFTTrainer("Qwen/Qwen2.5-0.5B-Instruct", episodes="runs/collect/episodes.jsonl")
    trainer.train()

With `envs=` instead of `episodes=` the environments' own experts play first (`num_episodes`). `mode` selects
what the model learns: what the policy said ("behavioral_cloning"), what the environment answered and paid
("world_model", see `world_model.py`), or both, in separate rows ("combined").

Start with it, until some attempts at a task succeed. Continue with it where there are more demonstrations: they can do
as well as reinforcement learning (ToolUse in `benchmarks/README.md`).

Also a script: `accelerate launch mrlm_train/sft.py --config my.yaml`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from trl.trainer import sft_config as trl_sft_config
from trl.trainer import sft_trainer as trl_sft_trainer

from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode, read, sft_rows
from mrlm_train.inference.policy import resolve
from mrlm_train.rollout.environments import EnvLike
from mrlm_train.rollout.runner import expert_episodes
from mrlm_train.rollout.world_model import world_rows
from mrlm_train.trainer import DatasetArguments, DatasetTrainer, check_config, model_chat

MODES = ("behavioral_cloning", "world_model", "combined")


@dataclass
class SFTConfig(DatasetArguments, trl_sft_config.SFTConfig):
    """TRL's settings, those of `DatasetArguments`, and these.

    Attributes:
        mode: "behavioral_cloning", "world_model" or "combined".
        num_episodes: expert episodes to play when `envs` are given.
    """

    mode: str = "behavioral_cloning"
    num_episodes: int = 1000

    def __post_init__(self) -> None:
        if self.completion_only_loss is False:
            raise ValueError("completion_only_loss=False would train on the prompt; choose with mode instead")
        if self.mode not in MODES:
            raise ValueError(f"mode must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {self.mode!r}")
        self.completion_only_loss = True
        super().__post_init__()


class SFTTrainer(DatasetTrainer, trl_sft_trainer.SFTTrainer):
    """TRL's `SFTTrainer` on Episodes."""

    def __init__(
        self,
        model: Any,
        episodes: Iterable[Episode] | str | os.PathLike[str] | None = None,
        args: SFTConfig | None = None,
        eval_episodes: Iterable[Episode] | None = None,
        envs: EnvLike | Iterable[EnvLike] | None = None,
        eval_envs: EnvLike | Iterable[EnvLike] | None = None,
        processing_class: Any = None,
        **trl_arguments: Any,
    ) -> None:
        """
        Args:
            model: a path, a hub name, or a causal LM.
            episodes: Episodes to learn from, or a JSONL file of them. Missing token ids are computed.
            args: settings.
            eval_episodes: for the evaluation loss.
            envs: environments whose experts play, instead of `episodes`.
            eval_envs: where `evaluate` plays, on the test split; it then replaces the evaluation loss.
            processing_class: the tokenizer; loaded from the model's path unless given.
            **trl_arguments: TRL's other arguments (`peft_config`, `callbacks` …).

        Raises:
            ValueError, TypeError: On a bad argument, in one line and before any training.
        """
        args = check_config(args, SFTConfig)
        episodes = args.episodes if episodes is None else episodes
        if (episodes is None) == (envs is None):
            raise ValueError("give either episodes or envs (whose experts play)")
        model, tokenizer = resolve(model, processing_class, args.model_init_kwargs)
        chat = model_chat(model, tokenizer, args)
        if episodes is None:
            played = [expert_episodes(envs or [], args.num_episodes, args.seed)]
            # an environment may not play the same episode twice, but all processes must learn from the same ones
            broadcast_object_list(played)
            episodes = played[0]
        elif isinstance(episodes, str | os.PathLike):
            episodes = read(episodes)
        if args.system_prompt is not None:  # the experts saw their environment's own
            episodes = [_with_system_prompt(episode, args.system_prompt) for episode in episodes]
        rows = episode_dataset(episodes, chat, args.mode)
        eval_rows = None if eval_episodes is None else episode_dataset(eval_episodes, chat, args.mode)
        given = {"model": model, "args": args, "processing_class": tokenizer}
        self.open(chat, rows, eval_rows, eval_envs, **given, **trl_arguments)


def episode_dataset(episodes: Iterable[Episode], chat: Chat, mode: str = "behavioral_cloning") -> Dataset:
    """Rows of `input_ids` and `completion_mask`, as TRL takes them; missing ids are computed.

    Raises:
        ValueError: No valid episode is left, or ids come from another tokenizer.
    """
    played = list(episodes)
    rows: list[dict[str, list[int]]] = []
    if mode != "world_model":
        rows += sft_rows((chat.with_ids(episode) for episode in played), chat.tokenizer)
    if mode != "behavioral_cloning":
        rows += world_rows(played, chat)
    if not rows:
        raise ValueError("no valid episodes to train on")
    return Dataset.from_list(rows)


def _with_system_prompt(episode: Episode, system_prompt: str) -> Episode:
    if episode.prompt_ids is not None:  # its tokens stay as they were sampled
        return episode
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return replace(episode, messages=system + [m for m in episode.messages if m["role"] != "system"])


if __name__ == "__main__":
    from mrlm_train.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
