"""DPO on Episodes: of two attempts at one task, prefer the better (Rafailov et al., 2023, arXiv:2305.18290).

    trainer = DPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", episodes="runs/collect/episodes.jsonl")
    trainer.train()

Pairs come from Episodes that share a task (`mrlm collect --group-size 8`), from a preference file (`prompt`, `chosen`,
`rejected`), or, with `envs=`, from groups that the starting policy plays itself before training. TRL's trainer does the
rest; in an episode of several turns only the tokens the policy sampled count.

Use it for preferences that come from elsewhere. On pairs of the policy's own attempts, GRPO, or SFT on the better
attempts alone, gained more (`benchmarks/README.md`).

Also a script: `accelerate launch mrlm_train/dpo.py --config my.yaml`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from trl.trainer import dpo_config as trl_dpo_config

from mrlm_train.episodes import record as episode_store
from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.preferences import is_preference_file, pair_rows, pairs, read_preferences
from mrlm_train.episodes.record import Episode
from mrlm_train.inference.policy import Policy, load_model, resolve
from mrlm_train.rollout.environments import EnvLike, entries
from mrlm_train.rollout.pool import EnvPool
from mrlm_train.rollout.runner import Rollout, group_requests
from mrlm_train.trainer import DatasetArguments, DatasetTrainer, check_config, model_chat
from mrlm_train.trl_hooks import PairCollator, PairTrainer, whole_models

Source = Iterable[Episode] | str | os.PathLike[str]


@dataclass
class DPOConfig(DatasetArguments, trl_dpo_config.DPOConfig):
    """TRL's settings, those of `DatasetArguments`, and these.

    Attributes:
        margin: smallest difference between the rewards of a pair.
        length_matched: among equally good and equally bad episodes, pair those closest in length.
        num_tasks: with `envs`: tasks the starting policy plays before training.
        num_generations: with `envs`: its attempts at each.
    """

    margin: float = 0.0
    length_matched: bool = False
    num_tasks: int = 500
    num_generations: int = 8

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"margin must be 0 or more, got {self.margin}")
        if self.num_generations < 2:
            raise ValueError(f"num_generations must be at least 2 to make pairs, got {self.num_generations}")
        super().__post_init__()
        self.remove_unused_columns = False  # TRL does not know our masks


class DPOTrainer(DatasetTrainer, PairTrainer):
    """TRL's `DPOTrainer` on Episodes."""

    def __init__(
        self,
        model: Any,
        episodes: Source | None = None,
        args: DPOConfig | None = None,
        eval_episodes: Source | None = None,
        envs: EnvLike | Iterable[EnvLike] | None = None,
        eval_envs: EnvLike | Iterable[EnvLike] | None = None,
        processing_class: Any = None,
        **trl_arguments: Any,
    ) -> None:
        """
        Args:
            model: a path, a hub name, or a causal LM.
            episodes: Episodes, a JSONL file of them, or a preference file.
            args: settings.
            eval_episodes: for the evaluation loss.
            envs: environments in which the starting policy first plays groups of its own, instead of `episodes`.
            eval_envs: where `evaluate` plays, on the test split; it then replaces the evaluation loss.
            processing_class: the tokenizer; loaded from the model's path unless given.
            **trl_arguments: TRL's other arguments (`ref_model`, `peft_config`, `callbacks` …).

        Raises:
            ValueError, TypeError: On a bad argument, in one line and before any training.
        """
        args = check_config(args, DPOConfig)
        episodes = args.episodes if episodes is None else episodes
        if (episodes is None) == (envs is None):
            raise ValueError(
                "give either episodes (or a preference file) or envs (where the policy plays its own groups)"
            )
        model, tokenizer = resolve(model, processing_class, args.model_init_kwargs)
        in_memory = not isinstance(model, str) and not model.config.name_or_path
        if in_memory and not {"ref_model", "peft_config"} & set(trl_arguments) and not hasattr(model, "peft_config"):
            raise ValueError("DPO needs a reference policy: give the model as a path (save it first), or use LoRA")
        chat = model_chat(model, tokenizer, args, single_turn=args.max_turns == 1)
        if envs is not None:
            episodes = _own_groups(model, chat, envs, args)
        assert episodes is not None
        rows = pair_dataset(episodes, chat, args)
        eval_rows = None if eval_episodes is None else pair_dataset(eval_episodes, chat, args)
        multiple: Any = args.pad_to_multiple_of  # TRL has made it a number by now
        collator = PairCollator(tokenizer.pad_token_id, args.max_length, pad_to_multiple_of=multiple)
        given = {"model": model, "args": args, "processing_class": tokenizer, "data_collator": collator}
        self.open(chat, rows, eval_rows, eval_envs, **given, **trl_arguments)


def pair_dataset(source: Source, chat: Chat, args: DPOConfig) -> Dataset:
    """The pairs as TRL's rows.

    Raises:
        ValueError: There is no pair.
    """
    if isinstance(source, str | os.PathLike) and os.path.isfile(source) and is_preference_file(source):
        rows = list(read_preferences(source, chat))
        what = f"preferences {source}: the file is empty"
    else:
        found = episode_store.read(source) if isinstance(source, str | os.PathLike) else source
        played = list(found)
        rows = list(pair_rows(pairs(played, args.margin, args.length_matched), chat))
        what = (
            f"no pair in {len(played)} episodes: DPO needs tasks with a better and a worse attempt "
            f"(margin {args.margin:g}); collect with --group-size 8 or more"
        )
    if not rows:
        raise ValueError(what)
    return Dataset.from_list(rows)


def _own_groups(model: Any, chat: Chat, envs: EnvLike | Iterable[EnvLike], args: DPOConfig) -> list[Episode]:
    """Groups played by the starting policy; each process plays its share."""
    if isinstance(model, str):
        device = "cpu" if args.use_cpu or not torch.cuda.is_available() else f"cuda:{args.local_process_index}"
        with whole_models(args):
            settings: dict[str, Any] = {**(args.model_init_kwargs or {})}  # type: ignore[dict-item]
            model = load_model(model, settings.pop("dtype", "float32"), device, **settings)
    pool = EnvPool(entries(envs), args.env_threads, args.step_timeout)
    with Rollout(Policy(model, chat, "start", args.engine, args.rows), pool, args.sampling()) as rollout:
        rollout.max_invalid_share = args.max_invalid_share
        requests = group_requests(pool, args.num_tasks, args.num_generations, args.seed)
        state: Any = PartialState()
        with state.split_between_processes(requests) as mine:
            played = rollout.run(mine)
    return gather_object(played)  # in the order of the requests: every process makes the same pairs


if __name__ == "__main__":
    from mrlm_train.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
