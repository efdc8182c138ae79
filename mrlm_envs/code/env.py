"""Code: a programming problem, a program in Python, and a judge that no program can bribe.

| | |
| --- | --- |
| id | `mrlm/Code-v0` |
| observation | the problem at reset; after a failed attempt, the errors and the public tests that failed |
| action | any text; the program is, after thoughts, the last ```` ```python ```` block, else the last fence, else all |
| reward | 1.0 when every test passes, else 0.0; `reward="fraction"` pays the share of the hidden tests that pass |
| terminated | solved, or after `max_turns` attempts |
| task id | family and parameters of a generated problem; the row's id in a dataset |
| expert | always for generated problems: the reference solution (for rows, where they have one) |

The program runs in `mrlm_envs.sandbox`, and the judge sits outside: expected values and asserts never enter the
program's process. Some tests are public (shown with the problem and in feedback), the others never show.

Parameters: `kinds` and `difficulty=(lo, hi)` of 1 to 5 choose among the families of
`mrlm_envs.code.generators.FAMILIES`; `tasks` takes a file, a list of rows or an `"hf:NAME"` instead (formats:
`mrlm_envs.code.tasks`; HumanEval's and MBPP's files fit as they are); `timeout_s` holds for loading the program and for
each call; `sandbox` is "auto", "landlock", "bwrap" or "unsafe" (none: only for code you trust). Needs Linux.

Version history: v0, first release.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from mrlm_envs.code.feedback import describe
from mrlm_envs.code.generators import FAMILIES, check_range, generate
from mrlm_envs.code.judge import NOT_PYTHON, Problem, judge
from mrlm_envs.code.tasks import problem
from mrlm_envs.core import EnvFault, Opening, Options, Reply, TextEnv
from mrlm_envs.sandbox import Limits, Sandbox, SandboxFault, SandboxUnavailable
from mrlm_envs.sandbox.sandbox import Backend
from mrlm_envs.tasks import Source, check_choice
from mrlm_envs.vector import TextVectorEnv

_END_OF_THOUGHTS = re.compile(r"^\s*</think>|</think>\s*$", re.MULTILINE)
_FENCE = re.compile(r"([ \t]*)(`{3,}(?=[^`]*$)|~{3,})\s*(\S*)")


class CodeEnv(TextEnv):
    """Write a Python program that passes every test.

    Args:
        kinds: Names of families to draw from; all of them by default.
        difficulty: Lowest and highest difficulty of generated problems, within 1 to 5.
        tasks: A finite source of problems instead of the generators.
        reward: "binary" pays for solving; "fraction" pays the share of the hidden tests that pass (of all tests where
            none is hidden): a program that only knows the examples earns nothing.
        timeout_s: Seconds for loading the program and for each call; five times that for all of them.
        memory_mb: Memory of the program, beyond the interpreter's.
        sandbox: How programs are locked in.
        syntax_reward: Paid once, for the first program that is Python at all.
        feedback: "public" shows errors and failed public tests; "none" only says that it was wrong.
        **kwargs: `split`, `max_turns`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ValueError: On a value out of range, or a row that does not fit.
        SandboxUnavailable: No isolation works here.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}
    system_prompt = "Solve the problem in Python. Put the whole program into one ```python block."

    def __init__(
        self,
        kinds: Sequence[str] | None = None,
        difficulty: Sequence[int] = (1, 2),
        tasks: Source | None = None,
        reward: str = "binary",
        timeout_s: float = 3.0,
        memory_mb: int = 512,
        sandbox: Backend = "auto",
        syntax_reward: float = 0.0,
        feedback: str = "public",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("reward", reward, ("binary", "fraction"))
        check_choice("feedback", feedback, ("public", "none"))
        for name, value, low, high in (
            ("timeout_s", timeout_s, 0.01, 600),
            ("memory_mb", memory_mb, 16, 1 << 20),
            ("syntax_reward", syntax_reward, 0, 1),
        ):
            kinds_of_number = int if name == "memory_mb" else int | float
            if isinstance(value, bool) or not isinstance(value, kinds_of_number) or not low <= value <= high:
                raise ValueError(f"{name} must be a number from {low} to {high}, got {value!r}")
        kinds = tuple(FAMILIES) if kinds is None else kinds
        self.difficulty = check_range(kinds, difficulty)
        self.kinds = tuple(kinds)
        self.reward, self.syntax_reward, self.feedback = reward, syntax_reward, feedback
        self.limits = Limits(timeout_s=float(timeout_s), memory_mb=memory_mb)
        self.read_tasks(tasks, problem)
        self.backend: Backend = sandbox
        Sandbox.shared(sandbox).start()
        self.problem: Problem

    def begin(self, options: Options) -> Opening:
        self.problem = self.picked(options) or generate(self.rng, self.kinds, self.difficulty)
        self.syntax_is_paid = False
        return Opening(self.problem.prompt, task_id=self.problem.task_id, info=self.problem.drawn_as)

    def respond(self, action: str) -> Reply:
        code = program_in(action)
        if not code.strip():
            return Reply("I found no program. Put it into a ```python block.", info={"action_valid": False})
        code = completed(self.problem, code)
        try:
            verdict = judge(Sandbox.shared(self.backend), self.problem, code, self.limits, self.reward == "fraction")
        except (SandboxFault, SandboxUnavailable) as fault:
            raise EnvFault(str(fault)) from fault
        rewards = {"tests": float(verdict.solved)}
        if self.reward == "fraction":
            rewards["tests"] = verdict.share
        is_python = verdict.load is None or verdict.load.type not in NOT_PYTHON
        if self.syntax_reward:
            rewards["syntax"] = self.syntax_reward * (is_python and not self.syntax_is_paid)
            self.syntax_is_paid |= is_python
        if verdict.solved:
            return Reply("All tests passed.", rewards, done=True, success=True)
        text = describe(self.problem, verdict) if self.feedback == "public" else "The program is not correct."
        return Reply(text, rewards, info={"action_valid": is_python})

    def expert(self) -> str | None:
        """The reference solution of the current problem, where it has one."""
        return f"```python\n{self.problem.reference.strip()}\n```" if self.problem.reference else None


def program_in(reply: str) -> str:
    """The program in a reply after thoughts: the last ```` ```python ```` block, else the last fence, else all of it.

    Fences are CommonMark's: of backticks or tildes, three or more, and what is in an indented one (of a list) loses as
    much indentation. A fence that is never closed ends with the reply.
    """
    reply = _after_thoughts(reply)
    blocks: list[tuple[bool, list[str]]] = []
    fence, indent = "", 0
    for line in reply.split("\n"):
        if fence:
            mark = line.strip()
            if mark.startswith(fence) and not mark.strip(fence[0]):
                fence = ""
            else:
                blocks[-1][1].append(line[min(indent, len(line) - len(line.lstrip())) :])
        elif opening := _FENCE.match(line):
            indent, fence = len(opening[1]), opening[2]
            blocks.append((opening[3].lower() in ("python", "py", "python3"), []))
    if not blocks:
        return reply
    python = [lines for is_python, lines in blocks if is_python]
    return "\n".join(python[-1] if python else blocks[-1][1])


def _after_thoughts(reply: str) -> str:
    """What follows `</think>`. Where no thoughts begin the reply, one in the middle of a line is the program's own."""
    if reply.lstrip().startswith("<think>"):
        return reply.partition("</think>")[2]
    ends = [*_END_OF_THOUGHTS.finditer(reply)]
    return reply[ends[-1].end() :] if ends else reply


def completed(problem: Problem, code: str) -> str:
    """The program itself, or, when it is the body that a HumanEval prompt leaves open, put behind that prompt."""
    if not problem.prelude or re.search(rf"^\s*(async\s+)?def\s+{problem.entry_point}\b", code, re.MULTILINE):
        return code
    return code if re.search(rf"^{problem.entry_point}\s*=", code, re.MULTILINE) else problem.prelude + code


make_vec = functools.partial(TextVectorEnv, CodeEnv)
