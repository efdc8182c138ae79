"""Everything that touches TRL's private parts, and nothing else does. Written for TRL 1.16.

Each hook has a contract test in `tests/test_grpo.py` that fails when TRL moves it:

- `_generate_and_score_completions(inputs)` is called once a generation with the rank's rows, each prompt repeated
  `num_generations` times, all dataset columns in them; its result is what `_compute_loss` reads.
- `rollout_func(prompts, trainer)` must return as many rows as prompts, no completion empty; `env_mask` (1 = policy)
  becomes the loss mask; other keys reach the reward functions as columns; a reward of None leaves the baseline.
- `_metrics[mode][name]` lists are averaged into the next log.
- `_generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)` generates on token ids, by vLLM too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.grpo_trainer import GRPOTrainer

from mrlm_train.environments import EnvEntry
from mrlm_train.episodes import Episode
from mrlm_train.evaluation import evaluation_requests, evaluation_rollout, summary
from mrlm_train.generate import Sampling, Turn, TurnRow, turn_length
from mrlm_train.policy import Policy
from mrlm_train.rollout import Rollout


@dataclass
class RolloutArguments:
    """What every trainer's config adds to TRL's for playing episodes, in training or in evaluation.

    Attributes:
        max_turns: most turns of an episode; None leaves it to the environment.
        max_turn_tokens: most tokens of a turn; None is `max_completion_length`.
        engine: "auto", or one of `generate.engine_for`.
        rows: episodes decoded at once in a process.
        env_threads: environments stepped at once in a process.
        max_invalid_share: share of invalid episodes in a batch above which training stops.
        system_prompt: replaces every environment's own.
        eval_episodes: episodes per environment in an evaluation.
        eval_temperature: 0 is greedy.
        save_episodes: transcripts written to `output_dir/episodes` at each log.
    """

    ROLLOUT_FIELDS: ClassVar[tuple[str, ...]] = (
        *("max_turns", "max_turn_tokens", "max_completion_length", "temperature", "top_p", "top_k", "engine", "rows"),
        *("env_threads", "max_invalid_share", "system_prompt", "chat_template_kwargs"),
        *("eval_episodes", "eval_temperature", "save_episodes"),
    )

    max_turns: int | None = None
    max_turn_tokens: int | None = None
    engine: str = "auto"
    rows: int = 256
    env_threads: int = 16
    max_invalid_share: float = 0.25
    system_prompt: str | None = None
    eval_episodes: int = 200
    eval_temperature: float = 0.0
    save_episodes: int = 8

    def sampling(self, **changes: Any) -> Sampling:
        """The rollout's budgets and temperature."""
        args: Any = self
        settings = {
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "max_turn_tokens": args.max_turn_tokens or args.max_completion_length,
            "max_episode_tokens": args.max_completion_length,
            "max_turns": args.max_turns,
            "seed": args.seed,
        }
        return Sampling(**{**settings, **changes})


def quiet_on_cpu(args: Any) -> None:
    """Before TRL's `__post_init__`: leave off what TRL switches on even where it only costs, on a CPU.

    `None` for bf16 and gradient checkpointing means not set; what the user has set stays.
    """
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.bf16 is None and on_cpu:
        args.bf16 = False
    if args.gradient_checkpointing is None and args.activation_checkpointing is None and not on_cpu:
        args.gradient_checkpointing = True
    if on_cpu:
        args.dataloader_pin_memory = False


class PlayedEvaluation:
    """A `Trainer` whose `evaluate` plays episodes on the test split; a mixin before TRL's class.

    Attributes:
        policy: set by the trainer.
        eval_envs: where to evaluate; empty leaves evaluation to TRL.
    """

    policy: Policy
    eval_envs: Sequence[EnvEntry] = ()
    _eval_rollout: Rollout | None = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Play `eval_episodes` in each evaluation environment on its test split; the processes share the episodes.

        Returns: `eval_success`, `eval_reward`, `eval_n` …, and with several environments the same for each.
        """
        trainer: Any = self
        if not self.eval_envs:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[misc]
        args = trainer.args
        if self._eval_rollout is None:
            sampling = args.sampling(temperature=args.eval_temperature)
            self._eval_rollout = evaluation_rollout(self.policy, self.eval_envs, "test", sampling, args.env_threads)
        requests = evaluation_requests(self._eval_rollout, args.eval_episodes)
        rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
        figures = summary(gather_object(self._eval_rollout.run(requests[rank::world])))
        parts = {metric_key_prefix: figures}
        for name, part in figures.pop("environments", {}).items():
            parts[f"{metric_key_prefix}_{name}"] = part
        metrics = {
            f"{prefix}_{key}": float(value)
            for prefix, part in parts.items()
            for key, value in part.items()
            if isinstance(value, int | float)
        }
        was_training = trainer.model.training
        trainer.model.eval()  # TRL's `log` tells train from eval by it
        trainer.log(metrics)
        trainer.model.train(was_training)
        trainer.control = trainer.callback_handler.on_evaluate(args, trainer.state, trainer.control, metrics)
        return metrics


class EpisodeTrainer(PlayedEvaluation, GRPOTrainer):
    """TRL's GRPO trainer, fed with Episodes: a subclass says where they come from (`collect`).

    Attributes:
        episodes: this process's episodes of the last generation, one a row, in the order of the rows.
    """

    episodes: Sequence[Episode] = ()
    args: Any  # our config, a subclass of TRL's
    model: Any
    processing_class: Any

    def collect(self, rows: list[dict[str, Any]]) -> list[Episode]:
        """Play one episode for each row of the generation batch (the train dataset's columns)."""
        raise TypeError(f"{type(self).__name__} does not define collect(rows) -> episodes")

    def trains_on(self, episode: Episode) -> bool:
        """Whether the episode's tokens enter the loss."""
        return episode.valid

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.episodes = self.collect(inputs)
        # TRL logs the prompt as text; the rows themselves are only task seeds
        texts = [self.processing_class.decode(episode.prompt_ids or []) for episode in self.episodes]
        return super()._generate_and_score_completions([{"prompt": text} for text in texts])

    def count(self, name: str, value: float) -> None:
        """Add a value to a training metric; the mean since the last log is logged."""
        self._metrics["train"][name].append(value)


def episode_rows(prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
    """TRL's `rollout_func`: the Episodes just collected, in TRL's columns.

    An episode that does not enter the loss has mask 0 everywhere, and a reward of None when it is invalid, so that it
    leaves loss, baseline and statistics.
    """
    filler = trainer.processing_class.pad_token_id  # TRL takes no empty row
    columns: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "env_mask", "logprobs", "episode_reward")
    }
    for episode in trainer.episodes:
        ids = episode.completion_ids or [filler]
        mask = episode.action_mask or [0]
        columns["prompt_ids"].append(episode.prompt_ids or [filler])
        columns["completion_ids"].append(ids)
        columns["env_mask"].append(mask if trainer.trains_on(episode) else [0] * len(ids))
        columns["logprobs"].append(episode.logprobs or [None] * len(ids))
        columns["episode_reward"].append(episode.reward if episode.valid else None)
    if any(episode.logprobs is None for episode in trainer.episodes):
        return {**columns, "logprobs": None}  # type: ignore[dict-item]
    return columns


def episode_reward(
    prompts: list[Any], completions: list[Any], episode_reward: list[float | None], **columns: Any
) -> list[float | None]:
    """TRL's reward function: what the environment gave; None for an invalid episode."""
    return episode_reward


@contextmanager
def decoding_session(trainer: Any) -> Iterator[Any]:
    """The trainer's model ready to decode: unwrapped, gathered, without gradient checkpointing, under its autocast."""
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=getattr(trainer.args, "ds3_gather_for_generation", True),
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model,
        DistributedBackend(trainer.accelerator).summon_full_params(trainer.model_wrapped, recurse=False),
        trainer.accelerator.autocast(),
    ):
        yield model


def shards_parameters(trainer: Any) -> bool:
    """Whether every process must join each forward pass (FSDP, ZeRO-3 without gathering)."""
    accelerator = trainer.accelerator
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def sum_over_processes(trainer: Any, value: int) -> int:
    """The sum of an integer over all processes."""
    total = trainer.accelerator.reduce(torch.tensor(value, device=trainer.accelerator.device), reduction="sum")
    return int(total)


def trl_turn(trainer: GRPOTrainer, stop_ids: Sequence[int]) -> Turn:
    """A `generate.Turn` by TRL's own generation, which is also the vLLM path.

    TRL has one token limit for all rows and its own randomness, so a longer turn is cut to its row's budget, and an
    episode's tokens do depend on its batch. Log-probs come from vLLM only.
    """

    def turn(rows: Sequence[TurnRow]) -> list[tuple[list[int], list[float] | None]]:
        contexts = [row.context for row in rows]
        # num_generations=1: in server mode TRL would else keep only every G-th prompt
        sampled, log_probs = trainer._generate_single_turn(contexts, None, {}, 1)
        turns: list[tuple[list[int], list[float] | None]] = []
        for i, (row, ids) in enumerate(zip(rows, sampled, strict=True)):
            length = turn_length(ids[: row.budget], stop_ids)
            turns.append((list(ids[:length]), None if log_probs is None else list(log_probs[i][:length])))
        return turns

    return turn
