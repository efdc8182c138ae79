"""Live dashboards: `training.report_to`, and `mrlm train --dashboard`, which is Trackio on this machine."""

import importlib.util

from mrlm_train.experiment.config import RunConfig

EXTRAS = ("tensorboard", "trackio", "wandb")  # each also the name of its package
PROJECT = "mrlm"
# Settings of --dashboard. Without the last, the Trainer would publish the finished run on the Hub.
DASHBOARD = (
    "training.report_to=trackio",
    f"training.project={PROJECT}",
    "training.trackio_static_space_id=false",
)


def check(config: RunConfig) -> None:
    """Refuse a tracker that is not installed, before anything is loaded.

    Raises:
        ModuleNotFoundError: In one line that says how to install it.
    """
    for stage in config.stages or (config,):
        named = stage.arguments.get("report_to") or ()
        for name in [named] if isinstance(named, str) else named:
            if name in EXTRAS and importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(f'training.report_to: {name} is not installed; pip install "mrlm[{name}]"')


def show() -> None:
    """Serve Trackio's page from a thread of this process, and open it in a browser."""
    import trackio  # pyright: ignore[reportMissingImports]

    trackio.show(project=PROJECT, block_thread=False)
