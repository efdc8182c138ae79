"""The processes of a training run: starts them with Accelerate's launcher, checks them, and ends them together.

When `distributed:` asks for several processes and no launcher has started them yet, `mrlm train` runs
`accelerate launch`, and each process runs the same command. Under `accelerate launch` or `torchrun`, `mrlm train` is
already one of the processes. `launch/` holds one Accelerate configuration file for each strategy.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mrlm_train.experiment.checkpoints import flat
from mrlm_train.experiment.config import ConfigError, DistributedSection, RunConfig

LAUNCH = Path(__file__).parents[1] / "launch"
_PARENT = "MRLM_LAUNCHER"  # pid of the `mrlm train` that started this process
_FIRST_ERROR = "MRLM_FIRST_ERROR"  # the file in which the first process to fail says why


def world_size() -> int:
    """The number of processes that the launcher has started for this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the first process, which is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def must_launch(config: RunConfig) -> bool:
    """Whether this command has to start the processes that the configuration asks for."""
    return config.distributed is not None and "LOCAL_RANK" not in os.environ and _asked(config.distributed) > 1


def launch(config: RunConfig, command: Sequence[str]) -> int:
    """Run `mrlm COMMAND` in as many processes as the configuration asks for.

    The processes end when this one does. Ctrl-C is forwarded to them, and the first error is reported in one line.

    Args:
        config: With a `distributed` section.
        command: Arguments of `mrlm`.

    Returns:
        The exit code.

    Raises:
        ConfigError: If the machine has too few devices.
    """
    section = config.distributed
    assert section is not None
    check_devices(section, bool(config.arguments.get("use_cpu")))
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launch_command_parser().parse_args([*_launch_arguments(section), "--module", "mrlm_train.cli", *command])
    args.signals_to_handle = "SIGTERM,SIGHUP,SIGQUIT"  # torch's own handler would give Ctrl-C 30 seconds
    if not os.environ.get("MRLM_TRACEBACK"):
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # a failure is reported below, in one line
    with tempfile.TemporaryDirectory() as folder, _interrupts_passed_on():
        first_error = Path(folder) / "error.json"
        os.environ |= {_PARENT: str(os.getpid()), _FIRST_ERROR: str(first_error)}
        try:
            launch_command(args)
        except ChildFailedError as failed:
            text, code = _why(failed, first_error)
        except SignalException as stopped:
            text, code = str(stopped), 128 + stopped.sigval
        else:
            return 0
        finally:
            del os.environ[_PARENT], os.environ[_FIRST_ERROR]
    print(f"mrlm: {text}", file=sys.stderr)
    return code


def _why(failed: Any, first_error: Path) -> tuple[str, int]:
    """The message and the exit code for torch's `ChildFailedError`."""
    for rank, failure in failed.failures.items():
        if failure.exitcode == -signal.SIGKILL:  # the others fail because of it
            return f"process {rank} was ended by SIGKILL; if nobody did so, memory ran out", 128 + signal.SIGKILL
    if first_error.is_file():
        text, code = json.loads(first_error.read_text("utf-8"))
        return text, code
    rank, failure = failed.get_first_failure()
    code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return f"process {rank} failed with exit code {code}; its output says why", code


def report(text: str, code: int) -> bool:
    """Pass an error to the `mrlm train` that started this process; it prints the first one it gets.

    Returns:
        False if no `mrlm train` started this process.
    """
    path = os.environ.get(_FIRST_ERROR)
    if path is None:
        return False
    with suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
        json.dump([text, code], file)
    return True


def _asked(section: DistributedSection) -> int:
    if section.num_processes is not None:
        return section.num_processes
    import torch

    return max(torch.cuda.device_count(), 1) * section.num_machines


def check_devices(section: DistributedSection, use_cpu: bool) -> None:
    """Refuse more processes on this machine than it has GPUs, or cores if it has no GPU.

    Args:
        section: Says how many processes.
        use_cpu: Whether the run ignores GPUs.

    Raises:
        ConfigError: In one line.
    """
    import torch

    here = _asked(section) // section.num_machines
    gpus = 0 if use_cpu else torch.cuda.device_count()
    cores = max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 2)
    if here > (gpus or cores):
        has = f"{gpus} GPUs" if gpus else f"no GPU and {cores} cores"
        raise ConfigError(
            f"distributed.num_processes asks for {here} processes on this machine, which has {has}; lower it"
        )


def launch_file(section: DistributedSection) -> Path:
    """Accelerate's configuration file: the user's, or ours.

    Raises:
        ConfigError: If there is no file of that name.
    """
    name = section.config_file or f"{section.strategy}.yaml"
    for path in (Path(name), LAUNCH / name) if section.config_file else (LAUNCH / name,):
        if path.is_file():
            return path
    ours = ", ".join(sorted(path.name for path in LAUNCH.glob("*.yaml")))
    raise ConfigError(f"distributed.config_file {name}: no such file, and none of {ours}")


def _launch_arguments(section: DistributedSection) -> list[str]:
    asked = {
        "config_file": launch_file(section),
        "num_processes": _asked(section),
        "num_machines": section.num_machines,
        "machine_rank": section.machine_rank,
        "main_process_ip": section.main_process_ip,
        "main_process_port": section.main_process_port or (0 if section.num_machines == 1 else 29500),
    }
    return [part for name, value in asked.items() if value is not None for part in (f"--{name}", str(value))]


@contextmanager
def _interrupts_passed_on() -> Iterator[None]:
    """Forward Ctrl-C to the processes: it reaches only the launcher, because each process has its own session."""
    import psutil

    def pass_on(number: int, frame: Any) -> None:
        for child in psutil.Process().children():
            child.send_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def join(config: RunConfig) -> None:
    """Prepare a process before it does anything else: tie its life to the launcher's, and set up the strategy.

    Raises:
        ConfigError: If the launcher has started another number of processes than the configuration asks for.
    """
    if os.environ.get(_PARENT, "") == str(os.getppid()):
        _end_with_parent()
    section, asked, fix = config.distributed, _asked_on_command_line(), "launch with --multi_gpu in place of --cpu"
    if section is not None and section.num_processes is not None:
        asked, fix = section.num_processes, "make them equal, or let `mrlm train` start them"
    if asked not in (None, world_size()):
        raise ConfigError(
            f"{'distributed.num_processes' if section else '--num_processes'} is {asked}, "
            f"the launcher has started {world_size()}; {fix}"
        )
    if section is not None and world_size() > 1 and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        os.environ.update(_strategy_environment(section))  # torchrun does not set up strategies


def _asked_on_command_line() -> int | None:
    """N of `accelerate launch --num_processes N`, which with `--cpu` silently starts only one process."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "LOCAL_RANK" in os.environ:
        return None
    import psutil

    parent = psutil.Process().parent()
    found = re.search(r"--num[_-]processes[= ](\d+)", " ".join(parent.cmdline() if parent is not None else ()))
    return int(found[1]) if found else None


def _end_with_parent() -> None:
    """On Linux, kill this process when the launcher dies, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.environ[_PARENT] != str(os.getppid()):
            os._exit(1)  # the launcher died before the call above


def _strategy_environment(section: DistributedSection) -> dict[str, str]:
    """The environment variables that `accelerate launch` would set."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = [*_launch_arguments(section), "--main_process_port", "0", "script"]
    file: Any
    args, file, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(arguments))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(file.deepspeed_config)
        made = prepare_deepspeed_cmd_env(args)[1]
    else:
        made = prepare_multi_gpu_env(args)
    return {name: value for name, value in made.items() if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_"))}


def check_alike(config: RunConfig, args: Any) -> None:
    """Check the process group: it has the processes that were launched, and all have the same configuration.

    Args:
        config: This process's configuration.
        args: Its `TrainingArguments`.

    Raises:
        ConfigError: On every process, if each would train alone or one has another configuration than the first.
    """
    if args.world_size != world_size():
        raise ConfigError(
            f"{world_size()} processes were started, but each would train by itself (world size {args.world_size}): "
            "without a GPU training.use_cpu must not be false"
        )
    if args.world_size == 1:
        return
    from accelerate.utils import gather_object

    everyone = gather_object([flat(config.raw)])
    for rank, settings in enumerate(everyone):
        for key in sorted(everyone[0].keys() | settings.keys()):
            first, other = everyone[0].get(key, "unset"), settings.get(key, "unset")
            if first != other and key != "distributed.machine_rank":
                raise ConfigError(
                    f"the processes disagree: {key} is {first} for process 0 and {other} for process {rank}; "
                    "give all machines the same configuration"
                )


def check_strategy(config: RunConfig, trainer: Any) -> None:
    """Check, after the model is prepared, that the strategy asked for is the one that runs.

    Raises:
        ConfigError: If another strategy runs, or one that should shard the model does not.
    """
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return
    started = str(accelerator.distributed_type.value).lower().removeprefix("multi_")
    found = started if started in ("fsdp", "deepspeed") else "ddp"
    asked = found if config.distributed is None else config.distributed.strategy
    if found != asked:
        raise ConfigError(f"distributed.strategy is {asked}, but what runs is {found}; launch with {asked}.yaml")
    mesh = getattr(accelerator, "parallelism_config", None)
    for name in ("tp_size", "cp_size", "sp_size"):
        if (getattr(mesh, name, None) or getattr(trainer.model, name, None) or 1) > 1:
            raise ConfigError(
                f"{name} above 1: processes that share a forward pass would have to play the same episodes, and here "
                "each plays its own; use strategy fsdp, and vllm_tensor_parallel_size to generate"
            )
    whole, here = parameters(trainer.model)
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    shards = found == "fsdp" or (plugin is not None and plugin.zero_stage == 3)
    share = here / max(whole, 1)
    if shards and share > 0.75:
        raise ConfigError(f"{found} over {accelerator.num_processes} processes leaves {share:.0%} of the model on each")
    if is_main():
        what = f"each holds {here:,} of {whole:,} parameters"
        print(f"mrlm: {accelerator.num_processes} processes, {found}: {what}", file=sys.stderr, flush=True)


def parameters(model: Any) -> tuple[int, int]:
    """The number of a model's parameters, and of those that this process holds."""
    whole = here = 0
    for parameter in model.parameters():
        if hasattr(parameter, "ds_numel"):  # ZeRO-3
            whole, here = whole + parameter.ds_numel, here + parameter.ds_tensor.numel()
        else:
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            whole, here = whole + parameter.numel(), here + local.numel()
    return whole, here


def leave() -> None:
    """Shut the process group down before the exit: gloo sometimes aborts a process that exits without that."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
