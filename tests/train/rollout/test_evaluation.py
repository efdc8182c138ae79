"""Evaluation: the test split, the first n seeds, honest figures."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrlm_train.episodes.record import Episode
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.evaluation import (
    by,
    evaluate,
    evaluation_requests,
    evaluation_rollout,
    pass_at,
    success_interval,
    summary,
    wilson_interval,
)
from mrlm_train.rollout.runner import InvalidEpisodes, Request
from tests.support.guessing import GuessNumber
from tests.support.playing import Letters, Radio, say, scripted, tiny_policy


def test_evaluation_episodes_are_shared_by_weight_and_entries_of_one_id_are_told_apart() -> None:
    envs = [
        EnvEntry("Letters", {"letters": "a"}, 3.0, make=Letters),
        EnvEntry("Letters", {"letters": "b"}, make=Letters),
    ]
    figures = evaluate(scripted(say("a")), envs, n=10)
    assert {name: part["n"] for name, part in figures["environments"].items()} == {"Letters": 15, "Letters#2": 5}
    assert figures["environments"]["Letters"]["reward"] == 1.0 and figures["environments"]["Letters#2"]["reward"] == 0.0


def test_the_seeds_are_the_first_n_of_the_test_split() -> None:
    policy = scripted(say("1"))
    with evaluation_rollout(policy, [GuessNumber, EnvEntry("mrlm/Math-v0")]) as rollout:
        requests = evaluation_requests(rollout, 3)
        assert requests == [Request(0, 0), Request(0, 1), Request(0, 2), Request(1, 0), Request(1, 1), Request(1, 2)]
        assert [entry.split for entry in rollout.envs] == ["test", "test"]
        on_test = [episode.task_id for episode in rollout.run(requests)]
    with evaluation_rollout(policy, [GuessNumber, EnvEntry("mrlm/Math-v0")], split="train") as rollout:
        assert [episode.task_id for episode in rollout.run(requests)] != on_test


def test_a_finite_source_is_passed_over_once() -> None:
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(4)]
    result = evaluate(scripted(say("\\boxed{3}")), {"id": "mrlm/Math-v0", "kwargs": {"tasks": rows}}, n=100)
    assert result["n"] == 4 and result["success"] == 0.25 and result["reward"] == 0.25


def test_figures_are_given_for_each_environment_and_for_all() -> None:
    envs = [EnvEntry("one", {"letters": "a"}, make=Letters), EnvEntry("two", {"letters": "b"}, make=Letters)]
    result = evaluate(scripted(say("a")), envs, n=5)
    assert result["reward"] == 0.5 and result["n"] == 10
    assert result["environments"]["one"]["reward"] == 1.0 and result["environments"]["two"]["reward"] == 0.0
    assert result["success"] is None and result["success_interval"] is None  # these environments never say


def test_invalid_episodes_are_counted_and_nothing_else() -> None:
    good = [Episode("E", turn_rewards=[1.0], success=True), Episode("E", turn_rewards=[0.0], success=False)]
    broken = Episode("E", turn_rewards=[50.0], success=True, valid=False, stop_reason="env_fault")
    with_it, without = summary([*good, broken]), summary(good)
    assert (with_it.pop("invalid"), without.pop("invalid")) == (1, 0)
    assert with_it.pop("stop_reasons") == {"": 2, "env_fault": 1} != without.pop("stop_reasons")
    assert with_it == without and without["success"] == 0.5
    assert summary([broken])["reward"] is None


def test_an_evaluation_goes_on_after_one_whose_last_instance_broke() -> None:
    with evaluation_rollout(scripted(say("a")), EnvEntry("Radio", {"break_at": 1}, make=Radio)) as rollout:
        for _ in range(2):
            assert not rollout.run(evaluation_requests(rollout, 1))[0].valid


def test_broken_environments_do_not_stop_an_evaluation() -> None:
    broken, sound = EnvEntry("Radio", {"break_at": 1}, make=Radio), EnvEntry("Letters", make=Letters)
    result = evaluate(scripted(say("a")), [broken, sound], n=3)
    assert (result["n"], result["invalid"]) == (3, 3)
    with pytest.raises(InvalidEpisodes, match=r"3 of 3 episodes invalid.*RuntimeError: static"):
        evaluate(scripted(say("a")), broken, n=3)


def test_greedy_evaluation_gives_the_same_figures_twice() -> None:
    policy = tiny_policy()
    sampling = Sampling(temperature=0, max_turn_tokens=6, max_episode_tokens=60)
    assert evaluate(policy, GuessNumber, 8, sampling=sampling) == evaluate(policy, GuessNumber, 8, sampling=sampling)


def test_no_episodes_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evaluate(scripted(say("a")), Letters, n=0)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_the_interval_holds_the_share_and_solves_wilson_s_equation(n: int, share: float) -> None:
    successes = round(share * n)
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1
    for bound in (low, high):  # both ends lie 1.96 of their own standard errors away from the share
        distance = abs(successes / n - bound)
        assert distance == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_the_interval_of_a_known_case() -> None:
    assert wilson_interval(90, 100) == pytest.approx([0.8256, 0.9448], abs=1e-4)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_pass_at_k_is_the_share_of_draws_without_replacement_that_hold_a_success(successes: list[int]) -> None:
    tasks = [[1.0] * count + [0.0] * (6 - count) for count in successes]
    found = pass_at(tasks)
    assert list(found) == [1, 2, 4, 6]
    for k, chance in found.items():
        draws = [any(draw) for task in tasks for draw in itertools.combinations(task, k)]
        assert chance == pytest.approx(sum(draws) / len(draws))


def test_tasks_with_fewer_valid_attempts_than_k_do_not_count_for_pass_at_k() -> None:
    assert pass_at([[1.0, 0.0], [0.0]]) == {1: 0.25, 2: 1.0}


def test_further_attempts_at_a_task_do_not_count_as_further_tasks() -> None:
    once = [[1.0]] * 30 + [[0.0]] * 70
    assert success_interval(once) == pytest.approx(wilson_interval(30, 100))
    assert success_interval([task * 8 for task in once]) == pytest.approx(wilson_interval(30, 100))  # all alike
    mixed = [[1.0, 0.0]] * 50
    assert success_interval(mixed) == pytest.approx(wilson_interval(25, 50))
    assert success_interval([[0.0, 0.0]] * 10) == pytest.approx(wilson_interval(0, 10))


def test_samples_are_attempts_at_the_same_tasks_that_differ() -> None:
    sampling = Sampling(temperature=1.0, max_turn_tokens=4, max_episode_tokens=40)
    with evaluation_rollout(tiny_policy(), Letters, sampling=sampling) as rollout:
        episodes = rollout.run(evaluation_requests(rollout, 2, samples=3))
    assert [(e.seed, e.sampling["draw"]) for e in episodes] == [(s, d) for s in range(2) for d in range(3)]
    assert len({tuple(e.completion_ids or ()) for e in episodes[:3]}) == 3
    with (
        evaluation_rollout(tiny_policy(), Letters) as greedy,
        pytest.raises(ValueError, match="alike at temperature 0"),
    ):
        evaluation_requests(greedy, 2, samples=3)


def test_figures_by_kind_leave_out_episodes_that_name_none() -> None:
    episodes = [
        Episode("E", turn_rewards=[1.0], info={"kind": "easy"}),
        Episode("E", turn_rewards=[0.0], info={"kind": "hard"}),
        Episode("E", turn_rewards=[0.0]),
    ]
    assert {name: part["reward"] for name, part in by(episodes, lambda e: e.info.get("kind")).items()} == {
        "easy": 1.0,
        "hard": 0.0,
    }


@pytest.mark.parametrize("name", ["math", "tools", "code", "sql"])
def test_generated_tasks_say_their_kind_and_difficulty(name: str) -> None:
    env = EnvEntry(name).build()
    try:
        info = env.reset(seed=1)[1]
        assert info["kind"] in env.unwrapped.kinds and isinstance(info["difficulty"], int)
    finally:
        env.close()
