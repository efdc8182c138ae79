"""Does a toy policy learn the games from the reward, and does what it learns on one carry over to the others?

    python benchmarks/games.py --seeds 0 1 2
    python benchmarks/games.py --games sokoban tetris blocksworld --cells grpo tetris --folder runs/cross

A seed starts from SFT on the solvers' solutions of the games named, which ends when a third of a sample of Sokoban
training rooms is solved. From there `grpo` and `ppo` train on Sokoban alone, and `tetris` (GRPO) on Tetris alone. Every
policy is evaluated on all games named, greedily, on the test split, which no stage ever sees. All views are compact: a
Sokoban room is 6×6 with one box, at most six moves from its solution, and the policy has one reply for all its moves.

Each cell (seed and algorithm) is a line of `results.jsonl` in the folder. A cell that is there is not run again, so an
interrupted benchmark goes on where it was. The table is printed from the file.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from mrlm_train import tiny
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference import policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.ppo import PPOConfig, PPOTrainer
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.evaluation import evaluate
from mrlm_train.rollout.runner import expert_episodes
from mrlm_train.sft import SFTConfig, SFTTrainer

COMPACT = {"compact": True, "system_prompt": "", "max_turns": 1}
LETTERS = {**COMPACT, "separator": "", "max_actions_per_turn": 10, "max_actions": 10}
GAMES = {
    "sokoban": EnvEntry("mrlm/Sokoban-v0", {**LETTERS, "symbols": "#_O*XPS", "search_depth": 6}),
    "tetris": EnvEntry("mrlm/Tetris-v0", {**LETTERS, "preset": "tetris_type_2_dim_4"}),
    "blocksworld": EnvEntry(
        "mrlm/Blocksworld-v0", {**COMPACT, "separator": ",", "preset": "blocksworld_1d", "max_actions_per_turn": 4}
    ),
}
REPLY_TOKENS = 16  # Blocksworld's longest reply: four moves of three characters, three commas, the end
CELLS = {"grpo": ("grpo", "sokoban"), "ppo": ("ppo", "sokoban"), "tetris": ("grpo", "tetris")}
COMMON: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "use_cpu": True,
    "max_completion_length": REPLY_TOKENS,
}


def start(seed: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """SFT on solutions of all three games; the policy is kept in the folder."""
    begun = time.process_time()
    demonstrations = [
        episode for game in args.games for episode in expert_episodes(GAMES[game], args.demonstrations, seed)
    ]
    model, tokenizer = tiny.build(seed, args.hidden_size, args.layers)
    settings = SFTConfig(
        str(folder / f"sft-{seed}"),
        seed=seed,
        max_steps=args.sft_steps,
        learning_rate=args.sft_learning_rate,
        per_device_train_batch_size=64,
        warmup_steps=20,
        **COMMON,
    )
    enough = Enough(tokenizer, args.enough)
    trainer = SFTTrainer(model, demonstrations, settings, processing_class=tokenizer, callbacks=[enough])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder / f"start-{seed}"))
    cost = {"steps": trainer.state.global_step, "cpu_seconds": round(time.process_time() - begun)}
    return cost | scores(trainer.model, tokenizer, args)


class Enough(TrainerCallback):
    """Ends SFT when a share of Sokoban training rooms is solved."""

    def __init__(self, tokenizer: Any, share: float) -> None:
        self.tokenizer, self.share = tokenizer, share

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step >= 100 and state.global_step % 50 == 0:
            solved = score(model, self.tokenizer, "sokoban", 100, "train")
            print(f"SFT step {state.global_step}: {solved:.1%} of training rooms", flush=True)
            model.train()
            control.should_training_stop = solved >= self.share


def train(cell: str, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Reinforcement learning on one game, from the seed's start."""
    algorithm, game = CELLS[cell]
    values: dict[str, Any] = {
        "output_dir": str(folder / f"{cell}-{seed}"),
        "seed": seed,
        "max_steps": args.steps,
        "per_device_train_batch_size": args.batch,
        "warmup_steps": 10,
        "max_grad_norm": 0.2,
        "epsilon_high": 0.28,
        "target_kl": None,  # the figures of benchmarks/README.md are without it
        "beta": 0.0,
        "logging_steps": 1,
        "save_episodes": 0,
        **COMMON,
    }
    begun, model = time.process_time(), str(folder / f"start-{seed}")
    if algorithm == "grpo":
        settings = GRPOConfig(learning_rate=args.grpo_learning_rate, num_generations=8, **values)
        trainer: Any = GRPOTrainer(model, GAMES[game], settings)
    else:
        trainer = PPOTrainer(model, GAMES[game], PPOConfig(learning_rate=args.ppo_learning_rate, **values))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    tenth = max(1, len(rewards) // 10)
    return {
        "steps": args.steps,
        "cpu_seconds": round(time.process_time() - begun),
        "rewards": [round(sum(rewards[i : i + tenth]) / tenth, 3) for i in range(0, len(rewards) - tenth + 1, tenth)],
    } | scores(trainer.model, policy.load_tokenizer(model), args)


def scores(model: Any, tokenizer: Any, args: argparse.Namespace) -> dict[str, float]:
    """Greedy success on the test split of each game."""
    return {game: score(model, tokenizer, game, args.problems, "test") for game in args.games}


def score(model: Any, tokenizer: Any, game: str, n: int, split: str) -> float:
    """Greedy success on `n` tasks of a split."""
    sampling = Sampling(temperature=0.0, max_turn_tokens=REPLY_TOKENS, max_episode_tokens=REPLY_TOKENS)
    return evaluate(policy.make(model.eval(), tokenizer), GAMES[game], n, split, sampling)["success"]


def table(rows: list[dict[str, Any]], games: list[str]) -> None:
    """Print every cell."""
    names = {
        "start": "SFT",
        "grpo": "GRPO on Sokoban",
        "ppo": "PPO on Sokoban",
        "tetris": "GRPO on Tetris",
    }
    print(f"\n| seed | policy | {' | '.join(games)} | steps | CPU s |\n| ---: | --- |{' ---: |' * (len(games) + 2)}")
    for row in sorted(rows, key=lambda row: (row["seed"], list(names).index(row["cell"]))):
        figures = " | ".join(f"{row[game]:.1%}" for game in games)
        print(f"| {row['seed']} | {names[row['cell']]} | {figures} | {row['steps']} | {row['cpu_seconds']} |")


def main() -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", choices=list(GAMES), default=["sokoban"], help="shown by SFT, evaluated")
    parser.add_argument("--cells", nargs="+", default=["start", "grpo", "ppo"], choices=["start", *CELLS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-games"))
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--demonstrations", type=int, default=3000, help="of each game")
    parser.add_argument("--enough", type=float, default=0.33, help="share of training rooms at which SFT ends")
    parser.add_argument("--sft-steps", type=int, default=600)
    parser.add_argument("--sft-learning-rate", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64, help="episodes a step, groups of 8 in GRPO")
    parser.add_argument("--grpo-learning-rate", type=float, default=5e-4)
    parser.add_argument("--ppo-learning-rate", type=float, default=3e-4)
    parser.add_argument("--problems", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    results = args.folder / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.is_file() else []
    for seed in args.seeds:
        for cell in dict.fromkeys(["start", *args.cells]):
            if any(row["cell"] == cell and row["seed"] == seed for row in rows):
                continue
            figures = start(seed, args.folder, args) if cell == "start" else train(cell, seed, args.folder, args)
            rows.append({"seed": seed, "cell": cell, **figures})
            print(json.dumps(rows[-1]), flush=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    table(rows, args.games)


if __name__ == "__main__":
    main()
