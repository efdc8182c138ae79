"""`mrlm demo`: the toy policy learns two-digit addition, from nothing, on one core, with nothing to download.

Demonstrations are scarce and a verifier is not: SFT on a few hundred worked solutions of `mrlm/Math-v0` teaches the
form and part of the facts, and then stops helping however long it goes on; GRPO on the endless stream of problems,
with nothing but the reward for a right answer, finds the rest. Success is greedy, on problems of the test split, which
neither stage ever sees. `benchmarks/README.md` has five seeds and two controls.

The training is `demo.yaml`, a staged run like any other. Its run directory also gets `results.json` and `curve.png`.
"""

import json
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from mrlm_train import tiny
from mrlm_train.commands import evaluate
from mrlm_train.commands.collect import collect_experts
from mrlm_train.episodes.record import Episode
from mrlm_train.experiment import config, run_directory
from mrlm_train.experiment import train as training
from mrlm_train.inference import policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.environments import EnvEntry

FILE = Path(__file__).with_name("demo.yaml")
ENVIRONMENT = EnvEntry("mrlm/Math-v0", {"kinds": ["addition"], "difficulty": [2, 2], "system_prompt": ""})
REPLIES = Sampling(temperature=0.0, max_turn_tokens=32, max_episode_tokens=32)  # as `rollout.max_completion_length`
DEMONSTRATIONS = "demonstrations.jsonl"
DEMONSTRATION_SEED = 1_000_000  # plus the demo's own: other tasks than GRPO begins with, which are drawn from the seed
STYLE: dict[Any, Any] = {
    **{"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": "#e6e8eb"},
    **{"lines.linewidth": 1.2, "lines.markersize": 3.5},
}
STAGES = {"before": "before", "sft": "after SFT", "rl": "after GRPO"}


def run(
    seed: int = 0,
    output: str | Path = "runs/demo",
    resume: bool = False,
    overrides: Sequence[str] = (),
    hidden_size: int = 96,
    num_layers: int = 2,
    demonstrations: int = 220,
    problems: int = 500,
) -> dict[str, Any]:
    """Build the toy, train it stage by stage, evaluate it after each, print the table, write the run directory.

    Args:
        seed: Of weights, problems and sampling.
        output: The run directory; an earlier demo in it is replaced.
        resume: Go on with the interrupted demo in `output`, with its own seed and settings.
        overrides: `key=value` settings over those of `demo.yaml`.
        hidden_size: Width of the toy policy.
        num_layers: Its depth.
        demonstrations: Worked solutions for SFT.
        problems: Problems in each evaluation, on either split.

    Returns:
        What `results.json` holds: `test` and `train`, each with `before`, `sft`, `rl` (shares solved) and `n`;
        `seconds`, `cpu_seconds`, `training_cpu_seconds` (of this session), `test_interval` (95 %), `curve`,
        `samples`, `environment`, `config`, `seed`.

    Raises:
        ValueError: If there is nothing to resume.
        Interrupted: After Ctrl-C, when a checkpoint is on disk.
    """
    folder = Path(output)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as fast as two for a model this small, and much faster when the other core is busy
    try:
        if not resume:
            prepare(folder, seed, hidden_size, num_layers, demonstrations)
        elif not (folder / "config.yaml").is_file():
            raise ValueError(f"--resume: no demo in {output} (it has no config.yaml); start one with: mrlm demo")
        results = _train(load(folder, seed, overrides) if not resume else config.load(folder / "config.yaml"), problems)
    except (training.Interrupted, KeyboardInterrupt) as error:
        where = str(error).partition(";")[0] or "interrupted"
        raise training.Interrupted(f"{where}; go on with: mrlm demo --output {output} --resume") from None
    finally:
        torch.set_num_threads(threads)
    run_directory.write_json(folder / "results.json", results)
    draw_curve(results, folder / "curve.png")
    _show(results, folder)
    return results


def prepare(folder: Path, seed: int, hidden_size: int = 96, num_layers: int = 2, demonstrations: int = 220) -> None:
    """Write what the stages start from: the untrained toy, and a fixed set of the environment's worked solutions."""
    for earlier in ("stage-1-sft", "stage-2-grpo"):
        shutil.rmtree(folder / earlier, ignore_errors=True)
    for part in tiny.build(seed, hidden_size, num_layers):
        part.save_pretrained(folder / "tiny")
    collect_experts(ENVIRONMENT, demonstrations, folder / DEMONSTRATIONS, seed=DEMONSTRATION_SEED + seed)


def prepared(folder: Path, seed: int, overrides: Sequence[str] = ()) -> config.RunConfig:
    """The configuration of a demo in a folder, in which it finds what its stages start from."""
    if not (folder / DEMONSTRATIONS).is_file():
        prepare(folder, seed)
    return load(folder, seed, overrides)


def load(folder: Path, seed: int, overrides: Sequence[str] = ()) -> config.RunConfig:
    """The configuration of a demo in a folder."""
    own = (
        f"seed={seed}",
        f"model.model_name_or_path={folder / 'tiny'}",
        f"stages.0.sft.episodes={folder / DEMONSTRATIONS}",
    )
    return config.load(FILE, (f"output_dir={folder}", *own, *overrides))


def _train(run_config: config.RunConfig, problems: int) -> dict[str, Any]:
    """Train and evaluate; finished stages are not trained again."""
    _quiet()
    folder, wall, cpu = Path(run_config.output_dir), time.perf_counter(), time.process_time()
    results: dict[str, Any] = {"seed": run_config.seed, "test": {}, "train": {}}
    trained, intervals = dict[str, float](), dict[str, list[float]]()
    replies: dict[str, list[Episode]] = {}
    models = training.run_stages(run_config, resume=True)
    for name, title in STAGES.items():
        before = time.process_time()
        model = folder / "tiny" if name == "before" else next(models)
        trained[name] = round(time.process_time() - before, 1)
        for split in ("test", "train"):
            toy = policy.make(policy.load_model(str(model), device="cpu"), policy.load_tokenizer(str(model)))
            figures, played = evaluate.run(toy, [ENVIRONMENT], problems, split, REPLIES)
            results[split] |= {name: figures["success"], "n": figures["n"]}
            if split == "test":
                replies[name], intervals[name] = played, figures["success_interval"]
        print(f"{title}: {results['test'][name]:.1%} of the test problems solved", flush=True)
    return {
        **results,
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "training_cpu_seconds": {name: trained[name] for name in ("sft", "rl")},
        "test_interval": intervals,
        "curve": {
            "sft": _points(folder / "stage-1-sft", "eval_success"),
            "grpo": _points(folder / "stage-2-grpo", "eval_success"),
            "reward": [reward for _, reward in _points(folder / "stage-2-grpo", "reward")],
        },
        "samples": _samples(replies),
        "environment": {"id": ENVIRONMENT.id, "kwargs": ENVIRONMENT.kwargs},
        "config": run_config.raw,
    }


def _points(folder: Path, metric: str) -> list[list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [[row["step"], row[metric]] for row in rows if metric in row]


def _samples(replies: dict[str, list[Episode]]) -> list[dict[str, str]]:
    """The first three test problems that SFT got wrong, with every stage's reply."""
    wrong = [i for i, episode in enumerate(replies["sft"]) if not episode.success][:3]
    said = lambda name, i: {m["role"]: m["content"] for m in replies[name][i].messages[:2]}  # system_prompt is ""
    return [
        {"question": said("sft", i)["user"], **{name: said(name, i)["assistant"] for name in STAGES}} for i in wrong
    ]


def _show(results: dict[str, Any], folder: Path) -> None:
    """Print the table, three transcripts, and where everything is."""
    print(f"\nTwo-digit addition, greedy, seed {results['seed']}")
    print(f"{'problems solved':24}" + "".join(f"{title:>12}" for title in STAGES.values()) + f"{'n':>6}")
    for split, meaning in (("test", "test (never trained on)"), ("train", "train")):
        figures = results[split]
        print(f"{meaning:24}" + "".join(f"{figures[name]:12.1%}" for name in STAGES) + f"{figures['n']:6}")
    if results["samples"]:
        print("\nThe first test problems that SFT alone got wrong:")
    for sample in results["samples"]:
        print(sample["question"] + "".join(f"\n  {title:>10}  {sample[name]}" for name, title in STAGES.items()))
    print(
        f"\n{results['seconds']:.0f} s, {results['cpu_seconds']:.0f} s of CPU. "
        f"Results {folder / 'results.json'}, curve {folder / 'curve.png'}\n"
        f"Try it: mrlm eval --model {folder / 'stage-2-grpo' / 'final'} --environment math"
    )


def draw_curve(results: dict[str, Any], path: Path) -> None:
    """Draw the two stages side by side: success as it grows, and GRPO's reward on the problems it trains on."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    curve, test = results["curve"], results["test"]
    sft, grpo, rewards = [[0, 0.0], *curve["sft"]], [[0, test["sft"]], *curve["grpo"]], curve["reward"]
    widths = [max(1, sft[-1][0]), len(rewards)]
    smooth = [sum(part) / len(part) for i in range(len(rewards)) if (part := rewards[max(0, i - 19) : i + 1])]
    steps = range(1, len(rewards) + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.5), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=widths)
        left.set(title="SFT on worked solutions", ylabel="two-digit sums solved", ylim=(0, 1.03))
        left.plot(*zip(*sft), "o-", color="tab:green", label="training problems, greedy")
        right.set(title="GRPO on the reward alone")
        right.plot(steps, rewards, color="tab:orange", alpha=0.22)
        right.plot(steps, smooth, color="tab:orange", label="reward while training, sampled (mean of 20 steps)")
        right.plot(*zip(*grpo), "o-", color="tab:blue", label="test problems, greedy")
        right.axhline(test["sft"], color="tab:gray", linestyle="--")
        for name, place in (("sft", "top"), ("rl", "bottom")):
            right.text(widths[1], test[name], f"{STAGES[name]} {test[name]:.0%}", ha="right", va=place)
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axis, width, corner in zip((left, right), widths, ("upper left", "lower right")):
            axis.set(xlim=(0, width), xlabel="optimizer steps")
            axis.legend(loc=corner)
        figure.savefig(path)


def _quiet() -> None:
    """Leave the terminal to our own bar."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module="transformers", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*rollout_func.*")
