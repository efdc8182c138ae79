"""Is the demo's lift real? Its seeds, each beside its controls: `mrlm prove --config demo`, several seeds at once.

    python benchmarks/demo.py --seeds 0 1 2 3 4 --jobs 2 --output runs/bench_demo

`mrlm_train/commands/prove.py` says what the controls are; one thread a seed. `--fresh` adds one that supposes what the
demo supposes nobody has: SFT, for the same CPU seconds, on worked solutions that it has never seen.

What is done is kept in the output folder and not done again. Prints the table of `benchmarks/README.md`.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from mrlm_train.commands import demo, evaluate, prove
from mrlm_train.commands.collect import collect_experts
from mrlm_train.experiment import config, run_directory
from mrlm_train.experiment import train as training
from mrlm_train.inference import policy

PROBLEMS = 500


def load(seed: int, folder: str) -> config.RunConfig:
    """The demo's configuration in a folder."""
    return demo.prepared(Path(folder), seed)


def fresh(seed: int, folder: Path, seconds: float) -> None:
    """SFT continued on worked solutions that it has never seen; `fresh.json` has its success on the test problems."""
    solutions = folder / "fresh.jsonl"
    collect_experts(demo.ENVIRONMENT, 64 * 2500, solutions, seed=demo.DEMONSTRATION_SEED + seed + 220)
    longer = {"stop_at_success": 2.0, "max_steps": 100_000, "save_strategy": "false", "eval_steps": 1_000_000}
    settings = [f"stages.0.training.{key}={value}" for key, value in longer.items()]
    start = folder / "trained" / "stage-1-sft" / "final"
    stage = demo.load(folder / "trained", seed, [*settings, f"stages.0.sft.episodes={solutions}"]).stages[0]
    stage = replace(stage, model=replace(stage.model, model_name_or_path=str(start)), output_dir=str(folder / "fresh"))
    final = training.run(stage, callbacks=[prove.StopAfter(seconds)])
    toy = policy.make(policy.load_model(str(final), device="cpu"), policy.load_tokenizer(str(final)))
    figures, _ = evaluate.run(toy, [demo.ENVIRONMENT], PROBLEMS, "test", demo.REPLIES)
    run_directory.write_json(folder / "fresh.json", {"test": figures["success"]})


def main() -> None:
    """Run the seeds, each in a process of its own, then print the table."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments.add_argument("--jobs", type=int, default=1, help="seeds at once, one thread each")
    arguments.add_argument("--output", type=Path, default=Path("runs/bench_demo"))
    arguments.add_argument("--fresh", action="store_true", help="add the control of endless worked solutions")
    args = arguments.parse_args()
    torch.set_num_threads(1)

    def start(seed: int) -> None:
        command = [sys.executable, __file__, "--seeds", str(seed), "--output", str(args.output)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command + ["--fresh"] * args.fresh, env=environment, check=True, stdout=subprocess.DEVNULL)

    if len(args.seeds) > 1:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(start, args.seeds))
    found = prove.run(load, args.output, args.seeds, PROBLEMS)
    folder = args.output / f"seed-{args.seeds[0]}"
    if args.fresh and len(args.seeds) == 1 and not (folder / "fresh.json").is_file():
        fresh(args.seeds[0], folder, found["runs"]["trained"][0]["cpu_seconds"])


if __name__ == "__main__":
    main()
