"""SFT, then PPO: worked solutions teach the form, the reward finds the rest.

    python examples/train_hybrid_sft_ppo.py
    python examples/train_hybrid_sft_ppo.py --max-steps 400      # as long as configs/math_sft_then_ppo.yaml

A policy that is never right learns nothing from reward. So SFT on few worked solutions brings the toy to some right
answers, and PPO goes on with the reward alone; both are measured on unseen sums. `mrlm demo` does it with GRPO.
"""

import tyro

from mrlm_train import PPOConfig, PPOTrainer, SFTConfig, SFTTrainer

SUMS = {"id": "mrlm/Math-v0", "kwargs": {"kinds": ["addition"], "difficulty": [2, 2], "system_prompt": ""}}
COMMON = {"max_completion_length": 32, "eval_episodes": 100, "report_to": "none", "save_strategy": "no"}


def main(
    model: str = "tiny",
    sft_steps: int = 150,
    max_steps: int = 60,
    demonstrations: int = 220,
    output_dir: str = "runs/hybrid",
):
    sft = SFTTrainer(
        model=model,
        envs=SUMS,  # its expert writes the demonstrations
        eval_envs=SUMS,
        args=SFTConfig(
            output_dir=f"{output_dir}/sft",
            learning_rate=2e-3,  # 1e-5 for a language model
            max_steps=sft_steps,
            per_device_train_batch_size=64,
            num_episodes=demonstrations,
            **COMMON,
        ),
    )
    sft.train()
    before = sft.evaluate()["eval_success"]
    sft.save_model(f"{output_dir}/sft/final")
    ppo = PPOTrainer(
        model=f"{output_dir}/sft/final",
        envs=SUMS,
        args=PPOConfig(
            output_dir=f"{output_dir}/ppo",
            learning_rate=3e-4,  # 1e-6
            max_steps=max_steps,
            per_device_train_batch_size=128,
            epsilon_high=0.28,
            max_grad_norm=0.2,
            **COMMON,
        ),
    )
    ppo.train()
    ppo.save_model(f"{output_dir}/final")
    print(f"unseen sums solved: {before:.0%} after SFT, {ppo.evaluate()['eval_success']:.0%} after PPO")


if __name__ == "__main__":
    tyro.cli(main)
