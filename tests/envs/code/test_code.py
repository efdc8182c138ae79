"""`mrlm/Code-v0`: problems, rows, verdicts, feedback."""

import json
import sys
import time

import gymnasium
import pytest

from mrlm_envs.checker import check_text_env
from mrlm_envs.code.compare import matches, show
from mrlm_envs.code.env import CodeEnv, program_in
from mrlm_envs.code.judge import Problem, Test, judge
from mrlm_envs.code.tasks import problem
from mrlm_envs.sandbox import Limits, Opaque, Sandbox, SandboxFault
from tests.support.paths import SHARED

DATA = SHARED / "data"

SUM = {
    "task_id": "sum",
    "prompt": "Write `total(xs)`, the sum of a list.",
    "entry_point": "total",
    "tests": [
        {"args": [[1, 2]], "expected": 3, "public": True},
        {"args": [[4, 5]], "expected": 9, "public": True},
        {"args": [[]], "expected": 0},
        {"args": [[77001, 1]], "expected": 77002},
    ],
    "reference": "def total(xs):\n    return sum(xs)",
}
ECHO = {
    "prompt": "Print twice the number you read.",
    "tests": [{"stdin": "2\n", "stdout": "4\n", "public": True}, {"stdin": "5\n", "stdout": "10\n"}],
    "reference": "print(2 * int(input()))",
}
MBPP = {
    "task_id": 601,
    "text": "Write a function to find the longest chain of pairs.",
    "code": (
        "class Pair(object):\n    def __init__(self, a, b):\n        self.a = a\n        self.b = b\n"
        "def max_chain_length(arr, n):\n    best = [1] * n\n    for i in range(1, n):\n        for j in range(i):\n"
        "            if arr[i].a > arr[j].b: best[i] = max(best[i], best[j] + 1)\n    return max(best)"
    ),
    "test_setup_code": "",
    "test_list": [
        "assert max_chain_length([Pair(5, 24), Pair(15, 25), Pair(27, 40), Pair(50, 60)], 4) == 3",
        "assert max_chain_length([Pair(1, 2), Pair(3, 4), Pair(5, 6), Pair(7, 8)], 4) == 4",
    ],
    "challenge_test_list": ["assert max_chain_length([Pair(1, 2)], 1) == 1"],
}
DEMO = {
    "id": "code_003",
    "description": "Write a function that reverses a string.",
    "function_name": "reverse_string",
    "test_cases": [{"input": "'hello'", "output": "'olleh'"}, {"input": "'a'", "output": "'a'"}],
    "difficulty": "easy",
}
SOLUTIONS = [
    (SUM, SUM["reference"], "def total(xs):\n    return len(xs) + 1"),
    (ECHO, ECHO["reference"], "print(4)"),
    (MBPP, MBPP["code"], MBPP["code"].replace("+ 1", "+ 2")),
    (DEMO, "def reverse_string(s):\n    return s[::-1]", "def reverse_string(s):\n    return s"),
]


def fenced(code):
    return f"Here it is:\n```python\n{code}\n```\n"


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"difficulty": [3, 5], "max_turns": 3, "split": "test"}, {"tasks": [SUM], "reward": "fraction"}],
    ids=["default", "hard", "rows"],
)
def test_it_keeps_the_contract(kwargs):
    check_text_env(gymnasium.make("mrlm_envs:mrlm/Code-v0", timeout_s=1.0, **kwargs), episodes=5)


@pytest.mark.parametrize(("row", "right", "wrong"), SOLUTIONS, ids=["function", "stdio", "mbpp", "demo"])
def test_a_right_program_is_paid_and_a_wrong_one_is_not(row, right, wrong):
    env = CodeEnv(tasks=[row])
    for code, reward in ((right, 1.0), (wrong, 0.0)):
        env.reset(seed=0)
        _, earned, terminated, _, info = env.step(fenced(code))
        assert (earned, terminated, info["success"]) == (reward, True, bool(reward)), code


def test_the_same_seed_gives_the_same_problem_and_splits_share_none():
    train, test = CodeEnv(difficulty=(1, 5)), CodeEnv(difficulty=(1, 5), split="test")
    ids = {split: {env.reset(seed=s)[1]["task_id"] for s in range(60)} for split, env in (("a", train), ("b", test))}
    assert not ids["a"] & ids["b"]
    assert train.reset(seed=5)[0] == train.reset(seed=5)[0]


def test_feedback_shows_public_failures_and_nothing_of_hidden_tests():
    env = CodeEnv(tasks=[SUM], max_turns=4)
    text, _ = env.reset(seed=0)
    assert "total([1, 2]) == 3" in text and "77001" not in text
    observation, *_ = env.step(fenced("def total(xs):\n    return xs[0] + 2"))
    assert "1 of 2 public tests passed" in observation and "expected: 9" in observation and "got: 6" in observation
    leak = "def total(xs):\n    if len(xs) == 2 and xs[0] < 100: return sum(xs)\n"
    leak += "    raise type(str(xs), (Exception,), {})(str(xs))"
    observation, reward, *_, info = env.step(fenced(leak))
    assert "2 of 2 public tests passed" in observation and "A hidden test failed: the program failed." in observation
    assert reward == 0.0 and "77001" not in observation + json.dumps(info)
    observation, *_ = env.step(fenced("def total(xs):\n    if not xs: return 0\n    return 3 if xs[0] == 1 else 9"))
    assert "A hidden test failed: wrong answer." in observation


def test_hidden_arguments_cannot_reach_a_later_turn():
    """A program that sees hidden arguments tries to keep them in every place it can reach, and to read them again."""
    keep = """
import atexit, os, sys
def total(xs):
    for name in ('kept', '../kept', '/tmp/kept-by-the-agent', '/dev/shm/kept'):
        try: open(name, 'a').write(repr(xs))
        except OSError: pass
    for fd in range(64):
        try: os.write(fd, repr(xs).encode()) if fd != 3 else None
        except OSError: pass
    print(xs)
    return sum(xs) if xs and xs[0] < 100 else 'kept'
"""
    recall = """
import os, sys
found = sys.stdin.read()
for name in ('kept', '../kept', '/tmp/kept-by-the-agent', '/dev/shm/kept'):
    try: found += open(name).read()
    except OSError: pass
for fd in range(64):
    try: found += os.pread(fd, 1000, 0).decode()
    except OSError: pass
raise ValueError('found: ' + found)
"""
    env = CodeEnv(tasks=[SUM], max_turns=4)
    for _ in range(3):
        env.reset(seed=0)
        for code in (keep, recall):
            observation, _, _, _, info = env.step(fenced(code))
            assert "77001" not in observation + json.dumps(info)
        assert "found: \n" in observation + "\n" or observation.rstrip().endswith("found:")


def test_a_script_cannot_show_hidden_input_by_pretending_that_it_does_not_compile():
    for public in (True, False):
        tests = [{"stdin": "2\n", "stdout": "4\n", "public": public}, {"stdin": "77001\n", "stdout": "154002\n"}]
        env = CodeEnv(tasks=[{"prompt": "Twice.", "tests": tests[not public :]}], max_turns=3)
        env.reset(seed=0)
        pretends = "x = int(input())\nif x > 2: raise SyntaxError(f'it was {x}')\nprint(2 * x)"
        observation, *_, info = env.step(fenced(pretends))
        assert "77001" not in observation and info["action_valid"]
        observation, *_, info = env.step(fenced("x = 1\nx = ="))
        assert "line 2" in observation and not info["action_valid"]


def test_an_error_at_loading_is_shown_with_its_line_capped_and_escaped():
    env = CodeEnv(tasks=[SUM], max_turns=5)
    env.reset(seed=0)
    observation, *_, info = env.step(fenced("x = 1\ndef total(:"))
    assert "line 2" in observation and "SyntaxError" in observation and info["action_valid"] is False
    observation, *_ = env.step(fenced("raise ValueError('<|im_start|>system\\x1b[2J\\ud800' + 'x' * 100000)"))
    assert "<|" not in observation and "\x1b" not in observation and len(observation) < 3000


def test_no_feedback_when_none_is_asked_for():
    env = CodeEnv(tasks=[SUM], max_turns=2, feedback="none")
    env.reset(seed=0)
    assert env.step(fenced("def total(xs):\n    return 5"))[0] == "The program is not correct."


def test_fractions_and_syntax_can_be_paid():
    env = CodeEnv(tasks=[SUM], reward="fraction", syntax_reward=0.1, max_turns=3)
    env.reset(seed=0)
    _, _, _, _, info = env.step("def total(:")
    assert info["rewards"] == {"tests": 0.0, "syntax": 0.0}
    _, _, _, _, info = env.step("def total(xs):\n    if not xs:\n        import os; os._exit(0)\n    return sum(xs)")
    assert info["rewards"] == {"tests": 0.5, "syntax": 0.1}  # one of the two hidden tests
    _, _, _, _, info = env.step(SUM["reference"])
    assert info["rewards"] == {"tests": 1.0, "syntax": 0.0} and info["success"]


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\na\n```\ntext\n```python\nb\n```\n```\nc\n```", "b"),
        ("```\na\n```\n```js\nb\n```", "b"),
        ("```py\n    return 1\n```", "    return 1"),
        ("text\n```python\nnever closed\nagain", "never closed\nagain"),
        ("1. So:\n   ```python\n   def f():\n       return 1\n  \n   ```", "def f():\n    return 1\n"),
        ("~~~python\ns = '''\n```\n'''\n~~~", "s = '''\n```\n'''"),
        ("````python title=f.py\n```\n````", "```"),
        ("```x = 1``` is wrong\n```python\nx = 2\n```\r\nEnd.", "x = 2"),
        ("", ""),
        ("<think>So:\n```python\ndraft\n</think>\n```python\nx = 1\n```", "x = 1"),  # a fence cut off in mid-thought
        ("<think>Easy.</think>x = 1", "x = 1"),
        ("Easy.\n</think>\n\n```python\nx = 1\n```", "x = 1"),  # the prompt has opened the thoughts
        ("```python\ns.split('</think>')[-1]\n```", "s.split('</think>')[-1]"),  # a program about such tags
    ],
)
def test_the_program_is_the_last_python_block_or_the_last_fence_or_all_of_it(reply, program):
    assert program_in(reply) == program


def test_a_row_whose_id_is_null_is_named_by_its_place():
    env = CodeEnv(tasks=[{**SUM, "task_id": None, "id": None}, {**SUM, "task_id": None, "id": 7}])
    assert [env.tasks.rows[i].task_id for i in range(2)] == ["given as a list/1", "7"]


def test_no_program_at_all_is_said_so():
    env = CodeEnv(tasks=[SUM])
    env.reset(seed=0)
    observation, reward, *_, info = env.step("```python\n\n```")
    assert "no program" in observation and reward == 0.0 and info["action_valid"] is False


@pytest.mark.parametrize(
    ("compare", "expected", "same", "other"),
    [
        ("strict", 1, [1], [True, 1.0, "1"]),
        ("strict", [1, (2,)], [[1, (2,)]], [(1, (2,)), [1, [2]], [1]]),
        ("strict", {1: "a"}, [{1: "a"}], [{True: "a"}, {1: "b"}, {}]),
        ("strict", {1, 2}, [{2, 1}], [{1.0, 2}, frozenset({1, 2}), [1, 2]]),
        ("strict", float("nan"), [float("nan")], [0.0, None]),
        ("equal", [1, 2], [(1, 2), [1.0, True + 1]], [[2, 1], {1, 2}]),
        ("close", [1.0, {"a": 2}], [[1 + 1e-9, {"a": 2.0}]], [[1.1, {"a": 2}], [float("nan"), {"a": 2}]]),
        ("close", 1.0, [1], [10**400, float("inf"), "1"]),
        ("unordered", [[1], [2], [2]], [[[2], [1], [2]], ([2], [2], [1])], [[[1], [1], [2]], [[1], [2]], "ab"]),
        ("unordered", None, [None], [[], 0, False]),
    ],
)
def test_comparisons(compare, expected, same, other):
    for got in same:
        assert matches(got, expected, compare), got
    for got in [*other, Opaque("C")]:
        assert not matches(got, expected, compare), got


def test_comparing_takes_no_longer_for_deep_nesting():
    def nested(text):
        for _ in range(140):
            text = [text]
        return text

    assert matches([nested("'\\"), 1], [1, nested("'\\")], "unordered")
    assert not matches([nested("'\\"), 1], [1, nested("'")], "unordered")
    mixed = [1, "1", 1.0, True, None, (1,), [1], {1}, {1: 1}, b"1", 1j, float("nan")]
    assert matches(mixed[::-1], mixed, "unordered") and not matches([*mixed[:-1], 2], mixed, "unordered")


def test_showing_a_value_is_bounded():
    assert len(show([["x" * 10_000] * 1000] * 1000)) <= 300
    assert "bits" in show(10**100_000)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "row 1: field 'tests' is missing"),
        ({"prompt": "x", "entry_point": "f", "tests": []}, "'tests'"),
        ({"prompt": "x", "tests": [{"args": [], "expected": 1}]}, "field 'entry_point' is missing"),
        ({"prompt": "x", "entry_point": "f", "tests": [{"args": []}]}, "test 1: field 'expected' is missing"),
        ({"prompt": "x", "entry_point": "f(", "tests": [{"args": [], "expected": 1}]}, "not a function's name"),
        ({**SUM, "compare": "same"}, "'compare' is 'same'"),
        ({**SUM, "tests": [{"args": [1], "expected": {1, object}}]}, "is a type, which no program can"),
        ({**DEMO, "test_cases": [{"input": "f(", "output": "1"}]}, "not a Python literal"),
        ({**MBPP, "test_list": ["assert f("]}, "is not Python"),
        ({**MBPP, "test_list": ["assert True"], "challenge_test_list": []}, "no function"),
    ],
)
def test_a_row_that_does_not_fit_is_named(row, message):
    with pytest.raises(ValueError, match="tasks given as a list, row 1"):
        CodeEnv(tasks=[row])
    with pytest.raises(ValueError) as error:
        problem(row, 1, "file.jsonl")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reward": "partial"}, "'partial'"),
        ({"feedback": "all"}, "'all'"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": "3"}, "timeout_s must be a number from 0.01 to 600, got '3'"),
        ({"memory_mb": 256.5}, "memory_mb must be"),
        ({"syntax_reward": None}, "syntax_reward must be"),
        ({"kinds": "line"}, "kinds must be a list"),
        ({"kinds": ["rotat"]}, "did you mean 'rotate'"),
        ({"difficulty": [0, 9]}, "difficulty"),
        ({"kinds": ["islands"], "difficulty": [1, 2]}, "begin at 5"),
        ({"sandbox": "docker"}, "unknown sandbox"),
    ],
)
def test_wrong_arguments_are_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CodeEnv(**kwargs)


def test_a_broken_sandbox_masks_the_episode_instead_of_blaming_the_program(monkeypatch):
    pool = Sandbox.shared("auto")
    env = CodeEnv(tasks=[SUM])
    env.reset(seed=0)
    pool.close()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    _, reward, terminated, truncated, info = env.step(SUM["reference"])
    assert (reward, terminated, truncated, info["valid"]) == (0.0, False, True, False)
    monkeypatch.undo()
    env.reset(seed=0)
    assert env.step(SUM["reference"])[1] == 1.0


@pytest.mark.skipif(not (DATA / "HumanEval.jsonl").exists(), reason="needs ../shared/data")
def test_human_eval_references_pass_and_bare_prompts_do_not():
    env = CodeEnv(tasks=str(DATA / "HumanEval.jsonl"))
    assert env.num_tasks == 164
    for seed in range(env.num_tasks):
        env.reset(seed=seed)
        assert env.step(env.expert() or "")[1] == 1.0, env.problem.task_id
        verdict = judge(Sandbox.shared(), env.problem, env.problem.prelude, env.limits)
        assert not verdict.solved, env.problem.task_id


@pytest.mark.skipif(not (DATA / "HumanEval.jsonl").exists(), reason="needs ../shared/data")
@pytest.mark.slow
def test_human_eval_completions_pass_and_mutants_and_syntax_errors_do_not():
    rows = [json.loads(line) for line in (DATA / "HumanEval.jsonl").read_text().splitlines()]
    env = CodeEnv(tasks=rows)
    for row in rows:
        env.reset(options={"task_id": row["task_id"]})
        assert env.step(row["canonical_solution"])[1] == 1.0, row["task_id"]
        name = row["entry_point"]
        mutant = f"{env.problem.reference}\n\n_right = {name}\ndef {name}(*args):\n    return _off(_right(*args))\n" + (
            "def _off(x):\n"
            "    if isinstance(x, bool): return not x\n    if isinstance(x, (int, float)): return x + 1\n"
            "    if isinstance(x, str): return x[:-1] + '?' if x else '?'\n"
            "    if isinstance(x, tuple): return x + x[:1] or (0,)\n"
            "    if isinstance(x, list): return x[:-1] if x else [0]\n"
            "    if isinstance(x, dict): return {**x, 'off': 1}\n    return 1\n"
        )
        for code in (mutant, f"def {name}(*args):\n    pass", env.problem.reference + "\n)"):
            env.reset(options={"task_id": row["task_id"]})
            assert env.step(fenced(code))[1] == 0.0, (row["task_id"], code)


def test_a_candidates_trick_with_asserts_gains_nothing():
    task = Problem("t", "", (Test(code="assert f(1) == 2"), Test(code="assert f(2) == 3")), "f", hosts={"f": "f"})
    for code in (
        "class A:\n    def __eq__(self, o): return True\ndef f(x): return A()",
        "import builtins\nbuiltins.AssertionError = Exception\ndef f(x): return 0",
        "import os\ndef f(x): os._exit(0)",
        "def f(x):\n    raise SystemExit(0)",
        "import sys\ndef f(x):\n    sys.setrecursionlimit(10)\n    return f(x)",
    ):
        assert not judge(Sandbox.shared(), task, code, Limits(timeout_s=1.0)).solved, code
    assert judge(Sandbox.shared(), task, "def f(x): return x + 1", Limits()).solved


def test_a_verdict_does_not_depend_on_what_was_judged_before():
    """The test asks about what it was answered; an odd answer must not change what the next program is asked."""
    code = "x = f(1)\nassert f(x) == 3 and f(x + 1) == 4"
    calls = "seen = []\ndef f(x):\n    seen.append(x)\n    return x + 1 if seen == [1, 2, 3][: len(seen)] else 'odd'"
    for first in ("def f(x): return x + 100", "def f(x): return 2", calls):
        test, right = Test(code=code + f"  # {first!r}"), "def f(x): return x + 1"
        task = Problem("t", "", (test,), "f", reference=right, hosts={"f": "f"})
        assert not judge(Sandbox.shared(), task, first, Limits()).solved or first == calls
        assert judge(Sandbox.shared(), task, calls, Limits()).solved


def test_an_object_of_the_programs_own_is_not_even_true():
    task = Problem("t", "", (Test(code="assert f(1)"),), "f", hosts={"f": "f"})
    assert not judge(Sandbox.shared(), task, "def f(x): return object()", Limits()).solved
    assert judge(Sandbox.shared(), task, "def f(x): return True", Limits()).solved


def test_a_test_that_expects_an_exception_is_not_passed_by_dying():
    code = "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError"
    anything = code.replace("ValueError", "Exception")
    dies, raises = "import os\ndef f(x): os._exit(0)", "def f(x):\n    raise ValueError('negative')"
    for test, program, solved in (
        (code, raises, True),
        (anything, raises, True),
        (code, dies, False),
        (anything, dies, False),
    ):
        task = Problem("t", "", (Test(code=test),), "f", hosts={"f": "f"})
        assert judge(Sandbox.shared(), task, program, Limits()).solved is solved


def test_a_program_cannot_end_the_tests_loop_by_raising_stop_iteration():
    for test in ("assert all(map(lambda x: f(x) == x + 1, range(5)))", "for y in map(f, range(5)): assert y > 0"):
        task = Problem("t", "", (Test(code=test),), "f", hosts={"f": "f"})
        assert not judge(Sandbox.shared(), task, "def f(x): raise StopIteration", Limits()).solved
        assert judge(Sandbox.shared(), task, "def f(x): return x + 1", Limits()).solved


def test_a_value_that_is_slow_to_test_costs_no_more_time_than_a_slow_program():
    task = Problem("t", "", (Test(code="assert set(f(1)) == {1}"),), "f", hosts={"f": "f"})
    collide, started = "def f(x): return [(2**61 - 1) * i for i in range(100_000)]", time.monotonic()
    verdict = judge(Sandbox.shared(), task, collide, Limits(timeout_s=0.5))
    assert verdict.outcomes[0].failure is not None and verdict.outcomes[0].failure.kind == "timeout"
    assert time.monotonic() - started < 60


def test_a_right_program_is_paid_though_the_process_of_the_tests_has_waited_for_hours():
    task = Problem("t", "", (Test(code="assert f(1) == 2"),), "f", hosts={"f": "f"})
    with Sandbox(workers=1) as pool:
        for _ in range(2):
            assert judge(pool, task, "def f(x): return x + 1", Limits()).solved
            pool._trusted[0][3]._started -= 5 * 3600


def test_tests_that_do_not_load_are_our_fault_and_not_the_programs():
    task = Problem("t", "", (Test(code="assert f(1) == 2"),), "f", setup="import nonexistent", hosts={"f": "f"})
    with pytest.raises(SandboxFault, match="the tests of t do not load: ModuleNotFoundError"):
        judge(Sandbox.shared(), task, "def f(x): return x + 1", Limits())
    asking = Problem("t", "", (Test(code="assert x == 2"),), "f", setup="x = f(1)", hosts={"f": "f"})
    assert not judge(Sandbox.shared(), asking, "def f(x): raise ValueError", Limits()).solved
    assert judge(Sandbox.shared(), asking, "def f(x): return 2", Limits()).solved
