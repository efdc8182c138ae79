"""Math: a problem, a reply, and a grader that can be neither fooled nor hung.

| | |
| --- | --- |
| id | `mrlm/Math-v0` |
| observation | the problem at reset; after a wrong attempt, that it was wrong |
| action | any text; the answer is read as `mrlm_envs.answers.extract` says, first of all from the last `\\boxed{…}` |
| reward | 1.0 for a right answer, else 0.0; `format_reward` (off) pays for an answer that can be found |
| terminated | right, or after `max_turns` attempts |
| task id | kind and operands of a generated problem (names left out); the row's id in a dataset |
| expert | always: the worked solution |

Parameters: `kinds` and `difficulty=(lo, hi)`, both of 1 to 10, choose among the generators of
`mrlm_envs.math.tasks.KINDS` (that module says how many distinct tasks each has); `tasks` takes a file, a list of rows
or an `"hf:NAME"` of GSM8K, MATH, MATH-500, AIME, AMC or Minerva format instead (see `mrlm_envs.math.tasks.problem`);
`max_turns` gives several attempts. Feedback says only whether an answer was found and that it was wrong. What counts as
right, and that a computation left to do is no answer, is the page of `mrlm_envs.math.verify`.

Version history: v0, first release.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_envs.math.generators import Draw
from mrlm_envs.math.tasks import KINDS, Problem, check_range, draw_problem, problem, warn_if_few
from mrlm_envs.math.verify import find_answer, grade
from mrlm_envs.tasks import Source, check_amounts
from mrlm_envs.vector import TextVectorEnv


class MathEnv(TextEnv):
    """Solve a problem and put the final answer in a box.

    Args:
        kinds: Names of generators to draw from; all of them by default.
        difficulty: Lowest and highest difficulty of generated problems, within 1 to 10.
        tasks: A finite source of problems instead of the generators.
        format_reward: Paid once for the first reply in which an answer is found.
        **kwargs: `split`, `max_turns`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ValueError: On an unknown kind, a difficulty out of range, or a row that does not fit.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}
    system_prompt = "Solve the problem. Put the final answer in \\boxed{}."

    def __init__(
        self,
        kinds: Sequence[str] | None = None,
        difficulty: Sequence[int] = (1, 3),
        tasks: Source | None = None,
        format_reward: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        kinds = tuple(KINDS) if kinds is None else kinds
        self.difficulty = check_range(kinds, difficulty)
        self.kinds = tuple(kinds)
        check_amounts(format_reward=format_reward)
        self.format_reward = format_reward
        self.read_tasks(tasks, problem)
        if self.tasks is None:
            warn_if_few(self.kinds, self.difficulty, self.split)
        self.problem: Problem
        self._random = Draw(self.rng)

    def begin(self, options: Options) -> Opening:
        self.problem = self.picked(options) or draw_problem(self._random, self.kinds, self.difficulty)
        self.format_is_paid = False
        return Opening(self.problem.question, self.problem.task_id, info=self.problem.drawn_as)

    def respond(self, action: str) -> Reply:
        is_correct = grade(action, self.problem.answer)
        found = is_correct or find_answer(action) is not None
        rewards = {"correct": float(is_correct)}
        if self.format_reward:
            rewards["format"] = self.format_reward * (found and not self.format_is_paid)
            self.format_is_paid |= found
        if is_correct:
            return Reply("Correct.", rewards, done=True, success=True)
        if not found:
            text = "I found no final answer. Put it in \\boxed{}."
            return Reply(text, rewards, info={"action_valid": False})
        return Reply("That is not correct." if self.is_last_turn else "That is not correct. Try again.", rewards)

    def expert(self) -> str:
        """The worked solution of the current problem."""
        return self.problem.solution


make_vec = functools.partial(TextVectorEnv, MathEnv)
