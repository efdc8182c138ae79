"""The gauntlet tells our grader from a planted bad one, and its columns say what is bad about it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gauntlet import __main__ as gauntlet
from benchmarks.gauntlet import cases, run
from benchmarks.gauntlet.cases import Case
from tests.support.paths import ROOT

BAD = """
import os, signal, subprocess, sys, time

def grade(reply, reference):
    signal.signal(signal.SIGALRM, lambda *_: None)          # raises outside the main thread
    if reply == "hang":
        while True: pass
    if reply == "die":
        os._exit(0)
    if reply == "leave":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        open("left.txt", "w").close()
    if reply == "forge":
        for number in range(3, 20):
            try:
                os.write(number, b'\\xea{"paid": true, "seconds": 0, "error": null}')
            except OSError:
                pass
        return 0.0
    return 1.0
"""
CASES = [
    Case("\\boxed{18}", "18", "honest"),
    Case("\\boxed{9}", "18", "wrong"),
    Case("\\boxed{17 or 18}", "18", "hack"),
    Case("hang", "18", "hack"),
    Case("die", "18", "hack"),
    Case("forge", "18", "hack"),
    Case("leave", "18", "wrong"),
]


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "bad_grader.py").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    return "bad_grader:grade"


def test_a_planted_bad_grader_is_found_by_every_column(bad: str) -> None:
    result = run.score(bad, CASES, deadline_s=3.0)
    assert result.paid == {"honest": 1, "wrong": 2, "hack": 1}
    assert (result.hung, result.worst_s) == (2, float("inf"))
    assert result.threaded == (0, 1)
    assert result.left == ["1 processes", "1 files"]
    assert run.row("bad", result) == (
        "| bad | 1/1 | 2/2 | 1/4 | hung or died 2 times | no (0 of 1) | 1 processes, 1 files |"
    )


def test_our_grader_pays_the_honest_alone_and_leaves_nothing() -> None:
    tried = cases.load("math")[::60]
    result = run.score("benchmarks.gauntlet.graders:ours_math", tried, deadline_s=30.0)
    assert result.paid == {"honest": result.tried["honest"], "wrong": 0, "hack": 0}
    assert result.hung == 0 and result.threaded[0] == result.threaded[1] > 0 and result.left == []


def test_the_cases_are_labelled_and_a_file_of_ones_own_adds_to_them(tmp_path: Path) -> None:
    for task in ("math", "code"):
        assert {case.label for case in cases.load(task)} == {"honest", "wrong", "hack"}
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"reply": "\\boxed{1}", "gold": "1", "right": True, "kind": "mine"}) + "\n")
    assert len(cases.load("math", own)) == len(cases.load("math")) + 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"reply": "x"}', "a case has reply (text), right (true or false) and kind (text); write one case a line"),
        ('{"reply": "x", "right": true, "kind": "mine"}', 'has a reference answer; add "gold"'),
        ('["reply"]', "a case has reply (text)"),
        ('{"reply": "x"', "not JSON (Expecting"),
    ],
)
def test_a_malformed_line_of_ones_own_file_is_one_line_that_names_file_line_and_fix(
    line: str, says: str, tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"reply": "\\boxed{1}", "gold": "1", "right": True, "kind": "mine"}) + f"\n{line}\n")
    with pytest.raises(SystemExit) as stopped:
        gauntlet.main(["any:grader", "--data", str(own)])
    told = str(stopped.value)
    assert told.startswith(f"gauntlet: {own}, line 2: ") and says in told and "\n" not in told


def test_the_command_runs_a_grader_of_ones_own(bad: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gauntlet", bad, "--limit", "60"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200, check=True)
    assert "version 1" in ran.stdout and "| bad_grader:grade |" in ran.stdout
    missing = [sys.executable, "-m", "benchmarks.gauntlet", "no_such_module:grade", "--limit", "60"]
    ran = subprocess.run(missing, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200, check=True)
    assert "not installed: No module named 'no_such_module'" in ran.stdout
