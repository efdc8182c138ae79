"""Safeguards: a trust region that keeps a run from destroying its policy, and alarms for a run that goes wrong."""

from __future__ import annotations

import math
import warnings
from collections import deque
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from mrlm_train.trl_hooks import Batch, loss_mask

_REJECT = 10  # times the target; in measurements, updates of up to seven times the target did no harm
_ROWS = 64  # episodes that each process scores again


class TrustRegion(TrainerCallback):
    """Adapts the learning rate so that an update moves the policy by about `target_kl` at most.

    After an update, KL(before ‖ after) is estimated by scoring part of its last micro-batch again, over all processes.
    As the KL of a step grows with the square of its length, the rate is multiplied by √(target / KL), limited to 1/4
    to 1.2 per update; it never exceeds the schedule's. An update that went further than `_REJECT` times the target is
    undone: without warm-up, Adam's first steps have full length whatever the gradient, and one of them can destroy a
    policy. rl_games and RSL-RL also let the rate follow the KL (`schedule: adaptive`, by fixed factors); the constants
    here are measured (`benchmarks/README.md`). PPO's clip cannot do this: with one update per batch its ratio is 1.

    The critic's parameter group keeps its rate. Dropout counts as movement. DeepSpeed keeps its own copies of
    weights and gradients, so nothing is undone or held there.

    Attributes:
        warmup_steps: steps at the start of the run in which the policy is frozen and only the critic learns.
    """

    warmup_steps = 0

    def __init__(self, trainer: Any, target_kl: float | None) -> None:
        """
        Args:
            trainer: an `EpisodeTrainer`.
            target_kl: in nats per token; None measures nothing.
        """
        self.trainer, self.target_kl = trainer, target_kl
        self._before: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._rates: list[tuple[dict[str, Any], float]] = []
        self._is_held = self._has_warned = False

    @property
    def scale(self) -> float:
        """Factor on the schedule's rate; part of the Trainer's state, so checkpoints keep it."""
        return self.trainer.state.stateful_callbacks.get("trust_region", {}).get("scale", 1.0)

    def prepare(self, batch: Batch, log_probs_BT: torch.Tensor) -> None:
        """At the loss of an update's last micro-batch: set the rate, and keep the log-probs for `on_optimizer_step`."""
        trainer = self.trainer
        if not trainer.accelerator.sync_gradients or trainer.optimizer is None:
            return
        scale = 0.0 if trainer.state.global_step < self.warmup_steps else self.scale
        groups = trainer.optimizer.param_groups[: len(trainer.optimizer.param_groups) - trainer.critic_groups]
        self._rates = [(group, group["lr"]) for group in groups]
        for group, rate in self._rates:
            group["lr"] = rate * scale
        if self.target_kl is not None and scale > 0:
            self._batch = {k: v[:_ROWS] if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}
            self._log_probs_BT = log_probs_BT[:_ROWS]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Copy the weights that are about to change, now that the activations have been freed.

        Where nothing in the batch moves the policy (all rewards alike), hold it: Adam would go on in the direction of
        earlier batches, and the rate would grow to make up for the momentum that is lost.
        """
        if self.target_kl is None or state.global_step < self.warmup_steps or self.trainer.is_deepspeed_enabled:
            return
        parameters = [parameter for group, _ in self._rates for parameter in group["params"]]
        moves = torch.tensor(float(any(map(_has_gradient, parameters))), device=args.device)
        self._is_held = not self.trainer.total(moves)
        for group, _ in self._rates if self._is_held else ():
            group["lr"] = 0.0
        self._before = [] if self._is_held else [(p, p.detach().clone()) for p in parameters]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the update, undo it if it went too far, and set the rate of the next one."""
        for group, rate in self._rates:
            group["lr"] = rate
        if self.target_kl is not None:
            self.trainer.count("held_updates", float(self._is_held))
        if self._rates and self.target_kl is not None and state.global_step >= self.warmup_steps and not self._is_held:
            kl = self._kl()
            for module in self.trainer.model.modules():
                if isinstance(module, FSDPModule):  # gathered weights would hide the gradients from `zero_grad`
                    module.reshard()
            self._follow(kl, self.target_kl)
        self._rates, self._before, self._is_held = [], [], False

    def _kl(self) -> float:
        """The mean of r − 1 − log r, r = after / before, over the tokens that the policy sampled in all processes.

        Schulman, "Approximating KL Divergence", 2020: never negative, low variance.
        """
        trainer, mask_BT = self.trainer, loss_mask(self._batch).bool()
        log_ratio_BT = torch.where(mask_BT, trainer.log_probs(self._batch) - self._log_probs_BT, 0.0).clamp(max=30.0)
        sums = torch.stack([(log_ratio_BT.exp() - 1 - log_ratio_BT).sum(), mask_BT.sum()])
        kl, tokens = trainer.accelerator.reduce(sums, reduction="sum").tolist()
        return kl / max(tokens, 1.0)

    def _follow(self, kl: float, target: float) -> None:
        trainer, is_too_far = self.trainer, not kl <= _REJECT * target  # NaN is too far, too
        if is_too_far:
            with torch.no_grad():
                for parameter, before in self._before:
                    parameter.copy_(before)
        factor = min(1.2, max(0.25, math.sqrt(target / max(kl, 1e-12)))) if math.isfinite(kl) else 0.25
        scale = min(1.0, self.scale * factor)
        trainer.state.stateful_callbacks["trust_region"] = {"scale": scale}
        for name, value in (("update_kl", kl), ("rate_scale", scale), ("rejected_updates", float(is_too_far))):
            trainer.count(name, value)
        if not kl <= target and scale < 0.5 and not self._has_warned and trainer.accelerator.is_main_process:
            self._has_warned = True
            warnings.warn(
                f"step {trainer.state.global_step}: an update moved the policy by {kl:.2g} nats per token, more than "
                f"target_kl={target:g}; the learning rate is now {scale:.2f} of the schedule's and follows the "
                "measured KL (rate_scale in the log); start with a lower learning_rate or more warmup_steps, or raise "
                "target_kl for a policy that has nothing to lose yet",
                stacklevel=2,
            )


def _has_gradient(parameter: torch.nn.Parameter) -> bool:
    """Whether this process's part of a gradient is anything but zeros."""
    gradient = parameter.grad
    return gradient is not None and bool((gradient.to_local() if isinstance(gradient, DTensor) else gradient).any())


class Alarms(TrainerCallback):
    """Warns once about each sign that a run is not learning, with the likely cause."""

    WINDOW = 5  # logs

    def __init__(self) -> None:
        self._recent: deque[dict[str, float]] = deque(maxlen=self.WINDOW)
        self._start: dict[str, float] | None = None
        self._given: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at the last few logs of training."""
        names = ("entropy", "reward", "reward_std", "frac_reward_zero_std", "completions/clipped_ratio")
        if logs is None or not state.is_world_process_zero or any(logs.get(name) is None for name in names):
            return
        self._recent.append({name: float(logs[name]) for name in names})
        if len(self._recent) == self.WINDOW:
            self._look(args)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at a run that ended with fewer than `WINDOW` logs, too."""
        if self._recent:
            self._look(args)

    def _look(self, args: Any) -> None:
        now = {name: sum(row[name] for row in self._recent) / len(self._recent) for name in self._recent[0]}
        start = self._start = self._start or now
        has_groups = (getattr(args, "num_generations", 1) or 1) > 1
        signs = {
            "all rewards of a group are equal: the tasks are all solved or all failed, so there is nothing to learn "
            "from; choose easier or harder tasks, a reward with partial credit, or more SFT before": (
                now["frac_reward_zero_std"] == 1.0 if has_groups else now["reward_std"] == 0.0
            ),
            "no episode ends with an end-of-turn token: raise max_completion_length (or max_turn_tokens), or check "
            "that the model knows its chat template": now["completions/clipped_ratio"] == 1.0,
            "entropy has collapsed from {start:.3g} to {now:.3g} while the reward has not risen: the policy repeats "
            "itself; lower learning_rate, or raise epsilon_high, entropy_coef or beta": (
                now["entropy"] < 0.1 * start["entropy"] and now["reward"] <= start["reward"]
            ),
            "entropy has grown from {start:.3g} to {now:.3g}: the policy is dissolving into noise; lower "
            "learning_rate, or set target_kl or beta": now["entropy"]
            > max(3 * start["entropy"], start["entropy"] + 0.5),
        }
        for text, is_so in signs.items():
            if is_so and text not in self._given:
                self._given.add(text)
                warnings.warn(text.format(start=start["entropy"], now=now["entropy"]), stacklevel=2)
