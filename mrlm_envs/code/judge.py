"""Judging a program: tests go in one at a time, the verdict is reached outside.

Three kinds of test. A function test is called in the program's process and its value compared here. A standard-input
test is a fresh run whose whole output is compared here. An assert test is trusted code of a dataset (HumanEval's
`check`, MBPP's asserts); it runs in a sandbox of its own, where the functions under test are proxies to the program's.
"""

import builtins
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mrlm_envs.code.compare import Compare, matches
from mrlm_envs.sandbox import Answer, Failure, Limits, Opaque, Program, Sandbox, SandboxFault
from mrlm_envs.sandbox.program import Host, HostCall


@dataclass(frozen=True)
class Test:
    """One test of a problem.

    Attributes:
        args: Positional arguments of a function test.
        kwargs: Keyword arguments of a function test.
        expected: The value of a function test, or the output of a standard-input test.
        stdin: Standard input; None for the other kinds.
        code: Statements of an assert test; empty for the other kinds.
        public: Shown to the agent.
    """

    __test__: ClassVar[bool] = False  # pytest would take it for a test class

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    expected: Any = None
    stdin: str | None = None
    code: str = ""
    public: bool = False


@dataclass(frozen=True)
class Problem:
    """A programming problem with its tests.

    Attributes:
        task_id: Canonical name.
        prompt: What the agent is asked.
        tests: Public ones first.
        entry_point: The function to write; empty for a program that reads standard input.
        compare: How values are compared.
        reference: A right solution, or empty.
        prelude: Executed before the agent's code in the same namespace (HumanEval's imports and helpers).
        setup: Trusted code that assert tests need.
        hosts: Names that assert tests use, and which function of the agent's each of them stands for.
        kind: The generator's name; empty for a dataset row.
    """

    task_id: str
    prompt: str
    tests: tuple[Test, ...]
    entry_point: str = ""
    compare: Compare = "strict"
    reference: str = ""
    prelude: str = ""
    setup: str = ""
    hosts: dict[str, str] = field(default_factory=dict)
    kind: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one test: passed, or why not (`got` holds when there is no failure)."""

    test: Test
    passed: bool
    failure: Failure | None = None
    got: Any = None


@dataclass(frozen=True)
class Verdict:
    """What came of a program.

    Attributes:
        outcomes: In the order of the tests, as far as they were run.
        total: How many tests there are.
        load: Why the program did not even load, else None. It had seen no test by then.
    """

    outcomes: tuple[Outcome, ...]
    total: int
    load: Failure | None = None

    @property
    def passed(self) -> int:
        """How many tests passed."""
        return sum(outcome.passed for outcome in self.outcomes)

    @property
    def solved(self) -> bool:
        """Every test was run and passed."""
        return self.load is None and self.passed == self.total > 0


NOT_PYTHON = ("SyntaxError", "IndentationError", "TabError")
"""Exceptions of a program that does not compile."""
CRASHED = Failure("crash", "the program brought its sandbox down twice")


def judge(sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool = False) -> Verdict:
    """Runs a program against a problem's tests.

    Args:
        sandbox: Where it runs.
        problem: What it should solve.
        code: The program.
        limits: What it may use.
        run_all: Go on after a failed test. Public tests are all run in any case while the program lives.

    Raises:
        SandboxFault: The sandbox itself is broken.
    """
    kinds: dict[bool, Callable[..., Verdict]] = {True: _judge_scripts, False: _judge_functions}
    run = _judge_asserts if problem.hosts else kinds[not problem.entry_point]
    verdict = sandbox.attempt(lambda: run(sandbox, problem, code, limits, run_all))
    return verdict or Verdict((), len(problem.tests), CRASHED)


def _goes_on(outcomes: list[Outcome], test: Test, run_all: bool) -> bool:
    """Whether a test is worth running after these outcomes."""
    return run_all or test.public or all(outcome.passed for outcome in outcomes)


def _judge_functions(sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool) -> Verdict:
    outcomes: list[Outcome] = []
    tests = list(problem.tests)
    while tests:  # a new process for the tests that a dead one left over
        with sandbox.open(limits) as program:
            load = program.load(code, prelude=problem.prelude)
            if load is not None:
                return Verdict(tuple(outcomes), len(problem.tests), load)
            while tests and program.failure is None:
                # Hidden arguments are sent only when every public test has been answered, and its text is ours to show.
                batch = list(itertools.takewhile(lambda test: test.public, tests)) or list(tests)
                answers = program.calls((problem.entry_point, test.args, test.kwargs) for test in batch)
                for test, answer in zip(batch, answers):
                    tests.pop(0)
                    passed = answer.failure is None and matches(answer.value, test.expected, problem.compare)
                    outcomes.append(Outcome(test, passed, answer.failure, answer.value))
                    if not passed and not (run_all or test.public):
                        return Verdict(tuple(outcomes), len(problem.tests))
                if not run_all and not all(outcome.passed for outcome in outcomes):
                    return Verdict(tuple(outcomes), len(problem.tests))
    return Verdict(tuple(outcomes), len(problem.tests))


def _judge_scripts(sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool) -> Verdict:
    outcomes: list[Outcome] = []
    for test in problem.tests:
        if _goes_on(outcomes, test, run_all):
            with sandbox.open(limits, stdin=test.stdin or "") as program:
                failure = program.load(code, "__main__")
                program.close()  # dead first: a thread of it may still print
                printed, _ = program.output()
            if failure is not None and failure.type in NOT_PYTHON:
                load = failure
                if not test.public:  # it may pretend, with hidden input in its message: hear one that has read nothing
                    with sandbox.open(limits) as program:
                        load = program.load(code, "__main__")
                if load is not None and load.type in NOT_PYTHON:
                    return Verdict(tuple(outcomes), len(problem.tests), load)
            outcomes.append(Outcome(test, failure is None and same_output(printed, test.expected), failure, printed))
    return Verdict(tuple(outcomes), len(problem.tests))


def same_output(got: str, expected: str) -> bool:
    """Whether two outputs are the same but for white space at the ends of lines and of the whole."""
    return _lines(got) == _lines(expected)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _judge_asserts(sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool) -> Verdict:
    foreseen = _foreseen(sandbox, problem, limits)
    return _run_asserts(sandbox, problem, code, limits, run_all, foreseen)[0]


_RUNNER = "\n\ndef _run_test(code):\n    exec(code, globals())\n"
_MOST_CALLS = 200
_MOST_PROBLEMS = 4096

Asked = dict[str, list[HostCall]]
"""A test's code, and the calls that it makes."""
_asked: dict[tuple[str, str], Asked] = {}


def _foreseen(sandbox: Sandbox, problem: Problem, limits: Limits) -> Asked:
    """What the tests ask of the reference solution. Asking it of every program ahead saves waiting for each question.

    It comes from the reference alone, so that a verdict never depends on what was judged before.
    """
    key = problem.setup, problem.reference
    if key not in _asked and problem.reference:
        verdict, asked = _run_asserts(sandbox, problem, problem.reference, limits, False, {})
        while len(_asked) >= _MOST_PROBLEMS:
            _asked.pop(next(iter(_asked)), None)
        _asked[key] = asked if verdict.solved else {}
    return _asked.get(key, {})


def _run_asserts(
    sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool, foreseen: Asked
) -> tuple[Verdict, Asked]:
    """The verdict, and what the tests asked beyond what was foreseen."""
    outcomes: list[Outcome] = []
    asked: Asked = {}
    with sandbox.open(limits) as program, sandbox.open_trusted(limits.memory_mb) as trusted:
        current: list[HostCall] = []
        hosts = {name: _proxy(program, name, function, current) for name, function in problem.hosts.items()}
        trusted.post_load(problem.setup + _RUNNER, hosts)  # beside the program's loading
        load = program.load(code, prelude=problem.prelude)
        if load is not None:
            return Verdict((), len(problem.tests), load), {}
        for test in problem.tests:
            if _goes_on(outcomes, test, run_all) and program.failure is None:
                current.clear()
                ahead = foreseen.get(test.code, [])
                answers = program.calls((problem.hosts[name], args, kwargs) for name, args, kwargs in ahead)
                known = [(call, answer) for call, answer in zip(ahead, answers) if program.failure is None]
                # What the program returned may be built to be slow to test, so a test may take as long as the program.
                failure = trusted.call("_run_test", [test.code], None, hosts, known, limits.total).failure
                broken = trusted.finish_load()
                if broken is not None and not current:
                    raise SandboxFault(f"the tests of {problem.task_id} do not load: {broken.type}: {broken.message}")
                death = program.failure if current else None  # a call that was foreseen but not asked may kill it
                outcomes.append(_assert_outcome(test, failure or death, death))
                asked[test.code] = list(itertools.takewhile(_is_plain, current))[:_MOST_CALLS]
    return Verdict(tuple(outcomes), len(problem.tests)), asked


def _proxy(program: Program, name: str, function: str, asked: list[HostCall]) -> Host:
    def answer(args: list[Any], kwargs: dict[str, Any]) -> Answer:
        asked.append((name, args, kwargs))
        return program.call(function, args, kwargs)

    return answer


def _is_plain(call: HostCall) -> bool:
    """Whether a call can be made to another program too: it hands back no object of this one."""
    _, args, kwargs = call
    return not _holds_opaque([list(args), list(kwargs.values())])


def _holds_opaque(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_opaque, [*value, *value.values()]))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_holds_opaque, value))
    return isinstance(value, Opaque)


def _assert_outcome(test: Test, failure: Failure | None, death: Failure | None) -> Outcome:
    """A failed assert is a wrong answer; what the program itself raised or died of is its failure."""
    wrong = failure is not None and failure.type == "AssertionError"
    return Outcome(test, failure is None, death if death is not None else None if wrong else failure)


def reason(outcome: Outcome) -> str:
    """Why a hidden test failed, in words that carry nothing the program chose: it knows the hidden arguments."""
    failure = outcome.failure
    if failure is None:
        return "wrong answer"
    if failure.kind == "exception":
        known = isinstance(getattr(builtins, failure.type, None), type)
        return f"raised {failure.type}" if known else "raised an exception"
    return {
        "exit": "the program ended its own process",
        "timeout": "time limit exceeded",
        "crash": "the process died",
        "disk": "disk limit exceeded",
        "too_large": "the returned value is too large",
        "protocol": "the program tampered with the judge's channel",
    }[failure.kind]
