"""SFT in its three modes: imitate what was done, predict what the environment answers, or both.

    python examples/train_sft_world_model.py
    python examples/train_sft_world_model.py --mode behavioral_cloning
    python examples/train_sft_world_model.py --model Qwen/Qwen2.5-0.5B --learning-rate 1e-5

A world model is a language model in the environment's seat: from the conversation so far it predicts the next
observation and its reward. It learns from Episodes; here the environment's expert plays them, `mrlm collect` keeps a
model's own.
"""

from typing import Literal

import tyro

from mrlm_train import SFTConfig, SFTTrainer
from mrlm_train.rollout.runner import expert_episodes
from mrlm_train.rollout.world_model import evaluate

GAME = {"id": "mrlm/Sokoban-v0", "kwargs": {"preset": "simple_sokoban", "system_prompt": ""}}


def main(
    model: str = "tiny",
    mode: Literal["behavioral_cloning", "world_model", "combined"] = "combined",
    num_episodes: int = 32,
    learning_rate: float = 2e-3,
    max_steps: int = 5,
    output_dir: str = "runs/sft_world_model",
):
    episodes = expert_episodes([GAME], num_episodes, seed=0)
    good = [episode for episode in episodes if episode.reward > 0]  # learn from what went well
    config = SFTConfig(
        output_dir=output_dir,
        mode=mode,
        learning_rate=learning_rate,
        max_steps=max_steps,
        per_device_train_batch_size=8,
        logging_steps=1,
        report_to="none",
    )
    trainer = SFTTrainer(model=model, episodes=good, args=config)
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    if mode != "behavioral_cloning":
        print(evaluate(trainer.policy, expert_episodes([GAME], 2, seed=99)))  # on episodes that it has not seen


if __name__ == "__main__":
    tyro.cli(main)
