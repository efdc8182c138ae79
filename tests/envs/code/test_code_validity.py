"""No program decides that its episode does not count: whatever it does, the verdict is a valid 0, within its limits."""

import json
import time

import pytest

from mrlm_envs.code.env import CodeEnv
from mrlm_envs.code.judge import Problem, Test, judge
from mrlm_envs.sandbox import Limits, Sandbox, SandboxFault
from mrlm_envs.sandbox.program import MAX_FRAME
from tests.support.paths import SHARED

HUMAN_EVAL, MBPP = SHARED / "data" / "HumanEval.jsonl", SHARED / "data" / "mbpp_train.jsonl"
LIMITS = Limits(timeout_s=30.0)
TWICE = {
    "prompt": "Print twice the number you read.",
    "tests": [{"stdin": f"{i}\n", "stdout": f"{2 * i}\n", "public": i < 2} for i in range(12)],
}


def asserting(*tests: str, reference: str = "", setup: str = "") -> Problem:
    return Problem("t", "", tuple(map(_test, tests)), "f", reference=reference, setup=setup, hosts={"f": "f"})


def _test(code: str) -> Test:
    return Test(code=code)


def ends_validly(env: CodeEnv, code: str) -> tuple[str, float]:
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(f"```python\n{code}\n```")
    assert terminated and not truncated and info.get("valid", True)
    return observation, reward


# ---- what comes back is bounded in size and depth, in both directions


FAR_TOO_MUCH = {
    "megabytes in every answer": "return 'x' * 3_900_000",
    "lists in every answer": "return [[] for _ in range(200_000)]",
    "small integers, large on the way in": "return [0] * 900_000",
    "a dict in a dict": "d = {}\n    for _ in range(149): d = {1: d}\n    return d",
    "a list of itself": "x = []\n    x.append(x)\n    return x",
    "an error of a megabyte": "raise ValueError('x' * 1_000_000)",
}


@pytest.mark.parametrize("memory_mb", [128, 512])
@pytest.mark.parametrize("name", FAR_TOO_MUCH)
def test_answers_beyond_any_bound_are_a_failed_test_though_all_were_foreseen(name, memory_mb):
    tests = [f"assert f({i}) == {i}" for i in range(9)] + ["assert [f(i) for i in range(40)] == list(range(40))"]
    task = asserting("\n".join(tests), reference="def f(x): return x")
    verdict = judge(Sandbox.shared(), task, f"def f(x):\n    {FAR_TOO_MUCH[name]}", Limits(30.0, memory_mb=memory_mb))
    assert not verdict.solved


def test_a_program_of_many_megabytes_is_a_failed_one():
    verdict = judge(Sandbox.shared(), asserting("assert f(1)"), "#" * (17 * MAX_FRAME), LIMITS)
    assert verdict.load is not None and verdict.load.kind == "too_large"


# ---- a fault needs a canary


def test_a_program_whose_answers_kill_the_process_of_the_tests_has_failed():
    """All answers are foreseen, so that the tests ask nothing; they only take forever over what they know."""
    collide = "def f(x): return [(2**61 - 1) * i for i in range(130_000)]"
    task = asserting("assert set(f(1)) == {1}", reference="def f(x): return [x]")
    verdict = judge(Sandbox.shared(), task, collide, Limits(timeout_s=0.5))
    assert [outcome.passed for outcome in verdict.outcomes] == [False]


def test_tests_that_break_with_an_empty_answer_before_they_ask_it_anything_are_at_fault():
    broken = asserting("assert f(1) == 2", setup="import nonexistent")
    with pytest.raises(SandboxFault, match="nonexistent"):
        judge(Sandbox.shared(), broken, "def f(x): return 2", LIMITS)


@pytest.mark.parametrize("program", ["def f(x): raise ValueError", "", "def f(x): return object()"])
def test_tests_that_break_on_a_programs_answer_are_not_at_fault_with_or_without_a_reference(program):
    for reference in ("", "def f(x): return 2"):
        task = asserting("assert x == 2", setup="x = f(1) + 0", reference=reference)
        assert not judge(Sandbox.shared(), task, program, LIMITS).solved
        assert judge(Sandbox.shared(), task, "def f(x): return 2", LIMITS).solved


def test_tests_that_break_on_the_reference_itself_are_at_fault():
    task = asserting("assert f(1) == 2", setup="x = f(1) + None", reference="def f(x): return 2")
    with pytest.raises(SandboxFault, match="do not load"):
        judge(Sandbox.shared(), task, "def f(x): return 2", LIMITS)


def test_an_answer_foreseen_for_one_program_is_never_given_to_the_tests_of_the_next():
    task = asserting("assert x == 2", setup="x = f(1)", reference="def f(x): return 2")
    for program, solved in (("def f(x): return 2", True), ("def f(x): return 3", False), ("", False)):
        assert judge(Sandbox.shared(), task, program, LIMITS).solved is solved


# ---- limits hold for all processes together, and cost the judge next to nothing


@pytest.mark.parametrize("row", ["functions", "programs"])
def test_all_tests_together_get_five_times_the_time_of_one(row):
    functions = {"prompt": "f", "entry_point": "f", "tests": [{"args": [i], "expected": i} for i in range(12)]}
    env = CodeEnv(tasks=[functions if row == "functions" else TWICE], reward="fraction", timeout_s=0.4)
    code = "while True: pass" if row == "programs" else "def f(x):\n    while True: pass"
    started = time.monotonic()
    assert ends_validly(env, code)[1] == 0.0
    # Twelve time-outs of 0.4 s each, three times as long on a busy machine, would be 14.4 s; 5 x 0.4 x 3 are 6.
    assert time.monotonic() - started < 12


def test_megabytes_of_garbage_cost_the_judges_process_little():
    """Measured in processor time of this process, which does not depend on the load of the machine."""
    env = CodeEnv(tasks=[TWICE], reward="fraction", timeout_s=30.0)
    garbage = "import os\nfor fd in (1, 2): os.write(fd, b'\\xff' * ((8 << 20) - 1))"
    env.reset(seed=0)
    began = time.process_time()
    observation, reward, *_ = env.step(garbage)
    assert time.process_time() - began < 5 and reward == 0.0
    assert len(observation) < 10_000 and "\ufffd" in observation


# ---- hidden input stays hidden


LEAKS = {
    "an exception's type": "raise [ValueError, KeyError, TypeError, OSError, IndexError][x % 5]",
    "an exception's text": "raise ValueError(x)",
    "a syntax error's text": "raise SyntaxError(f'it was {x}')",
    "how the process ends": "[lambda: exit(1), lambda: os._exit(3), os.abort, lambda: 1 / 0, lambda: 0][x % 5]()",
    "what is printed": "print(x)",
}


@pytest.mark.parametrize("name", LEAKS)
def test_feedback_on_hidden_input_is_words_of_ours_alone(name):
    said = set()
    for hidden in range(77000, 77005):
        tests = [{"stdin": "1\n", "stdout": "2\n", "public": True}, {"stdin": f"{hidden}\n", "stdout": "?\n"}]
        env = CodeEnv(tasks=[{"prompt": "Twice.", "tests": tests}], timeout_s=30.0)
        code = f"import os\nx = int(input())\nprint(2 * x if x == 1 else 0)\nif x > 1:\n    {LEAKS[name]}"
        observation, _ = ends_validly(env, code)
        said.add(observation.removeprefix("1 of 1 public tests passed.\n\nA hidden test failed: ").rstrip("."))
    assert said <= {"the program failed", "wrong answer"}


def test_a_hidden_run_that_pretends_not_to_compile_is_not_run_again_to_be_heard():
    """A process id, a time or a file's trace could carry what the first run saw to a second one."""
    env = CodeEnv(tasks=[{"prompt": "Twice.", "tests": [{"stdin": "77001\n", "stdout": "?\n"}]}], max_turns=2)
    env.reset(seed=0)
    observation, *_, info = env.step("x = input()\nraise SyntaxError('run')")
    assert observation == "A hidden test failed: the program failed." and info["action_valid"]
    observation, *_, info = env.step("x = 1\nx =")
    assert "line 2" in observation and not info["action_valid"]


# ---- what Python programs do and datasets hold


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("from decimal import Decimal\ndef f(x): return Decimal('1.50') + x", "assert f(1) == 2.5"),
        ("from fractions import Fraction\ndef f(x): return Fraction(x, 3)", "assert f(1) * 3 == 1 and f(2) < 1"),
        ("def f(x): yield from range(x)", "assert list(f(4)) == [0, 1, 2, 3] and sum(f(3)) == 3"),
        ("def f(x): return map(str, range(x))", "assert [y for y in f(2)] == ['0', '1']"),
        ("import itertools\ndef f(x): return itertools.count(x)", "assert next(f(2)) == 2 and next(iter(f(3))) == 3"),
        ("def f(x): return range(x)", "assert f(3) == range(3) and len(f(3)) == 3"),
        ("def f(x): return {x: 1}.keys()", "assert list(f(3)) == [3] and len(f(3)) == 1 and 3 in f(3)"),
        ("from collections import deque\ndef f(x): return deque([x, 2])", "assert f(1)[0] == 1 and [*f(1)] == [1, 2]"),
        ("import datetime\ndef f(x): return datetime.date(2020, 1, x)", "assert f(3).day == 3 and f(3) > f(2)"),
        ("def f(x): return x", "assert f(int) is int and f(len) is len and isinstance(1, f(int))"),
        ("class f:\n    def __init__(self, x): self.x = x", "a = f(1)\na.y = f(2)\nassert (a.x, a.y.x) == (1, 2)"),
    ],
)
def test_values_pass_where_the_operators_of_the_tests_pass_them(program, test):
    assert judge(Sandbox.shared(), asserting(test), program, LIMITS).solved
    wrong = "def f(x): return [object(), None, 'x', [], {}]"
    assert not judge(Sandbox.shared(), asserting(test), wrong, LIMITS).solved


def test_an_object_is_not_equal_whatever_it_says_and_a_generator_without_end_only_costs_its_own_time():
    equal = "class f:\n    def __init__(self, x): pass\n    def __eq__(self, other): return True"
    assert not judge(Sandbox.shared(), asserting("assert f(1) == 1"), equal, LIMITS).solved
    endless = "import itertools\ndef f(x): return itertools.count()"
    assert not judge(Sandbox.shared(), asserting("assert list(f(1)) == [1]"), endless, Limits(timeout_s=0.4)).solved


@pytest.mark.parametrize(
    "ending", ["exit()", "quit()", "sys.exit()", "sys.stdout.flush(); os._exit(0)", "os._exit(0)", "raise SystemExit"]
)
def test_a_script_may_end_in_any_way_that_python_has(ending):
    env = CodeEnv(tasks=[TWICE], timeout_s=30.0)
    assert ends_validly(env, f"import os, sys\nprint(2 * int(input()))\n{ending}")[1] == 1.0
    assert ends_validly(env, f"import os, sys\nprint(7)\n{ending}")[1] == 0.0


def test_a_program_sees_no_path_of_ours():
    code = "import sys\ndef f(): return [sys.argv, sys.orig_argv, sys.executable, sys.modules['__main__'].__file__]"
    value = Sandbox.shared().run(code, [("f", [])]).values[0]
    assert value == [["solution.py"], ["python", "solution.py"], "", "solution.py"]
    walk = (
        "import sys\ndef f():\n    frame, seen = sys._getframe(), list(sys.modules.values())\n    while frame:\n"
        "        seen += [frame.f_code, *frame.f_globals.values(), *frame.f_locals.values()]\n"
        "        frame = frame.f_back\n"
        "    return [repr(thing) + repr(getattr(thing, '__file__', '')) for thing in seen]"
    )
    assert not [text for text in Sandbox.shared().run(walk, [("f", [])]).values[0] if "mrlm_envs" in text]


MBPP_ROWS = [
    ("shadows a builtin", "def sum(a, b):\n    return a + b + 1", "", "assert sum(1, 2) == 4", "return a + b"),
    ("import of the solution", "import math\ndef f(x):\n    return math.pi * x", "",
     "assert math.isclose(f(1), 3.14159, rel_tol=0.01)", "return 3"),
    ("class of the solution in the setup", "class Node:\n    def __init__(self, x):\n        self.x = x\n"
     "        self.left = None\ndef f(n):\n    return n.x + n.left.x", "a = Node(1)\r\na.left = Node(2)",
     "assert f(a) == 3", "return n.x"),
    ("type as an argument", "def f(x, kind):\n    return [y for y in x if type(y) is kind]", "",
     "assert f([1, 'a'], int) == [1]", "return x"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "setup", "test", "wrong"), [r[1:] for r in MBPP_ROWS], ids=[r[0] for r in MBPP_ROWS])
def test_rows_in_the_manner_of_mbpp_pass_their_reference_and_fail_another(code, setup, test, wrong):
    row = {"task_id": 1, "text": "Write it.", "code": code, "test_setup_code": setup, "test_list": [test]}
    env = CodeEnv(tasks=[row], timeout_s=30.0)
    assert ends_validly(env, code)[1] == 1.0
    head, _, last = code.rpartition("\n")
    assert ends_validly(env, f"{head}\n{last[: len(last) - len(last.lstrip())]}{wrong}")[1] == 0.0


@pytest.mark.skipif(not MBPP.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_every_row_of_mbpp_passes_its_reference(every):
    env = CodeEnv(tasks=str(MBPP), timeout_s=30.0)
    rows = [json.loads(line) for line in MBPP.read_text().splitlines()]
    assert env.num_tasks == len(rows)
    odd = {126, 367, 533, 596, 927}  # `sum`, a class for the setup, a type as an argument, an import of the solution
    for row in [row for i, row in enumerate(rows) if i % every == 0 or row["task_id"] in odd]:
        env.reset(options={"task_id": f"mbpp/{row['task_id']}"})
        assert env.step(env.expert() or "")[1] == 1.0, row["task_id"]


@pytest.mark.skipif(not HUMAN_EVAL.exists(), reason="needs ../shared/data")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["megabytes in every answer", "lists in every answer", "a dict in a dict"])
def test_no_row_of_human_eval_lets_a_program_void_its_episode(name):
    env = CodeEnv(tasks=str(HUMAN_EVAL), timeout_s=1.0, memory_mb=128)
    for seed in range(0, env.num_tasks or 0, 4):
        env.reset(seed=seed)
        code = f"def {env.problem.entry_point}(*args):\n    {FAR_TOO_MUCH[name]}"
        _, reward, terminated, _, info = env.step(f"```python\n{code}\n```")
        assert reward == 0.0 and terminated and info.get("valid", True), env.problem.task_id
