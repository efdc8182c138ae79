"""Self-play: one policy argues both sides of a question against itself, and both sides train.

    python examples/self_play_debate.py
    python examples/self_play_debate.py --model Qwen/Qwen2.5-0.5B-Instruct --learning-rate 1e-6 --tokens 256

Each side of a debate is an Episode of its own. In a zero-sum game a group's mean says nothing, so a side's score is
measured against the running mean of its side (SPIRAL, arXiv:2506.24119). Any PettingZoo environment of text plays:
selfplay/number_game.py is a whole one on a page, which the toy learns (configs/number_game.yaml).
"""

import tyro

from mrlm_train import GRPOConfig, GRPOTrainer

DEBATE = {
    "id": "mrlm_envs.debate:parallel_env",  # module:function of a PettingZoo environment
    "kwargs": {"rounds": 1},
    "agents": {"pro": "policy", "con": "policy"},
    # {"pro": "policy", "con": {"policy": "past", "refresh_every": 20}} plays the policy of up to 20 steps ago
}


def main(
    model: str = "tiny",
    learning_rate: float = 3e-4,
    tokens: int = 24,
    max_steps: int = 2,
    output_dir: str = "runs/self_play_debate",
):
    config = GRPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        num_generations=4,
        per_device_train_batch_size=8,  # seats: four debates
        max_turn_tokens=tokens,
        max_completion_length=2000,  # with what the other side says
        system_prompt="" if model == "tiny" else None,
        beta=0.0,
        logging_steps=1,
        report_to="none",
    )
    trainer = GRPOTrainer(model=model, envs=DEBATE, args=config)
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    for seat, mean in trainer.baselines.items():
        print(f"{seat}: mean score {mean:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
