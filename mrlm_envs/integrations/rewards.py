"""Reward functions for trainers that call one: TRL's and verl's signatures, for math and for code.

    GRPOTrainer(model, reward_funcs=accuracy_reward, train_dataset=rows_with_an_answer_column)
    GRPOTrainer(model, reward_funcs=code_reward, train_dataset=rows_of_humaneval_or_mbpp)
    custom_reward_function: {path: …/mrlm_envs/integrations/rewards.py, name: compute_score}      # verl

Every call is bounded in time and safe in any thread: no SIGALRM, programs in a sandbox, symbolic grading in a worker
process. A reply is graded as `mrlm/Math-v0` and `mrlm/Code-v0` grade it, because these environments do the grading.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mrlm_envs.integrations.episode import Episode

Completion = str | Sequence[Mapping[str, Any]]


def accuracy_reward(
    completions: Sequence[Completion],
    answer: Sequence[Any] | None = None,
    solution: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    r"""Whether each completion gives the reference answer. TRL's signature.

    Args:
        completions: Texts, or conversations whose last message counts.
        answer: Reference answers: bare (`18`, `\frac{3}{4}`) or GSM8K's solutions that end in `#### 18`.
        solution: Worked solutions that end in `\boxed{…}`, for rows without `answer`.
        **columns: Not read.

    Returns:
        1.0 or 0.0 for each; None, which TRL masks, where the reference cannot be used or the grader failed.

    Raises:
        ValueError: There is neither an `answer` nor a `solution` column.
    """
    if answer is None and solution is None:
        raise ValueError("accuracy_reward needs a column 'answer' or 'solution' in the dataset")
    name, golds = ("answer", answer) if answer is not None else ("solution", solution or ())
    rows = [{"question": "?", name: gold} for gold in golds]
    return [_graded("mrlm/Math-v0", row, completion) for row, completion in zip(rows, completions, strict=True)]


def code_reward(
    completions: Sequence[Completion], prompts: Sequence[Completion] | None = None, **columns: Any
) -> list[float | None]:
    """Whether each completion's program passes the tests of its row. TRL's signature.

    Args:
        completions: As in `accuracy_reward`; the program is the last ```` ```python ```` block.
        prompts: The column `prompt`, which TRL hands over by this name; of a conversation its last message.
        **columns: The columns of a format that `mrlm_envs.code.tasks` knows (HumanEval, MBPP, …), a value a completion.

    Returns:
        1.0 or 0.0 for each; None where the row fits no format or the sandbox failed.
    """
    texts = list(completions)
    if prompts is not None:
        columns.setdefault("prompt", [last_text(prompt) for prompt in prompts])
    fields = {name: values for name, values in columns.items() if _is_column(values, len(texts))}
    rows = [{name: values[i] for name, values in fields.items()} for i in range(len(texts))]
    return [_graded("mrlm/Code-v0", row, text) for row, text in zip(rows, texts, strict=True)]


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **kwargs: Any
) -> dict[str, float]:
    """verl's `custom_reward_function`, for math and for code.

    Args:
        data_source: Not read.
        solution_str: What the policy wrote.
        ground_truth: A reference answer; or for code, tests: an object (or its JSON) in a format that
            `mrlm_envs.code.tasks` knows, or with `inputs`, `outputs` and, for functions, `fn_name`, as APPS has them.
        extra_info: Not read.
        **kwargs: Not read.

    Returns:
        `score` (1.0 or 0.0), `acc` (the same) and `valid`: 0.0 where the reference cannot be used or the grader failed.
        verl cannot mask such a row; watch the mean of `valid`.
    """
    tests = _tests(ground_truth)
    env_id, row = ("mrlm/Code-v0", tests) if tests else ("mrlm/Math-v0", {"question": "?", "answer": ground_truth})
    reward = _graded(env_id, row, solution_str)
    score = reward or 0.0
    return {"score": score, "acc": score, "valid": float(reward is not None)}


def _graded(env_id: str, row: Mapping[str, Any], completion: Completion) -> float | None:
    """The reward of a reply to one row, None when the row does not fit or the grader failed."""
    try:
        episode = Episode(env_id, tasks=[row])
    except ValueError:
        return None
    episode.reset(seed=0)
    episode.step(last_text(completion))
    return episode.reward


def last_text(completion: Completion) -> str:
    """The text of a completion: itself, or the content of the last message."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, list):  # typed blocks
        return "".join(str(block.get("text", "")) for block in content if isinstance(block, Mapping))
    return content or ""


def _is_column(values: Any, count: int) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count


def _tests(ground_truth: Any) -> Mapping[str, Any] | None:
    """The row of a coding problem that a reference stands for, None when it is an answer."""
    if isinstance(ground_truth, str) and ground_truth.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            ground_truth = json.loads(ground_truth)
    if not isinstance(ground_truth, Mapping):
        return None
    if "inputs" not in ground_truth:
        return ground_truth
    name = ground_truth.get("fn_name")
    given, expected = ("stdin", "stdout") if name is None else ("args", "expected")
    pairs = zip(ground_truth["inputs"], ground_truth.get("outputs", ()), strict=False)
    return {"prompt": "?", "entry_point": name, "tests": [{given: put, expected: got} for put, got in pairs]}
