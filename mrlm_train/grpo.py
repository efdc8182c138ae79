"""GRPO on text environments: TRL's trainer, our rollouts. The first choice where a task can be played several times.

    trainer = GRPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", envs="mrlm/Math-v0", args=GRPOConfig(output_dir="runs/math"))
    trainer.train()

A step: `collect` plays `num_generations` episodes of each task (a group shares environment, kwargs and seed), `credit`
compares them within their group, and TRL takes the clipped policy gradient on the tokens the policy sampled (Shao et
al., 2024, arXiv:2402.03300). Every field of `trl.GRPOConfig` means what it means there (with `beta` above 0 mind
`use_bias_correction_kl`, which TRL 1.16 switches on by default); `max_completion_length` is the token budget of an
episode after its prompt, `num_train_epochs` counts passes over finite task sources and batches of endless ones.

Self-play: in a game every agent that the policy plays gives an episode, measured against the running mean of that
agent's returns (SPIRAL, Liu et al., 2025, arXiv:2506.24119): a group's mean would mix both sides of a zero-sum game.

Also a script: `accelerate launch mrlm_train/grpo.py --config my.yaml`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from trl.trainer import grpo_config as trl_grpo_config

from mrlm_train.advantages import PRIVILEGED, group_advantages, over_tokens, turn_columns, turn_credit, update_baselines
from mrlm_train.episodes import record as episode_store
from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode, reward_stds
from mrlm_train.inference.policy import resolve
from mrlm_train.rollout.branches import branch_values, require_replay
from mrlm_train.rollout.environments import EnvLike, entries
from mrlm_train.rollout.evaluation import summary
from mrlm_train.rollout.games import episode_by_row, rows_by_request
from mrlm_train.rollout.opponents import Opponents
from mrlm_train.rollout.pool import EnvPool
from mrlm_train.rollout.runner import Request, Rollout, check_validity
from mrlm_train.safety import Alarms, TrustRegion
from mrlm_train.schedule import save_between_generations, task_rows
from mrlm_train.token_figures import annotate
from mrlm_train.trainer import PlayedEvaluation, RolloutArguments, check_config
from mrlm_train.trl_hooks import Batch, EpisodeTrainer, loss_mask

_REPLACEMENT_STRIDE = 2**31 + 11  # away from every seed of the plan; odd, so finite sources move to another task


@dataclass
class GRPOConfig(RolloutArguments, trl_grpo_config.GRPOConfig):
    """TRL's settings, those of `RolloutArguments`, and these.

    Attributes:
        num_minibatches: updates that a collected batch is split into, so that clipping has an effect. It sets TRL's
            `steps_per_generation`; each update still takes as many episodes as without it.
        target_kl: KL(before ‖ after), in nats per token, that an update should not exceed: the learning rate follows
            the measured KL, up to the schedule's, and an update that goes much further is undone (see
            `safety.TrustRegion`). None measures nothing.
        credit: what a turn's tokens are credited with, see `advantages.turn_credit`. "episode": the episode's return
            against its group's (GRPO). "turn": the return from the turn on. "state": GiGPO, needs the environment's
            `state_key()`. "solver": CAST, needs its `cost_to_go()`: privileged knowledge, used in training only.
            "branch": VinePPO, needs an environment that can be replayed (`metadata["deterministic"]`).
        credit_weight: weight of the turn's term in "state" and "solver", relative to the episode's.
        credit_gamma: discount per turn in "state".
        credit_branches: fresh episodes from each state in "branch".
        dynamic_sampling: rounds in which groups whose rewards are all equal, and so teach nothing, are replaced by
            groups of other tasks (DAPO, arXiv:2503.14476); 0 is off.
        top_groups: share of the groups that enter the loss, those whose rewards vary most (GRL); 1 keeps all.
        baseline_decay: decay per episode of the running baselines of games, one for each environment and agent.
    """

    CREDIT: ClassVar[tuple[str, ...]] = ("episode", "turn", "state", "solver", "branch")

    credit: str = "episode"
    credit_weight: float = 1.0
    credit_gamma: float = 0.95
    credit_branches: int = 4
    num_minibatches: int = 1
    target_kl: float | None = 1e-3
    dynamic_sampling: int = 0
    top_groups: float = 1.0
    baseline_decay: float = 0.95
    num_generations_eval: int | None = 1  # evaluation plays a task once, so TRL need not find groups in its batch

    def __post_init__(self) -> None:
        fine = {
            "credit": (self.credit in self.CREDIT, f"one of {', '.join(self.CREDIT)}"),
            "credit_gamma": (0 <= self.credit_gamma <= 1, "in [0, 1]"),
            "credit_branches": (self.credit_branches >= 1, "at least 1"),
            "baseline_decay": (0 <= self.baseline_decay < 1, "in [0, 1)"),
            "top_groups": (0 < self.top_groups <= 1, "in (0, 1]"),
            "num_minibatches": (self.num_minibatches >= 1, "at least 1"),
            "target_kl": (self.target_kl is None or self.target_kl > 0, "above 0, or null for none"),
            "temperature": (self.temperature > 0, "above 0 in training (eval_temperature: 0 is greedy evaluation)"),
        }
        for name, (is_fine, range_) in fine.items():
            if not is_fine:
                raise ValueError(f"{name} must be {range_}, got {getattr(self, name)!r}")
        if self.steps_per_generation is None and self.generation_batch_size is None:
            self.steps_per_generation = self.num_minibatches * self.gradient_accumulation_steps
        elif self.num_minibatches > 1:
            other = "generation_batch_size" if self.steps_per_generation is None else "steps_per_generation"
            raise ValueError(f"num_minibatches and {other} both say how a batch is split; remove one of them")
        try:
            super().__post_init__()
        except ValueError as error:  # TRL names sizes that follow from these
            size, parts = self.per_device_train_batch_size, self.num_minibatches
            raise ValueError(f"{error} (per_device_train_batch_size {size}, num_minibatches {parts})") from None
        self.remove_unused_columns = False  # our rows are task seeds, in columns of their own


class GRPOTrainer(PlayedEvaluation, EpisodeTrainer):
    """TRL's `GRPOTrainer` on environments.

    Attributes:
        episodes: this process's episodes of the last generation, for inspection.
    """

    def __init__(
        self,
        model: Any,
        envs: EnvLike | Iterable[EnvLike],
        args: GRPOConfig | None = None,
        eval_envs: EnvLike | Iterable[EnvLike] | None = None,
        processing_class: Any = None,
        **trl_arguments: Any,
    ) -> None:
        """
        Args:
            model: a path, a hub name, or a causal LM.
            envs: where to train: ids, mappings, specs or factories (see `environments.EnvEntry`).
            args: settings.
            eval_envs: where to evaluate, on the test split; the training environments unless given.
            processing_class: the tokenizer; loaded from the model's path unless given.
            **trl_arguments: TRL's other arguments (`peft_config`, `callbacks`, `optimizers` …).

        Raises:
            ValueError, TypeError: On a bad argument, in one line and before any training.
        """
        args = check_config(args, GRPOConfig)
        model, processing_class = resolve(model, processing_class, args.model_init_kwargs)
        is_nameless = not isinstance(model, str) and not model.config.name_or_path
        if args.beta > 0 and is_nameless and trl_arguments.get("peft_config") is None:
            raise ValueError("beta > 0 needs a reference policy: give the model as a path (save it first) or use LoRA")
        episodes = args.per_device_train_batch_size * (args.steps_per_generation or 1)
        wants_groups = "dynamic_sampling" if args.dynamic_sampling else f"credit: {args.credit}"
        if (args.dynamic_sampling or args.credit in ("turn", "state", "branch")) and episodes % (
            args.num_generations or 1
        ):
            raise ValueError(
                f"{wants_groups} needs whole groups in each process: {episodes} episodes do not divide into groups of "
                f"{args.num_generations}; raise per_device_train_batch_size or gradient_accumulation_steps"
            )
        pool = EnvPool(entries(envs), args.env_threads, args.step_timeout)
        pool.privileged = [PRIVILEGED[args.credit]] if args.credit in PRIVILEGED else []
        if args.credit not in ("episode", "critic") and any(pool.agents):
            raise ValueError(f"credit: {args.credit} is for environments of one agent; for a game use episode")
        if args.credit == "branch":
            require_replay(pool)
        self.eval_envs = pool.envs if eval_envs is None else entries(eval_envs)
        rows = task_rows(args, pool)
        save_between_generations(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=rows.select(range(1)) if args.eval_strategy != "no" else None,  # `evaluate` plays instead
            processing_class=processing_class,
            **trl_arguments,
        )
        self.shuffle_dataset = False  # the rows are already in the order of the draw
        settings: Any = args.chat_template_kwargs
        chat = Chat(self.processing_class, settings, args.system_prompt, self.eos_token_ids, args.max_turns == 1)
        self.eos_token_ids = list(chat.stop_ids)  # a base model's eos is often not what closes its template's turns
        name = model if isinstance(model, str) else model.config.name_or_path or type(model).__name__
        self.open_policy(chat, name)
        self.opponents = self._opponents(pool)
        self.rollout = Rollout(  # validity is checked over all processes
            self.policy, pool, args.sampling(), max_invalid_share=1.0, opponents=self.opponents
        )
        self.trust_region = TrustRegion(self, args.target_kl)
        self.add_callback(self.trust_region)
        self.add_callback(Alarms())
        self.episodes: list[Episode] = []
        self._drawn = (-1, 0)  # optimizer step of the last generation, and how many generations it has had
        self._top: set[str] | None = None

    def make_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """One generation, in the order in which it happens; TRL then computes the loss of each of its micro-batches."""
        episodes = self.collect(rows)  # roll out
        batch = self.to_batch(episodes)  # ids and masks
        if self.is_off_policy:
            batch["old_per_token_logps"] = self.log_probs(batch)
        batch |= self.reference(batch) | self.vllm_correction(batch)
        batch["advantages"] = self.credit(episodes, loss_mask(batch))
        return batch

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """TRL's clipped policy loss; also prepares the trust region, which measures the update."""
        loss, log_probs_BT = self.policy_loss(model, batch)
        self.trust_region.prepare(batch, log_probs_BT)
        return loss

    def credit(self, episodes: Sequence[Episode], mask_BT: torch.Tensor) -> torch.Tensor:
        """Advantages against the group's mean return (in a game, the agent's): (B,), or (B, T) with credit by turn."""
        scale: Any = self.args.scale_rewards
        advantages_N, scales_N = group_advantages(self.gather_rewards(episodes), self.args.num_generations or 1, scale)
        first = self.accelerator.process_index * len(episodes)
        advantages_B = advantages_N[first : first + len(episodes)].clone()
        for row, episode in enumerate(episodes):
            if episode.agent is not None and episode.valid:
                advantages_B[row] = episode.reward - self.baseline(episode)
        self.log_completions_table(episodes, advantages_B)
        method = self.args.credit
        if method == "episode":
            return advantages_B
        values_BK: list[list[float]] = []
        if method == "branch":  # draws that no row has
            draw = self._draw(1 << 31 | first << 12)
            values_BK = branch_values(self.rollout, episodes, self.args.credit_branches, draw)
        terms_BK = turn_credit(episodes, method, self.args.credit_gamma, values_BK)
        terms_BT = over_tokens(terms_BK, turn_columns(mask_BT, episodes)[1])
        if method == "solver":  # in steps, not returns: not scaled
            return advantages_B[:, None] + self.args.credit_weight * terms_BT
        # one scale per group: dividing by the spread of a few equal states would inflate their term, and so would
        # dividing by that of a group whose returns are all equal
        scales_B1 = scales_N[first : first + len(episodes), None].nan_to_num(nan=0.0)
        terms_BT = terms_BT / torch.where(scales_B1 < 0.01, 1.0, scales_B1)
        return terms_BT if method in ("turn", "branch") else advantages_B[:, None] + self.args.credit_weight * terms_BT

    def collect(self, rows: list[dict[str, Any]]) -> list[Episode]:
        """Play one episode for each row; the rows of a group differ only in their draw."""
        step = self.state.global_step  # which several generations may share
        self._drawn = (step, self._drawn[1] + 1 if self._drawn[0] == step else 0)
        first = self.accelerator.process_index * len(rows)
        self.opponents.refresh(step)
        agents = [self.rollout.pool.trained_agents(row["entry"]) for row in rows]
        shares = rows_by_request([(row["entry"], row["seed"]) for row in rows], agents)
        requests = {i: Request(rows[i]["entry"], rows[i]["seed"], self._draw(first + i)) for i, *_ in shares}
        seconds, tokens = self.rollout.seconds, self.rollout.sampled_tokens
        games = self.rollout.run(requests.values())
        played = episode_by_row(games, shares, agents)
        for attempt in range(1, self.args.dynamic_sampling + 1):
            flat = _flat_groups(played, self.args.num_generations)
            if not flat and self.policy.reduce is None:  # processes that share each forward pass stay together
                break
            requests |= {i: _other_task(requests[i], attempt) for i in flat}
            again = self.rollout.run([requests[i] for i in flat])
            for i, episode in zip(flat, again, strict=True):
                played[i] = episode
        self._count_episodes(played, self.rollout.seconds - seconds, self.rollout.sampled_tokens - tokens)
        self.episodes = played
        return played

    def _draw(self, row: int) -> int:
        """The draw of a row, counted over all processes, so that episodes do not depend on the number of processes."""
        step, count = self._drawn
        return ((step << 16 | count) << 32) + row

    @property
    def baselines(self) -> dict[str, float]:
        """Running mean return of each agent of a game; part of the Trainer's state, so checkpoints keep them."""
        return self.state.stateful_callbacks.setdefault("seat_baselines", {})  # type: ignore[union-attr, return-value]

    def baseline(self, episode: Episode) -> float:
        """In a game, the mean return of the agent; 0 elsewhere."""
        return 0.0 if episode.agent is None else self.baselines.get(episode.label, 0.0)

    def _opponents(self, pool: EnvPool) -> Opponents:
        games = [*pool.agents, *(entry.agent_configs() for entry in self.eval_envs if entry not in pool.envs)]
        is_frozen = any(player.function is None and not player.trains for game in games for player in game.values())
        if is_frozen and (self.policy.reduce is not None or self.policy.turn is not None):
            raise ValueError(
                "agents: a frozen opponent needs the whole model in each process, not FSDP, ZeRO-3 or vLLM"
            )
        return Opponents(self.policy, games, in_training=True)

    def trains_on(self, episode: Episode) -> bool:
        """Valid, and in a group that is kept."""
        return episode.valid and (self._top is None or episode.group_id in self._top)

    def _count_episodes(self, played: list[Episode], seconds: float, tokens: int) -> None:
        """Metrics over all processes; stops the run when too many episodes are invalid."""
        everyone: list[Episode] = gather_object([_without_tokens(episode) for episode in played])
        check_validity(everyone, self.args.max_invalid_share)
        figures = summary(everyone)
        rewards, stds = [episode.reward for episode in everyone if episode.valid], reward_stds(everyone)
        self.count("reward", figures["reward"])
        self.count("reward_std", statistics.stdev(rewards) if len(rewards) > 1 else None)
        self.count("frac_reward_zero_std", sum(std < 1e-8 for std in stds.values()) / len(stds))
        self.count("invalid", figures["invalid"])
        self.count("turns", figures["turns"] or 0.0)
        if timeouts := figures["stop_reasons"].get("step_timeout"):
            self.count("step_timeouts", timeouts)
        if figures["success"] is not None:
            self.count("success", figures["success"])
        for name, part in figures.get("environments", {}).items():
            self.count(f"reward/{name}", part["reward"])
            self.count(f"success/{name}", part["success"])
        returns = [(e.label, e.reward) for e in everyone if e.agent is not None and e.valid and e.turn_rewards]
        update_baselines(self.baselines, returns, self.args.baseline_decay)
        for name, value in self.baselines.items():
            self.count(f"baseline/{name}", value)
        if seconds > 0:
            self.count("tokens_per_second", sum(gather_object([tokens])) / seconds)
        if self.args.top_groups < 1:
            ranked = sorted(stds, key=stds.__getitem__, reverse=True)
            self._top = set(ranked[: math.ceil(self.args.top_groups * len(ranked))])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's; also writes a few transcripts to `output_dir/episodes`."""
        if self.model.training and self.episodes and self.args.save_episodes and self.accelerator.is_main_process:
            path = Path(self.args.output_dir or ".") / "episodes" / f"step-{self.state.global_step:06d}.jsonl"
            sampled = self.episodes[: self.args.save_episodes]
            annotate(sampled, self.last_batch, self.processing_class)
            episode_store.write(path, sampled)
        super().log(logs, start_time)


def _flat_groups(played: Sequence[Episode], size: int) -> list[int]:
    """Indices of the episodes in groups whose valid rewards are all equal; games have no group baseline."""
    flat: list[int] = []
    for start in range(0, len(played), size):
        members = range(start, min(start + size, len(played)))
        if played[start].agent is None and len({played[i].reward for i in members if played[i].valid}) < 2:
            flat += members
    return flat


def _other_task(request: Request, attempt: int) -> Request:
    """Another task for a whole group: the seeds of all its members move by the same amount."""
    return dataclasses.replace(request, seed=request.seed + attempt * _REPLACEMENT_STRIDE)


def _without_tokens(episode: Episode) -> Episode:
    """A copy of an episode with only what statistics read, small enough to send to every process."""
    info = {"error": episode.info.get("error") or episode.stop_reason}
    tokens: dict[str, Any] = dict.fromkeys(("prompt_ids", "completion_ids", "action_mask", "logprobs"))
    return dataclasses.replace(episode, kwargs={}, options={}, messages=[], sampling={}, info=info, **tokens)


if __name__ == "__main__":
    from mrlm_train.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
