"""From YAML to a model on disk, for all four algorithms: one stage or several, and the first seed's own file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mrlm_train.cli import main
from mrlm_train.episodes.record import Episode, write
from mrlm_train.experiment.config import ConfigError, check
from mrlm_train.inference.policy import load_model
from tests.support.paths import ROOT, SHARED
from tests.support.playing import TOKENIZER, tiny_model
from tests.support.processes import run

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
VALUE_HEAD = "value_head.safetensors"
CONFIGS = ROOT / "examples" / "configs"
SEED_CONFIG = SHARED / "seed_config.yaml"
SUMS = {"id": "mrlm/Math-v0", "kwargs": {"kinds": ["addition"], "difficulty": [1, 1], "system_prompt": ""}}


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def train(config: Path, output: Path, *settings: str) -> int:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return main(["train", "--config", str(config), "--output", str(output), *overrides])


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_config(path: Path, raw: dict[str, Any]) -> Path:
    path.write_text(json.dumps(raw))  # JSON is YAML
    return path


@pytest.mark.parametrize("name", ["math_sft", "math_ppo"])
def test_the_example_runs_on_the_toy_policy(name: str, model: str, tmp_path: Path) -> None:
    settings = ("training.max_steps=2", "training.batch_size=8", f"model.model_name_or_path={model}")
    assert train(CONFIGS / f"{name}.yaml", tmp_path / "run", *settings) == 0
    assert load_model(str(tmp_path / "run" / "final"), device="cpu") is not None
    assert [row["step"] for row in metrics(tmp_path / "run") if "loss" in row] == [1, 2]
    assert (tmp_path / "run" / "final" / VALUE_HEAD).is_file() == (name == "math_ppo")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math_sft", "math_ppo", "math_dpo"])
def test_the_example_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    assert train(CONFIGS / f"{name}.yaml", tmp_path / "run") == 0


@pytest.mark.slow
def test_the_pipeline_example_learns_sums_it_has_not_seen(tmp_path: Path) -> None:
    settings = ("stages.1.training.max_steps=150", "eval_envs=[" + json.dumps(SUMS) + "]")
    assert train(CONFIGS / "math_sft_then_ppo.yaml", tmp_path / "run", *settings) == 0
    rewards = [row["reward"] for row in metrics(tmp_path / "run" / "stage-2-ppo") if "reward" in row]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5


@pytest.mark.parametrize("second", ["ppo", "grpo", "dpo"])
def test_a_stage_starts_from_the_model_the_last_one_left(second: str, model: str, tmp_path: Path) -> None:
    # after SFT on one worked solution style the toy speaks numbers; learning rate 0 keeps the second stage where it is
    small = {"max_completion_length": 12, "num_generations": 4}
    raw = {
        "model": {"model_name_or_path": model},
        "envs": [SUMS],
        "training": {"batch_size": 8, "max_steps": 2},
        "stages": [
            {"training": {"algorithm": "sft", "learning_rate": 1e-2, "max_steps": 40}, "sft": {"num_episodes": 64}},
            {"training": {"algorithm": second, "learning_rate": 0.0}, second: small},
        ],
    }
    if second == "dpo":  # a toy this small is never right: it has no pairs of its own to learn from
        pair = {"prompt": "go", "chosen": "yes", "rejected": "no"}
        (tmp_path / "p.jsonl").write_text((json.dumps(pair) + "\n") * 8)
        raw["stages"][1]["dpo"] = {"episodes": str(tmp_path / "p.jsonl")}
    assert train(write_config(tmp_path / "c.yaml", raw), tmp_path / "run") == 0
    first, last = (tmp_path / "run" / f"stage-{i}-{name}" / "final" for i, name in ((1, "sft"), (2, second)))
    before = dict(load_model(model, device="cpu").named_parameters())
    left, taken = (dict(load_model(str(path), device="cpu").named_parameters()) for path in (first, last))
    assert all(torch.equal(left[name], taken[name]) for name in left)
    assert not all(torch.equal(left[name], before[name]) for name in left)


def test_a_resume_with_other_settings_of_a_complete_stage_is_refused(model: str, tmp_path: Path, capsys: Any) -> None:
    common = {"batch_size": 4, "max_steps": 1, "save_strategy": "no", "learning_rate": 1e-3}
    stage = {"training": {"algorithm": "sft"}, "sft": {"num_episodes": 4}}
    config = write_config(
        tmp_path / "c.yaml", {"model": model, "envs": [SUMS], "training": common, "stages": [stage, stage]}
    )
    run = ["train", "--config", str(config), "--output", str(tmp_path / "run")]
    assert main(run) == 0
    unread = ["--set", "rollout.temperature=0.7"]  # SFT samples nothing
    assert main([*run, "--resume", "latest", *unread]) == 0
    assert main([*run, "--resume", "latest", "--set", "training.learning_rate=0.5"]) == 1
    said = capsys.readouterr().err
    assert "stage 1 (sft) is complete with other settings: training.learning_rate was 0.001 and is 0.5" in said
    assert "0.5" not in (tmp_path / "run" / "config.yaml").read_text()
    assert main([*run, "--resume", "latest"]) == 0


def test_sft_and_dpo_read_files_from_yaml_whatever_the_other_stages_play(model: str, tmp_path: Path) -> None:
    def episode(said: str, reward: float) -> Episode:
        said_and_heard = [{"role": "assistant", "content": said}, {"role": "user", "content": "bye"}]
        return Episode("E", messages=[{"role": "user", "content": "go"}, *said_and_heard], turn_rewards=[reward])

    write(tmp_path / "e.jsonl", [episode("yes", 1.0)] * 8)
    pair = {"prompt": "go", "chosen": "yes", "rejected": "no"}
    (tmp_path / "p.jsonl").write_text((json.dumps(pair) + "\n") * 8)
    raw = {
        "model": {"model_name_or_path": model},
        "envs": [SUMS],
        "training": {"batch_size": 8, "max_steps": 1},
        "stages": [
            {"training": {"algorithm": "sft"}, "sft": {"episodes": str(tmp_path / "e.jsonl"), "mode": "combined"}},
            {"training": {"algorithm": "dpo"}, "dpo": {"episodes": str(tmp_path / "p.jsonl")}},
        ],
    }
    assert train(write_config(tmp_path / "c.yaml", raw), tmp_path / "run") == 0
    assert "rewards/margins" in metrics(tmp_path / "run" / "stage-2-dpo")[0]


def test_a_ppo_model_goes_on_with_the_critic_it_left(model: str, tmp_path: Path) -> None:
    raw = {
        "model": {"model_name_or_path": model},
        "envs": [SUMS],
        "training": {"algorithm": "ppo", "batch_size": 8, "max_steps": 1},
        "ppo": {"max_completion_length": 8},
    }
    config = write_config(tmp_path / "c.yaml", raw)
    assert train(config, tmp_path / "one") == 0
    final = tmp_path / "one" / "final"
    assert train(config, tmp_path / "two", f"model.model_name_or_path={final}") == 0
    broken = (final / VALUE_HEAD).read_bytes()
    (final / VALUE_HEAD).write_bytes(broken[:20])
    assert train(config, tmp_path / "three", f"model.model_name_or_path={final}") == 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"training": {"algorithm": "ppo"}, "grpo": {"beta": 0.1}}, "section 'grpo' belongs to another algorithm"),
        ({"training": {"algorithm": "ppo"}, "ppo": {"gae_lamda": 1}}, "did you mean 'gae_lambda'"),
        ({"training": {"algorithm": "ppo"}, "ppo": {"clip_range": 0.2, "epsilon": 0.2}}, "'epsilon' is given twice"),
        ({"training": {"algorithm": "dpo"}, "dpo": {"margin": "big"}}, "dpo.margin must be a valid number"),
    ],
)
def test_a_faulty_section_is_told_in_one_line(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        check({"model": {"model_name_or_path": "tiny"}, "envs": ["math"], **raw})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [("ppo", "ppo needs environments; add a section 'envs'"), ("dpo", "dpo"), ("sft", "sft")],
)
def test_a_run_with_nothing_to_learn_from_is_told_in_one_line(
    algorithm: str, message: str, model: str, tmp_path: Path, capsys: Any
) -> None:
    raw = {"model": {"model_name_or_path": model}, "training": {"algorithm": algorithm}}
    assert train(write_config(tmp_path / "c.yaml", raw), tmp_path / "run") == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told and "envs" in told


def test_an_environment_without_text_is_told_in_one_line(model: str, tmp_path: Path, capsys: Any) -> None:
    raw = {
        "model": {"model_name_or_path": model},
        "training": {"algorithm": "ppo", "batch_size": 8, "max_steps": 1},
        "envs": ["CartPole-v1"],
    }
    assert train(write_config(tmp_path / "c.yaml", raw), tmp_path / "run") == 1
    assert "environment CartPole-v1: its observation space is" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.skipif(not SEED_CONFIG.is_file(), reason="the first seed's file is not here")
def test_the_first_seeds_configuration_runs_with_the_model_path_changed(
    model: str, tmp_path: Path, capsys: Any
) -> None:
    settings = (f"model.model_name_or_path={model}", "training.num_epochs=1")
    assert train(SEED_CONFIG, tmp_path / "run", *settings) == 0
    assert "strategy fsdp: one process, so it changes nothing" in capsys.readouterr().err
    [row] = [row for row in metrics(tmp_path / "run") if "value_loss" in row]
    assert row["invalid"] == 0
    assert (tmp_path / "run" / "final" / VALUE_HEAD).is_file()


@pytest.mark.parametrize("name", ["number_game", "debate_selfplay", "debate_grpo"])
def test_the_example_of_a_game_runs_on_the_toy_policy(name: str, model: str, tmp_path: Path) -> None:
    settings = [f"model.model_name_or_path={model}", "rollout.eval_episodes=4"]
    for stage in (0, 1):
        settings += [f"stages.{stage}.training.max_steps=2", f"stages.{stage}.training.batch_size=4"]
    assert train(CONFIGS / f"{name}.yaml", tmp_path / "run", *settings) == 0
    [folder] = (tmp_path / "run").glob("stage-2-*")
    rows = metrics(folder)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    if name == "debate_selfplay":
        seats = [f"mrlm_envs.debate:parallel_env/{side}" for side in ("pro", "con")]
        assert sum(rows[0][f"reward/{seat}"] for seat in seats) == pytest.approx(1.0)  # the two share one point
        assert set(seats) <= {name.removeprefix("baseline/") for name in rows[0]}
    if name == "number_game":
        assert "eval_examples.selfplay.number_game:env/first_success" in rows[-1]


@pytest.mark.parametrize("launcher", [(), pytest.param(("-m", "accelerate.commands.launch"), marks=pytest.mark.slow)])
def test_a_trainer_run_as_a_script_finds_the_users_own_package_of_a_rooms_name(
    launcher: tuple[str, ...], model: str, tmp_path: Path
) -> None:
    package = tmp_path / "mine" / "episodes"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def reward(messages, reward, info):\n    return 0.25\n")
    raw = {
        "model": {"model_name_or_path": model},
        "envs": [{**SUMS, "reward": "episodes:reward"}],
        "training": {"algorithm": "ppo", "batch_size": 4, "max_steps": 1},
        "ppo": {"max_completion_length": 12, "max_turn_tokens": 8},
    }
    config, output = write_config(tmp_path / "ppo.yaml", raw), tmp_path / "run"
    command = (*launcher, ROOT / "mrlm_train" / "ppo.py", "--config", config, "--output", output)
    code, said = run(*command, cwd=package.parent)
    assert code == 0, said
    assert metrics(output)[0]["reward"] == 0.25
