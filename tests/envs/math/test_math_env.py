"""`mrlm/Math-v0` as its users meet it."""

import json
import re
import threading
import warnings

import gymnasium
import pytest

from mrlm_envs.checker import check_text_env
from mrlm_envs.math.env import MathEnv
from mrlm_envs.math.tasks import KINDS, warn_if_few
from tests.support.paths import SHARED

DATA = SHARED / "data"


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"kinds": ["addition"], "difficulty": [2, 2]},
        {"difficulty": [6, 9], "max_turns": 3},
        {"split": "test", "format_reward": 0.05},
        {"tasks": [{"question": f"What is {i} + 1?", "answer": f"It is #### {i + 1}"} for i in range(40)]},
    ],
    ids=["default", "addition", "hard", "format reward", "rows"],
)
def test_it_keeps_the_contract(kwargs):
    check_text_env(gymnasium.make("mrlm_envs:mrlm/Math-v0", **kwargs))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_worked_solution_earns_full_reward_over_hundreds_of_seeds(kind):
    env = MathEnv(kinds=[kind], difficulty=(1, 10))
    for seed in range(250):
        question, _ = env.reset(seed=seed)
        _, reward, terminated, _, info = env.step(env.expert())
        assert (reward, terminated, info["success"]) == (1.0, True, True), (seed, question, env.expert())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_formula_copied_from_the_question_into_a_box_earns_nothing(kind):
    for difficulty in (1, 3, 5, 7, 10):
        env = MathEnv(kinds=[kind], difficulty=(difficulty, difficulty))
        for seed in range(20):
            question, _ = env.reset(seed=seed)
            for formula in re.split(r"Solve for \w: |What is |Solve the system |\. Give.*|\?|: | and ", question):
                if re.search(r"\d.*[-+*/^=<>]", formula):
                    env.reset(seed=seed)
                    assert env.step(f"\\boxed{{{formula}}}")[1] == 0.0, (question, formula)


def test_feedback_gives_nothing_away_and_a_later_attempt_counts():
    env = MathEnv(kinds=["addition"], difficulty=(3, 3), max_turns=3)
    env.reset(seed=1)
    answer = env.problem.answer
    missing, *_, info = env.step("I do not know")
    assert info["action_valid"] is False and answer not in missing
    wrong, reward, terminated, _, info = env.step("\\boxed{-1}")
    assert info["action_valid"] is True and answer not in wrong and (reward, terminated) == (0.0, False)
    assert answer not in json.dumps(info)
    assert env.step(env.expert())[1:3] == (1.0, True)


def test_after_the_last_turn_the_agent_is_not_told_to_try_again():
    env = MathEnv(kinds=["addition"], max_turns=2)
    env.reset(seed=0)
    assert env.step("\\boxed{-1}")[0] == "That is not correct. Try again."
    assert env.step("\\boxed{-1}")[0] == "That is not correct."


def test_a_split_of_few_tasks_warns_once_with_their_number():
    warn_if_few.cache_clear()
    with pytest.warns(UserWarning, match=r"split 'test' of addition at difficulty 1 to 1 holds only 8 distinct tasks"):
        MathEnv(kinds=["addition"], difficulty=(1, 1), split="test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MathEnv(kinds=["addition"], difficulty=(1, 1), split="test")
        MathEnv(kinds=["addition"], difficulty=(2, 2), split="test")
        MathEnv(split="test")


def test_the_format_reward_is_paid_once_and_off_by_default():
    env = MathEnv(kinds=["addition"], max_turns=3, format_reward=0.1)
    env.reset(seed=0)
    rewards = [env.step("\\boxed{-1}")[1], env.step("\\boxed{-2}")[1]]
    assert rewards == [0.1, 0.0]
    assert env.step(env.expert())[4]["rewards"] == {"correct": 1.0, "format": 0.0}
    plain = MathEnv(kinds=["addition"])
    plain.reset(seed=0)
    assert plain.step("\\boxed{-1}")[1] == 0.0


@pytest.mark.parametrize(
    "reply",
    ["", "\\boxed{", "\\boxed{" * 200_000, "\ud800\udfff", "\\boxed{\ud800}", "x" * 2_000_000, "\\boxed{9^{9^{9^9}}}"],
    ids=["empty", "open box", "all boxes", "surrogates", "boxed surrogate", "2 MB", "bomb"],
)
def test_a_strange_reply_is_a_wrong_answer_and_nothing_else(reply):
    env = MathEnv(kinds=["addition"])
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(reply)
    assert (reward, terminated, truncated, info["success"], info["valid"]) == (0.0, True, False, False, True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kinds": ["adition"]}, "did you mean 'addition'"),
        ({"difficulty": [0, 3]}, "difficulty"),
        ({"difficulty": [3, 11]}, "difficulty"),
        ({"difficulty": [5, 2]}, "difficulty"),
        ({"difficulty": 3}, "difficulty"),
        ({"kinds": []}, "kinds"),
        ({"format_reward": "0.1"}, "format_reward must be a number of at least 0, got '0.1'"),
        ({"format_reward": float("nan")}, "format_reward"),
        ({"tasks": [{"question": "?"}]}, r"row 1: field 'answer' is missing \(found: question\)"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        MathEnv(**kwargs)
    assert "\n" not in str(error.value)


def test_a_malformed_row_is_named_with_file_and_number(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text('{"question": "2+2?", "answer": "#### 4"}\n{"question": "?", "solution": "4"}\n')
    with pytest.raises(ValueError, match=r"tasks my.jsonl, row 2: field 'answer' is missing"):
        MathEnv(tasks=str(path))


def test_a_finite_source_is_one_pass_over_its_rows_and_picks_by_id():
    rows = [{"id": f"q{i}", "question": f"{i}+1?", "answer": str(i + 1), "difficulty": 1} for i in range(12)]
    env = MathEnv(tasks=rows)
    assert env.num_tasks == 12
    assert {env.reset(seed=s)[1]["task_id"] for s in range(12)} == {f"q{i}" for i in range(12)}
    assert env.reset(seed=0, options={"task_id": "q7"})[0] == "7+1?"
    with pytest.raises(ValueError, match="'q99'"):
        env.reset(seed=0, options={"task_id": "q99"})


def test_many_threads_grade_at_once():
    failures = []

    def work(first):
        env = MathEnv(kinds=["quadratic_equations", "fractions"], difficulty=(1, 5))
        for seed in range(first, first + 40):
            env.reset(seed=seed)
            if env.step(env.expert())[1] != 1.0:
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(n * 100,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert failures == []


@pytest.mark.skipif(not DATA.is_dir(), reason="the real GSM8K is not beside this checkout")
def test_every_gold_solution_of_gsm8k_earns_full_reward():
    source = {split: str(DATA / f"gsm8k_{split}.jsonl") for split in ("train", "test")}
    for split, n in (("train", 7473), ("test", 1319)):
        env = MathEnv(tasks=source, split=split)
        assert env.num_tasks == n
        for seed in range(n):
            env.reset(seed=seed)
            assert env.step(env.expert())[1] == 1.0, env.problem


def test_one_kind_without_a_list_is_refused_by_what_it_should_be():
    with pytest.raises(ValueError, match=r"kinds must be a list of at least one of addition.*got 'addition'"):
        MathEnv(kinds="addition")
