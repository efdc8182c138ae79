"""Self-play on the number game: win rate against an opponent that is never played in training, before and after.

    python benchmarks/selfplay.py --seeds 0 1 2 --output /tmp/selfplay.jsonl

The start has learned from random legal moves that an answer is 1, 2 or 3. Then PPO and GRPO let the policy play itself,
and nothing else. Win rates are over 300 games, half of them as each agent, sampled at temperature 1, against `careless`
(random legal moves), whom perfect play beats in 91 % of the games.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from mrlm_train import tiny
from mrlm_train.episodes.record import Episode
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference import policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.ppo import PPOConfig, PPOTrainer
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.evaluation import evaluate
from mrlm_train.rollout.runner import expert_episodes
from mrlm_train.sft import SFTConfig, SFTTrainer

MODULE = "examples.selfplay.number_game"
GAME = f"{MODULE}:env"
COMMON: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
LIMITS: dict[str, Any] = {"max_completion_length": 96, "max_turn_tokens": 2}
RL: dict[str, Any] = {
    "learning_rate": 1e-3,
    "warmup_steps": 20,
    "max_grad_norm": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "target_kl": None,  # the figures of benchmarks/README.md are without it
    "per_device_train_batch_size": 64,
    "logging_steps": 1,
    "save_episodes": 0,
    **LIMITS,
    **COMMON,
}


class GroupMean(GRPOTrainer):
    """GRPO whose baseline is the mean return of the group, both sides of its games together."""

    def group(self, episode: Episode) -> Any:
        """What the returns that an episode is compared with have in common."""
        return episode.group_id.rpartition("/")[0]  # without the agent

    def credit(self, episodes: Sequence[Episode], mask_BT: torch.Tensor) -> torch.Tensor:
        """Returns less their group's mean, where the trainer takes the running mean of the agent."""
        returns: dict[Any, list[float]] = defaultdict(list)
        for episode in episodes:
            returns[self.group(episode)].append(episode.reward)
        return torch.tensor([episode.reward - statistics.mean(returns[self.group(episode)]) for episode in episodes])


class AgentGroupMean(GroupMean):
    """The same for each side of the games of a group."""

    def group(self, episode: Episode) -> Any:
        return episode.group_id


ALGORITHMS: dict[str, Any] = {
    "ppo": (PPOTrainer, PPOConfig, {}),
    "grpo": (GRPOTrainer, GRPOConfig, {"num_generations": 8}),
    "grpo, group mean": (GroupMean, GRPOConfig, {"num_generations": 8}),
    "grpo, group mean by agent": (AgentGroupMean, GRPOConfig, {"num_generations": 8}),
}


def start(seed: int, folder: Path) -> str:
    """A toy policy that knows what a move looks like."""
    model, tokenizer = tiny.build(seed, hidden_size=64, num_layers=2)
    settings = {"per_device_train_batch_size": 32, "max_steps": 150, "learning_rate": 4e-3, "warmup_steps": 10}
    args = SFTConfig(str(folder), seed=seed, **settings, **COMMON)
    trainer = SFTTrainer(model, expert_episodes(GAME, 1000, seed), args, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder))
    return str(folder)


def win_rate(model: Any, tokenizer: Any, opponent: str, games: int = 300) -> float:
    """Share of games won against a function of the game's module, half of them as each agent."""
    entries = [EnvEntry(GAME, agents={agent: f"{MODULE}:{opponent}"}) for agent in ("first", "second")]
    sampling = Sampling(max_turn_tokens=2, max_episode_tokens=96, seed=1)
    return evaluate(policy.make(model, tokenizer), entries, games // 2, None, sampling)["success"]


def run(algorithm: str, seed: int, begun: str, changes: dict[str, Any], past: int | None = None) -> dict[str, Any]:
    """Train once by self-play; returns the row. With `past`, against itself as it was up to so many steps ago."""
    tokenizer = policy.load_tokenizer(begun)
    model = policy.load_model(begun, device="cpu")
    before = win_rate(model, tokenizer, "careless")
    trainer_class, config_class, own = ALGORITHMS[algorithm]
    args = config_class(output_dir=begun, seed=seed, **{**RL, **own, **changes})
    frozen = {"policy": "past", "refresh_every": past}
    entries = [EnvEntry(GAME, agents={agent: frozen}) for agent in ("first", "second")]
    trainer = trainer_class(begun, entries if past else GAME, args)
    trainer.remove_callback(PrinterCallback)
    cpu = time.process_time()
    trainer.train()
    cpu = time.process_time() - cpu
    return {
        "algorithm": algorithm,
        "seed": seed,
        "past": past,
        "before": before,
        "after": win_rate(trainer.model, tokenizer, "careless"),
        "steps": args.max_steps,
        "cpu_seconds": round(cpu, 1),
        "baselines": {name.rpartition("/")[2]: round(value, 2) for name, value in trainer.baselines.items()},
    }


def main() -> None:
    """Run the grid and write a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["ppo", "grpo"], choices=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--past", type=int, metavar="STEPS", help="play a frozen copy, renewed every so many steps")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="other settings of the trainer")
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    args = parser.parse_args()
    torch.set_num_threads(1)
    changes = {name: json.loads(value) for name, _, value in (setting.partition("=") for setting in args.set)}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            begun = start(seed, Path(folder))
            for algorithm in args.algorithms:
                row = run(algorithm, seed, begun, {"max_steps": args.steps, **changes}, args.past)
                print(json.dumps(row), flush=True)
                if args.output:
                    with args.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
