"""Checkpoints that are complete, or do not count.

A checkpoint is complete when its last file, `checkpoint.json`, is there and every file has the size that it lists. It
is written when all processes are done and all bytes are on the disk; older checkpoints are removed only after that.
`experiment/checkpoints.py` decides which run a checkpoint belongs to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from mrlm_train.episodes.record import whole_file

FILE = "checkpoint.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or resumed; the message is one line."""


class WholeCheckpoints:
    """A mixin before a `Trainer`: its checkpoints are complete, or do not count.

    Attributes:
        run: The settings that identify the run (`experiment.checkpoints.identity`); None outside `mrlm train`.
    """

    run: Mapping[str, Any] | None = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        args, accelerator = trainer.args, trainer.accelerator
        parent = Path(trainer._get_output_dir(trial=trial))
        folder = parent / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            if args.should_save:
                (folder / FILE).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            accelerator.wait_for_everyone()
            if args.should_save:
                tokens = getattr(self, "_total_train_tokens", None)
                _complete(folder, {"processes": accelerator.num_processes, "tokens": tokens, "run": self.run})
        except Exception as error:  # a full disk raises a different one in torch, safetensors and the system
            if args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(_failure(folder, error)) from error
        finally:
            args.save_total_limit = limit
        if args.should_save and limit:
            for other in _folders(parent):
                if other != folder and fault(other) is not None:
                    shutil.rmtree(other, ignore_errors=True)  # a killed run left it
            best = trainer.state.best_model_checkpoint
            rotate_checkpoints(str(parent), limit, best_model_checkpoint=best, use_mtime=True)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """`save_strategy: best` saves what this finds best, and nothing else: not even what Ctrl-C asked for."""
        is_asked_for = self.control.should_save  # type: ignore[attr-defined]
        return super()._determine_best_metric(metrics, trial) or is_asked_for  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and (Path(checkpoint) / FILE).is_file():
            tokens = json.loads((Path(checkpoint) / FILE).read_text("utf-8")).get("tokens")
            if tokens is not None:
                self._total_train_tokens = tokens  # TRL counts tokens for the metrics, but does not save them


def _complete(folder: Path, written: Mapping[str, Any]) -> None:
    """Flush every file to the disk, then write `checkpoint.json`: their sizes, and what identifies the run."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    with whole_file(folder / FILE) as file:
        json.dump({"files": sizes, **written}, file, indent=2)


def _failure(folder: Path, error: Exception) -> str:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    kept = latest(folder.parent)
    survives = "there is no earlier one" if kept is None else f"{kept.name} is complete (--resume latest)"
    free = shutil.disk_usage(folder.parent).free
    return f"{folder} could not be written: {said} ({free / 2**20:,.0f} MiB free there); {survives}"


def fault(folder: Path) -> str | None:
    """Why a checkpoint is incomplete, or None."""
    try:
        listed = json.loads((folder / FILE).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no {FILE}, which is written last"
    for name, size in listed.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} has {'gone' if found is None else f'{found} bytes'}, {size} bytes were written"
    return None


def latest(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    return max((path for path in _folders(folder) if fault(path) is None), key=_step, default=None)


def set_aside(resumed: Path, parent: Path) -> list[str]:
    """Rename the complete checkpoints beyond the one that a run goes on from: they are of the branch that it leaves.

    Returns:
        Their names before.
    """
    if resumed.resolve().parent != parent.resolve():
        return []
    later = [path for path in _folders(parent) if _step(path) > _step(resumed) and fault(path) is None]
    for path in later:
        aside = path.with_name(f"replaced-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return sorted(path.name for path in later)


def _folders(parent: Path) -> Iterator[Path]:
    for path in parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdigit():
            yield path


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
