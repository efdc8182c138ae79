"""Judging a program: tests go in one at a time, the verdict is reached outside.

Three kinds of test. A function test is called in the program's process and its value compared here. A standard-input
test is a fresh run whose whole output is compared here. An assert test is trusted code of a dataset (HumanEval's
`check`, MBPP's asserts); it runs in a sandbox of its own, where the functions under test are proxies to the program's.

All tests of a program together get five times the time of one (`Limits.total_s`), in however many processes.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mrlm_envs.code.compare import Compare, matches, same_output
from mrlm_envs.sandbox import Answer, Failure, Limits, Sandbox, SandboxFault
from mrlm_envs.sandbox.program import EncodedCall
from mrlm_envs.sandbox.values import dumps, encode


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
        hosts: Names that assert tests use, and the agent's function or class that each of them stands for.
        drawn_as: `kind` and `difficulty` of a generated problem, for `info`; empty for a dataset row.
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
    drawn_as: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of one test: passed, or why not.

    Attributes:
        test: The test.
        passed: Whether it passed.
        failure: How the program failed; None for a wrong answer.
        got: What the program returned, or the bytes that it printed.
    """

    test: Test
    passed: bool
    failure: Failure | None = None
    got: Any = None


@dataclass(frozen=True)
class Verdict:
    """The result of judging a program.

    Attributes:
        tests: The problem's tests.
        outcomes: In the order of the tests, as far as they were run.
        load: Why the program did not even load, else None. It had seen no hidden input by then.
    """

    tests: tuple[Test, ...]
    outcomes: tuple[Outcome, ...] = ()
    load: Failure | None = None

    @property
    def solved(self) -> bool:
        """Every test was run and passed."""
        return self.load is None and sum(outcome.passed for outcome in self.outcomes) == len(self.tests) > 0

    @property
    def share(self) -> float:
        """The share of the hidden tests that passed; of all tests where none is hidden."""
        has_hidden = not all(test.public for test in self.tests)
        passed = sum(outcome.passed for outcome in self.outcomes if not (has_hidden and outcome.test.public))
        return passed / sum(not (has_hidden and test.public) for test in self.tests)


NOT_PYTHON = ("SyntaxError", "IndentationError", "TabError")
"""Exceptions of a program that does not compile."""
CRASHED = Failure("crash", "the program brought its sandbox down twice")
_OUT_OF_TIME = Failure("timeout", "the time for all tests was used up")
_SMALL = 64 << 10  # bytes of an answer that are free, however short the expected one is


def judge(sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool = False) -> Verdict:
    """Runs a program against a problem's tests.

    Args:
        sandbox: Where it runs.
        problem: What it should solve.
        code: The program.
        limits: What it may use, in all its processes together.
        run_all: Go on after a failed test. Public tests are all run in any case while the program lives.

    Raises:
        SandboxFault: The sandbox itself is broken, or the problem's own tests are.
    """
    run = _judge_asserts if problem.hosts else _judge_functions if problem.entry_point else _judge_scripts
    verdict = sandbox.attempt(lambda: run(sandbox, problem, code, limits, run_all))
    return verdict or Verdict(problem.tests, load=CRASHED)


def _goes_on(outcomes: list[Outcome], test: Test, run_all: bool) -> bool:
    """Whether a test is worth running after these outcomes."""
    return run_all or test.public or all(outcome.passed for outcome in outcomes)


def _judge_functions(sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool) -> Verdict:
    outcomes: list[Outcome] = []
    tests, left = list(problem.tests), limits.total
    while tests and left > 0:  # a new process for the tests after the one at which the last process died
        with sandbox.open(limits, total_s=left) as program:
            load = program.load(code, prelude=problem.prelude)
            if load is not None:
                return Verdict(problem.tests, tuple(outcomes), load)
            while tests and program.failure is None:
                # Hidden arguments are sent only when every public test has been answered, and its text is ours to show.
                batch = list(itertools.takewhile(lambda test: test.public, tests)) or list(tests)
                calls = [(problem.entry_point, test.args, test.kwargs) for test in batch]
                for test, answer in zip(batch, program.calls(calls, _allowance(batch))):
                    tests.pop(0)
                    passed = answer.failure is None and matches(answer.value, test.expected, problem.compare)
                    outcomes.append(Outcome(test, passed, answer.failure, answer.value))
                    if not passed and not (run_all or test.public):
                        return Verdict(problem.tests, tuple(outcomes))
                if not run_all and not all(outcome.passed for outcome in outcomes):
                    return Verdict(problem.tests, tuple(outcomes))
            left = program.left()
    outcomes += [Outcome(test, False, _OUT_OF_TIME) for test in tests]
    return Verdict(problem.tests, tuple(outcomes))


def _allowance(tests: list[Test]) -> int:
    """Bytes that all answers to some function tests may have: enough for right ones, however they are written."""
    return sum(_SMALL + 8 * len(dumps(encode(test.expected))) for test in tests)


def _judge_scripts(sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool) -> Verdict:
    outcomes: list[Outcome] = []
    left = limits.total
    for i, test in enumerate(problem.tests):
        if left <= 0:
            outcomes.append(Outcome(test, False, _OUT_OF_TIME))
        elif _goes_on(outcomes, test, run_all):
            with sandbox.open(limits, stdin=test.stdin or "", total_s=left) as program:
                if i == 0 and (load := program.check(code)) is not None:
                    return Verdict(problem.tests, load=load)
                failure = program.load(code, "__main__")
                left = program.left()
                program.close()  # dead first: a thread of it may still print
                printed, _ = program.output()
            if failure is not None and failure.exit_code == 0:  # `os._exit(0)` is one way to end a script
                failure = None
            passed = failure is None and same_output(printed, test.expected)
            outcomes.append(Outcome(test, passed, failure, printed if test.public else None))
    return Verdict(problem.tests, tuple(outcomes))


_MOST_CALLS = 200
_MOST_PROBLEMS = 4096

Asked = dict[str, list[EncodedCall]]
"""A test's code, and the calls that it makes."""
_asked: dict[tuple[str, str, Limits], Asked] = {}


def _judge_asserts(sandbox: Sandbox, problem: Problem, code: str, limits: Limits, run_all: bool) -> Verdict:
    run = _AssertRun(sandbox, problem, limits)
    verdict = run(code, run_all, _foreseen(sandbox, problem, limits))
    if run.broken is not None:  # the tests' own process failed: are the tests at fault, or the program's answers?
        canary = _AssertRun(sandbox, problem, limits)
        canary(problem.reference, False, {})
        # A reference is ours, so whatever happens with it is the tests' doing. Without one, an empty program stands in;
        # then only tests that fail before they ask anything of it are at fault.
        if canary.broken is not None and (problem.reference or not canary.has_asked):
            raise SandboxFault(f"the tests of {problem.task_id} do not load: {canary.broken}")
    return verdict


def _foreseen(sandbox: Sandbox, problem: Problem, limits: Limits) -> Asked:
    """The calls that the tests make when they meet the reference solution.

    Making them ahead for every program saves waiting for each question. They come from the reference alone, so that a
    verdict never depends on what was judged before.
    """
    key = problem.setup, problem.reference, limits
    if key not in _asked and problem.reference:
        run = _AssertRun(sandbox, problem, limits)
        solved = run(problem.reference, False, {}).solved
        while len(_asked) >= _MOST_PROBLEMS:
            _asked.pop(next(iter(_asked)), None)
        _asked[key] = run.asked if solved else {}
    return _asked.get(key, {})


class _AssertRun:
    """One program's run against assert tests, which have a process of their own.

    Attributes:
        asked: The calls that each test made.
        has_asked: The tests' process made a call that was not foreseen, if only while it loaded.
        broken: Why the tests' process did not load or died, else None.
    """

    def __init__(self, sandbox: Sandbox, problem: Problem, limits: Limits) -> None:
        self._sandbox, self._problem, self._limits = sandbox, problem, limits
        self.asked: Asked = {}
        self.has_asked = False
        self.broken: str | None = None

    def __call__(self, code: str, run_all: bool, foreseen: Asked) -> Verdict:
        problem, outcomes = self._problem, list[Outcome]()
        with (
            self._sandbox.open(self._limits) as program,
            self._sandbox.open_trusted(self._limits.memory_mb) as trusted,
        ):
            current: list[EncodedCall] = []

            def host(call: EncodedCall) -> Answer:
                self.has_asked = True
                current.append(call)
                name, args, kwargs = call
                return next(program.forward([(problem.hosts.get(name, name), args, kwargs)]))

            trusted.post_load(problem.setup, host, problem.hosts)  # beside the program's loading
            load = program.load(code, prelude=problem.prelude)
            if load is not None:
                return Verdict(problem.tests, load=load)
            trusted.finish_load(max(program.left(), 0.01))
            for test in problem.tests:
                if _goes_on(outcomes, test, run_all) and program.failure is None:
                    current.clear()
                    ahead = foreseen.get(test.code, [])
                    answers = program.forward([(problem.hosts[name], args, kwargs) for name, args, kwargs in ahead])
                    known = [(call, answer) for call, answer in zip(ahead, answers) if program.failure is None]
                    # The program's answers may be built to be slow to test, so a test's time is the program's, too.
                    failure = trusted.run_test(test.code, host, known, max(program.left(), 0.01)).failure
                    if broken := trusted.finish_load():
                        self.broken = self.broken or f"{broken.type} {broken.message}".strip()
                    died = program.failure if current else None  # a call that was foreseen but not asked may kill it
                    # A failed assert is a wrong answer; an exception or the death of the program is its failure.
                    is_wrong = failure is not None and failure.type == "AssertionError"
                    passed = failure is None and died is None
                    outcomes.append(Outcome(test, passed, died or (None if is_wrong else failure)))
                    # A call that hands back an object of this program cannot be made to another one.
                    plain = itertools.takewhile(lambda call: not any(map(_holds_reference, call[1:])), current)
                    self.asked[test.code] = list(plain)[:_MOST_CALLS]
        return Verdict(problem.tests, tuple(outcomes))


def _holds_reference(wire: Any) -> bool:
    if type(wire) is not list:
        return False
    return (len(wire) == 3 and wire[0] == "o" and type(wire[2]) is int) or any(map(_holds_reference, wire))


def reason(outcome: Outcome) -> str:
    """Why a hidden test failed, in few words: the program knows the hidden input and chooses how to fail."""
    if outcome.failure is None:
        return "wrong answer"
    return "time limit exceeded" if outcome.failure.kind == "timeout" else "the program failed"
