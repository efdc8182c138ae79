"""`mrlm prove`: is the lift of a training real? The training a configuration describes, beside its controls.

For each seed, from the policy with which the last stage begins (of a run without stages: the model itself):

- `trained`: as configured;
- `untrained`: that policy as it is;
- `random rewards` and `shuffled rewards` (GRPO and PPO): the same steps, with each batch's rewards drawn from 0 and 1,
  or permuted over its episodes, so that they say nothing ("Spurious Rewards", arXiv:2506.10947). Where `credit` is
  `branch` or `solver`, which say something beside the rewards, these two take `episode`;
- `more SFT` (where an SFT stage came before): that stage continued for the CPU seconds that the training took.

All are evaluated on the same tasks of the test split, greedily. A run that is finished is not run again: its result is
in the output folder. `prove.json` has every figure, `prove.png` the plot.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from mrlm_train.episodes.record import Episode
from mrlm_train.experiment import checkpoints, run_directory
from mrlm_train.experiment import train as training
from mrlm_train.experiment.config import ConfigError, RunConfig
from mrlm_train.grpo import GRPOTrainer
from mrlm_train.inference import policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.evaluation import evaluate

Load = Callable[[int, str], RunConfig]
"""`(seed, output_dir) -> configuration`."""

# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom; the normal distribution's beyond.
_T = (
    *(12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13),
    *(2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05),
)
_Z = 1.96


def run(load: Load, output: Path, seeds: Sequence[int], problems: int = 200) -> dict[str, Any]:
    """Train and evaluate whatever is not finished, write `prove.json` and `prove.png`, print the table.

    Args:
        load: Makes the configuration of a seed.
        output: The folder.
        seeds: Of the trainings.
        problems: Test tasks in each environment.

    Returns:
        `runs`: name to the result of each seed; `rows`: name to mean and interval; `sentence`.

    Raises:
        ConfigError: If the output folder is of another configuration, the configuration of several processes, or there
            is no second task to tell an interval.
    """
    if problems < 2:
        raise ConfigError("mrlm prove: --problems must be at least 2, for an interval")
    by_seed = [_one_seed(load, seed, output / f"seed-{seed}", problems) for seed in seeds]
    runs = {name: [results[name] for results in by_seed] for name in by_seed[0]}
    rows = {name: spread([one["value"] for one in found], found[0]["half"]) for name, found in runs.items()}
    found = {"runs": runs, "rows": rows, "sentence": conclusion(runs)}
    run_directory.write_json(output / "prove.json", found)
    draw(runs, rows, output / "prove.png")
    print(f"{table(runs, rows)}\n\n{found['sentence']}\n\nfigures {output / 'prove.json'}, plot {output / 'prove.png'}")
    return found


def _one_seed(load: Load, seed: int, folder: Path, problems: int) -> dict[str, dict[str, Any]]:
    """Name to result of the training and its controls."""
    config = load(seed, str(folder / "trained"))
    stages = config.stages or (config,)
    last = stages[-1]
    if last.distributed is not None:
        raise ConfigError("mrlm prove trains in one process; remove 'distributed' from the configuration")

    _refuse_changes(folder, {"problems": problems, **checkpoints.flat({**config.raw, "output_dir": None})})

    def result(name: str, train: Callable[[], str | Path]) -> dict[str, Any]:
        path = folder / f"{name.replace(' ', '_')}.json"
        if not path.is_file():
            parts = path.with_suffix(".parts.json")  # CPU seconds of runs that were interrupted, too
            spent = json.loads(parts.read_text("utf-8")) if parts.is_file() else 0.0
            before = time.process_time()
            try:
                model = train()
            finally:
                spent += time.process_time() - before
                run_directory.write_json(parts, spent)
            measured = _evaluate(last, str(model), problems)
            run_directory.write_json(path, {**measured, "model": str(model), "cpu_seconds": round(spent, 1)})
        return json.loads(path.read_text("utf-8"))

    def again(stage: RunConfig, name: str, *callbacks: TrainerCallback) -> Path:
        model = replace(stage.model, model_name_or_path=start)
        return _resumed(replace(stage, model=model, output_dir=str(folder / name)), callbacks)

    # the stages before the last are the policy that everything starts from
    *_, start = (last.model.model_name_or_path, *map(str, _earlier(config)))
    trained = result("trained", lambda: again(last, "trained-last") if config.stages else _resumed(config))
    if start == "tiny":
        start = str(folder / ("trained-last" if config.stages else "trained") / "tiny")
    results = {"untrained": result("untrained", lambda: start), "trained": trained}
    if last.algorithm in ("grpo", "ppo"):
        for name, change in (("random rewards", randomly), ("shuffled rewards", shuffled)):
            with rewards(change):
                results[name] = result(name, lambda name=name: again(last, name.replace(" ", "-")))
    if config.stages and (sft := [stage for stage in stages[:-1] if stage.algorithm == "sft"]):
        settings = {"max_steps": 1_000_000, "save_strategy": "no", "eval_strategy": "no"}
        longer = replace(
            sft[-1], arguments={**sft[-1].arguments, **settings}, stop_at_success=None, early_stopping_patience=None
        )
        stop = StopAfter(trained["cpu_seconds"])
        results["more SFT"] = result("more SFT", lambda: again(longer, "more-sft", stop))
    return results


def _refuse_changes(folder: Path, now: dict[str, Any]) -> None:
    """Keep what the results of a folder are of; refuse results of something else."""
    path = folder / "settings.json"
    if not path.is_file():
        run_directory.write_json(path, now)
    if changed := checkpoints.difference(json.loads(path.read_text("utf-8")), now):
        raise ConfigError(
            f"mrlm prove: the results in {folder} are of another run: {changed}; give another --output, or remove that "
            "folder"
        )


def _earlier(config: RunConfig) -> Iterator[Path]:
    """Train all stages but the last."""
    if len(config.stages) > 1:
        earlier = [replace(stage, model=replace(stage.model, merge=True)) for stage in config.stages[:-1]]
        yield from training.run_stages(replace(config, stages=tuple(earlier)), resume=True)


def _resumed(config: RunConfig, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train, going on where an interrupted run was."""
    latest = "latest" if checkpoints.latest(Path(config.output_dir)) is not None else None
    return training.run(config, latest, callbacks)


def _evaluate(config: RunConfig, model: str, problems: int) -> dict[str, Any]:
    settings, section = config.arguments, config.model
    tokens = settings.get("max_completion_length", 256)
    sampling = Sampling(
        temperature=0.0,
        max_turn_tokens=settings.get("max_turn_tokens") or tokens,
        max_episode_tokens=tokens,
        max_turns=settings.get("max_turns"),
    )
    actor = policy.make(  # addressed as in the training
        model,
        policy.load_tokenizer(section.tokenizer_name_or_path or model, section.chat_template),
        chat_template_kwargs=settings.get("chat_template_kwargs") or section.chat_template_kwargs,
        system_prompt=settings.get("system_prompt"),
    )
    found = evaluate(actor, config.eval_envs or config.envs, problems, "test", sampling)
    metric = "reward" if found["success"] is None else "success"
    low, high = found[f"{metric}_interval"]
    return {"metric": metric, "value": found[metric], "half": (high - low) / 2, "n": found["n"]}


def randomly(episodes: list[Episode], rng: np.random.Generator) -> None:
    """Rewards of 0 and 1 by the toss of a coin, at the end of each episode."""
    _pay(episodes, rng.integers(2, size=len(episodes)))


def shuffled(episodes: list[Episode], rng: np.random.Generator) -> None:
    """The batch's returns permuted over its episodes, each at the end of its episode."""
    _pay(episodes, rng.permutation([episode.reward for episode in episodes]))


def _pay(episodes: list[Episode], returns: Iterable[float]) -> None:
    for episode, paid in zip(episodes, returns):
        episode.turn_rewards = [0.0] * (len(episode.turn_rewards) - 1) + [float(paid)]


@contextmanager
def rewards(change: Callable[[list[Episode], np.random.Generator], None]) -> Iterator[None]:
    """Within it, GRPO and PPO learn from changed rewards; what is evaluated and logged is not changed."""
    collect = GRPOTrainer.collect

    def changed(self: GRPOTrainer, rows: list[dict[str, Any]]) -> list[Episode]:
        episodes = collect(self, rows)
        played = [episode for episode in episodes if episode.turn_rewards]
        change(played, np.random.default_rng([self.args.seed, self.state.global_step]))
        if self.args.credit in ("branch", "solver"):  # terms that are not of these rewards, so nothing changes them
            print(
                f"mrlm: credit {self.args.credit} reads more than rewards; this control takes episode", file=sys.stderr
            )
            self.args.credit = "episode"
        return episodes

    GRPOTrainer.collect = changed
    try:
        yield
    finally:
        GRPOTrainer.collect = collect


class StopAfter(TrainerCallback):
    """Ends training after a number of CPU seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.end = time.process_time() + self.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when the time is up."""
        control.should_training_stop |= time.process_time() > self.end


def spread(values: Sequence[float], half: float) -> tuple[float, float]:
    """Mean over the seeds and half of its 95 % interval; of one seed, `half`."""
    if len(values) == 1:
        return values[0], half
    quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else _Z
    return statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))


def conclusion(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The sentence that follows from the runs."""
    unit, scale = (" points", 100) if runs["trained"][0]["metric"] == "success" else ("", 1)
    beaten, equal = [], []
    for name, results in runs.items():
        if name != "trained":
            values = [one["value"] - other["value"] for one, other in zip(runs["trained"], results)]
            lift, half = spread(values, math.hypot(runs["trained"][0]["half"], results[0]["half"]))
            figures = ", ".join(f"{scale * value:+.1f}" for value in (lift, lift - half, lift + half))
            (beaten if lift > half else equal).append(f"{name} ({figures}{unit})")
    head = "Trained against each run, with the 95 % interval: "
    if equal and equal[0].startswith("untrained"):
        return f"{head}there is no lift to explain over {equal[0]}."
    parts = [f"is not explained by {' or '.join(beaten[1:])}"] if beaten[1:] else []
    parts += [f"is explained, as far as these runs can tell, by {' or '.join(equal)}"] if equal else []
    return f"{head}the lift over {beaten[0]} {' and '.join(parts) or 'has no control beside it'}."


def table(runs: dict[str, list[dict[str, Any]]], rows: dict[str, tuple[float, float]]) -> str:
    """A row a run, in Markdown."""
    lines = [f"| {runs['trained'][0]['metric']} | mean | 95 % | by seed | CPU s |", "| --- | ---: | --- | --- | ---: |"]
    for name, (mean, half) in rows.items():
        seeds = ", ".join(f"{result['value']:.3f}" for result in runs[name])
        spent = statistics.fmean(result["cpu_seconds"] for result in runs[name])
        lines.append(f"| {name} | {mean:.3f} | {mean - half:.3f} to {mean + half:.3f} | {seeds} | {spent:.0f} |")
    return "\n".join(lines)


def draw(runs: dict[str, list[dict[str, Any]]], rows: dict[str, tuple[float, float]], path: Path) -> None:
    """Draw each run's mean, interval and seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 * len(rows) + 1), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for place, (name, (mean, half)) in enumerate(reversed(rows.items())):
        color = "#1f6fb4" if name == "trained" else "#8a8f98"
        axis.errorbar(mean, place, xerr=half, fmt="o", color=color, capsize=4)
        axis.plot([result["value"] for result in runs[name]], [place] * len(runs[name]), "|", color=color, alpha=0.6)
    axis.set_yticks(range(len(rows)), list(reversed(rows)))
    axis.set_xlabel(f"{runs['trained'][0]['metric']} on the test split, mean and 95 % interval over seeds")
    figure.savefig(path)
