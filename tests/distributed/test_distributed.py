"""Two CPU processes (gloo): what they train together is what one trains alone."""

import json
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from mrlm_train.cli import main
from mrlm_train.episodes.record import read
from mrlm_train.experiment import distributed as processes
from mrlm_train.experiment.config import ConfigError, check
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference.policy import load_model
from tests.support.playing import TOKENIZER
from tests.support.processes import ALL_FOUR, ROOT, metrics, run, start, train, write_config

STAGES = ("stage-1-sft", "stage-2-grpo", "stage-3-ppo", "stage-4-dpo")
SHARDED = [pytest.param(name, marks=pytest.mark.slow) for name in ("fsdp", "deepspeed")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config") / "all_four.yaml", ALL_FOUR)


@pytest.fixture(scope="module")
def one(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four algorithms in one process."""
    folder = tmp_path_factory.mktemp("one")
    code, said = train(config, folder, "distributed.num_processes=1")
    assert code == 0, said
    assert "distributed.strategy ddp: one process, so it changes nothing" in said
    return folder


@pytest.fixture(scope="module", params=["ddp", *SHARDED])
def two(request: pytest.FixtureRequest, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four algorithms in two processes that `mrlm train` has started."""
    folder = tmp_path_factory.mktemp(request.param)
    code, said = train(config, folder, f"distributed.strategy={request.param}")
    assert code == 0, said
    assert f"2 processes, {request.param}: each holds" in said
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_what_one_trains_on_the_same_global_batch(one: Path, two: Path, stage: str) -> None:
    for alone, shared in zip(metrics(one / stage), metrics(two / stage), strict=True):
        assert alone.keys() == shared.keys()
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6), alone["step"]
    alone, shared = (load_model(str(folder / stage / "final"), device="cpu").state_dict() for folder in (one, two))
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        assert (weight - shared[name]).abs().max() < 1e-6, name
    if stage == "stage-3-ppo":
        alone, shared = (load_file(folder / stage / "final" / "value_head.safetensors") for folder in (one, two))
        assert alone["weight"].abs().max() > 1e-4
        assert (alone["weight"] - shared["weight"]).abs().max() < 1e-6


def test_each_process_plays_its_own_share_of_the_tasks_in_whole_groups(one: Path, two: Path) -> None:
    alone, first = (list(read(folder / "stage-2-grpo" / "episodes" / "step-000001.jsonl")) for folder in (one, two))
    assert (len(alone), len(first)) == (16, 8)  # the first process writes its own
    assert [e.completion_ids for e in first] == [e.completion_ids for e in alone[:8]]
    assert [[e.group_id for e in alone].count(e.group_id) for e in alone] == [4] * 16
    assert not {e.seed for e in alone[:8]} & {e.seed for e in alone[8:]}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_a_merged_adapter_is_the_one_that_one_process_trains(strategy: str, tmp_path: Path) -> None:
    lora = {"r": 4, "target_modules": "all-linear"}
    section = {**PPO["model"], "lora": lora, "merge": True}
    config = write_config(tmp_path / "ppo.yaml", {**PPO, "model": section, "distributed": {"strategy": strategy}})
    for processes_, folder in ((1, "one"), (2, "two")):
        code, said = train(config, tmp_path / folder, f"distributed.num_processes={processes_}")
        assert code == 0, said
    alone, shared = (load_model(str(tmp_path / name / "final"), device="cpu").state_dict() for name in ("one", "two"))
    start_ = load_model(str(tmp_path / "one" / "tiny"), device="cpu").state_dict()
    assert any((alone[name] - weight).abs().max() > 1e-5 for name, weight in start_.items())
    for name, weight in alone.items():
        assert (weight - shared[name]).abs().max() < 1e-6, name


PPO: dict[str, Any] = {
    **{key: ALL_FOUR[key] for key in ("model", "envs")},
    "training": {**ALL_FOUR["training"], "max_steps": 1},
    "ppo": {"max_completion_length": 16, "max_turn_tokens": 12},
}
SCRIPT = ROOT / "mrlm_train" / "ppo.py"
LAUNCHERS = {
    "accelerate": ("accelerate.commands.launch", "--config_file", ROOT / "mrlm_train" / "launch" / "ddp.yaml"),
    "torchrun": ("torch.distributed.run", "--nproc_per_node", 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_a_trainers_file_runs_under_the_launchers_themselves(launcher: str, tmp_path: Path) -> None:
    config = write_config(tmp_path / "ppo.yaml", PPO)
    code, said = run("-m", *LAUNCHERS[launcher], SCRIPT, "--config", config, "--output", tmp_path / "run")
    assert code == 0, said
    assert "2 processes, ddp: each holds" in said and said.count("mrlm: trained model") == 1
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_torchrun_needs_no_accelerate_file_for_a_strategy(strategy: str, tmp_path: Path) -> None:
    config = write_config(tmp_path / "ppo.yaml", {**PPO, "distributed": {"strategy": strategy}})
    code, said = run("-m", *LAUNCHERS["torchrun"], SCRIPT, "--config", config, "--output", tmp_path / "run")
    assert code == 0, said
    assert f"2 processes, {strategy}: each holds 443," in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("distributed.strategy=fsdp",), "mrlm: distributed.strategy is fsdp, but what runs is ddp; launch with fsdp"),
        (("distributed.num_processes=4",), "mrlm: distributed.num_processes is 4, the launcher has started 2"),
        (("training.use_cpu=false",), "mrlm: 2 processes were started, but each would train by itself"),
    ],
    ids=["strategy", "number", "alone"],
)
def test_what_was_launched_and_is_not_what_was_asked_is_refused(
    settings: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "ppo.yaml", {**PPO, "distributed": {"strategy": "ddp"}})
    more = [part for setting in settings for part in ("--set", setting)]
    code, output = run("-m", *LAUNCHERS["accelerate"], SCRIPT, "--config", config, "--output", tmp_path / "run", *more)
    assert code != 0 and said.replace("mrlm: ", "") in output


@pytest.mark.slow
def test_two_machines_train_together(tmp_path: Path) -> None:
    port = _free_port()
    section = {"num_machines": 2, "num_processes": 2, "main_process_ip": "127.0.0.1", "main_process_port": port}
    config = write_config(tmp_path / "ppo.yaml", {**PPO, "distributed": section})
    command = ("-m", "mrlm_train.cli", "train", "--config", config, "--output", tmp_path / "run")
    machines = [start(*command, "--set", f"distributed.machine_rank={rank}") for rank in (0, 1)]
    said = [machine.communicate(timeout=250)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "2 processes, ddp: each holds" in said[0] and "mrlm: trained model" in said[0] + said[1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_processes_with_different_configurations_are_told_which_setting_differs(tmp_path: Path) -> None:
    config = write_config(tmp_path / "ppo.yaml", PPO)
    port = str(_free_port())
    machines = []
    for rank in ("0", "1"):  # as on two machines whose files differ
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
        more = ("--output", tmp_path / "run", "--set", f"ppo.gamma=0.{9 - int(rank)}")
        machines.append(start("-m", "mrlm_train.ppo", "--config", config, *more, environment=address))
    for rank, machine in enumerate(machines):
        errors = machine.communicate(timeout=120)[1]
        what = "the processes disagree: ppo.gamma is 0.9 for process 0 and 0.8 for process 1"
        assert f"mrlm: process {rank} of 2: {what}" in errors
        assert machine.returncode == 1 and not (tmp_path / "run").exists()


def test_the_first_error_of_any_process_is_told_in_one_line_and_ends_them_all(tmp_path: Path) -> None:
    config = write_config(tmp_path / "ppo.yaml", {**PPO, "distributed": {"num_processes": 2}})
    code, said = train(config, tmp_path / "run", "ppo.max_invalid_share=0.0", environment={"LOSER": "1"})
    lines = [line for line in said.splitlines() if line.startswith("mrlm: ") and "processes, ddp" not in line]
    errors = [line for line in lines if not line.startswith("mrlm: warning: ")]
    assert code == 1 and len(errors) == 1 and "Traceback" not in said
    assert "episodes invalid, above max_invalid_share=0.0" in errors[0] and "out of luck" in errors[0]


@pytest.mark.slow
def test_a_process_killed_from_outside_ends_the_others_and_says_so(tmp_path: Path) -> None:
    config = write_config(tmp_path / "ppo.yaml", {**PPO, "distributed": {"num_processes": 2}})
    code, said = train(config, tmp_path / "run", environment={"LOSER": "1", "KILL": "1"})
    assert code == 128 + signal.SIGKILL and "Traceback" not in said
    assert "mrlm: process 1 was ended by SIGKILL; if nobody did so, memory ran out" in said


def _launched(tmp_path: Path) -> tuple[Any, list[psutil.Process]]:
    """A long training in two processes, one step into it."""
    endless = {**PPO["training"], "max_steps": 10_000}
    config = write_config(tmp_path / "ppo.yaml", {**PPO, "training": endless, "distributed": {"num_processes": 2}})
    launcher = start("-m", "mrlm_train.cli", "train", "--config", config, "--output", tmp_path / "run")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or not metrics(tmp_path / "run"):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    assert len(workers) >= 2
    return launcher, workers


def test_the_processes_die_with_the_command_that_started_them(tmp_path: Path) -> None:
    launcher, workers = _launched(tmp_path)
    launcher.kill()
    launcher.communicate()
    assert not psutil.wait_procs(workers, timeout=20)[1]


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_at_one_step_with_a_checkpoint(tmp_path: Path) -> None:
    launcher, workers = _launched(tmp_path)
    launcher.send_signal(signal.SIGINT)  # a terminal signals the launcher alone: the others have sessions of their own
    errors = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 1 and "Traceback" not in errors
    assert "mrlm: interrupted at step" in errors.splitlines()[-1] and "--resume latest" in errors.splitlines()[-1]
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert len(list((tmp_path / "run").glob("checkpoint-*/rng_state_*.pth"))) == 2


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"num_processes": 512}, "asks for 512 processes on this machine, which has"),
        ({"num_processes": 0}, "distributed.num_processes must be at least 1, got 0"),
        ({"num_processes": 3, "num_machines": 2}, "num_processes 3 is not a multiple of num_machines 2"),
        ({"num_processes": 2, "num_machines": 2}, "distributed.main_process_ip is missing"),
        ({"num_processes": 2, "machine_rank": 1}, "distributed.machine_rank must be 0 to 0, got 1"),
        ({"num_processes": 2, "config_file": "mine.yaml"}, "distributed.config_file mine.yaml: no such file"),
        (
            {"num_processes": 2, "strategy": "dpp"},
            "distributed.strategy must be 'ddp', 'fsdp' or 'deepspeed', got 'dpp'",
        ),
    ],
)
def test_a_section_that_cannot_be_launched_is_one_line(
    section: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "ppo.yaml", {**PPO, "distributed": section})
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "run")]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and said in errors[0]


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_processes_that_would_share_episodes_are_refused(name: str, tmp_path: Path) -> None:
    shared = SimpleNamespace(tp_size=1, cp_size=1, sp_size=1)
    setattr(shared, name, 2)
    kind = SimpleNamespace(value="MULTI_GPU")
    accelerator = SimpleNamespace(num_processes=2, distributed_type=kind, parallelism_config=shared)
    trainer = SimpleNamespace(accelerator=accelerator, model=None)
    with pytest.raises(ConfigError, match=f"{name} above 1: processes that share a forward pass would have to play"):
        processes.check_strategy(check({**PPO, "distributed": {}}), trainer)


def test_groups_that_straddle_processes_cannot_be_replaced(tmp_path: Path) -> None:
    args = GRPOConfig(str(tmp_path), per_device_train_batch_size=8, num_generations=4, dynamic_sampling=1)
    args.per_device_train_batch_size = 6  # of one of two processes, whose 12 make three groups
    with pytest.raises(ValueError, match="needs whole groups in each process: 6 episodes do not divide"):
        GRPOTrainer("tiny", "mrlm/Math-v0", args, processing_class=TOKENIZER)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes of `tests/support/two_processes.py` say."""
    folder = tmp_path_factory.mktemp("two")
    command = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", _free_port())
    code, said = run(*command, "-m", "tests.support.two_processes", folder)
    assert code == 0, said
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_vllm_gives_each_process_its_own_completions_whatever_their_numbers_of_turns(reports: list[Any]) -> None:
    vllm = [report["vllm"] for report in reports]
    assert [report["processes"] for report in vllm] == [2, 2]
    assert sorted(report["turns"] for report in vllm) == [[2] * 4, [4] * 4]
    assert [report["evaluated"] for report in vllm] == [5, 5]
    assert vllm[0]["temperatures"] == [0.25, 1.0]  # the evaluation's own, and training's


def test_an_update_that_is_too_far_for_one_process_is_undone_by_all(reports: list[Any]) -> None:
    assert [report["trust"] for report in reports] == [{"rejected": [1.0, 1.0], "moved": False}] * 2
