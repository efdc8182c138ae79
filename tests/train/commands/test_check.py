"""`mrlm check` and `mrlm regrade`."""

import json
from pathlib import Path

import pytest

from mrlm_train.cli import main
from mrlm_train.commands.collect import collect, collect_experts
from mrlm_train.episodes.record import read, write
from mrlm_train.inference.sampling import Sampling
from tests.support.playing import tiny_policy

NAMES = [
    *("oracle", "floor", "leakage", "determinism", "replay", "interleaving"),
    *("threads", "pickling", "splits", "difficulty", "speed", "faults"),
]
ADDITION = json.dumps({"kinds": ["addition"], "difficulty": [2, 2]})
PLANTED = "tests.envs.checks.planted:planted"


def test_the_json_card_has_the_twelve_checks_and_nothing_else_on_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "math", "--kwargs", ADDITION, "--json", "--seconds", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["env"], found["kwargs"]) == (1, "mrlm/Math-v0", json.loads(ADDITION))
    assert [check["name"] for check in found["checks"]] == NAMES
    assert {key for check in found["checks"] for key in check} == {"name", "status", "evidence", "seed", "action"}
    assert {check["status"] for check in found["checks"]} == {"pass"}


def test_a_fail_shows_its_seed_and_action_and_sets_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{PLANTED}/PaysForAnyBox-v0", "--json", "--seconds", "1"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["floor"]["status"] == "fail"
    assert checks["floor"]["seed"] is not None and "\\boxed{" in checks["floor"]["action"]


def test_after_a_crash_what_could_not_be_made_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{PLANTED}/RaisesAtReset-v0", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["status"] for check in checks] == ["skip"] * 11 + ["fail"]
    assert "reset(seed=0) raised KeyError" in checks[-1]["evidence"]


def test_thresholds_are_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{PLANTED}/HasFewTestTasks-v0", "--seconds", "1"]) == 1
    assert main(["check", f"{PLANTED}/HasFewTestTasks-v0", "--seconds", "1", "--tasks", "3"]) == 0
    assert "splits        pass" in capsys.readouterr().out


def test_a_card_is_a_page_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{PLANTED}/PlainSum-v0", "--html", "--seconds", "0.5"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("<!doctype html>") and "<td>leakage</td>" in page


def test_an_unknown_environment_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "no_such:Env-v0"]) == 1
    assert capsys.readouterr().err.startswith("mrlm: environment no_such:Env-v0: ")
    assert main(["check", "maths"]) == 1
    assert capsys.readouterr().err.endswith("(did you mean 'math'?)\n")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "episodes.jsonl"
    envs = [f"{PLANTED}/Sum-v0", {"id": "mrlm/Sokoban-v0"}]
    collect_experts(envs, 8, path)
    return path


def test_what_has_not_changed_is_regraded_to_the_same(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored.read_bytes()
    assert main(["regrade", str(stored)]) == 0
    assert capsys.readouterr().out == "8 replayed\n"
    assert stored.read_bytes() == before


def test_a_changed_grader_gives_the_list_of_flipped_episodes(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = [episode for episode in read(stored) if "Sum" in episode.env_id]
    wrong = next(episode for episode in read(stored) if "Sum" in episode.env_id)
    wrong.messages[-2]["content"] = "\\boxed{1}"
    wrong.turn_rewards, wrong.success = [0.0], False
    write(tmp_path / "sums.jsonl", [*sums, wrong])
    assert main(["regrade", str(tmp_path / "sums.jsonl"), "--env", f"{PLANTED}/PaysForAnyBox-v0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"row {len(sums) + 1}, {wrong.env_id} seed {wrong.seed}: success False is now True")
    assert "1 flipped" in lines[-1] and len(lines) == 2


def test_a_changed_argument_shows_where_observations_diverge(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sokoban = [episode for episode in read(stored) if "Sokoban" in episode.env_id]
    write(stored, sokoban)
    assert main(["regrade", str(stored), "--kwargs", '{"max_actions": 9}']) == 1
    assert "observation 0 was " in capsys.readouterr().out


def test_an_action_that_a_token_budget_cut_off_is_not_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = Sampling(max_turn_tokens=8, max_episode_tokens=8)  # the toy's turns do not end by themselves
    collect(tiny_policy(), "math", 2, tmp_path / "cut.jsonl", budget)
    assert {episode.stop_reason for episode in read(tmp_path / "cut.jsonl")} == {"token_limit"}
    assert main(["regrade", str(tmp_path / "cut.jsonl")]) == 0
    assert capsys.readouterr().out == "2 replayed\n"


def test_regrade_refuses_to_write(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regrade", str(stored), "--in-place"]) == 1
    assert capsys.readouterr().err == (
        "mrlm: regrade never changes stored episodes; collect new ones with: mrlm collect\n"
    )


def test_arguments_that_are_no_json_object_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[1]"):
        assert main(["check", "math", "--kwargs", text]) == 1
        assert capsys.readouterr().err == f"mrlm: --kwargs {text}: expected a JSON object\n"
