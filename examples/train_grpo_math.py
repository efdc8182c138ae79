"""GRPO on math: several attempts at each problem, each compared with the others. No critic.

    python examples/train_grpo_math.py
    python examples/train_grpo_math.py --model Qwen/Qwen2.5-0.5B-Instruct --learning-rate 1e-6 --max-steps 200

Every field of `trl.GRPOConfig` means what it means there; `envs=` stands where TRL has `reward_funcs` and
`train_dataset`. A group whose attempts are all right, or all wrong, teaches nothing: watch `frac_reward_zero_std`, and
let `dynamic_sampling` replace such groups. The same as a file: configs/math_grpo.yaml.
"""

import tyro

from mrlm_train import GRPOConfig, GRPOTrainer


def main(model: str = "tiny", learning_rate: float = 3e-4, max_steps: int = 5, output_dir: str = "runs/grpo_math"):
    config = GRPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        num_generations=8,  # attempts at each problem
        per_device_train_batch_size=32,  # four problems a step
        max_completion_length=32,
        dynamic_sampling=1,  # rounds in which groups of equal rewards are replaced by other problems
        beta=0.0,
        eval_episodes=20,
        logging_steps=1,
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=model,
        envs={"id": "mrlm/Math-v0", "kwargs": {"kinds": ["addition"], "difficulty": [1, 1], "system_prompt": ""}},
        args=config,
    )
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    rows = [row for row in trainer.state.log_history if "frac_reward_zero_std" in row]
    print(f"groups that taught nothing in the last step: {rows[-1]['frac_reward_zero_std']:.0%}")


if __name__ == "__main__":
    tyro.cli(main)
