"""PPO on writing Python, judged by hidden tests that run in a sandbox.

    python examples/train_code_ppo.py
    python examples/train_code_ppo.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --learning-rate 1e-6 --tokens 1024
    python examples/train_code_ppo.py --tasks humaneval.jsonl

In a second turn the policy sees its errors and the public tests that failed. A program cannot reach the judge: it runs
in a process without network and files (SECURITY.md). The toy writes no Python from random weights;
configs/code_grpo.yaml teaches it what a program looks like first.
"""

import tyro

from mrlm_train import PPOConfig, PPOTrainer


def main(
    model: str = "tiny",
    tasks: str | None = None,
    learning_rate: float = 3e-4,
    tokens: int = 48,
    max_steps: int = 3,
    output_dir: str = "runs/code_ppo",
):
    kwargs = {"max_turns": 2, "timeout_s": 2.0}
    if tasks is None:
        kwargs |= {"kinds": ["line"], "difficulty": [1, 1]}  # generated: a function of one line
    else:
        kwargs |= {"tasks": tasks}  # rows of HumanEval, MBPP, or of your own (mrlm_envs/code/tasks.py)
    if model == "tiny":
        kwargs |= {"system_prompt": ""}  # a toy of one token a byte is slow on long prompts
    config = PPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        per_device_train_batch_size=8,
        max_turn_tokens=tokens,
        max_completion_length=6 * tokens,  # two replies, and what the judge says between them
        eval_episodes=10,
        report_to="none",
    )
    trainer = PPOTrainer(model=model, envs={"id": "mrlm/Code-v0", "kwargs": kwargs}, args=config)
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    print("the newest program:\n" + trainer.episodes[0].messages[-2]["content"])


if __name__ == "__main__":
    tyro.cli(main)
