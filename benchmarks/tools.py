"""Does a toy policy learn tool use, or programming, from the reward? SFT on a few reference trajectories, then GRPO.

    python benchmarks/tools.py --seeds 0 1 2
    python benchmarks/tools.py --seeds 0 1 2 --demonstrations 50
    python benchmarks/tools.py --seeds 0 1 2 --task code

`tools`: read an arithmetic question, write the call, read the tool's result, write the answer; a slip in copying any
digit loses. `code`: read what a one-line function should return, write it; hidden tests decide. SFT ends when it
solves a share of a sample of training tasks, or with its steps. Success is greedy, on tasks of the test split, which
neither stage ever sees. The control goes on with SFT on the same trajectories, from the same start, for the CPU time
that GRPO took. One torch thread.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from mrlm_train import tiny
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference import policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.evaluation import evaluate
from mrlm_train.rollout.runner import expert_episodes
from mrlm_train.sft import SFTConfig, SFTTrainer


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        env: The environment.
        episode_tokens: The longest episode after its prompt.
        turn_tokens: The longest reply.
    """

    env: EnvEntry
    episode_tokens: int
    turn_tokens: int


CALLS = {"kinds": ["calculator"], "difficulty": [1, 1], "call_format": "pythonic", "max_turns": 3, "show_tools": False}
LINES = {"kinds": ["line", "digit_sum", "clip"], "difficulty": [1, 5], "max_turns": 1, "timeout_s": 1.0}
TASKS = {
    # the longest reference has 76 tokens after the prompt, 41 in a turn
    "tools": Task(EnvEntry("mrlm/ToolUse-v0", {**CALLS, "system_prompt": ""}), 128, 48),
    "code": Task(EnvEntry("mrlm/Code-v0", {**LINES, "system_prompt": ""}), 96, 96),
}


def run(seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One seed: both stages, and an evaluation after each."""
    task = TASKS[args.task]
    model, tokenizer = tiny.build(seed, args.hidden_size, args.layers)
    common: dict[str, Any] = {
        "seed": seed,
        "use_cpu": True,
        "warmup_steps": 20,
        "max_completion_length": task.episode_tokens,
        "save_strategy": "no",
        "logging_steps": args.log_every,
        "disable_tqdm": True,
        "report_to": "none",
    }
    start = time.process_time()
    sft_args = SFTConfig(
        output_dir=str(folder / "sft"),
        max_steps=args.sft_steps,
        learning_rate=args.sft_learning_rate,
        per_device_train_batch_size=32,
        **common,
    )
    demonstrations = expert_episodes(task.env, args.demonstrations, seed)
    enough = Enough(task, tokenizer, args.enough)
    SFTTrainer(model, demonstrations, sft_args, processing_class=tokenizer, callbacks=[enough]).train()
    after_sft = score(task, model, tokenizer, args.problems)
    sft_seconds = time.process_time() - start
    model.save_pretrained(folder / "start")
    print(f"seed {seed}: after SFT {after_sft} ({sft_seconds:.0f} s of CPU)", flush=True)
    grpo_args = GRPOConfig(
        output_dir=str(folder / "grpo"),
        max_steps=args.grpo_steps,
        learning_rate=args.grpo_learning_rate,
        per_device_train_batch_size=args.batch,
        num_generations=8,
        max_turn_tokens=task.turn_tokens,
        epsilon_high=0.28,
        target_kl=None,  # the figures of benchmarks/README.md are without it
        max_grad_norm=0.2,
        dynamic_sampling=1,
        temperature=args.temperature,
        beta=0.0,
        save_episodes=0,
        **common,
    )
    trainer = GRPOTrainer(model, task.env, grpo_args, processing_class=tokenizer)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    grpo_seconds = time.process_time() - start - sft_seconds
    after_grpo = score(task, model, tokenizer, args.problems)
    seconds = time.process_time() - start
    print(f"seed {seed}: after GRPO {after_grpo} ({seconds:.0f} s of CPU in all)", flush=True)
    result = {"seed": seed, "sft": after_sft, "grpo": after_grpo, "cpu_seconds": round(seconds), "rewards": rewards}
    if args.control:
        changes = {"max_steps": 1_000_000, "learning_rate": args.sft_learning_rate / 3}  # as it was when SFT ended
        sft_args = dataclasses.replace(sft_args, output_dir=str(folder / "control"), **changes)
        begun = policy.load_model(str(folder / "start"), device="cpu")
        until = UntilTime(grpo_seconds)
        SFTTrainer(begun, demonstrations, sft_args, processing_class=tokenizer, callbacks=[until]).train()
        result["more_sft"] = score(task, begun, tokenizer, args.problems)
        print(f"seed {seed}: after more SFT instead {result['more_sft']}", flush=True)
    return result


class Enough(TrainerCallback):
    """Ends training when a share of training tasks is solved."""

    def __init__(self, task: Task, tokenizer: Any, share: float) -> None:
        self.task, self.tokenizer, self.share = task, tokenizer, share

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step >= 100 and state.global_step % 10 == 0:
            solved = score(self.task, model, self.tokenizer, 60, "train")["success"]
            model.train()
            control.should_training_stop = solved >= self.share


class UntilTime(TrainerCallback):
    """Ends training after some CPU seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = time.process_time() >= self.end


def score(task: Task, model: Any, tokenizer: Any, n: int, split: str = "test") -> dict[str, Any]:
    """Greedy success on a split."""
    sampling = Sampling(temperature=0.0, max_turn_tokens=task.turn_tokens, max_episode_tokens=task.episode_tokens)
    figures = evaluate(policy.make(model.eval(), tokenizer), task.env, n, split, sampling)
    return {key: figures[key] for key in ("success", "success_interval", "turns")}


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="tools")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--demonstrations", type=int, default=200)
    parser.add_argument("--enough", type=float, default=0.4, help="share of training tasks at which SFT ends")
    parser.add_argument("--sft-steps", type=int, default=300)
    parser.add_argument("--sft-learning-rate", type=float, default=3e-3)
    parser.add_argument("--grpo-steps", type=int, default=100)
    parser.add_argument("--grpo-learning-rate", type=float, default=5e-4)
    parser.add_argument("--temperature", type=float, default=0.6, help="of sampling in GRPO")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--control", action=argparse.BooleanOptionalAction, default=True, help="more SFT instead")
    parser.add_argument("--log-every", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(seed, args, Path(folder)))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2), "utf-8")
    print("| seed | after SFT | after GRPO | gain | CPU | more SFT instead |\n| --- | --- | --- | --- | --- | --- |")
    for result in results:
        before, after = result["sft"]["success"], result["grpo"]["success"]
        gain, seconds = 100 * (after - before), result["cpu_seconds"]
        control = f"{result['more_sft']['success']:.1%}" if "more_sft" in result else ""
        print(f"| {result['seed']} | {before:.1%} | {after:.1%} | {gain:+.1f} | {seconds} s | {control} |")


if __name__ == "__main__":
    main()
