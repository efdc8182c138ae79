"""`mrlm credit-probe`: a way that knows what mattered agrees with Monte Carlo, and one that cannot work is n/a."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mrlm_train.cli import main
from mrlm_train.commands import credit_probe
from mrlm_train.rollout.environments import EnvEntry
from tests.support.guessing import GuessNumber
from tests.support.playing import TOKENIZER, tiny_model
from tests.train.test_credit import STAIRS

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS: dict[str, Any] = {"num_generations": 4, "max_turn_tokens": 1, "max_completion_length": 80}


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_knowing_the_way_to_the_top_agrees_better_with_monte_carlo_than_the_return_does(model: str) -> None:
    rows = {row["credit"]: row for row in credit_probe.run(model, STAIRS, tasks=8, branches=8, **SETTINGS)}
    assert list(rows) == ["episode", "turn", "state", "solver", "branch"]
    for row in rows.values():
        assert -1 <= row["correlation"] <= 1 and -1 <= row["gradient_cosine"] <= 1
    assert rows["branch"]["correlation"] > rows["episode"]["correlation"]
    assert rows["branch"]["gradient_cosine"] > 0.5


def test_a_policy_that_never_earns_anything_is_refused_in_one_line(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tasks", "2", "--group-size", "2", "--branches", "1", "--max-turn-tokens", "1"]
    assert main(["credit-probe", "--model", model, "--environment", "sokoban", *flags]) == 1
    assert "credit-probe: all turns are worth the same: no reward differs" in capsys.readouterr().err


def test_a_way_that_the_environment_cannot_serve_is_not_applicable(model: str, tmp_path: Path) -> None:
    rows = tmp_path / "new" / "rows.json"
    guess = EnvEntry("Guess", {"low": 1, "high": 2}, make=GuessNumber)
    credit_probe.run(model, guess, tasks=4, branches=2, output=str(rows), **SETTINGS)
    by_way = {row["credit"]: row for row in json.loads(rows.read_text())}
    assert by_way["solver"]["why"].startswith("n/a: credit: solver needs cost_to_go() of environment Guess")
