"""What a newcomer gets wrong is reported at once, in one line that names the fix."""

import dataclasses
import importlib
import importlib.metadata
import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mrlm_train.cli import main
from mrlm_train.commands import info
from mrlm_train.experiment import ALGORITHMS, config
from mrlm_train.experiment import train as training
from mrlm_train.experiment.config import ConfigError, check
from mrlm_train.experiment.fields import fields
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference.hub import check_exists
from mrlm_train.inference.sampling import Sampling
from mrlm_train.ppo import PPOConfig
from mrlm_train.rollout.evaluation import evaluate
from tests.support.paths import ROOT
from tests.support.processes import run, write_config

pytestmark = pytest.mark.filterwarnings("ignore")
SUMS = {"id": "math", "kwargs": {"kinds": ["addition"], "difficulty": [1, 1], "system_prompt": ""}}
BASE: dict[str, Any] = {"model": {"model_name_or_path": "tiny"}, "envs": ["math"]}
STAGED: dict[str, Any] = {
    **{"model": {"model_name_or_path": "tiny"}, "envs": [SUMS], "training": {"batch_size": 4, "save_steps": 1}},
    "stages": [
        {"training": {"algorithm": "sft", "max_steps": 1}, "sft": {"num_episodes": 8}},
        {"training": {"algorithm": "sft", "max_steps": 1}, "sft": {"num_episodes": 8}},
    ],
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_settings_read_from_source_are_those_of_the_imported_class(algorithm: str) -> None:
    module, name, _ = ALGORITHMS[algorithm]
    imported = dataclasses.fields(getattr(importlib.import_module(module), name))
    assert fields(f"{module}:{name}").keys() == {field.name for field in imported if field.init}


def test_a_misspelled_key_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", {**BASE, "grpo": {"num_generation": 8}})
    code = (
        "import sys; from mrlm_train.cli import main\n"
        f"code = main(['train', '--config', {str(path)!r}])\n"
        "print(code, [name for name in ('torch', 'transformers', 'trl') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.stdout == "1 []\n"
    assert "unknown key 'num_generation' in 'grpo'; did you mean 'num_generations'?" in said.stderr


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"training": {"algorithm": "sft", "eval_strategy": "steps"}}, "training.eval_strategy 'steps' needs env"),
        ({"training": {"algorithm": "grpo", "learning_rate": -1e-3}}, "training.learning_rate must be at least 0"),
        ({"grpo": {"temperature": 0.0}}, "grpo.temperature must be greater than 0, got 0.0"),
        ({"grpo": {"beta": "big"}}, "grpo.beta must be a valid number, got 'big'"),
    ],
)
def test_a_senseless_value_names_its_key(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check({**BASE, **raw})


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": -1},
        {"learning_rate": float("nan")},
        {"num_generations": 0},
        {"gradient_accumulation_steps": 0},
    ],
)
def test_a_senseless_value_names_its_key_in_python_too(settings: dict[str, Any]) -> None:
    [(name, value)] = settings.items()
    for cls in (GRPOConfig, PPOConfig):
        with pytest.raises(ValueError, match=f"^{cls.__name__}: {name} must be at least [01], got {value}$"):
            cls("out", **settings)


def test_a_warning_is_one_line_without_source() -> None:
    code = "import warnings; from mrlm_train.commands.flags import need_trainers; need_trainers(); warnings.warn('no')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.stderr == "mrlm: warning: no\n"


def test_a_model_is_its_name_alone_too() -> None:
    assert check({**BASE, "model": "tiny", "grpo": {}}).model == check({**BASE, "grpo": {}}).model


def test_a_bare_no_is_a_strategy_and_not_false(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {model_name_or_path: tiny}\nenvs: math\ngrpo: {save_strategy: no}\n")
    assert config.load(tmp_path / "c.yaml").arguments == {"save_strategy": "no"}


def test_null_switches_the_trust_region_off_and_leaves_other_settings_out() -> None:
    assert check({**BASE, "grpo": {"target_kl": None, "num_generations": None}}).arguments == {"target_kl": None}
    demo = config.load(ROOT / "mrlm_train" / "commands" / "demo.yaml")
    assert demo.stages[1].arguments["target_kl"] is None


def test_an_override_that_a_stage_overrides_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", STAGED)
    for setting in ("training.max_steps=3", "sft.num_episodes=4"):
        with pytest.raises(ConfigError, match=rf"stage 1 sets this itself.*--set stages\.0\.{setting} \(a list's"):
            config.load(path, [setting])
    assert config.load(path, ["training.batch_size=8"]).stages[1].batch_size == 8


def test_the_last_stage_can_be_lengthened_and_an_earlier_one_cannot(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", STAGED)
    training.run(config.load(path, (), str(tmp_path / "run")))
    longer = config.load(path, ["stages.1.training.max_steps=2"], str(tmp_path / "run"))
    training.run(longer, resume="latest")
    assert (tmp_path / "run" / "stage-2-sft" / "checkpoint-2").is_dir()
    first = config.load(path, ["stages.0.training.max_steps=2"], str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="stage 2 has started from its model; lengthen the last stage only"):
        training.run(first, resume="latest")


def test_float16_without_a_gpu_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = {**BASE, "output_dir": str(tmp_path), "grpo": {"fp16": True, "num_generations": 2}}
    args = training._training_arguments(check({**raw, "training": {"batch_size": 2, "use_cpu": True}}))
    assert not args.fp16
    assert "float16 needs a GPU, and there is none here" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="fp16 needs a GPU"):
        assert not GRPOConfig(str(tmp_path), fp16=True, use_cpu=True).fp16


@pytest.mark.slow
def test_accelerate_launch_that_starts_one_process_where_two_were_asked_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", {**BASE, "ppo": {}, "training": {"max_steps": 1, "batch_size": 8}})
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", 2, ROOT / "mrlm_train" / "ppo.py")
    code, said = run("-m", *launcher, "--config", path, "--output", tmp_path / "run")
    assert code != 0 and "--num_processes is 2, the launcher has started 1; launch with --multi_gpu" in said


def test_a_model_that_is_nowhere_is_one_line_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(ValueError, match="model 'nobody/nothing'") as error:
        check_exists("nobody/nothing")
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 60  # a hang guard: Transformers' retries take longer


def test_tiny_and_short_names_work_in_python_and_in_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = GRPOConfig(str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=2, num_generations=2)
    trainer = GRPOTrainer("tiny", envs="math", args=args)
    assert trainer.rollout.pool.envs[0].id == "mrlm/Math-v0"
    limits = ["--num-episodes", "2", "--max-turn-tokens", "4"]
    assert main(["eval", "--model", "tiny", "--environment", "math", *limits]) == 0
    assert "95 % interval" in capsys.readouterr().out


def test_a_misspelled_argument_in_python_gets_the_nearest_name() -> None:
    with pytest.raises(
        TypeError, match="GRPOConfig: unknown argument 'num_generation'; did you mean 'num_generations'"
    ):
        GRPOConfig("out", num_generation=8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="GRPOTrainer: unknown argument 'reward_funcs'; did you mean 'envs'"):
        GRPOTrainer("tiny", reward_funcs=len)  # type: ignore[call-arg]


def test_info_shows_required_arguments_kinds_remote_and_algorithms() -> None:
    text = info.text()
    for shown in (
        "scenarios (required)",
        "kinds are addition,",
        "mrlm/Remote-v0",
        "address (required)",
        "GRPO on text",
    ):
        assert shown in text


def test_info_of_one_environment_is_its_whole_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "math"]) == 0
    shown = capsys.readouterr().out
    for part in ("| terminated |", "difficulty=(1, 3)", "kinds are addition,"):
        assert part in shown
    assert "mrlm/Code-v0" not in shown


MISSPELLED = "unknown environment 'mth'; did you mean 'math'?"
WRONG_KIND = "environment mrlm/Math-v0: unknown kind 'adition'; did you mean 'addition'?"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval --model tiny --environment mth", MISSPELLED),
        ("play mth", MISSPELLED),
        ("info mth", MISSPELLED),
        ("eval --model tiny --environment math --env-arg kinds=[adition]", WRONG_KIND),
        ("collect --expert --environment math -n 1 -o e.jsonl --env-arg kinds=[adition]", WRONG_KIND),
    ],
)
def test_a_misspelled_environment_or_kind_gets_the_nearest_before_torch_is_imported(command: str, message: str) -> None:
    code = (
        "import sys; from mrlm_train.cli import main\n"
        f"print(main({command.split()!r}), [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.stdout == "1 []\n"
    assert said.stderr == f"mrlm: {message}\n"


def test_a_trainer_without_torch_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom mrlm_train import PPOTrainer"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.stderr.endswith('torch is not installed; install the trainers: pip install "mrlm[train]"\n')


def test_a_name_stands_for_a_model_in_evaluate() -> None:
    assert evaluate("tiny", "math", n=2, sampling=Sampling(max_turn_tokens=4, max_episode_tokens=4))["n"] == 2


def test_the_version_is_the_installed_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mrlm {importlib.metadata.version('mrlm')}\n"


def test_mrlm_alone_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "mrlm train --config my.yaml" in capsys.readouterr().out


def test_a_person_plays_a_game_and_sees_the_right_answer(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n" * 5))
    careless = "second=examples.selfplay.number_game:careless"
    assert main(["play", "examples.selfplay.number_game:env", "--seed", "1", "--agent", careless]) == 0
    assert "over; returns: first" in capsys.readouterr().out
    assert main(["play", "math", "--seed", "1"]) == 0
    assert "[a right answer]" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_reads_and_names_only_files_that_are_there(path: Path) -> None:
    config.load(path)
    named = {word.strip("`,.:;()") for word in path.read_text().split() if word.strip("`,.:;()").endswith(".yaml")}
    for name in (name for name in named if "/" not in name):  # with a folder, it is another project's
        assert (path.parent / name).is_file() or (ROOT / name).is_file(), name
