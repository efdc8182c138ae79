"""The smallest training: PPO on one-digit sums. Read this first.

    python examples/simple_ppo.py
    python examples/simple_ppo.py --model Qwen/Qwen2.5-0.5B-Instruct --learning-rate 1e-6 --max-steps 100

The built-in toy policy starts from random weights and is almost never right, so these few steps show how it runs, not
that it learns: for that see train_hybrid_sft_ppo.py, and `mrlm demo`.
"""

import tyro

from mrlm_train import PPOConfig, PPOTrainer


def main(model: str = "tiny", learning_rate: float = 3e-4, max_steps: int = 5, output_dir: str = "runs/simple_ppo"):
    trainer = PPOTrainer(
        model=model,  # a Hub name, a folder, or the toy
        envs={"id": "mrlm/Math-v0", "kwargs": {"kinds": ["addition"], "difficulty": [1, 1]}},
        args=PPOConfig(
            output_dir=output_dir,
            learning_rate=learning_rate,
            max_steps=max_steps,
            per_device_train_batch_size=16,  # episodes in a step
            max_completion_length=32,  # tokens of an episode after its prompt
            eval_episodes=20,
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model(f"{output_dir}/final")  # mrlm eval --model runs/simple_ppo/final --environment math
    metrics = trainer.evaluate()  # on problems that training never meets
    print(f"success {metrics['eval_success']:.0%} of {metrics['eval_n']:.0f} test problems")


if __name__ == "__main__":
    tyro.cli(main)
