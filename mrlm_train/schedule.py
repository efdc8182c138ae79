"""The plan of a GRPO or PPO run: how many updates it has, which tasks in which order, when it may be saved."""

from __future__ import annotations

import math
import warnings
from typing import Any

from datasets import Dataset

from mrlm_train.rollout.pool import EnvPool
from mrlm_train.rollout.runner import training_tasks


def task_rows(args: Any, pool: EnvPool) -> Dataset:
    """The tasks of the whole run, one row each (`entry`, `seed`), drawn from `args.seed`; sets `args.max_steps`.

    Raises:
        ValueError: The run would be over before its first step; TRL would train zero steps without a word.
    """
    assert args.generation_batch_size and args.num_generations and args.steps_per_generation  # filled in by TRL
    per_generation = args.generation_batch_size // args.num_generations
    micro_steps = args.steps_per_generation * args.num_iterations  # that one generation feeds
    updates = micro_steps / args.gradient_accumulation_steps  # a generation
    if args.max_steps <= 0:
        sizes = pool.num_tasks
        is_alone = args.num_generations == 1
        turns = [pool.trained_agents(index) if is_alone else 1 for index in range(len(sizes))]  # rows a task
        known = [size * rows for size, rows in zip(sizes, turns, strict=True) if size is not None]
        batch = per_generation * args.gradient_accumulation_steps / args.steps_per_generation  # tasks of an update
        if updates < 1:
            batch = per_generation / updates
        epoch = sum(known) if len(known) == len(sizes) else batch
        args.max_steps = int(args.num_train_epochs * epoch / per_generation * updates)
        if args.max_steps < 1:
            raise ValueError(
                f"{args.num_train_epochs:g} epochs of {epoch:g} tasks do not fill one batch of {batch:g} tasks "
                f"({batch * args.num_generations:g} episodes in groups of {args.num_generations}); lower "
                "per_device_train_batch_size or gradient_accumulation_steps, or raise num_train_epochs"
            )
    generations = math.ceil(args.max_steps / updates)
    picks, seeds = training_tasks(pool, generations * per_generation, args.seed)
    if args.num_generations == 1:  # without groups, a game still gives an episode an agent
        rows = [task for task in zip(picks, seeds, strict=True) for _ in range(pool.trained_agents(task[0]))]
        picks, seeds = map(list, zip(*rows[: len(picks)], strict=True))
    return Dataset.from_dict({"prompt": [""] * len(picks), "entry": picks, "seed": seeds})


def steps_between_generations(args: Any) -> int:
    """How many updates lie between two steps at which a generation ends; 1 for a trainer that plays none."""
    micro_steps = (getattr(args, "steps_per_generation", None) or 1) * getattr(args, "num_iterations", 1)
    return math.lcm(micro_steps, args.gradient_accumulation_steps) // args.gradient_accumulation_steps


def save_between_generations(args: Any) -> None:
    """Round `save_steps` up to whole generations: in mid-generation TRL's buffer is not saved and a resume differs.

    Where the best model is kept, `eval_steps` too: what an evaluation finds best must be saved at that step.
    """
    window = steps_between_generations(args)
    if args.eval_strategy == "steps" and (args.save_strategy == "best" or args.load_best_model_at_end):
        window = _round_up(args, "eval_steps", window)
    if args.save_strategy == "steps":
        _round_up(args, "save_steps", window)


def _round_up(args: Any, name: str, window: int) -> int:
    """Round a setting up to a multiple of `window`, and say so; returns it."""
    steps = getattr(args, name)
    steps = math.ceil(steps * args.max_steps) if steps < 1 else int(steps)  # below 1, a share of the run
    rounded = -(-steps // window) * window
    if rounded != steps:
        served = steps_between_generations(args)
        warnings.warn(f"{name} is now {rounded}, a multiple of {window}: a batch serves {served} steps", stacklevel=4)
    setattr(args, name, rounded)
    return rounded
