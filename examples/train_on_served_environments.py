"""Train against a fleet of `mrlm serve`: environments run on other machines, training notices nothing.

    python examples/train_on_served_environments.py                              # starts a server here
    mrlm serve --environments math --workers 4 --allow-kwargs kinds,difficulty   # on each machine of the fleet, then
    python examples/train_on_served_environments.py --address a:25051,b:25051

A step is taken exactly once whatever is lost on the way, and an episode whose server dies goes on on another one
(docs/serving.md). The same seed gives the same episode locally and remotely. A trainer in another framework does the
same through Gymnasium: jax_reinforce.py.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import tyro

from mrlm_train import GRPOConfig, GRPOTrainer


@contextmanager
def local_server() -> Iterator[str]:
    """`mrlm serve` on this machine, on a free port; its first line says where it listens."""
    command = [sys.executable, "-m", "mrlm_envs.serving", "--environments", "math", "--port", "0"]
    parent = {**os.environ, "MRLM_SERVE_PARENT": str(os.getpid())}  # it ends with this process
    allowed = ["--allow-kwargs", "kinds,difficulty"]
    with subprocess.Popen([*command, *allowed], stdout=subprocess.PIPE, text=True, env=parent) as server:
        try:
            yield server.stdout.readline().split()[2]  # "mrlm serve: 127.0.0.1:40001 serves mrlm/Math-v0"
        finally:
            server.terminate()


def train(address: str, model: str, learning_rate: float, max_steps: int, output_dir: str) -> None:
    sums = {"kinds": ["addition"], "difficulty": [1, 1], "system_prompt": ""}
    trainer = GRPOTrainer(
        model=model,
        envs={"id": "mrlm/Math-v0", "kwargs": sums, "address": address},  # `address` is all it takes
        args=GRPOConfig(
            output_dir=output_dir,
            learning_rate=learning_rate,
            max_steps=max_steps,
            num_generations=4,
            per_device_train_batch_size=16,
            max_completion_length=24,
            beta=0.0,
            logging_steps=1,
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    print(f"{len(trainer.episodes)} episodes of the last step were played on {address}")


def main(
    address: str | None = None,
    model: str = "tiny",
    learning_rate: float = 3e-4,
    max_steps: int = 3,
    output_dir: str = "runs/served",
):
    if address is not None:
        train(address, model, learning_rate, max_steps, output_dir)
        return
    with local_server() as own:
        train(own, model, learning_rate, max_steps, output_dir)


if __name__ == "__main__":
    tyro.cli(main)
