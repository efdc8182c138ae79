"""DPO on preference pairs: a file of prompts, each with a better and a worse reply. Nothing is played.

    python examples/train_dpo_preferences.py
    python examples/train_dpo_preferences.py --model Qwen/Qwen2.5-0.5B-Instruct --learning-rate 5e-7
    python examples/train_dpo_preferences.py --preferences my_pairs.jsonl

Here the pairs come from the environment: its worked solution against a wrong answer. Pairs of a model's own attempts
are better: `mrlm collect --group-size 8` plays them, or `DPOTrainer(envs=...)` does before it trains
(configs/math_dpo.yaml).
"""

import json
from pathlib import Path

import gymnasium
import tyro

from mrlm_train import DPOConfig, DPOTrainer


def write_pairs(path: Path, count: int) -> Path:
    """A JSONL file of `prompt`, `chosen`, `rejected` (text, or lists of chat messages)."""
    env = gymnasium.make("mrlm_envs:mrlm/Math-v0", kinds=["addition"], difficulty=[1, 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for seed in range(count):
            question, _ = env.reset(seed=seed)
            pair = {"prompt": question, "chosen": env.unwrapped.expert(), "rejected": "I do not know."}
            file.write(json.dumps(pair) + "\n")
    return path


def main(
    model: str = "tiny",
    preferences: Path | None = None,
    learning_rate: float = 1e-4,
    max_steps: int = 5,
    output_dir: str = "runs/dpo_preferences",
):
    pairs = preferences or write_pairs(Path(output_dir) / "pairs.jsonl", count=64)
    config = DPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        per_device_train_batch_size=16,
        beta=0.1,
        loss_type=["sigmoid", "sft"],  # the second holds up the better reply
        logging_steps=1,
        report_to="none",
    )
    trainer = DPOTrainer(model=model, episodes=pairs, args=config)
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    rows = [row for row in trainer.state.log_history if "rewards/accuracies" in row]
    print(f"better reply preferred: {rows[0]['rewards/accuracies']:.0%} → {rows[-1]['rewards/accuracies']:.0%}")


if __name__ == "__main__":
    tyro.cli(main)
