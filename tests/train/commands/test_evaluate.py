"""`mrlm eval`: several models and environments in one table, results for each episode, served environments."""

import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from examples.chat_server import ChatServer
from mrlm_train.cli import main
from mrlm_train.commands import evaluate as command
from mrlm_train.commands.evaluate import table
from mrlm_train.episodes.record import read
from mrlm_train.experiment.run_directory import write_environments
from mrlm_train.inference.policy import make
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.environments import EnvEntry
from tests.support.playing import TOKENIZER, tiny_model

pytest.importorskip("openai")
SHORT = ("--num-episodes", "4", "--max-turn-tokens", "4")


def test_models_and_environments_share_a_table_and_a_result_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    with ChatServer(lambda _: "\\boxed{7}") as server:
        models = ["--model", "tiny", "--model", f"openai:seven@{server.url}"]
        envs = ["--environment", "math", "--environment", "sql"]
        assert main(["eval", *models, *envs, *SHORT, "--output", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    labels = [line[: line.index("%")].split() for line in lines[1:]]
    assert [label[:2] for label in labels if label[0] in ("mrlm/Math-v0", "mrlm/SQL-v0", "all")] == [
        ["mrlm/Math-v0", "tiny"], ["mrlm/Math-v0", "openai:seven"],
        ["mrlm/SQL-v0", "tiny"], ["mrlm/SQL-v0", "openai:seven"],
        ["all", "tiny"], ["all", "openai:seven"],
    ]  # fmt: skip
    assert any(label[0] == "kind" for label in labels) and any(label[0] == "difficulty" for label in labels)
    assert len({len(line) for line in lines}) == 1  # columns are aligned
    tiny, seven = json.loads(out.read_text())["models"]
    assert tiny["model"] == "tiny" and tiny["n"] == seven["n"] == 8
    first = seven["episodes"][0]
    assert first["environment"] == "mrlm/Math-v0" and (first["seed"], first["attempt"]) == (0, 0)
    assert {"task_id", "kind", "difficulty", "success", "reward", "stop_reason", "valid", "turns"} <= set(first)
    kinds = seven["environments"]["mrlm/Math-v0"]["kind"]
    assert sum(part["n"] for part in kinds.values()) == 4


def test_models_are_compared_on_the_same_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out = [tmp_path / name for name in ("base", "final", "other")], tmp_path / "out.json"
    for path, level in zip(models, (None, 1, 2)):
        tiny_model().save_pretrained(path)
        TOKENIZER.save_pretrained(path)
        if level is not None:
            write_environments(path, [EnvEntry("math", {"kinds": ["addition"], "difficulty": [level, level]})])

    def compare(*names: Path) -> int:
        named = [part for name in names for part in ("--model", str(name))]
        return main(["eval", *named, "--environment", "math", *SHORT, "--output", str(out)])

    assert compare(*models[:2]) == 0
    base, final = json.loads(out.read_text())["models"]
    assert [line["task_id"] for line in base["episodes"]] == [line["task_id"] for line in final["episodes"]]
    assert {line["kind"] for line in base["episodes"]} == {"addition"}
    assert compare(*models) == 1
    assert "say with --env-arg what both are asked" in capsys.readouterr().err


def test_samples_give_pass_at_k_and_attempts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, episodes = tmp_path / "result.json", tmp_path / "e.jsonl"
    command = ["eval", "--model", "tiny", "--environment", "math", *SHORT, "--samples", "4", "--output", str(out)]
    assert main([*command, "--temperature", "1", "--episodes", str(episodes)]) == 0
    assert re.search(r"pass@2 +pass@4$", capsys.readouterr().out.splitlines()[0])
    result = json.loads(out.read_text())
    assert list(result["pass_at"]) == ["1", "2", "4"] and result["n"] == 16
    assert [line["attempt"] for line in result["episodes"]] == [0, 1, 2, 3] * 4
    assert len(list(read(episodes))) == 16
    assert main(command) == 1
    assert "4 samples of a task are all alike at temperature 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--environment", "math"], "--model is missing"),
        (
            ["--model", "tiny", "--environment", "math", "--base-url", "http://x"],
            "no --model is openai:NAME without an",
        ),
        (["--model", "openai:m", "--world-model", "e.jsonl"], "an endpoint does not show"),
        (["--model", "tiny", "--model", "tiny", "--world-model", "e.jsonl"], "take one --model"),
        (["--model", "tiny", "--world-model", "e.jsonl", "--episodes", "out.jsonl"], "--world-model plays nothing"),
        (["--model", "tiny", "--world-model", "e.jsonl", "--temperature", "0.5"], "--world-model plays nothing"),
        (["--model", "openai:m", "--environment", "math", "--base-url", "localhost"], "expected a URL"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_served_environments_are_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    serving = pytest.importorskip("tests.support.serving")
    with serving.running("math") as server:
        command = ["eval", "--model", "tiny", "--environment", "math", "--address", server.address, *SHORT]
        assert main(command) == 0
    assert "mrlm/Math-v0" in capsys.readouterr().out


def test_a_model_without_an_environment_s_figures_shows_dashes() -> None:
    row: dict[str, Any] = {"n": 1, "success": 0.5, "success_interval": [0.1, 0.9], "environments": {}}
    lines = table({"a": {**row, "environments": {"E": row}}, "b": {**row, "environments": {"E": {}}}}).splitlines()
    assert lines[2].split()[:3] == ["E", "b", "-"]


class Labelled(gymnasium.Wrapper[str, str, str, str]):
    """Gives each task's kind in a type of its own, as a third party's environment may."""

    def step(self, action: str) -> Any:
        kind: Any = [np.int64(1), "b", ["a", "b"], None][self.env.unwrapped.episode_seed % 4]  # pyright: ignore[reportAttributeAccessIssue]
        return "", 1.0, True, False, {"kind": kind, "task_id": np.int64(3), "success": np.bool_(True)}


def test_labels_of_any_type_are_told_apart_and_written(tmp_path: Path) -> None:
    entry = EnvEntry("mrlm/Math-v0", wrappers=[Labelled])
    found = command.run(make("tiny"), [entry], 4, "test", Sampling(temperature=0.0, max_turn_tokens=2))
    assert list(found[0]["environments"]["mrlm/Math-v0"]["kind"]) == [1, '["a", "b"]', "b"]
    command.report({"tiny": found}, "test", str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text())["episodes"][0]["kind"] == 1
