"""Reward functions under TRL's and verl's signatures."""

import json
import subprocess
import sys
import threading
from typing import Any

import pytest

from mrlm_envs.integrations.rewards import accuracy_reward, code_reward, compute_score
from tests.support.paths import SHARED

SQUARE = "```python\ndef square(x):\n    return x * x\n```"
ROW = {
    "prompt": "Square.",
    "entry_point": "square",
    "tests": [{"args": [3], "expected": 9}, {"args": [-2], "expected": 4}],
}


def test_texts_and_conversations_are_graded_alike() -> None:
    talk = [{"role": "assistant", "content": r"So \boxed{18}."}]
    blocks = [{"role": "assistant", "content": [{"type": "text", "text": r"\boxed{18}"}]}]
    assert accuracy_reward([r"\boxed{18}", talk, blocks, "17"], answer=["18", "#### 18", 18, "18"]) == [
        1.0,
        1.0,
        1.0,
        0.0,
    ]


def test_solutions_with_a_box_serve_as_reference() -> None:
    assert accuracy_reward([r"\boxed{\frac12}"], solution=[r"It is \boxed{\frac{1}{2}}."]) == [1.0]


@pytest.mark.parametrize("gold", ["", None, "   ", "no number #### ", [1, 2], float("nan"), {}])
def test_an_unusable_reference_is_none(gold: Any) -> None:
    assert accuracy_reward([r"\boxed{1}"], answer=[gold]) == [None]


def test_the_columns_of_trl_are_taken_and_a_missing_one_is_told() -> None:
    extra: dict[str, Any] = {"prompts": ["q"], "completion_ids": [[1]], "trainer_state": None, "log_metric": print}
    assert accuracy_reward(completions=["18"], answer=["18"], **extra) == [1.0]
    with pytest.raises(ValueError, match="column 'answer' or 'solution'"):
        accuracy_reward(["18"])


@pytest.mark.parametrize(
    "reply", ["", "\ud800", "x" * 2_000_000, "\\boxed{" * 50_000, [], [{"role": "assistant", "content": None}]]
)
def test_any_reply_is_graded(reply: Any) -> None:
    assert accuracy_reward([reply], answer=["18"]) == [0.0]


def test_programs_are_judged_by_the_columns_of_their_row() -> None:
    columns = {name: [value] * 3 for name, value in ROW.items()}
    wrong = SQUARE.replace("x * x", "x + x")
    assert code_reward([SQUARE, wrong, "I cannot."], **columns, prompts=["p"] * 3, trainer_state=None) == [
        1.0,
        0.0,
        0.0,
    ]
    assert code_reward([SQUARE], question=["no tests at all"]) == [None]


def test_a_humaneval_row_is_judged_by_the_prompt_that_trl_hands_over_as_prompts() -> None:
    row = {
        "task_id": "HumanEval/900",
        "entry_point": "square",
        "canonical_solution": "    return x * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 9\n",
    }
    columns = {name: [value] * 2 for name, value in row.items()}  # TRL takes the column `prompt` out of the row
    prompt = 'def square(x):\n    """Square."""\n'
    wrong = SQUARE.replace("x * x", "x + x")
    assert code_reward(completions=[SQUARE, wrong], prompts=[prompt] * 2, **columns) == [1.0, 0.0]
    talks = [[{"role": "user", "content": prompt}]] * 2
    assert code_reward(completions=[SQUARE, wrong], prompts=talks, **columns) == [1.0, 0.0]
    asked = [f"Please complete this:\n{prompt}"] * 2  # a program cannot be put behind prose
    assert code_reward(completions=[SQUARE, wrong], prompts=asked, **columns) == [None, None]


def test_compute_score_has_constant_keys_for_math_and_code() -> None:
    apps = {"inputs": [[3], [4]], "outputs": [9, 16], "fn_name": "square"}
    script = {"inputs": ["3\n"], "outputs": ["9\n"]}
    program = "```python\nprint(int(input()) ** 2)\n```"
    cases = [
        ("openai/gsm8k", r"\boxed{18}", "18", 1.0, 1.0),
        ("math", "17", "18", 0.0, 1.0),
        ("math", "17", "", 0.0, 0.0),
        ("code", SQUARE, json.dumps(ROW), 1.0, 1.0),
        ("apps", SQUARE, apps, 1.0, 1.0),
        ("apps", program, json.dumps(script), 1.0, 1.0),
        ("apps", SQUARE, script, 0.0, 1.0),
    ]
    for source, reply, truth, score, valid in cases:
        result = compute_score(
            data_source=source, solution_str=reply, ground_truth=truth, extra_info={"index": 1}, more=2
        )
        assert result == {"score": score, "acc": score, "valid": valid}, (source, reply, truth)


def test_many_threads_score_at_once() -> None:
    results: list[float] = []

    def work(number: int) -> None:
        results.append(compute_score("math", rf"\boxed{{\frac{{{number}}}{{7}}}}", rf"\frac{{{number}}}{{7}}")["score"])
        results.append(compute_score("code", SQUARE, ROW)["score"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert results == [1.0] * 16


def test_importing_it_imports_no_trainer() -> None:
    code = (
        "import sys, mrlm_envs.integrations.rewards, mrlm_envs.integrations.trl;"
        "print([m for m in ('torch', 'trl', 'transformers', 'sympy', 'datasets') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_core_dependencies_are_enough() -> None:
    code = (
        "import sys\n"
        "for name in ('docstring_parser', 'jsonschema', 'pydantic', 'simpleeval', 'starlette', 'websockets', 'trl'):\n"
        "    sys.modules[name] = None\n"  # as if it were not installed
        "import mrlm_envs.integrations.openenv, mrlm_envs.integrations.trl\n"
        "from mrlm_envs.integrations.rewards import accuracy_reward, compute_score\n"
        "print(accuracy_reward(['18'], answer=['#### 18']), compute_score('math', '18', '18')['score'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "[1.0] 1.0", ran.stderr


@pytest.mark.skipif(not (SHARED / "data" / "HumanEval.jsonl").exists(), reason="needs shared/data")
def test_rows_of_humaneval_and_gsm8k_are_scored_as_they_are() -> None:
    rows = [json.loads(line) for line in (SHARED / "data" / "HumanEval.jsonl").open()][:8]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert (
        code_reward([f"```python\n{row['prompt']}{row['canonical_solution']}\n```" for row in rows], **columns)
        == [1.0] * 8
    )
    rows = [json.loads(line) for line in (SHARED / "data" / "gsm8k_test.jsonl").open()][:50]
    answers = [row["answer"] for row in rows]
    assert accuracy_reward(answers, answer=answers) == [1.0] * 50
