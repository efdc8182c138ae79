"""What `mrlm train --config` does, from Python: read a YAML file, change settings, train.

    python examples/train_from_config.py
    python examples/train_from_config.py --config examples/configs/math_sft_then_ppo.yaml
    python examples/train_from_config.py --set training.learning_rate=1e-4 --set training.batch_size=32

A wrong key or value is one line that names the file, the key and the nearest right one, before anything is loaded.
"""

from pathlib import Path
from typing import Annotated

import tyro

from mrlm_train.experiment import config as configuration
from mrlm_train.experiment import train

CONFIG = Path(__file__).with_name("configs") / "math_grpo.yaml"


def main(
    config: Path = CONFIG,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    max_steps: int | None = None,
    output_dir: str | None = None,
):
    changes = [*set, *([] if max_steps is None else [f"training.max_steps={max_steps}"])]
    run = configuration.load(config, changes, output_dir)
    print(f"{run.algorithm} on {', '.join(env.id for env in run.envs)} into {run.output_dir}")
    final = train.run(run)
    print(f"the model is in {final}; measure it with: mrlm eval --model {final} --environment math")


if __name__ == "__main__":
    tyro.cli(main)
