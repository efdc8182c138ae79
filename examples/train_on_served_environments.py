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

import tyro

from mrlm_train import GRPOConfig, GRPOTrainer

SUMS = {"kinds": ["addition"], "difficulty": [1, 1], "system_prompt": ""}
SERVE = [sys.executable, "-m", "mrlm_envs.serving", "--environments", "math", "--allow-kwargs", "kinds,difficulty"]


def main(
    address: str | None = None,
    model: str = "tiny",
    learning_rate: float = 3e-4,
    max_steps: int = 3,
    output_dir: str = "runs/served",
):
    server = None
    if address is None:  # a server on a free port of this machine, which ends with this process however that ends
        environment = {**os.environ, "MRLM_SERVE_PARENT": str(os.getpid())}
        server = subprocess.Popen([*SERVE, "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment)
        address = server.stdout.readline().split()[2]  # "mrlm serve: 127.0.0.1:40001 serves mrlm/Math-v0"
    config = GRPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        num_generations=4,
        per_device_train_batch_size=16,
        max_completion_length=24,
        logging_steps=1,
        report_to="none",
    )
    envs = {"id": "mrlm/Math-v0", "kwargs": SUMS, "address": address}  # `address` is all it takes
    trainer = GRPOTrainer(model, envs, config)
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    print(f"{len(trainer.episodes)} episodes of the last step were played on {address}")
    if server is not None:
        server.terminate()


if __name__ == "__main__":
    tyro.cli(main)
