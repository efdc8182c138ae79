"""One policy, three environments: math, code and tools, each with a weight.

    python examples/train_multi_environment.py
    python examples/train_multi_environment.py --model Qwen/Qwen2.5-0.5B-Instruct --learning-rate 1e-6 --tokens 512

A weight is a share of the episodes: here half are math. Metrics and evaluation come for each environment; a group of
GRPO never mixes two. The same as a file: configs/mixed_grpo.yaml.
"""

import tyro

from mrlm_train import GRPOConfig, GRPOTrainer

ENVS = [
    {"id": "mrlm/Math-v0", "weight": 2, "kwargs": {"difficulty": [1, 3], "system_prompt": ""}},
    {"id": "mrlm/Code-v0", "weight": 1, "kwargs": {"kinds": ["line"], "difficulty": [1, 1], "system_prompt": ""}},
    {
        "id": "mrlm/ToolUse-v0",
        "weight": 1,
        "kwargs": {"kinds": ["calculator"], "max_turns": 3, "system_prompt": "", "show_tools": False},
    },  # with an instruct model, leave out system_prompt and show_tools: it is then told its tools
]


def main(
    model: str = "tiny",
    learning_rate: float = 3e-4,
    tokens: int = 32,
    max_steps: int = 3,
    output_dir: str = "runs/multi_environment",
):
    config = GRPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        num_generations=4,
        per_device_train_batch_size=32,
        max_turn_tokens=tokens,
        max_completion_length=8 * tokens,
        beta=0.0,
        eval_episodes=8,  # shared by weight
        logging_steps=1,
        report_to="none",
    )
    trainer = GRPOTrainer(model=model, envs=ENVS, args=config)
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    metrics = trainer.evaluate()
    for env in ENVS:
        name = env["id"]
        print(f"{name:16} success {metrics[f'eval_{name}_success']:.0%} of {metrics[f'eval_{name}_n']:.0f}")


if __name__ == "__main__":
    tyro.cli(main)
