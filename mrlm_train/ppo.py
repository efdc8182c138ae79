"""PPO on text environments: a critic on the policy, an advantage for every sampled token, across turns.

    trainer = PPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", envs="mrlm/Math-v0", args=PPOConfig(output_dir="runs/ppo"))
    trainer.train()

A step (Schulman et al., 2017, arXiv:1707.06347): play the episodes, one forward pass for log-probs and values, turn
rewards into advantages by GAE over the sampled tokens (environment tokens are not steps; values pass through them),
then the clipped policy loss plus the value loss. TRL has dropped its PPO; this one is TRL's `GRPOTrainer` with a
critic, so every field of `trl.GRPOConfig` means what it means there, and there are no groups unless `num_generations`
asks for them.

Use it where a task cannot be played several times, or episodes are long. Elsewhere GRPO does as well in two thirds of
the CPU time; on episodes as short as ours no benefit of the critic has been measured (`benchmarks/README.md`).

Shape letters: B episodes, T completion tokens, S = T + 1 states, H hidden size.

Also a script: `accelerate launch mrlm_train/ppo.py --config my.yaml`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from mrlm_train.advantages import explained_variance, gae, masked_moments, turn_columns, turn_gae, value_loss, whiten
from mrlm_train.episodes.record import Episode
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.rollout.environments import EnvLike
from mrlm_train.trainer import check_config
from mrlm_train.trl_hooks import Batch, HeadTrainer, loss_mask


@dataclass
class PPOConfig(GRPOConfig):
    """Every field of `trl.GRPOConfig`, those of `RolloutArguments`, and these.

    `epsilon` is PPO's clip range, `num_iterations` its epochs over a batch, `beta` the weight of the KL to the
    reference, `entropy_coef` that of the entropy bonus; `steps_per_generation` above `gradient_accumulation_steps`
    makes several minibatches of a collected batch. TRL's `scale_rewards` has no effect here.

    Attributes:
        credit: "critic": advantages by GAE. The other methods compare a group's episodes, and are GRPO's.
        num_generations: episodes per task. PPO needs no groups.
        gamma: discount per step (a token, or a turn).
        gae_lambda: 0 trusts the critic alone, 1 the rewards alone: right for short episodes, where returns vary little
            and a critic that is still wrong would mislead the policy.
        gae_unit: "token", or "turn": a turn is one step, and its tokens share the advantage.
        value_loss_coef: weight of the value loss; 0 leaves the critic at V = 0, so that the baseline is the batch's
            mean (with `whiten_advantages`).
        value_clip_range: how far a value may move from what it was at collection; None does not clip.
        value_learning_rate: learning rate of the value head, which starts from zero and has much to learn.
        critic_warmup_steps: steps at the start in which only the value head learns.
        whiten_advantages: normalise to mean 0 and variance 1 over the sampled tokens of the batch, on all processes.
        kl_in: where `beta` times the KL goes: "loss" (TRL's), or "reward", token by token, as RLHF does it.
        bootstrap_truncated: an episode that an external time limit (`TimeLimit`) cuts off is bootstrapped with V of its
            last state. An episode that exhausts its own token or turn budget always gets 0: stalling must not pay.
    """

    CREDIT: ClassVar[tuple[str, ...]] = ("critic",)

    credit: str = "critic"
    num_generations: int = 1  # type: ignore[assignment]
    gamma: float = 1.0
    gae_lambda: float = 1.0
    gae_unit: str = "token"
    value_loss_coef: float = 0.5
    value_clip_range: float | None = 0.2
    value_learning_rate: float = 1e-3
    critic_warmup_steps: int = 0
    whiten_advantages: bool = True
    kl_in: str = "loss"
    bootstrap_truncated: bool = True

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name, known in (("gae_unit", ("token", "turn")), ("kl_in", ("loss", "reward"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.value_clip_range is not None and self.value_clip_range <= 0:
            raise ValueError(f"value_clip_range must be above 0, or null for none, got {self.value_clip_range}")
        if self.ddp_find_unused_parameters is None:  # values leave the forward pass by a hook, where DDP does not look
            self.ddp_find_unused_parameters = False
        asked = self.num_generations
        if asked < 2:
            if self.dynamic_sampling or self.top_groups < 1:
                raise ValueError(
                    "dynamic_sampling and top_groups compare episodes of a group: set num_generations >= 2"
                )
            self.num_generations = self._a_size_trl_accepts()
        super().__post_init__()
        self.num_generations = asked

    def _a_size_trl_accepts(self) -> int:
        """TRL refuses groups of one; its check passes with any group size that divides the batch."""
        sizes = (self.per_device_train_batch_size, self.steps_per_generation, self.gradient_accumulation_steps)
        return next((size for size in (*sizes, self.generation_batch_size) if size is not None and size > 1), 2)


class PPOTrainer(HeadTrainer, GRPOTrainer):
    """TRL's `GRPOTrainer` with a critic, on environments.

    Attributes:
        value_head: the critic; saved beside the policy as `value_head.safetensors`.
    """

    value_head: ValueHead

    def __init__(
        self,
        model: Any,
        envs: EnvLike | Iterable[EnvLike],
        args: PPOConfig | None = None,
        eval_envs: EnvLike | Iterable[EnvLike] | None = None,
        processing_class: Any = None,
        value_head: str | os.PathLike[str] | None = None,
        **trl_arguments: Any,
    ) -> None:
        """
        Args:
            model: a path, a hub name, or a causal LM.
            envs: where to train: ids, mappings, specs or factories (see `environments.EnvEntry`).
            args: settings.
            eval_envs: where to evaluate, on the test split; the training environments unless given.
            processing_class: the tokenizer; loaded from the model's path unless given.
            value_head: a model folder with a value head to start from; by default that of the model's own folder, if
                an earlier PPO run has left one there, else zeros.
            **trl_arguments: TRL's other arguments (`peft_config`, `callbacks`, `optimizers` …).

        Raises:
            ValueError, TypeError: On a bad argument, in one line and before any training.
        """
        args = check_config(args, PPOConfig)
        super().__init__(model, envs, args, eval_envs, processing_class, **trl_arguments)
        if args.kl_in == "reward":
            self.beta = 0.0  # TRL's loss would charge the KL once more; `make_batch` reads `args.beta`
        self.trust_region.warmup_steps = args.critic_warmup_steps
        self.value_head = attach_value_head(self.model, in_its_dtype=self.is_fsdp_enabled)
        if value_head is None and isinstance(model, str | os.PathLike) and (Path(model) / self.FILE).is_file():
            value_head = model
        if value_head is not None:
            self.load_head(value_head)

    def make_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """A generation, in the order in which it happens; `loss` then takes each micro-batch of it."""
        episodes = self.collect(rows)  # roll out
        batch = self.to_batch(episodes)  # ids and masks
        batch["old_per_token_logps"], values_BS = self.forward(batch)  # one pass
        batch |= self.reference(batch) | self.vllm_correction(batch)
        batch |= self.score(episodes, batch, values_BS)  # GAE
        self.log_completions_table(episodes, batch["advantages"].sum(1))
        return batch

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs (B, T) of the completion tokens, and values (B, S): before each of them, and after the last."""
        with self.value_head.reading() as values:
            log_probs_BT = self.log_probs(batch)
        return log_probs_BT, torch.cat(values)[:, -log_probs_BT.shape[1] - 1 :]

    def score(self, episodes: Sequence[Episode], batch: Batch, values_BS: torch.Tensor) -> Batch:
        """`advantages`, `returns` and `old_values` (B, T) of the episodes."""
        args, total = self.args, self.total
        mask_BT, values_BT = loss_mask(batch), values_BS[:, :-1]
        rewards_BT, turns_BT, ends_B = turn_columns(mask_BT, episodes)
        for b, episode in enumerate(episodes):  # in a game the critic learns the return less the agent's mean
            if episode.turn_ends:
                rewards_BT[b, episode.turn_ends[-1]] -= self.baseline(episode)
        if args.beta and args.kl_in == "reward":
            log_ratio_BT = batch["old_per_token_logps"] - batch["ref_per_token_logps"]
            kl_BT = torch.where(mask_BT.bool(), log_ratio_BT, 0.0)
            rewards_BT = rewards_BT - args.beta * kl_BT
            self.count("kl", masked_moments(kl_BT, mask_BT, total)[0].item())
        is_cut_B = torch.tensor([self._is_cut(episode) for episode in episodes], device=mask_BT.device)
        bootstrap_B = torch.where(is_cut_B, values_BS.gather(1, ends_B[:, None])[:, 0], 0.0)
        estimate, steps_BT = (turn_gae, turns_BT) if args.gae_unit == "turn" else (gae, mask_BT)
        advantages_BT, returns_BT = estimate(rewards_BT, values_BT, steps_BT, bootstrap_B, args.gamma, args.gae_lambda)
        self.count("explained_variance", explained_variance(values_BT, returns_BT, mask_BT, total).item())
        self.count("value", masked_moments(values_BT, mask_BT, total)[0].item())
        self.count("bootstrapped", total(is_cut_B.sum()).item())
        if args.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT, total)
            to_go_BT = rewards_BT.flip(1).cumsum(1).flip(1)
            if masked_moments(to_go_BT, mask_BT, total)[1] < 1e-12:
                advantages_BT.zero_()  # all rewards alike: whitening would make the critic's error as large as a signal
        return {"advantages": advantages_BT, "returns": returns_BT, "old_values": values_BT}

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The policy loss plus `value_loss_coef` times the value loss, each a mean over the tokens of all processes."""
        with self.value_head.reading() as values:
            policy_loss = super().loss(model, batch)  # TRL's: clipped, with KL and entropy
        mask_BT = loss_mask(batch)
        values_BT = values[0][:, -mask_BT.shape[1] - 1 : -1]
        summed = value_loss(values_BT, batch["old_values"], batch["returns"], mask_BT, self.args.value_clip_range)
        self.count("value_loss", (self.total(summed.detach()) / self.total(mask_BT.sum()).clamp(min=1)).item())
        # the tokens of a batch, rescaled to one accumulation window, as TRL does it
        tokens = batch["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return policy_loss + self.args.value_loss_coef * summed / tokens

    def collect(self, rows: list[dict[str, Any]]) -> list[Episode]:
        """As in GRPO; where the value after the end is bootstrapped, the last observation is appended."""
        played = super().collect(rows)
        for episode in played:
            if self._is_cut(episode):
                self._append_last_observation(episode)
        return played

    def _is_cut(self, episode: Episode) -> bool:
        """Whether an external time limit, and nothing that the policy did, ended the episode."""
        return (
            self.args.bootstrap_truncated
            and episode.valid
            and episode.stop_reason == "time_limit"
            and bool(episode.turn_ends)
        )

    def _append_last_observation(self, episode: Episode) -> None:
        assert episode.prompt_ids and episode.completion_ids and episode.action_mask
        last = episode.messages[-1]
        ids = self.policy.chat.reply_ids(last["content"], last["role"], episode.completion_ids[-1])
        limit = self.policy.max_context
        if limit is not None and len(episode.prompt_ids) + len(episode.completion_ids) + len(ids) > limit:
            episode.stop_reason = "context_limit"  # the next turn had no room anyway: as for any other budget
            return
        episode.completion_ids += ids
        episode.action_mask += [0] * len(ids)
        if episode.logprobs is not None:
            episode.logprobs += [None] * len(ids)


class ValueHead(nn.Module):
    """The critic: V(s) at every position, one linear layer on the policy's last hidden state; starts at 0 everywhere.

    It reads the backbone's output by a forward hook, so that it runs inside the policy's own forward pass. The value
    loss trains the head alone: its gradient in the backbone cost the policy 3 points (`benchmarks/README.md`).

    Attributes:
        weight: (1, H).
        bias: (1,).
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))
        self._values: list[torch.Tensor] | None = None

    def forward(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        """Values (B, T) of hidden states (B, T, H), in float32 whatever the model's dtype."""
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            return nn.functional.linear(hidden_BTH.float(), self.weight.float(), self.bias.float())[..., 0]

    @contextmanager
    def reading(self) -> Iterator[list[torch.Tensor]]:
        """Collect the values (B, T) of every forward pass of the policy inside the block."""
        self._values = []
        try:
            yield self._values
        finally:
            self._values = None

    def hook(self, backbone: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the backbone."""
        if self._values is not None:
            self._values.append(self(output.last_hidden_state.detach()))


def attach_value_head(model: Any, in_its_dtype: bool = False) -> ValueHead:
    """Give a causal LM (or a PEFT model around one) a new value head as its child `value_head`.

    Args:
        model: the policy.
        in_its_dtype: give the head the policy's dtype, as FSDP requires of parameters that it shards together.
            Otherwise the head is float32: small updates of a 16-bit head are lost to rounding.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    weight = next(parameter for parameter in inner.parameters() if parameter.is_floating_point())
    dtype = weight.dtype if in_its_dtype else torch.float32
    head = ValueHead(inner.config.get_text_config().hidden_size, dtype).to(weight.device)
    model.add_module(HeadTrainer.NAME, head)
    inner.base_model.register_forward_hook(head.hook)
    return head


if __name__ == "__main__":
    from mrlm_train.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
