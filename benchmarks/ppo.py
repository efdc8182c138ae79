"""PPO against GRPO, DPO, and itself with parts switched off, from the same SFT start.

    python benchmarks/ppo.py --task game --algorithms ppo grpo --seeds 0 1 2 3 4 --output /tmp/ppo.jsonl

Three tasks on the toy policy. `game`: find a digit in four guesses, told "+" (higher) or "-" (lower); the start has
learned from a bad player. `math`: sums of two numbers below 100, from the start of `mrlm demo`. `sums`: the same from a
shorter start, for DPO. A row of the output is a run: success before and after (greedy on the test split of the sums,
sampled for the game, which has none), and CPU-seconds of training. Runs that the output file has already are skipped.
`benchmarks/README.md` has ours.

The proof that a learning rate that is too high does no harm (`safety.TrustRegion`); `target_kl=null` switches the
protection off:

    for task in sums game; do python benchmarks/ppo.py --task $task --algorithms ppo grpo --seeds 0 1 2 3 4 \
        --learning-rates 5e-4 1e-3 --set max_steps=60 --output /tmp/safety.jsonl; done
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PrinterCallback, TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import tools
from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_train import tiny
from mrlm_train.commands import demo
from mrlm_train.dpo import DPOConfig, DPOTrainer
from mrlm_train.experiment import train as training
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference import policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.ppo import PPOConfig, PPOTrainer
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.evaluation import evaluate
from mrlm_train.rollout.runner import expert_episodes
from mrlm_train.sft import SFTConfig, SFTTrainer


class GuessDigit(TextEnv):
    """Find a digit in four guesses. The expert is no good: two guesses in three forget the hints."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "honest", "deterministic": True}

    def begin(self, options: Options) -> Opening:
        self.secret, self.open, self.is_found = int(self.rng.integers(10)), range(10), False
        return Opening("?", task_id=str(self.secret))

    def respond(self, action: str) -> Reply:
        if action == str(self.secret):
            self.is_found = True
            return Reply("=", {"found": 1.0}, done=True, success=True)
        is_low = action.isdigit() and int(action[:9]) < self.secret
        if action.isdigit():
            self.open = [
                digit for digit in self.open if digit != int(action[:9]) and (digit > int(action[:9])) == is_low
            ]
        return Reply("+" if is_low else "-")

    def state_key(self) -> str:
        """The digits that the hints leave open."""
        return str(list(self.open))

    def cost_to_go(self) -> float:
        """Guesses that halving needs at worst."""
        return 0.0 if self.is_found else float(len(self.open).bit_length())

    def expert(self) -> str:
        return str(self.rng.choice(self.open if self.rng.random() < 1 / 3 else range(10)))


TASKS: dict[str, dict[str, Any]] = {
    "game": {
        "env": EnvEntry("GuessDigit", {"split": "all", "max_turns": 4}, make=GuessDigit),
        "size": {"hidden_size": 64, "num_layers": 2},
        "demonstrations": 2000,
        "sft": {"max_steps": 800, "learning_rate": 2e-3},
        "rl": {
            "max_steps": 500,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 64,
            "max_completion_length": 64,
            "max_turn_tokens": 4,
        },
        "temperature": 1.0,
        "problems": 500,
    },
    "math": {
        "env": demo.ENVIRONMENT,
        "rl": {"max_steps": 400, "learning_rate": 4e-4, "max_completion_length": demo.REPLIES.max_episode_tokens},
        "temperature": 0.0,
        "problems": 500,
    },
    "sokoban": {  # one move a turn; what `benchmarks/credit.py` trains on
        "env": EnvEntry(
            "mrlm/Sokoban-v0",
            {"compact": True, "system_prompt": "", "separator": "", "symbols": "#_O*XPS", "dim": [5, 6]}
            | {"search_depth": 5, "max_turns": 6, "max_actions_per_turn": 1, "max_actions": 6},
        ),
        "size": {"hidden_size": 64, "num_layers": 2},
        "demonstrations": 1000,
        "sft": {"max_steps": 400, "learning_rate": 2e-3, "lr_scheduler_type": "constant_with_warmup"},
        "enough": 0.3,  # share of training tasks solved at which SFT ends
        "rl": {
            "max_steps": 500,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 64,
            "max_completion_length": 256,
            "max_turn_tokens": 4,
        },
        "temperature": 1.0,
        "problems": 500,
    },
    "tools": {  # a question, a call of the calculator, its result, the answer
        "env": tools.TASKS["tools"].env,
        "size": {"hidden_size": 96, "num_layers": 2},
        "demonstrations": 200,
        "sft": {"max_steps": 300, "learning_rate": 3e-3},
        "enough": 0.4,
        "rl": {
            "max_steps": 100,
            "learning_rate": 5e-4,
            "per_device_train_batch_size": 64,
            "max_completion_length": tools.TASKS["tools"].episode_tokens,
            "max_turn_tokens": tools.TASKS["tools"].turn_tokens,
        },
        "temperature": 0.0,
        "problems": 500,
    },
    "sums": {
        "env": demo.ENVIRONMENT,
        "size": {"hidden_size": 96, "num_layers": 2},
        "demonstrations": 200,
        "sft": {"max_steps": 250, "learning_rate": 2e-3},
        "rl": {"max_completion_length": demo.REPLIES.max_episode_tokens},
        "temperature": 0.0,
        "problems": 500,
    },
}
COMMON: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
RL: dict[str, Any] = {
    "per_device_train_batch_size": 256,
    "warmup_steps": 10,
    "max_grad_norm": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "logging_steps": 1,
    "save_episodes": 0,
    **COMMON,
}
# The plain loss makes right replies less likely, too: they differ from the wrong ones by a digit or two (likelihood
# displacement, Razin et al. 2024, arXiv:2410.08847). The "sft" term holds them up.
DPO: dict[str, Any] = {
    "per_device_train_batch_size": 128,
    "num_train_epochs": 1,
    "learning_rate": 3e-4,
    "warmup_steps": 5,
    "max_grad_norm": 0.2,
    "num_tasks": 4000,
    "num_generations": 8,
    "temperature": 0.6,
    "loss_type": ["sigmoid", "sft"],
    "logging_steps": 10,
    **COMMON,
}
DPO_VARIANTS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "dpo, sigmoid alone": {"loss_type": ["sigmoid"], "learning_rate": 2e-5},
    "dpo, sft alone": {"loss_type": ["sft"]},
}
# What is switched off, or set otherwise, in each run of PPO.
ABLATIONS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "ppo, critic off": {"value_loss_coef": 0.0, "gae_lambda": 1.0},
    "ppo, lambda 0": {"gae_lambda": 0.0},
    "ppo, lambda 0.95": {"gae_lambda": 0.95},
    "ppo, whitening off": {"whiten_advantages": False},
    "ppo, per turn": {"gae_unit": "turn"},
}


def start(task: str, seed: int, folder: Path) -> Path:
    """The SFT start of a seed, made once."""
    target = folder / f"{task}-start-{seed}"
    if (target / "config.json").is_file():
        return target
    settings = TASKS[task]
    trainer: Any
    if task == "math":
        made = folder / f"demo-{seed}"
        demo.prepare(made, seed)
        shutil.copytree(training.run(demo.load(made, seed).stages[0]), target)
        return target
    model, tokenizer = tiny.build(seed, **settings["size"])
    demonstrations = expert_episodes(settings["env"], settings["demonstrations"], seed)
    args = SFTConfig(
        str(target), seed=seed, per_device_train_batch_size=64, warmup_steps=10, **settings["sft"], **COMMON
    )
    trainer = SFTTrainer(model, demonstrations, args, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Enough(task, tokenizer))
    trainer.train()
    trainer.save_model(str(target))
    return target


class Enough(TrainerCallback):
    """Ends SFT when the task's share of training tasks is solved."""

    def __init__(self, task: str, tokenizer: Any) -> None:
        self.task, self.tokenizer, self.share = task, tokenizer, TASKS[task].get("enough", 2.0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.share <= 1 and state.global_step >= 100 and state.global_step % 20 == 0:
            solved = success(self.task, model.eval(), self.tokenizer, "train", 100)
            model.train()
            control.should_training_stop = solved >= self.share


def success(task: str, model: Any, tokenizer: Any, split: str = "test", problems: int | None = None) -> float:
    """Share of episodes solved, on the test split where there is one."""
    settings = TASKS[task]
    limits = settings["rl"]
    sampling = Sampling(
        temperature=settings["temperature"],
        max_turn_tokens=limits.get("max_turn_tokens", limits["max_completion_length"]),
        max_episode_tokens=limits["max_completion_length"],
        seed=1,
    )
    figures = evaluate(
        policy.make(model, tokenizer), settings["env"], problems or settings["problems"], split, sampling
    )
    return figures["success"]


def run(task: str, name: str, seed: int, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train once; returns the row."""
    settings = TASKS[task]
    begun = start(task, seed, folder)
    tokenizer = policy.load_tokenizer(str(begun))
    before = success(task, policy.load_model(str(begun), device="cpu"), tokenizer)
    # other tasks than the demonstrations': the same seed would play those first, and solve them from memory
    values = {**RL, **settings["rl"], "seed": seed + 1000, "output_dir": str(folder / "run")}
    entry = settings["env"]
    cpu, wall = time.process_time(), time.perf_counter()
    if name in DPO_VARIANTS:
        limits = {key: value for key, value in settings["rl"].items() if key.startswith("max_") and "steps" not in key}
        dpo = {**DPO, **limits, "seed": seed, "output_dir": str(folder / "run"), **DPO_VARIANTS[name], **changes}
        trainer: Any = DPOTrainer(str(begun), envs=entry, args=DPOConfig(**dpo))
    elif name == "grpo":
        trainer = GRPOTrainer(str(begun), entry, GRPOConfig(**{**values, "num_generations": 8, **changes}))
    else:
        trainer = PPOTrainer(str(begun), entry, PPOConfig(**{**values, **ABLATIONS[name], **changes}))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    logs = [row for row in trainer.state.log_history if "reward" in row]
    return {
        "task": task,
        "algorithm": name,
        "seed": seed,
        "before": before,
        "after": success(task, trainer.model, tokenizer),
        "cpu_seconds": round(cpu, 1),
        "seconds": round(wall, 1),
        "reward": [round(row["reward"], 3) for row in logs[:: max(1, len(logs) // 10)]],
        "explained_variance": logs[-1].get("explained_variance") if logs else None,
        "update_kl": [round(row["update_kl"], 5) for row in logs if "update_kl" in row][:: max(1, len(logs) // 10)],
        "rejected_updates": sum(row.get("rejected_updates", 0.0) for row in logs),
        "least_rate_scale": min((row["rate_scale"] for row in logs if "rate_scale" in row), default=None),
        "changes": changes,
    }


def main() -> None:
    """Every asked-for run, one JSON line each, as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="game")
    parser.add_argument("--algorithms", nargs="+", default=["ppo"], choices=["grpo", *DPO_VARIANTS, *ABLATIONS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", default="runs/benchmark-ppo", help="where the starts are kept")
    parser.add_argument("--output", help="JSONL file to append to")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[None], help="each in place of the task's")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="settings of the RL run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    changes = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in given.set)}
    done = Path(given.output).read_text("utf-8") if given.output and Path(given.output).is_file() else ""
    rows = [json.loads(line) for line in done.splitlines()]
    known = {json.dumps([row[key] for key in ("task", "algorithm", "seed", "changes")]) for row in rows}
    for seed, name, rate in itertools.product(given.seeds, given.algorithms, given.learning_rates):
        settings = changes if rate is None else {**changes, "learning_rate": rate}
        if json.dumps([given.task, name, seed, settings]) in known:
            continue
        line = json.dumps(run(given.task, name, seed, Path(given.folder), settings))
        print(line, flush=True)
        if given.output:
            with open(given.output, "a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
