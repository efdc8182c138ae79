"""From a configuration to a trained model on disk: what `mrlm train` does, in the order in which it does it."""

import dataclasses
import errno
import importlib.util
import inspect
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from mrlm_train import tiny
from mrlm_train.experiment import checkpoints, distributed, run_directory
from mrlm_train.experiment.config import ConfigError, RunConfig, config_class, trainer_class
from mrlm_train.experiment.sections import ModelSection
from mrlm_train.inference.policy import load_model, load_tokenizer, weight_dtype
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.schedule import steps_between_generations
from mrlm_train.trl_hooks import HeadTrainer, shards_parameters, whole_models


class Interrupted(RuntimeError):
    """Ctrl-C during training; a checkpoint has been written."""


def run(config: RunConfig, resume: str | None = None, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train as a configuration says.

    Args:
        config: From `config.load`.
        resume: A checkpoint folder, or "latest" for the newest complete one of the run directory.
        callbacks: Further callbacks of the Trainer, for a run without stages.

    Returns:
        The folder of the trained model: `final/` of the run directory, or of the last stage.

    Raises:
        ConfigError: If a setting does not fit, in one line.
        Interrupted: After Ctrl-C, when the checkpoint is on disk.
    """
    distributed.join(config)
    if config.distributed is not None and distributed.world_size() == 1:
        _say(f"distributed.strategy {config.distributed.strategy}: one process, so it changes nothing")
    if not config.stages:
        return _run_one(config, resume, callbacks)
    if resume not in (None, "latest"):
        raise ConfigError(f"--resume {resume}: with stages only --resume latest; each stage finds its own checkpoint")
    *_, final = run_stages(config, resume is not None)
    return final


def run_stages(config: RunConfig, resume: bool) -> Iterator[Path]:
    """Train the stages of a configuration, each from the previous one's model.

    Args:
        config: With stages.
        resume: Continue the run in the run directory; finished stages are not trained again.

    Yields:
        The model folder of each stage.
    """
    finished = [resume and _is_finished(stage) for stage in config.stages]
    _refuse_changed_start(config, finished)
    if distributed.is_main():
        run_directory.write_config(Path(config.output_dir), config.raw)
    model: Path | None = None
    for number, stage in enumerate(config.stages, start=1):
        if finished[number - 1]:
            model = Path(stage.output_dir) / "final"
            _say(f"stage {number} ({stage.algorithm}) is complete: {model}")
            yield model
            continue
        section = stage.model
        if model is not None:
            section = dataclasses.replace(section, model_name_or_path=str(model), tokenizer_name_or_path=None)
        if number < len(config.stages):  # the next stage starts from whole weights
            section = dataclasses.replace(section, merge=True)
        _say(f"stage {number} of {len(config.stages)}: {stage.algorithm}")
        has_checkpoint = resume and checkpoints.latest(Path(stage.output_dir)) is not None
        try:
            model = _run_one(dataclasses.replace(stage, model=section), "latest" if has_checkpoint else None)
        except Interrupted as error:
            raise Interrupted(f"{error.args[0].partition(';')[0]}; {_how_to_resume(config)}") from None
        yield model


def _is_finished(stage: RunConfig) -> bool:
    """Whether a stage has saved its final model and its length has not been changed since."""
    folder = Path(stage.output_dir)
    return (folder / "final").is_dir() and _length(run_directory.read_config(folder)) == _length(stage.raw)


def _length(raw: dict[str, Any]) -> dict[str, Any]:
    endings = ("max_steps", "num_epochs", "num_train_epochs")
    return {key: value for key, value in checkpoints.flat(raw).items() if key.endswith(endings)}


def _refuse_changed_start(config: RunConfig, finished: list[bool]) -> None:
    for number, (stage, is_finished) in enumerate(zip(config.stages, finished), start=1):
        if not is_finished:
            continue
        settings = (checkpoints.identity(raw) for raw in (run_directory.read_config(Path(stage.output_dir)), stage.raw))
        before, now = ({key: part[key] for key in part if not key.startswith(_unread(stage))} for part in settings)
        if changed := checkpoints.difference(before, now):
            raise ConfigError(
                f"--resume latest: stage {number} ({stage.algorithm}) is complete with other settings: {changed}; "
                "resume with that run's own configuration, or start a new run with another --output"
            )
    for number, (stage, later) in enumerate(zip(config.stages, config.stages[1:]), start=1):
        has_started = finished[number] or checkpoints.latest(Path(later.output_dir)) is not None
        if has_started and not finished[number - 1]:
            raise ConfigError(
                f"--resume latest: stage {number} ({stage.algorithm}) has another length now, but stage {number + 1} "
                "has started from its model; lengthen the last stage only, or use another --output"
            )


def _unread(stage: RunConfig) -> tuple[str, ...]:
    """Beginnings of the settings that a stage shares with others and does not read."""
    reads_file = (stage.raw.get(stage.algorithm) or {}).get("episodes")
    samples = stage.algorithm != "sft" and not reads_file
    return (*(("envs.",) if reads_file else ()), *(() if samples else ("rollout.temperature", "rollout.top_")))


def _run_one(config: RunConfig, resume: str | None, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    folder = Path(config.output_dir)
    checkpoint = _checkpoint(config, resume)
    earlier = checkpoints.latest(folder)
    if resume is None and earlier is not None:
        raise ConfigError(f"{earlier} is from an earlier run: go on with it (--resume latest) or use another --output")
    args = _training_arguments(config)
    distributed.check_alike(config, args)
    with args.main_process_first(local=False, desc="the toy policy"):
        path = _model_path(config, folder)
    trainer = _trainer(config, args, path)
    trainer.run = checkpoints.identity(config.raw)
    _warn_amid_a_generation(checkpoint, args)
    if trainer.accelerator.is_main_process:
        run_directory.write_config(folder, config.raw)
        if checkpoint is not None and (replaced := checkpoints.set_aside(checkpoint, folder)):
            _say(f"what this run goes on from is older than {', '.join(replaced)}: now named replaced-checkpoint-N")
    watch = _RunCallback(config, trainer)
    with watch.interruptible(), _full_disks_reported(folder):
        for callback in (watch, run_directory.MetricsFile(folder), *callbacks):
            trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        if trainer.pop_callback(ProgressCallback) is not None:
            trainer.add_callback(run_directory.Console)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if watch.is_interrupted:
        raise Interrupted(f"interrupted at step {trainer.state.global_step}; {_how_to_resume(config)}")
    if config.eval_envs and args.eval_strategy == "no" and trainer.eval_envs:
        trainer.evaluate()
    final = folder / "final"
    with _full_disks_reported(folder):
        _save(config, trainer, final)
        _name_model(folder / "README.md", config)
    if args.push_to_hub:
        trainer.push_to_hub()
    _say(f"trained model: {final}; metrics: {folder / 'metrics.jsonl'}")
    return final


@contextmanager
def _full_disks_reported(folder: Path) -> Iterator[None]:
    """Report a full disk in one line that names the checkpoint that survives."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        kept = checkpoints.latest(folder)
        survives = "no checkpoint is complete" if kept is None else f"{kept.name} is complete (--resume latest)"
        raise checkpoints.CheckpointError(f"{error.filename or folder}: {error.strerror}; {survives}") from error


def _how_to_resume(config: RunConfig) -> str:
    """The resolved configuration in the run directory includes every `--set` and the directory itself."""
    return f"go on with: mrlm train --config {Path(config.output_dir) / 'config.yaml'} --resume latest"


def _checkpoint(config: RunConfig, resume: str | None) -> Path | None:
    if resume is None:
        return None
    folder = Path(config.output_dir)
    found = checkpoints.latest(folder) if resume == "latest" else Path(resume)
    if found is None:
        raise ConfigError(f"--resume latest: no complete checkpoint in {folder}")
    checkpoints.check(found, checkpoints.identity(config.raw), distributed.world_size())
    return found


def _warn_amid_a_generation(checkpoint: Path | None, args: Any) -> None:
    """The last checkpoint of a run is at `max_steps`, wherever that is; its generation is not saved with it."""
    window = steps_between_generations(args)
    step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step if checkpoint else 0
    if checkpoint is not None and step % window and step != args.max_steps:
        _say(
            f"warning: {checkpoint.name} lies within the {window} steps that a batch serves; the rest of that batch is "
            "played anew, so the run differs from one without a break"
        )


def _training_arguments(config: RunConfig) -> Any:
    """The algorithm's TrainingArguments."""
    cls = config_class(config.algorithm)
    values = dict(config.arguments)
    if config.batch_size is not None:
        values |= _batch(config.batch_size, distributed.world_size(), values)
    values.setdefault("logging_steps", 1)
    values.setdefault("report_to", "none")
    if (config.eval_envs or config.algorithm in ("grpo", "ppo")) and "eval_steps" in values:  # these have envs
        values.setdefault("eval_strategy", "steps")
    is_half = config.model.dtype in ("float16", "fp16")
    if torch.cuda.is_available():
        if is_half and not values.get("bf16"):
            values.setdefault("fp16", True)  # weights stay fp32, autocast computes in fp16
    else:
        if is_half or values.pop("fp16", False):
            _say("float16 needs a GPU, and there is none here: weights and computation are float32")
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            # with use_cpu, Accelerate starts no DeepSpeed; without it, several processes need a backend
            values.setdefault("ddp_backend", "gloo")
        else:
            values.setdefault("use_cpu", True)
    if config.model.chat_template_kwargs and "chat_template_kwargs" in inspect.signature(cls).parameters:
        values.setdefault("chat_template_kwargs", config.model.chat_template_kwargs)
    try:
        return cls(output_dir=config.output_dir, seed=config.seed, **values)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"config {config.path}: {config.algorithm}: {error}") from error


def _batch(size: int, world: int, values: dict[str, Any]) -> dict[str, int]:
    """Per-device batch and accumulation whose product over all processes is `size`."""
    device, steps = values.get("per_device_train_batch_size"), values.get("gradient_accumulation_steps")
    if device is None:
        steps = steps or 1
        device = size // (world * steps)
    elif steps is None:
        steps = size // (world * device)
    if device * steps * world != size or device < 1:
        parts = f"{world} processes, per_device_train_batch_size {device}, gradient_accumulation_steps {steps}"
        raise ConfigError(f"training.batch_size {size} is not the product of {parts}; change one of them")
    return {"per_device_train_batch_size": device, "gradient_accumulation_steps": steps}


def _model_path(config: RunConfig, folder: Path) -> str:
    """The model as a folder or Hub name; the toy policy is built and saved first."""
    name, path = config.model.model_name_or_path, folder / "tiny"
    if name != "tiny":
        return name
    if not (path / "config.json").is_file():
        for part in tiny.build(config.seed):
            part.save_pretrained(path)
    return str(path)


def _trainer(config: RunConfig, args: Any, path: str) -> Any:
    section = config.model
    tokenizer = load_tokenizer(
        section.tokenizer_name_or_path or path,
        section.chat_template,
        revision=(section.revision if section.tokenizer_name_or_path in (None, path) else None) or "main",
        trust_remote_code=section.trust_remote_code,
    )
    extra: dict[str, Any] = {"processing_class": tokenizer}
    if section.lora is not None:
        from peft import LoraConfig

        try:
            extra["peft_config"] = LoraConfig(**{"task_type": "CAUSAL_LM", **section.lora})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config {config.path}: lora: {' '.join(str(error).split())}") from None
    if config.early_stopping_patience is not None:
        extra["callbacks"] = [EarlyStoppingCallback(config.early_stopping_patience)]
    reads_file = bool(getattr(args, "episodes", None))  # SFT and DPO learn from a file or from environments
    if not config.envs and not reads_file:
        raise ConfigError(f"config {config.path}: {config.algorithm} needs environments; add a section 'envs'")
    if config.envs and not reads_file:
        extra["envs"] = list(config.envs)
        _warn_same_rows(config)
    if config.eval_envs:
        extra["eval_envs"] = list(config.eval_envs)
    if config.algorithm == "ppo" and (Path(path) / HeadTrainer.FILE).is_file():
        extra["value_head"] = path  # an adapter's folder is no longer a path when the trainer gets it
    return trainer_class(config.algorithm)(model=_model(config, args, path), args=args, **extra)


def _model(config: RunConfig, args: Any, path: str) -> Any:
    """The path itself, with its loading settings in `args`, or, for an adapter folder, the loaded model."""
    section = config.model
    settings = _given(section, "attn_implementation", "trust_remote_code")
    if section.quantization is not None:
        settings["quantization_config"] = _quantization(section.quantization)
    if (Path(path) / "adapter_config.json").is_file():
        if section.revision is not None:
            raise ConfigError(
                f"model.revision: {path} is an adapter; its adapter_config.json names the base's revision"
            )
        shards = config.distributed is not None and config.distributed.strategy != "ddp"
        if section.lora is not None and (not section.merge or (shards and distributed.world_size() > 1)):
            fix = "remove 'lora' to go on training it" + ("" if shards else ", or set model.merge: true")
            raise ConfigError(f"model {path} is an adapter, and a second one on top would not record it: {fix}")
        place = str(args.device) if section.quantization else "cpu"
        model = load_model(path, section.dtype or "float32", place, is_trainable=True, **settings)
        return model if section.lora is None else model.merge_and_unload()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings["dtype"] = "auto" if section.dtype == "auto" else weight_dtype(section.dtype or "float32", device)
    args.model_init_kwargs = {**settings, **_given(section, "revision"), **(args.model_init_kwargs or {})}
    return path


def _given(section: ModelSection, *names: str) -> dict[str, Any]:
    """The settings of a section that are set, for `from_pretrained`."""
    return {name: value for name in names if (value := getattr(section, name))}


def _quantization(settings: dict[str, Any]) -> Any:
    """The configuration of bitsandbytes, refused where it cannot run."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("model.quantization needs bitsandbytes; install it: pip install bitsandbytes")
    if not torch.cuda.is_available():
        raise ConfigError("model.quantization needs a GPU, and there is none here")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**settings)


def _warn_same_rows(config: RunConfig) -> None:
    """Both splits use all rows of a path or list, so an evaluation on the same one would be on training rows."""
    trained = {_source(env) for env in config.envs} - {None}
    for env in config.eval_envs:
        if _source(env) in trained:
            _say(f"warning: eval_envs and envs read the same rows ({env.id}, tasks: {env.kwargs.get('tasks')})")


def _source(env: EnvEntry) -> str | None:
    tasks = env.kwargs.get("tasks")
    if tasks is None or isinstance(tasks, dict) or (isinstance(tasks, str) and tasks.startswith("hf:")):
        return None
    return json.dumps([env.id, tasks], sort_keys=True)


def _save(config: RunConfig, trainer: Any, final: Path) -> None:
    """The adapter with LoRA, or the whole model (`merge: true`), with tokenizer and the record of environments.

    The folder appears only when it is complete.
    """
    partial = final.with_name(f".{final.name}.partial")
    is_main = trainer.accelerator.is_main_process
    if is_main:
        shutil.rmtree(partial, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if is_main:
        if config.model.merge and (partial / "adapter_config.json").is_file():
            _merge(config, trainer, partial)
        trainer.processing_class.save_pretrained(partial)
        run_directory.write_environments(partial, config.envs, config.arguments.get("system_prompt"))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    trainer.accelerator.wait_for_everyone()


def _name_model(card: Path, config: RunConfig) -> None:
    """TRL's model card names only models on the Hub, and calls every other `None`."""
    if distributed.is_main() and card.is_file():
        names = {
            "[None](https://huggingface.co/None)": f"`{config.model.model_name_or_path}`",
            'model="None"': f'model="{card.with_name("final")}"',
        }
        text = card.read_text("utf-8")
        for nameless, name in names.items():
            text = text.replace(nameless, name)
        card.write_text(text, "utf-8")


def _merge(config: RunConfig, trainer: Any, folder: Path) -> None:
    """Turn an adapter's folder into one with the whole model."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if shards_parameters(trainer):  # this process holds only a shard of it: read it again
        settings = _given(config.model, "revision", "trust_remote_code")
        adapter = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        with whole_models(trainer.args):
            base = load_model(adapter["base_model_name_or_path"], config.model.dtype or "float32", "cpu", **settings)
        model = PeftModel.from_pretrained(base, folder)
    merged = model.merge_and_unload()
    for path in folder.glob("adapter_*"):
        path.unlink()
    merged.save_pretrained(folder)


class _RunCallback(TrainerCallback):
    """Checks the strategy at the start; ends training with a checkpoint on Ctrl-C and at `training.stop_at_success`.

    Attributes:
        is_interrupted: Ctrl-C was pressed.
        is_stopping: the goal is reached.
    """

    def __init__(self, config: RunConfig, trainer: Any) -> None:
        self.config, self.trainer = config, trainer
        self.is_interrupted = self.is_stopping = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to train if the prepared model does not have the strategy that was asked for."""
        distributed.check_strategy(self.config, self.trainer)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when `eval_success`, the share of solved episodes, reaches the goal."""
        goal = self.config.stop_at_success
        if goal is not None and kwargs["metrics"].get("eval_success", 0.0) >= goal:
            self.is_stopping = True
            self._stop(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if any process was interrupted, all of them at the same step."""
        if args.world_size > 1:
            interrupted = torch.tensor(float(self.is_interrupted), device=args.device)
            torch.distributed.all_reduce(interrupted)
            self.is_interrupted = bool(interrupted.item())
        if self.is_interrupted or self.is_stopping:
            self._stop(args, state, control)

    def _stop(self, args: Any, state: Any, control: Any) -> None:
        """At the end of the generation: a resume in its midst would play it again, with another policy."""
        if state.global_step % steps_between_generations(args) == 0 or state.global_step >= state.max_steps:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C end training after this generation, and a second Ctrl-C at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return

        def on_interrupt(number: int, frame: Any) -> None:
            if self.is_interrupted:
                raise KeyboardInterrupt
            self.is_interrupted = True
            _say("interrupted: finishing this batch and writing a checkpoint (Ctrl-C again stops at once)")

        before = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    if distributed.is_main():
        print(f"mrlm: {text}", file=sys.stderr, flush=True)
