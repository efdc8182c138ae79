"""GSM8K with Qwen2.5 and LoRA on one GPU: the usual first real run.

    python examples/train_gsm8k_lora.py                                          # the Hub's model and data; needs a GPU
    python examples/train_gsm8k_lora.py --train train.jsonl --test test.jsonl    # rows of `question` and `answer`
    python examples/train_gsm8k_lora.py --model tiny --train … --test … --max-steps 1    # the same code on a CPU

LoRA trains about one weight in a hundred, so that policy, optimizer and rollouts share one card of 16 GB (`mrlm info
--model Qwen/Qwen2.5-0.5B-Instruct --lora 16` says how much they take). It has not been run on a GPU in this project;
the toy runs it in the tests. The same as a file: configs/gsm8k_grpo.yaml, with `lora: {r: 16}`.
"""

import tyro
from peft import LoraConfig

from mrlm_train import GRPOConfig, GRPOTrainer


def main(
    model: str = "Qwen/Qwen2.5-0.5B-Instruct",
    train: str | None = None,
    test: str | None = None,
    learning_rate: float = 1e-5,  # LoRA takes about ten times that of full training
    max_steps: int = 400,
    batch_size: int = 8,
    tokens: int = 512,
    output_dir: str = "runs/gsm8k_lora",
):
    config = GRPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        num_generations=8,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=max(1, 64 // batch_size),  # 64 episodes, eight problems, in a step
        max_completion_length=tokens,
        beta=0.0,
        eval_strategy="steps",
        eval_steps=100,
        eval_episodes=200,  # of the test rows
        save_steps=100,
        logging_steps=1,
        report_to="none",
    )
    tasks = {"train": train, "test": test} if train and test else "hf:openai/gsm8k"
    trainer = GRPOTrainer(
        model=model,
        envs={"id": "mrlm/Math-v0", "kwargs": {"tasks": tasks, "max_turns": 1}},
        args=config,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model(f"{output_dir}/final")  # the adapter; `mrlm eval` reads it
    print(f"test rows solved: {trainer.evaluate()['eval_success']:.1%}")


if __name__ == "__main__":
    tyro.cli(main)
