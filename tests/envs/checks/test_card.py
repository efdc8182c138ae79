"""The quality card: each planted fault is found by its own line and by no other."""

from typing import Any, ClassVar

import gymnasium
import pytest

from mrlm_envs.checks import NAMES, Card, Limits, card
from tests.envs.checks.planted import PLANTED, IsSlow, Sum

QUICK: dict[str, Any] = {"seconds": 1.0}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.__name__)
def test_a_planted_fault_is_found_by_its_own_line_and_no_other(planted: type[gymnasium.Env[str, str]]) -> None:
    limits = Limits(**QUICK, step_s=0.025 if planted is IsSlow else 1.0)
    found = card(f"tests.envs.checks.planted:planted/{planted.__name__}-v0", limits=limits)
    assert found.failed == ([] if PLANTED[planted] is None else [PLANTED[planted]]), found.text()
    assert tuple(check.name for check in found.checks) == NAMES
    assert (found.text() + found.html()).encode()


def test_a_game_is_checked_as_its_first_agent_against_its_own_expert() -> None:
    pytest.importorskip("pettingzoo")
    found = card("mrlm_envs.debate:parallel_env", limits=Limits(seconds=0.5))
    assert found.failed == [], found.text()
    assert "it is declared honest" in found.checks[0].evidence


@pytest.mark.parametrize("planted", ["Hangs", "HangsWithTheLock", "HangsOnSomethingUnlisted"])
def test_a_step_that_hangs_costs_its_own_process_alone(planted: str) -> None:
    found = {check.name: check for check in _hung(planted).checks}
    assert found["faults"].status == "fail" and "no answer within 5 s" in found["faults"].evidence
    assert found["faults"].action == {"HangsOnSomethingUnlisted": "#### yes"}.get(planted, "73915")
    if planted != "HangsOnSomethingUnlisted":
        assert {check.status for name, check in found.items() if name != "faults"} == {"skip"}


def _hung(planted: str) -> Card:
    return card(f"tests.envs.checks.planted:{planted}", limits=Limits(**QUICK, hang_s=5.0))


def test_an_environment_that_declares_chance_is_not_asked_to_replay() -> None:
    class Chance(Sum):
        metadata: ClassVar[dict[str, Any]] = {**Sum.metadata, "deterministic": False}

    gymnasium.register("planted/Chance-v0", entry_point=Chance, disable_env_checker=True)
    found = card("planted/Chance-v0", limits=Limits(**QUICK), only=("determinism", "replay", "interleaving", "threads"))
    assert {check.status for check in found.checks} == {"skip"}


@pytest.mark.parametrize("name", ["oracle", "splits", "pickling", "replay"])
def test_one_check_alone_says_what_it_says_on_the_card(name: str) -> None:
    found = card("tests.envs.checks.planted:planted/Sum-v0", limits=Limits(**QUICK), only=(name,))
    assert {check.name: check.status for check in found.checks}[name] == "pass"
    assert found.failed == []
