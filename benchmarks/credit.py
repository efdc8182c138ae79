"""Which turn mattered? Every way of `credit`, from the same SFT start, for the same CPU seconds.

    python benchmarks/credit.py --task game --ways episode turn state solver branch critic --seeds 0 1 2 3 4 \
        --cpu-seconds 15 --output /tmp/credit.jsonl

Tasks are those of `benchmarks/ppo.py`: `game`, a digit in four guesses; `sokoban`, 5×6 with one box and a move a turn;
`tools`, a call of the calculator and the answer. Tasks of the test split are unseen in training. A row of the output is
a cell: success before and after (500 episodes; sampled at temperature 1, `tools` greedily), steps made, CPU-seconds.
A learning rate is chosen by success on training tasks.
Cells that the file has already are skipped. The batch is 64 episodes; `--groups` says how many to a task. `--probe`
trains nothing: it prints how well each way agrees with Monte Carlo at the start (`mrlm credit-probe`, 16 groups of 8,
16 fresh episodes from each state).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import critic, ppo
from mrlm_train.commands import credit_probe
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference import policy
from mrlm_train.ppo import PPOConfig, PPOTrainer

WAYS: dict[str, dict[str, Any]] = {
    "episode": {},
    "top_groups": {"top_groups": 0.5},  # RAGEN's filter
    "turn": {"credit": "turn"},
    "state": {"credit": "state"},
    "solver": {"credit": "solver"},
    "branch": {"credit": "branch"},
    "critic": {},  # PPO, without groups
    "critic off": {"value_loss_coef": 0.0},  # PPO against the batch's mean
    "critic, own trunk": {"value_loss_coef": 0.0},  # Sokoban: `critic.OwnTrunkPPO`; warming it up is not in its time
}
COLUMNS = ("task", "way", "seed", "groups", "learning_rate", "changes")  # what tells one cell from another


class StopAfter(TrainerCallback):
    """Ends training after a number of CPU seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = time.process_time() > self.end


def run(
    task: str, way: str, seed: int, folder: Path, seconds: float, groups: int, rate: float, changes: dict[str, Any]
) -> dict[str, Any]:
    """Train a cell; returns its row."""
    begun = ppo.start(task, seed, folder)
    settings = ppo.TASKS[task]
    tokenizer = policy.load_tokenizer(str(begun))
    before = ppo.success(task, policy.load_model(str(begun), device="cpu"), tokenizer)
    values = {
        **ppo.RL,
        **settings["rl"],
        "seed": seed + 1000,
        "output_dir": str(folder / "run"),
        "max_steps": 10_000,
        "lr_scheduler_type": "constant_with_warmup",
        "learning_rate": rate,
        **WAYS[way],
        **changes,
    }
    trainer: Any
    warm = critic.warm(str(begun), seed, folder / f"{task}-critic-{seed}.pt") if way == "critic, own trunk" else None
    cpu = time.process_time()
    if warm:
        trainer = critic.OwnTrunkPPO(str(begun), settings["env"], PPOConfig(**values))
        trainer.use(warm)
    elif way.startswith("critic"):
        trainer = PPOTrainer(str(begun), settings["env"], PPOConfig(**values))
    else:
        trainer = GRPOTrainer(str(begun), settings["env"], GRPOConfig(num_generations=groups, **values))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StopAfter(seconds))
    trainer.train()
    cpu = time.process_time() - cpu
    explained = [log["explained_variance"] for log in trainer.state.log_history if "explained_variance" in log][-20:]
    return {
        "task": task,
        "way": way,
        "seed": seed,
        "groups": groups,
        "learning_rate": rate,
        "changes": changes,
        "before": before,
        "after": ppo.success(task, trainer.model, tokenizer),
        "after, training tasks": ppo.success(task, trainer.model, tokenizer, "train") if task != "game" else None,
        "steps": trainer.state.global_step,
        "cpu_seconds": round(cpu, 1),
        "explained_variance": statistics.mean(explained) if explained else None,
    }


def main() -> None:
    """Every cell that is not there yet, one JSON line each, as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["game", "sokoban", "tools"], default="game")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS)[:7])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--groups", nargs="+", type=int, default=[8], help="episodes of a task")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--cpu-seconds", type=float, default=15)
    parser.add_argument("--folder", default="runs/benchmark-ppo", help="where the starts are kept")
    parser.add_argument("--output", default="runs/credit.jsonl", help="JSONL file to append to")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="settings of every run")
    parser.add_argument("--probe", action="store_true", help="agreement with Monte Carlo instead of training")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.probe:
        settings = ppo.TASKS[given.task]
        limits = {name: settings["rl"][name] for name in ("max_completion_length", "max_turn_tokens")}
        for seed in given.seeds:
            begun = str(ppo.start(given.task, seed, Path(given.folder)))
            credit_probe.run(begun, settings["env"], tasks=16, num_generations=8, seed=seed + 1000, **limits)
        return
    changes = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in given.set)}
    path = Path(given.output)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    done = [[row.get(name, {}) for name in COLUMNS] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    for rate, groups, seed, way in itertools.product(given.learning_rates, given.groups, given.seeds, given.ways):
        if [given.task, way, seed, groups, rate, changes] in done:
            continue
        row = run(given.task, way, seed, Path(given.folder), given.cpu_seconds, groups, rate, changes)
        print(json.dumps(row), flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
