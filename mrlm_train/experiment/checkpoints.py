"""Which run a checkpoint belongs to, so that another run does not continue it by mistake.

`checkpoint_files.py` writes checkpoints and decides whether they are complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrlm_train.checkpoint_files import FILE, CheckpointError, fault, latest, set_aside

__all__ = ["CheckpointError", "check", "difference", "fault", "flat", "identity", "latest", "set_aside"]

# What may differ in a resumed run: where and how often it reports, how long it goes on, who does the work.
_FREE_SECTIONS = ("output_dir", "experiment_name", "distributed", "eval_envs")
_FREE_SETTINGS = (
    *("max_steps", "num_epochs", "num_train_epochs", "early_stopping_patience", "stop_at_success"),
    *("disable_tqdm", "report_to"),
    *("logging_", "save_", "eval_", "hub_", "push_to_hub", "load_best_model_at_end", "metric_for_best_model"),
    *("run_name", "dataloader_", "ddp_", "rows", "env_threads", "step_timeout", "max_invalid_share"),
)


def identity(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, by dotted name, that decide what a training computes."""
    reads_file = any((raw.get(name) or {}).get("episodes") for name in ("sft", "dpo"))
    if not raw.get("envs") and not reads_file:  # it trains in `eval_envs`
        raw = {**raw, "envs": raw.get("eval_envs"), "eval_envs": None}
    return {key: value for key, value in flat(raw).items() if not _is_free(key)}


def _is_free(key: str) -> bool:
    section, _, rest = key.partition(".")
    if key in ("distributed.mixed_precision", "distributed.gradient_accumulation_steps"):
        return False
    if section == "envs":
        return rest.partition(".")[2].startswith("address")
    return section in _FREE_SECTIONS or (section != "model" and rest.startswith(_FREE_SETTINGS))


def flat(raw: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    if isinstance(raw, Mapping):
        items: Any = raw.items()
    elif isinstance(raw, list):
        items = enumerate(raw)
    else:
        return {prefix: raw}
    return {key: value for name, part in items for key, value in flat(part, f"{prefix}.{name}".lstrip(".")).items()}


def check(folder: Path, run: Mapping[str, Any], processes: int) -> None:
    """Refuse a checkpoint that this run cannot go on from.

    Args:
        folder: the checkpoint.
        run: of `identity`.
        processes: how many train now.

    Raises:
        CheckpointError: In one line.
    """
    if (reason := fault(folder)) is not None:
        raise CheckpointError(f"--resume {folder}: not a complete checkpoint: {reason}")
    written = json.loads((folder / FILE).read_text("utf-8"))
    if written["processes"] != processes:
        raise CheckpointError(
            f"--resume {folder}: {written['processes']} processes have written it, {processes} would go on; "
            f"set distributed.num_processes to {written['processes']}"
        )
    before = written["run"] or run
    if not any(key.startswith("envs.") for key in before):  # of a version that did not count `eval_envs`
        run = {key: value for key, value in run.items() if not key.startswith("envs.")}
    if changed := difference(before, run):
        raise CheckpointError(
            f"--resume {folder}: it is of another run: {changed}; resume with that run's own configuration, or start a "
            "new run with another --output"
        )


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting by name that differs, with both its values; "" where none does. `before` has been JSON."""
    now = json.loads(json.dumps(now))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key, 'unset')} and is {now.get(key, 'unset')}"
    return ""
