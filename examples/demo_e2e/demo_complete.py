"""The whole way in seven phases: data, configuration, model, policy, environments, evaluation, training and evaluation.

    python examples/demo_e2e/demo_complete.py                  # the built-in toy policy, about two minutes on one core
    python examples/demo_e2e/demo_complete.py --quick          # a look at every phase, under one minute
    python examples/demo_e2e/demo_complete.py --model Qwen/Qwen2.5-0.5B-Instruct --learning-rate 1e-6

The problems are in four JSON files, which the environments load as `tasks=`. The toy policy knows nothing, so phase 3
shows it the right answers of the math problems for a while; phase 7 goes on with PPO on the reward alone. All four
environments are evaluated; the toy trains without debates, whose prompts are ten times as long as the others. It is
measured on the problems that it trains on, because there are only forty: this shows the way, `mrlm demo` shows learning
that carries over to problems never seen.
"""

import json
from pathlib import Path

import datasets
import tyro
from synthetic_data_generator import write_all
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from mrlm_train import PPOConfig, PPOTrainer, Sampling, SFTConfig, SFTTrainer, evaluate
from mrlm_train.inference.policy import make
from mrlm_train.rollout.environments import EnvEntry

SETTINGS = {  # of each environment beside its file: its share of the training, and short episodes
    "math": {"weight": 5, "kwargs": {"system_prompt": "", "max_turns": 1}},
    "code": {"kwargs": {"system_prompt": "", "max_turns": 1, "timeout_s": 1.0}},
    "debate": {"kwargs": {"system_prompt": "", "rounds": 1}},
    "tools": {"kwargs": {"system_prompt": "", "max_turns": 2, "show_tools": False}},
}


def main(
    model: str = "tiny",
    output_dir: str = "runs/demo_e2e",
    quick: bool = False,
    seed: int = 0,
    train_on: tuple[str, ...] = ("math", "code", "tools"),
    steps: int = 40,
    warm_up_steps: int = 36,
    batch_size: int = 32,
    tokens: int = 48,
    learning_rate: float = 3e-4,
) -> None:
    """Run the seven phases.

    Args:
        model: The toy policy, a folder or a Hub name.
        output_dir: Where data, models and figures go.
        quick: Few steps: every phase, no learning.
        seed: Of the problems, the weights of the value head, and the sampling.
        train_on: Environments to train on; all four are evaluated.
        steps: Optimizer steps of PPO.
        warm_up_steps: Optimizer steps of SFT; only the toy takes them.
        batch_size: Episodes in a step of PPO.
        tokens: Of an episode after its prompt.
        learning_rate: Of PPO.
    """
    if quick:
        steps, warm_up_steps, batch_size = 2, 5, 8
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    folder = Path(output_dir)
    common = {"seed": seed, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}

    phase(1, "Data")
    files = {name: str(path) for name, path in write_all(folder / "data", seed).items()}

    phase(2, "Configuration")
    config = PPOConfig(
        output_dir=str(folder / "ppo"),
        learning_rate=learning_rate,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        max_completion_length=tokens,
        beta=0.0,
        target_kl=None,  # the toy has little to lose; with a model that can do something, leave it out
        logging_steps=max(1, steps // 8),
        **common,
    )
    print(f"PPO on {', '.join(train_on)}: {steps} steps of {batch_size} episodes, learning rate {learning_rate:g}")

    phase(3, "Model")
    if model == "tiny":
        model = warm_up(files["math"], folder / "warm-up", warm_up_steps, common)
    print(model)

    phase(4, "Policy")
    policy = make(model)
    print(f"{policy.model.num_parameters():,} parameters, context {policy.max_context}, on {policy.model.device}")

    phase(5, "Environments")
    envs = []
    for name, file in files.items():
        own = SETTINGS[name]
        envs.append(EnvEntry(name, {**own["kwargs"], "tasks": file}, weight=own.get("weight", 1)))
        env = envs[-1].build()
        print(f"{envs[-1].id}: {env.unwrapped.num_tasks} tasks; the first begins {env.reset(seed=0)[0][:60]!r}")

    phase(6, "Initial evaluation")
    sampling = Sampling(max_turn_tokens=tokens, max_episode_tokens=tokens)  # temperature 1, as in training
    before = show(evaluate(policy, envs, n=20, sampling=sampling))

    phase(7, "Training and final evaluation")
    wanted = [env for name, env in zip(files, envs) if name in train_on]
    trainer = PPOTrainer(model, envs=wanted, args=config, callbacks=[Progress()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder / "final"))
    after = show(evaluate(make(str(folder / "final")), envs, n=20, sampling=sampling))
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]

    figures = {"before": before, "after": after, "training_reward": rewards}
    (folder / "results.json").write_text(json.dumps(figures, indent=2))
    print("\nenvironment            before   after   (mean reward)")
    for name in before:
        print(f"{name:20} {before[name]['reward']:8.2f} {after[name]['reward']:7.2f}")
    print(f"\nWhile training, sampled: mean reward {rewards[0]:.2f} at first, {rewards[-1]:.2f} at last.")
    print(f"The model is in {folder / 'final'}, the figures are in {folder / 'results.json'}.")


def warm_up(tasks: str, folder: Path, steps: int, common: dict) -> str:
    """Show the toy the right answers of the math problems for some steps; returns the model's folder."""
    config = SFTConfig(
        output_dir=str(folder),
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        max_steps=steps,
        per_device_train_batch_size=20,
        num_episodes=20,
        logging_steps=steps,
        **common,
    )
    env = EnvEntry("math", {"tasks": tasks, **SETTINGS["math"]["kwargs"]})
    trainer = SFTTrainer("tiny", envs=env, args=config, callbacks=[Progress()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder / "final"))
    return str(folder / "final")


def show(figures: dict) -> dict:
    """Print the success in each environment, and return the figures by environment."""
    for name, part in figures["environments"].items():
        print(f"{name}: success {part['success']:.0%}, reward {part['reward']:.2f}, {part['n']} episodes")
    return figures["environments"]


class Progress(TrainerCallback):
    """One line at each log, of the two dozen figures in it."""

    def on_log(self, args, state, control, logs, **_):
        shown = [f"{name} {float(logs[name]):.3f}" for name in ("loss", "reward", "entropy") if name in logs]
        print(f"step {state.global_step}: {', '.join(shown)}" if shown else "", end="\n" if shown else "", flush=True)


def phase(number: int, title: str) -> None:
    print(f"\n[{number}/7] {title}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
