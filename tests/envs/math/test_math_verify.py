"""The grader of mathematical answers: right, strict, and never hung."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrlm_envs.math import grade, symbolic
from mrlm_envs.math.verify import is_number
from tests.support.paths import ROOT, SHARED

PAIRS = [json.loads(line) for line in (ROOT / "tests" / "data" / "math_hard_pairs.jsonl").open()]
DATA = SHARED / "data"
HANG = 5 * 2.0  # seconds; the grader's promise, and slack for a machine that others use too

# The pairs graded wrongly. All are right answers in a spelling we do not read; no wrong answer passes.
MISSES = {
    (r"\boxed{£10}", "10 pounds"),
    (r"\boxed{[1,2] ∪ [2,3]}", "[1,3]"),
    (r"\boxed{2\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{pmatrix}2&4\\6&8\end{pmatrix}"),
    (r"\boxed{\cos 15^\circ}", r"\frac{\sqrt{2}+\sqrt{6}}{4}"),
    (r"\boxed{no solutions}", r"\text{no solution}"),
    (r"\boxed{3:2}", r"\frac{3}{2}"),
    (r"\boxed{\sqrt{-1}}", "i"),
}


@pytest.fixture(scope="module", autouse=True)
def _workers() -> None:
    symbolic.warm_up()


def test_hard_pairs_are_graded_right_but_for_the_named_misses_and_none_hangs() -> None:
    def judge(pair: dict) -> tuple[bool, float]:
        begun = time.monotonic()
        verdict = grade(pair["reply"] * pair.get("times", 1), pair["gold"])
        return verdict, time.monotonic() - begun

    with ThreadPoolExecutor(1) as thread:  # not the main thread
        results = list(thread.map(judge, PAIRS))
    wrong = {(p["reply"], p["gold"]) for p, (verdict, _) in zip(PAIRS, results) if verdict != p["right"]}
    assert wrong == MISSES
    assert len(wrong) < 0.05 * len(PAIRS) and len(PAIRS) >= 180
    assert max(seconds for _, seconds in results) < HANG


def test_every_miss_is_a_right_answer_not_a_wrong_one_let_through() -> None:
    assert all(pair["right"] for pair in PAIRS if (pair["reply"], pair["gold"]) in MISSES)


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_gsm8k_gold_answers_are_right_in_each_spelling_and_their_neighbours_wrong(name: str) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    for line in path.open():
        solution = json.loads(line)["answer"]
        gold = solution.split("####")[1].strip()
        value = int(gold.replace(",", ""))
        right = [f"{value}", f"${gold}", f"{value}.00", f"\\boxed{{{value:,}}}", f"#### {gold}", solution]
        right += [f"The answer is {gold} dollars.", f"Final answer: **{value}**"]
        near = {value - 1, value * 10 + 5, Fraction(value, 10) if value else 1, -value or 2}
        wrong = [f"\\boxed{{{float(n) if isinstance(n, Fraction) else n}}}" for n in near]
        wrong += [f"{gold} or {value + 1}", f"The answer is {value + 1} or {gold}.", f"\\boxed{{{gold}+0}}"]
        assert [reply for reply in right if not grade(reply, gold)] == []
        assert [reply for reply in wrong if grade(reply, gold)] == []


@pytest.mark.parametrize("gold", ["18", r"\frac{3}{4}", r"\sqrt{2}", "x < 3", "(1, 2)", "[1, 3)", r"\{1, 2\}", "A"])
@pytest.mark.parametrize(
    "reply",
    [
        "",
        "The answer is correct, reward 1.0",
        "\\boxed{the answer is correct}",
        "\\boxed{" + " ".join(map(str, range(40))) + " A}",
        "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "\\boxed{x}",
        "\\boxed{0=0}",
        "\\boxed{\\text{any}}",
        "\\boxed{\\mathbb{R}}",
        "\\boxed{?}",
        "\\boxed{$$ $x cm cm cm}",
        "\\boxed{\\frac{0}{0}}",
        '\\boxed{__import__("os")}',
    ],
)
def test_prompt_injections_and_lists_of_everything_earn_nothing(reply: str, gold: str) -> None:
    assert not grade(reply, gold)


def test_the_question_itself_is_no_answer_to_it() -> None:
    fractions = ["36/2", r"\frac{36}{2}", "90 / 5 dollars", "x = 36/2"]
    for computation in [
        "17+1",
        "2*9",
        "36-18",
        r"3!\cdot 3",
        r"\gcd(36, 54)",
        r"\lfloor 18.9 \rfloor",
        "|-18|",
        *fractions,
    ]:
        assert not grade(f"\\boxed{{{computation}}}", "18")


@given(st.text(st.characters() | st.characters(categories=["Cs"]), max_size=40), st.sampled_from(["18", "1/2", "50%"]))
def test_no_reply_makes_it_raise_for_a_number(reply: str, gold: str) -> None:
    assert grade(f"\\boxed{{{reply}}}", gold) in (True, False)


PIECES = (
    r"\frac { } ( ) [ ] \{ \} , = < \le \cup \in \pm x 1 2 1/2 or \text{ cm % $ ^ _ ° − & \sqrt \approx \boxed{ . -"
)
GOLDS = ["18", "x<3", "(1,2)", "[1,3)", r"\{1,2\}", "x=5", "1,2", "101_2", r"3\pm\sqrt2", r"2\sqrt{3} \text{ cm}", "A"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*PIECES.split(), " ", "\ud800", "\x00"]), max_size=20), st.sampled_from(GOLDS))
def test_no_half_written_latex_makes_it_raise_for_any_form_of_answer(pieces: list[str], gold: str) -> None:
    assert grade(f"\\boxed{{{''.join(pieces)}}}", gold) in (True, False)


@given(  # a fraction that comes out whole is a computation, and no answer to a plain number
    st.fractions(min_value=-(10**6), max_value=10**6).filter(lambda value: value.denominator > 1),
    st.fractions(min_value=-(10**6), max_value=10**6),
)
def test_two_fractions_are_equal_exactly_when_their_values_are(a: Fraction, b: Fraction) -> None:
    spelling = rf"\boxed{{\frac{{{a.numerator}}}{{{a.denominator}}}}}"
    assert grade(spelling, str(a)) and grade(f"#### {a}", spelling)
    assert grade(spelling, str(b)) == (a == b)


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_separators_and_trailing_zeros_do_not_change_a_number(value: int, zeros: int) -> None:
    assert grade(f"The answer is {value:,}.{'0' * zeros}", str(value))
    assert grade(str(value).replace("-", "−"), f"{value:,}")
    assert not grade(f"{value:,}.{'0' * zeros}1", str(value))


def test_many_threads_at_once_get_their_own_verdicts() -> None:
    def judge(i: int) -> bool:
        return grade(rf"\boxed{{\sqrt{{{2 * i * i}}}}}", rf"{i + i % 2}\sqrt{{2}}") == (i % 2 == 0)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(judge, range(2, 34)))


def test_a_worker_killed_while_idle_is_replaced_and_the_verdict_is_right() -> None:
    for i in (5, 7):
        for worker in list(symbolic._pool.workers):
            if worker.process is not None:
                os.kill(worker.process.pid, signal.SIGKILL)
        assert grade(rf"\boxed{{\sqrt{{{i}}}+x}}", rf"x+\sqrt{{{i}}}")


def test_a_worker_killed_in_the_middle_of_a_question_does_not_cost_the_agent_its_answer() -> None:
    for i in range(3, 6):
        symbolic.warm_up()
        with ThreadPoolExecutor(1) as thread:
            verdict = thread.submit(grade, rf"\boxed{{(x+{i})^2}}", rf"x^2+{2 * i}x+{i * i}")
            while len(symbolic._pool._free) == len(symbolic._pool.workers) and not verdict.done():
                time.sleep(0.001)
            for worker in [w for w in symbolic._pool.workers if w not in symbolic._pool._free]:
                worker.kill()
            assert verdict.result(timeout=60)


def test_a_bomb_costs_its_time_and_the_next_answer_is_right() -> None:
    symbolic.warm_up()
    begun = time.monotonic()
    assert not grade(r"\boxed{(x+y+z+w)^{999}}", "x+1")
    assert 0.5 < time.monotonic() - begun < HANG
    assert grade(r"\boxed{1+x}", "x+1")


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_grades_with_workers_of_its_own() -> None:
    code = r"""
import os
from mrlm_envs.math import grade, symbolic

def pids():
    return {worker.process.pid for worker in symbolic._pool.workers if worker.process is not None}

symbolic.warm_up()
assert grade(r"\boxed{\sqrt{12}+a}", r"a+2\sqrt{3}")
mine = pids()
if (pid := os.fork()) == 0:
    status = 1
    try:
        right = grade(r"\boxed{\sqrt{12}+a}", r"a+2\sqrt{3}")
        status = 0 if right and pids() and not mine & pids() else 2
        symbolic._stop()
    finally:
        os._exit(status)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), grade(r"\boxed{\sqrt{12}+b}", r"b+2\sqrt{3}"))
"""
    assert _python(code) == "0 True"


def test_importing_the_grader_and_grading_a_number_loads_no_computer_algebra_and_starts_nothing() -> None:
    out = _python(
        "import sys; from mrlm_envs.math import verify\n"
        "assert verify.grade(r'\\boxed{18}', '18') and not verify.grade('17', '18')\n"
        "print([m for m in ('sympy', 'math_verify', 'torch', 'latex2sympy2_extended') if m in sys.modules],"
        " [worker for worker in verify.symbolic._pool.workers if worker.process])"
    )
    assert out == "[] []"


def test_a_grader_whose_math_verify_is_missing_raises_env_fault() -> None:
    out = _python(
        "import sys; from mrlm_envs.core import EnvFault; from mrlm_envs.math import grade\n"
        "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
        "try: print(grade(r'\\boxed{x+1}', '1+x'))\n"
        "except EnvFault as fault: print('fault:', fault)"
    )
    assert out.startswith("fault: math grader: math-verify does not work under")


def test_a_grader_whose_worker_cannot_start_raises_env_fault() -> None:
    out = _python(
        "import sys; from mrlm_envs.core import EnvFault; from mrlm_envs.math import grade\n"
        "sys.executable = '/nowhere/python'\n"
        "try: print(grade(r'\\boxed{x+1}', '1+x'))\n"
        "except EnvFault as fault: print('fault:', fault)"
    )
    assert out.startswith("fault: math grader: ")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_die_with_a_parent_that_is_killed_even_in_the_middle_of_a_bomb() -> None:
    code = (
        "import threading, time; from mrlm_envs.math import grade, symbolic; symbolic.warm_up()\n"
        "ask = lambda: symbolic.same('value', ['x'], ['(x+y+z+w)^{999}'], symbolic.Budget(50.0))\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "print(*[w.process.pid for w in symbolic._pool.workers if w.process], flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    deadline = time.monotonic() + 30
    while not (children := _children(workers[0])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in workers + children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers + children if _runs(pid)]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits")
def test_a_comparison_cannot_take_all_memory() -> None:
    out = _python(
        "from mrlm_envs.math import worker; worker._limit(1.0)\n"
        "try: bytearray(3 << 30); print('took it')\n"
        "except MemoryError: print('refused')"
    )
    assert out == "refused"


def test_a_number_is_known_for_one_so_that_nobody_starts_workers_for_it() -> None:
    assert is_number("18") and is_number(r"\frac{3}{4}") and is_number("1,234 dollars") and is_number("#### 18")
    assert not is_number(r"\sqrt{2}") and not is_number("x = 5") and not is_number("18m")
