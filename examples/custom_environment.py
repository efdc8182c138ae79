"""An environment of your own in twenty lines, checked and trained at once.

    python examples/custom_environment.py             # about a minute on one core

A subclass writes `begin` (the task) and `respond` (to an action); `TextEnv` does the rest (docs/your_own.md).
From random weights the toy only begins in 60 steps: the mean reward while training goes from 0.003 to 0.039.
"""

import gymnasium
import tyro

from mrlm_envs import Opening, Options, Reply, TextEnv
from mrlm_envs.checker import check_text_env
from mrlm_train import PPOConfig, PPOTrainer


class Characters(TextEnv):
    """Write so many vowels, or digits: the reward is the share of the reply that is of that kind."""

    KINDS = {"vowels": "aeiou", "digits": "0123456789"}
    metadata = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}

    def begin(self, options: Options) -> Opening:
        self.kind = str(self.rng.choice(list(self.KINDS)))
        self.count = int(self.rng.integers(4, 9))
        return Opening(f"Write {self.count} {self.kind}", task_id=f"{self.count} {self.kind}")

    def respond(self, action: str) -> Reply:
        share = sum(char in self.KINDS[self.kind] for char in action) / max(len(action), self.count)
        return Reply("Thank you.", {"share": share}, done=True, success=share > 0.9)

    def expert(self) -> str:
        return self.count * self.KINDS[self.kind][0]


gymnasium.register("my/Characters-v0", entry_point=Characters)  # then envs="my/Characters-v0" works like any other


def main(learning_rate: float = 1e-3, max_steps: int = 60, batch_size: int = 64, output_dir: str = "runs/custom"):
    print(check_text_env(gymnasium.make("my/Characters-v0"), floor=0.3))  # noise may earn at most 0.3: partial credit
    config = PPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        max_completion_length=8,
        target_kl=None,  # random weights have nothing to lose; leave it out with a trained model
        eval_episodes=50,
        logging_steps=5,
        report_to="none",
        save_strategy="no",
    )
    trainer = PPOTrainer("tiny", envs="my/Characters-v0", args=config)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    print(f"mean reward: {before:.2f} before, {trainer.evaluate()['eval_reward']:.2f} after {max_steps} steps")


if __name__ == "__main__":
    tyro.cli(main)
