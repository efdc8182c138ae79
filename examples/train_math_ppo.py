"""PPO on generated math problems, with everything that decides about PPO written out, and evaluated while it trains.

    python examples/train_math_ppo.py
    python examples/train_math_ppo.py --model Qwen/Qwen2.5-0.5B-Instruct --learning-rate 1e-6 --max-steps 200

The problems are endless and sorted into train and test by their content: evaluation never meets one of training. The
same as a file: configs/math_ppo.yaml.
"""

import tyro

from mrlm_train import PPOConfig, PPOTrainer

MATH = {
    "id": "mrlm/Math-v0",
    "kwargs": {
        "kinds": ["addition", "linear_equations", "word_problems"],  # `mrlm info` lists all sixteen
        "difficulty": [1, 2],  # of 1 to 10
        "max_turns": 2,  # a second attempt after a wrong answer
    },
}


def main(model: str = "tiny", learning_rate: float = 3e-4, max_steps: int = 5, output_dir: str = "runs/math_ppo"):
    config = PPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        per_device_train_batch_size=16,  # episodes in a step, times gradient_accumulation_steps and processes
        max_completion_length=96,  # tokens of an episode after its prompt, both turns and the feedback: 1024
        max_turn_tokens=32,  # tokens of one reply: 512
        epsilon=0.2,  # PPO's clip range; it acts from the second update on a batch
        num_iterations=2,  # updates on each batch
        gamma=1.0,  # discount of a token
        gae_lambda=0.95,  # 1: rewards alone; lower: more trust in the critic
        value_loss_coef=0.5,
        value_learning_rate=1e-3,  # the value head starts from zero and has much to learn
        entropy_coef=0.0,
        beta=0.0,  # of the KL to the model that training starts from
        eval_strategy="steps",
        eval_steps=max(1, max_steps // 2),
        eval_episodes=20,
        logging_steps=1,
        report_to="none",
    )
    trainer = PPOTrainer(model=model, envs=MATH, args=config)
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    for row in trainer.state.log_history:
        if "eval_success" in row:
            print(f"step {row['step']}: success {row['eval_success']:.0%}, {row['eval_turns']:.1f} turns")


if __name__ == "__main__":
    tyro.cli(main)
