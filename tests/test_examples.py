"""Every example runs: the scripts on the toy policy with few steps, the demo as a user starts it, the notebook."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mrlm_train.experiment import config, train
from tests.support.paths import ROOT
from tests.support.processes import run
from tests.support.processes import train as train_in_process
from tests.support.serving import running

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = ROOT / "examples"
GSM8K = "gsm8k.jsonl"
SCRIPTS: dict[str, tuple[dict[str, Any], str]] = {  # the settings that make it short, and what it says at its end
    "simple_ppo": ({}, "of 20 test problems"),
    "train_math_ppo": ({}, "step 1: success"),
    "train_code_ppo": ({}, "the newest program:"),
    "train_tool_use_ppo": ({}, "assistant:"),
    "train_grpo_math": ({}, "groups that taught nothing"),
    "train_dpo_preferences": ({}, "better reply preferred"),
    "train_sft_world_model": ({"num_episodes": 8}, "observation_match"),
    "train_multi_environment": ({}, "mrlm/ToolUse-v0  success"),
    "train_hybrid_sft_ppo": ({"sft_steps": 1, "demonstrations": 64}, "after PPO"),
    "train_distributed_ppo": ({}, "1 processes: 16 evaluation episodes"),
    "train_from_config": ({"output_dir": "run"}, "the model is in run/final"),
    "train_gsm8k_lora": ({"model": "tiny", "train": GSM8K, "test": GSM8K, "tokens": 16}, "test rows solved"),
    "custom_environment": ({}, "mean reward"),
    "self_play_debate": ({}, "mean score"),
    "train_on_served_environments": ({}, "were played on 127.0.0.1"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_runs_on_the_toy_policy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    row = {"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"}
    Path(GSM8K).write_text((json.dumps(row) + "\n") * 8)
    settings, said = SCRIPTS[name]
    importlib.import_module(name).main(max_steps=1, **settings)
    assert said in capsys.readouterr().out


def test_every_script_is_a_page_is_run_and_is_in_the_readme() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"chat_server", "jax_reinforce"}  # tests of their own
    assert scripts == SCRIPTS.keys()
    for path in EXAMPLES.glob("*.py"):
        assert path.stem == "chat_server" or len(path.read_text().splitlines()) <= 60, (
            f"{path.name} is more than a page"
        )
    readme = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        assert path.name in readme or path.name.startswith(("_", ".")) or path.name == "README.md", path.name


def test_the_demo_goes_through_its_seven_phases_as_a_user_starts_it(tmp_path: Path) -> None:
    code, said = run(EXAMPLES / "demo_e2e" / "demo_complete.py", "--quick", "--output-dir", tmp_path)
    assert code == 0, said
    assert [f"[{phase}/7]" in said for phase in range(1, 8)] == [True] * 7
    figures = json.loads((tmp_path / "results.json").read_text())
    assert {name: part["n"] for name, part in figures["after"].items()} == {
        **{"mrlm/Math-v0": 20, "mrlm/Code-v0": 7, "mrlm/Debate-v0": 8, "mrlm/ToolUse-v0": 5}
    }


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "your_environment.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert len(cells) == 10 and code.count("max_steps=60") == 1
    (tmp_path / "cells.py").write_text(code.replace("max_steps=60", "max_steps=1"))
    ended, said = run("cells.py", cwd=tmp_path, environment={"MPLBACKEND": "agg"})
    assert ended == 0 and "Write " in said, said


CONFIGS = ("code_ppo", "tools_ppo", "tools_grpo", "sokoban_sft", "mixed_grpo", "characters_ppo")  # others: tests/train


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_step_of_a_configuration_runs_on_the_toy_policy(name: str, tmp_path: Path) -> None:
    changes = ["training.max_steps=1", "training.batch_size=8"]
    if name == "sokoban_sft":
        changes.append("sft.num_episodes=16")
    final = train.run(config.load(EXAMPLES / "configs" / f"{name}.yaml", changes, str(tmp_path)))
    assert (final / "model.safetensors").is_file()


def test_the_configuration_of_a_served_run_reads_its_addresses(tmp_path: Path) -> None:
    with running("math", allow_kwargs="kinds,difficulty") as server:
        changes = ["training.max_steps=1", "training.batch_size=8", f"envs.0.address={server.address}"]
        train.run(config.load(EXAMPLES / "configs" / "math_grpo_served.yaml", changes, str(tmp_path)))
    assert (tmp_path / "final").is_dir()


@pytest.mark.slow
def test_two_processes_share_the_distributed_script_and_its_configuration(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", 2)
    script = EXAMPLES / "train_distributed_ppo.py"
    code, said = run(*launcher, script, "--max-steps", 1, "--output-dir", tmp_path / "script")
    assert code == 0 and "2 processes: 16 evaluation episodes" in said, said
    settings = ("training.max_steps=1", "training.batch_size=8")
    code, said = train_in_process(EXAMPLES / "configs" / "math_ppo_distributed.yaml", tmp_path / "config", *settings)
    assert code == 0 and "2 processes, ddp" in said, said
