"""Everything that touches TRL's private parts, and nothing else does. Written for TRL 1.16.

Each hook has a contract test in `tests/train/` (`test_grpo.py`, `test_ppo.py`, `test_dpo.py`):

- `_generate_and_score_completions(inputs)` is called once a generation with the process's rows, each prompt repeated
  `num_generations` times, all dataset columns in them; what it returns is split into micro-batches for `_compute_loss`.
- `_compute_loss(model, inputs)` takes `advantages` of shape (B,) or (B, T), multiplies `completion_mask` by `tool_mask`
  (1 = sampled by the policy), calls `_get_per_token_logps_and_entropies` once, which keeps the last `logits_to_keep`
  positions, and divides by `inputs["num_items_in_batch"]`.
- `_metrics[mode][name]` lists are averaged into the next log.
- `_save(output_dir, state_dict)` and `_load_from_checkpoint(folder, model)` write and read the weights.
- DPO: `_prepare_dataset` tokenises, and the loss counts what the collator's `completion_mask` says.
- `_generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)` generates on token ids, by vLLM too;
  vLLM's server mode takes `process_index * len(prompts)` as the place of a process's rows among all.

Shape letters: B episodes of this process, P prompt tokens, T completion tokens.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.distributed import DistributedBackend
from trl.models.utils import disable_gradient_checkpointing, unwrap_model_for_generation
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import pad, use_adapter

from mrlm_train.episodes.record import Episode
from mrlm_train.inference.batch_engine import SampledTurn, Turn, TurnRow, truncated_turn

Batch = dict[str, Any]


class EpisodeTrainer(GRPOTrainer):
    """TRL's GRPO trainer, fed with batches of Episodes; a subclass makes the batch (`make_batch`).

    TRL keeps the loop, the optimizer, the loss on tokens, checkpoints and logs. It generates nothing and scores
    nothing here.

    Attributes:
        opponents: the frozen models of games; those that change in training are a part of checkpoints.
        critic_groups: how many of the optimizer's last parameter groups are a critic's.
        last_batch: what `make_batch` made last; its rows are the last generation's episodes.
    """

    args: Any  # our config, a subclass of TRL's
    model: Any
    processing_class: Any
    opponents: Any = None
    critic_groups = 0
    last_batch: Batch
    _log_probs_BT: torch.Tensor | None = None

    def __init__(self, **trl_arguments: Any) -> None:
        super().__init__(reward_funcs=_no_reward, **trl_arguments)

    def make_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """From task rows to what the loss reads: `to_batch`, `old_log_probs`, `advantages`, and what else it needs.

        Args:
            rows: the generation batch of this process (the train dataset's columns).
        """
        raise TypeError(f"{type(self).__name__} does not define make_batch(rows) -> batch")

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The loss of a micro-batch."""
        return self.policy_loss(model, batch)[0]

    def trains_on(self, episode: Episode) -> bool:
        """Whether the episode's tokens enter the loss."""
        return episode.valid

    def to_batch(self, episodes: Sequence[Episode]) -> Batch:
        """Token ids and masks as TRL's loss reads them. An episode that does not enter the loss has mask 0 everywhere.

        Returns:
            `prompt_ids`, `prompt_mask` (B, P), padded on the left; `completion_ids`, `completion_mask`, `tool_mask`
            (B, T), padded on the right; `sampling_per_token_logps` (B, T) where the engine gave them;
            `num_items_in_batch`: the tokens in the loss over all processes.
        """
        filler = self.processing_class.pad_token_id  # a row must not be empty
        prompts = [episode.prompt_ids or [filler] for episode in episodes]
        completions = [episode.completion_ids or [filler] for episode in episodes]
        masks = [
            episode.action_mask if episode.action_mask and self.trains_on(episode) else [0] * len(ids)
            for episode, ids in zip(episodes, completions, strict=True)
        ]
        self._count_lengths(prompts, completions, masks)
        batch = {
            "prompt_ids": self._padded(prompts, filler, "left"),
            "prompt_mask": self._padded([[1] * len(ids) for ids in prompts], 0, "left"),
            "completion_ids": self._padded(completions, filler),
            "completion_mask": self._padded([[1] * len(ids) for ids in completions], 0),
            "tool_mask": self._padded(masks, 1),
        }
        if self.mask_truncated_completions:
            ends = {*self.eos_token_ids, filler}
            keep_B1 = torch.tensor([[int(ids[-1] in ends)] for ids in completions], device=self.accelerator.device)
            for name in ("completion_mask", "tool_mask"):
                batch[name] = batch[name] * keep_B1
        if all(episode.logprobs is not None for episode in episodes):
            log_probs = [episode.logprobs or [None] * len(ids) for episode, ids in zip(episodes, completions)]
            sampled = [[torch.nan if value is None else value for value in row] for row in log_probs]
            batch["sampling_per_token_logps"] = self._padded(sampled, 0.0)
        batch["num_items_in_batch"] = self.accelerator.gather(loss_mask(batch).sum()).sum()  # type: ignore[union-attr]
        return batch

    def log_probs(self, batch: Batch, model: Any = None) -> torch.Tensor:
        """Log-probs (B, T) of the completion tokens under the policy, or under `model`; without gradients."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        rows, length = self.args.per_device_train_batch_size, batch["completion_ids"].shape[1]
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return self._get_per_token_logps_and_entropies(
                self.model if model is None else model, ids, mask, length, rows
            )[0]

    def reference(self, batch: Batch) -> Batch:
        """`ref_per_token_logps` where a KL to the reference policy is asked for: another model, or no adapter."""
        if self.args.beta == 0:
            return {}
        if self.ref_model is not None:
            return {"ref_per_token_logps": self.log_probs(batch, self.ref_model)}
        model: Any = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return {"ref_per_token_logps": self.log_probs(batch)}

    def vllm_correction(self, batch: Batch) -> Batch:
        """`importance_sampling_ratio` (B, T) or (B, 1), with which the loss corrects what vLLM computes otherwise.

        As TRL's `vllm_importance_sampling_*` settings ask: token or sequence, truncate or mask.
        """
        if not (self.use_vllm and self.vllm_importance_sampling_correction):
            return {}
        mask_BT = loss_mask(batch)
        difference_BT = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]) * mask_BT
        difference_BT = torch.nan_to_num(difference_BT, nan=0.0)  # vLLM could not score the token
        mean = difference_BT.abs().sum() / mask_BT.sum().clamp(min=1)
        self.count("sampling/sampling_logp_difference/mean", mean.item())
        mode = self.vllm_importance_sampling_mode
        if mode.startswith("sequence"):
            difference_BT = difference_BT.sum(-1, keepdim=True)
        ratio = difference_BT.exp()
        clamped = ratio.clamp(self.vllm_importance_sampling_clip_min or 0.0, self.vllm_importance_sampling_clip_max)
        if mode.endswith("mask"):
            clamped = clamped.where(clamped == ratio, 0.0)
        return {"importance_sampling_ratio": clamped}

    @property
    def is_off_policy(self) -> bool:
        """Whether some update of a batch sees a policy other than the one that played it."""
        micro_steps = self.args.steps_per_generation * self.num_iterations
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        return self.args.gradient_accumulation_steps % micro_steps != 0 or corrects

    def policy_loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """TRL's clipped policy loss with its KL and entropy terms, and the log-probs (B, T) it was computed from."""
        loss = super()._compute_loss(model, batch)
        assert self._log_probs_BT is not None
        return loss, self._log_probs_BT.detach()

    def gather_rewards(self, episodes: Sequence[Episode]) -> torch.Tensor:
        """Returns (N,) of all processes' episodes, in the order of the rows; NaN for an invalid one."""
        rewards = [episode.reward if episode.valid else torch.nan for episode in episodes]
        return self.accelerator.gather(torch.tensor(rewards, device=self.accelerator.device))  # type: ignore[return-value]

    def count(self, name: str, value: float | None) -> None:
        """Add a value to a training metric; the mean since the last log, without None and NaN, is logged."""
        self._metrics["train"][name].append(torch.nan if value is None else value)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(tensor)  # type: ignore[return-value]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        self.last_batch = self.make_batch(inputs)
        return self.last_batch

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        return self.loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._log_probs_BT = result[0]
        return result

    def _padded(self, rows: Sequence[Sequence[float]], value: float, side: str = "right") -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        padded = pad(tensors, value, side, self.pad_to_multiple_of)  # type: ignore[arg-type]
        return padded.to(self.accelerator.device)

    def _count_lengths(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], masks: Sequence[list[int]]
    ) -> None:
        """TRL's metrics of lengths (sampled tokens of what enters the loss), over all processes."""
        ends = {*self.eos_token_ids, self.processing_class.pad_token_id}
        figures = [[len(p), sum(m), int(c[-1] not in ends)] for p, c, m in zip(prompts, completions, masks)]
        gathered: Any = self.accelerator.gather(torch.tensor(figures, device=self.accelerator.device))
        prompt_N, length_N, is_cut_N = gathered.unbind(1)
        self.state.num_input_tokens_seen += int((prompt_N + length_N).sum())
        self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]
        self.count("completions/clipped_ratio", is_cut_N.float().mean().item())
        ended_N = length_N[is_cut_N == 0] if (is_cut_N == 0).any() else torch.zeros(1, device=length_N.device)
        for suffix, lengths in (("length", length_N.float()), ("terminated_length", ended_N.float())):
            for name in ("mean", "min", "max"):
                self.count(f"completions/{name}_{suffix}", getattr(lengths, name)().item())

    def log_completions_table(self, episodes: Sequence[Episode], advantages: torch.Tensor) -> None:
        """The rows of TRL's `log_completions` table."""
        if not self.log_completions:
            return
        decode, logs = self.processing_class.decode, self._logs
        for column, values in (
            (logs["prompt"], [decode(episode.prompt_ids or []) for episode in episodes]),
            (logs["completion"], [decode(e.completion_ids or [], skip_special_tokens=True) for e in episodes]),
            (logs["rewards"]["environment"], [e.reward if e.valid else torch.nan for e in episodes]),
            (logs["advantages"], advantages.tolist()),
        ):
            column.extend(gather_object(values))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        is_checkpoint = output_dir is not None and Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
        if is_checkpoint and self.args.should_save and self.opponents is not None:
            self.opponents.save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.opponents is not None:
            self.opponents.load(resume_from_checkpoint)


class HeadTrainer(EpisodeTrainer):
    """An `EpisodeTrainer` with a head beside the policy: a learning rate and a file of its own.

    The head is a child of the policy's module, so that DDP, FSDP and the optimizer see it, but it is kept out of the
    policy's own files: those stay an ordinary Hugging Face model or adapter.

    Attributes:
        value_head: the head, `model.value_head`.
    """

    NAME: ClassVar[str] = "value_head"
    FILE: ClassVar[str] = "value_head.safetensors"

    value_head: nn.Module
    critic_groups = 1

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As the Trainer's, with the head in a parameter group of its own, the last one."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        named = (self.model if model is None else model).named_parameters()
        head = [parameter for name, parameter in named if f"{self.NAME}." in name]
        ours = {id(parameter) for parameter in head}
        if is_new or not any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ours]
            optimizer.add_param_group({"params": head, "lr": self.args.value_learning_rate, "weight_decay": 0.0})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        weights = model.state_dict() if state_dict is None else state_dict
        prefix = f"{self.NAME}."
        policy = {name: value for name, value in weights.items() if not name.startswith(prefix)}
        super()._save(output_dir, policy)
        if self.args.should_save:
            head = {n.removeprefix(prefix): v.contiguous() for n, v in weights.items() if n.startswith(prefix)}
            save_file(head, Path(output_dir or self.args.output_dir) / self.FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_fsdp_enabled:  # FSDP's own files hold the whole module
            self.load_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.load_head(str(self.state.best_model_checkpoint))

    def load_head(self, folder: str | os.PathLike[str]) -> None:
        """Read the head of a model folder, whatever its dtype.

        Raises:
            FileNotFoundError: The folder has none.
            ValueError: It does not fit the model.
        """
        path = Path(folder) / self.FILE
        if not path.is_file():
            raise FileNotFoundError(f"value head {path}: no such file; only PPO writes one")
        try:
            self.value_head.load_state_dict(load_file(path))
        except RuntimeError as error:  # PyTorch's message says on its second line which shapes differ
            why = " ".join(str(error).split())
            fix = "give the model it was trained with, or remove the file"
            raise ValueError(f"value head {path} does not fit the model: {why}; {fix}") from None


class PairTrainer(DPOTrainer):
    """TRL's `DPOTrainer` on pairs that are token ids already, with masks of their own.

    TRL counts everything after the prompt, the environment's words too; here only mask 1 counts.
    """

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class PairCollator(DataCollatorForPreference):
    """TRL's collator, with `completion_mask` from the rows' own masks."""

    def torch_call(self, examples: list[dict[str, Any]]) -> Batch:
        """Chosen rows, then rejected ones, padded on the right."""
        batch = super().torch_call(examples)
        rows = [
            [0] * len(row["prompt_ids"]) + row[f"{side}_mask"] for side in ("chosen", "rejected") for row in examples
        ]
        for i, mask in enumerate(rows):
            kept = mask[: batch["completion_mask"].shape[1]]
            batch["completion_mask"][i, : len(kept)] = torch.tensor(kept)
        return batch


def loss_mask(batch: Batch) -> torch.Tensor:
    """1 at the tokens (B, T) that enter the loss: sampled by the policy, in an episode that trains."""
    return batch["completion_mask"] * batch["tool_mask"]


def _no_reward(**columns: Any) -> list[float | None]:
    """TRL's constructor wants a reward function; nothing calls it."""
    raise TypeError("environments give the rewards")


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


@contextmanager
def whole_models(args: Any) -> Iterator[None]:
    """Within it, `from_pretrained` gives this process a whole model even under ZeRO-3, which would load a share."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None:
        yield
        return
    from transformers.integrations import deepspeed

    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        plugin.set_deepspeed_weakref()


def shards_parameters(trainer: Any) -> bool:
    """Whether every process must join each forward pass (FSDP, ZeRO-3 without gathering)."""
    accelerator = trainer.accelerator
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def trl_turn(trainer: Any, stop_ids: Sequence[int]) -> Turn:
    """A `batch_engine.Turn` by TRL's own generation, which is also the vLLM path.

    TRL has one token limit for all rows and its own randomness, so a longer turn is truncated to its row's budget, and
    an episode's tokens do depend on its batch. Log-probs come from vLLM only.

    With several processes, each call is a collective one: TRL finds a process's completions at `process_index *
    len(prompts)`, so every process hands in as many rows as the one with the most; the rest is filled with a row that
    nobody reads.
    """
    accelerator = trainer.accelerator

    def turn(rows: Sequence[TurnRow]) -> list[SampledTurn]:
        contexts = [row.context for row in rows]
        if accelerator.num_processes > 1:
            contexts += [contexts[0]] * (max(gather_object([len(contexts)])) - len(contexts))
        # num_generations=1: in server mode TRL would else keep only every G-th prompt
        sampled, log_probs = trainer._generate_single_turn(contexts, None, {}, 1)
        found = zip(rows, sampled, itertools.repeat(None) if log_probs is None else log_probs)
        return [truncated_turn(ids, scores, row.budget, stop_ids) for row, ids, scores in found]

    return turn


@contextmanager
def vllm_temperature(trainer: Any, temperature: float) -> Iterator[None]:
    """Within it, vLLM samples at another temperature; without vLLM nothing changes."""
    engine = getattr(trainer, "vllm_generation", None) or SimpleNamespace(temperature=None)
    before, engine.temperature = engine.temperature, temperature
    try:
        yield
    finally:
        engine.temperature = before
