"""PPO on tool use: the policy calls a calculator, reads the result, and answers. Several turns, one reward at the end.

    python examples/train_tool_use_ppo.py
    python examples/train_tool_use_ppo.py --model Qwen/Qwen2.5-0.5B-Instruct --learning-rate 1e-6 --tokens 256

Only what the policy said is trained on; what the tools said is context. GAE carries the last turn's reward back to the
call that earned it. A tool of your own is a Python function: `tools=[...]`, docs/your_own.md.
"""

import tyro

from mrlm_train import PPOConfig, PPOTrainer

FOR_THE_TOY = {"call_format": "pythonic", "system_prompt": "", "show_tools": False}  # short prompts: a token a byte


def main(
    model: str = "tiny",
    learning_rate: float = 3e-4,
    tokens: int = 32,
    max_steps: int = 3,
    output_dir: str = "runs/tools_ppo",
):
    kwargs = {"kinds": ["calculator"], "difficulty": [1, 2], "max_turns": 3}
    if model == "tiny":
        kwargs |= FOR_THE_TOY
    config = PPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        per_device_train_batch_size=8,
        max_turn_tokens=tokens,
        max_completion_length=16 * tokens,
        gae_unit="turn",  # a turn is one step; "token" (the default) makes every token one
        eval_episodes=10,
        report_to="none",
    )
    trainer = PPOTrainer(model=model, envs={"id": "mrlm/ToolUse-v0", "kwargs": kwargs}, args=config)
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    for message in trainer.episodes[0].messages:
        print(f"{message['role']}: {message['content']}")


if __name__ == "__main__":
    tyro.cli(main)
