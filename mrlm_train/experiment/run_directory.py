"""What a training run leaves on disk: `config.yaml`, `metrics.jsonl`, `episodes/`, `checkpoint-*`, `final/`.

Nothing is half-written: files are written under a temporary name and renamed; `metrics.jsonl` grows by whole lines
and is cut back to the checkpoint's step on resume.
"""

import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from transformers import ProgressCallback, TrainerCallback, TrainerState

from mrlm_train.episodes.record import whole_file

Logs = dict[str, Any] | None
ENV_FILE = "mrlm.json"  # in a model folder: the environments it was trained on


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_config(folder: Path, raw: dict[str, Any]) -> None:
    """Write the resolved configuration."""
    with whole_file(folder / "config.yaml") as file:
        yaml.safe_dump(raw, file, sort_keys=False, allow_unicode=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of an earlier run; {} without one."""
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}


def write_environments(model_folder: Path, envs: Iterable[Any], system_prompt: str | None = None) -> None:
    """Record in a model folder which environments, with which arguments, the model was trained on.

    A `system_prompt` that replaced theirs is recorded as the argument of that name, which all of ours have.
    """
    ours = {} if system_prompt is None else {"system_prompt": system_prompt}
    entries = [{"id": env.id, "kwargs": env.kwargs | (ours if env.id.startswith("mrlm/") else {})} for env in envs]
    try:
        write_json(model_folder / ENV_FILE, {"envs": entries})
    except TypeError:  # arguments that are Python objects cannot be recorded; the ids can
        write_json(model_folder / ENV_FILE, {"envs": [{"id": entry["id"], "kwargs": {}} for entry in entries]})


def read_environments(model: str) -> dict[str, dict[str, Any]]:
    """Environment id to kwargs, as recorded in a model folder by the training that wrote it; {} without a record.

    The split is left out: what a model was trained on is not what it should be asked.
    """
    path = Path(model) / ENV_FILE
    if not path.is_file():
        return {}
    found = {entry["id"]: entry.get("kwargs", {}) for entry in json.loads(path.read_text("utf-8"))["envs"]}
    return {name: {key: value for key, value in kwargs.items() if key != "split"} for name, kwargs in found.items()}


class MetricsFile(TrainerCallback):
    """Appends every log of the Trainer to `metrics.jsonl` as `{"step": …, **metrics}`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Keep what the checkpoint has seen, drop what came after it."""
        if not state.is_world_process_zero:
            return
        has_past = self.path.is_file() and state.global_step > 0
        lines = self.path.read_text("utf-8").splitlines() if has_past else []
        with whole_file(self.path) as file:
            file.writelines(line + "\n" for line in lines if _step_of(line) <= state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs = None, **kwargs: Any) -> None:
        """Append one line."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        row = {"step": state.global_step, **{key: _finite(value) for key, value in logs.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line cut by a crash


def _finite(value: Any) -> Any:
    """JSON has no NaN: a metric without a value is null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Console(ProgressCallback):
    """The Trainer's progress bar, with a few figures beside it; without a terminal, a line now and then."""

    SHOWN: ClassVar[tuple[str, ...]] = (
        *("loss", "reward", "success", "entropy", "completions/mean_length", "tokens_per_second", "invalid"),
        *("eval_loss", "eval_reward", "eval_success"),
    )
    SHORT: ClassVar[dict[str, str]] = {"completions/mean_length": "tokens", "tokens_per_second": "tok/s"}
    LINE_SECONDS = 10.0

    def __init__(self) -> None:
        super().__init__()
        self._figures: dict[str, str] = {}
        self._last_line = -math.inf

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs = None, **kwargs: Any) -> None:
        """Show the newest figures."""
        if not logs or "train_runtime" in logs:
            return
        for key in self.SHOWN:
            if isinstance(logs.get(key), int | float):
                self._figures[key] = f"{self.SHORT.get(key, key.replace('_', ' '))} {logs[key]:.4g}"
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if sys.stderr.isatty():
            self.training_bar.set_postfix_str(", ".join(self._figures.values()))
        elif time.monotonic() - self._last_line > self.LINE_SECONDS or state.global_step >= state.max_steps:
            self._last_line = time.monotonic()
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}: {', '.join(self._figures.values())}")
