"""Mathematical grading: time and accuracy of `mrlm_envs.math.grade` beside plain math-verify (parse + verify).

    python benchmarks/grade.py [--rounds 5] [--gsm8k ../shared/data/gsm8k_test.jsonl]

Both graders take turns on the same pairs, several rounds, so that what else the machine does hits both; the table shows
medians over the rounds. math-verify runs with its own time-outs (2 s, SIGALRM, hence in the main thread), and gets the
reply as its documentation says: `verify(parse(gold), parse(reply))`.

The hard pairs are ours (`tests/data/math_hard_pairs.jsonl`, most of them labelled before grading); read the accuracy as
"how the two differ on traps", and the GSM8K spellings as ordinary work.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from math_verify import parse, verify

from mrlm_envs.math import grade, symbolic
from mrlm_envs.math.quantity import quantity, unit
from mrlm_envs.math.verify import reference

ROOT = Path(__file__).resolve().parents[1]
Pair = tuple[str, str, bool]


def math_verify_grade(reply: str, gold: str) -> bool:
    """math-verify as documented, with a time-out of 2 s on each step."""
    try:
        wanted = parse(f"${gold}$", parsing_timeout=2)
        return verify(wanted, parse(reply, parsing_timeout=2), timeout_seconds=2)
    except Exception:  # what it raises counts as its "no"
        return False


def hard_pairs() -> list[Pair]:
    """The table of the tests, without the 2 MB replies."""
    rows = [json.loads(line) for line in (ROOT / "tests/data/math_hard_pairs.jsonl").open()]
    return [(row["reply"], row["gold"], row["right"]) for row in rows if "times" not in row and row["kind"] != "bombs"]


def bombs() -> list[Pair]:
    """The expressions made to hang a grader."""
    rows = [json.loads(line) for line in (ROOT / "tests/data/math_hard_pairs.jsonl").open()]
    return [(row["reply"], row["gold"], row["right"]) for row in rows if row["kind"] == "bombs"]


def gsm8k_pairs(path: Path, count: int) -> list[Pair]:
    """Gold answers in six spellings, beside four neighbours that are wrong."""
    pairs: list[Pair] = []
    for line in path.open().readlines()[:count]:
        gold = json.loads(line)["answer"].split("####")[1].strip()
        value = int(gold.replace(",", ""))
        right = [
            gold,
            f"${gold}",
            f"{value}.00",
            f"\\boxed{{{gold}}}",
            f"#### {gold}",
            f"The answer is {gold} dollars.",
        ]
        wrong = [
            f"\\boxed{{{value - 1}}}",
            f"#### {value * 10 + 5}",
            f"The answer is {value + 0.5}.",
            f"{gold} or 19999",
        ]
        pairs += [(reply, gold, True) for reply in right] + [(reply, gold, False) for reply in wrong]
    return pairs


def measure(name: str, pairs: list[Pair], rounds: int) -> None:
    """Print one row: accuracy, false positives, and the time of a pair."""
    graders: dict[str, Callable[[str, str], bool]] = {"ours": grade, "math-verify": math_verify_grade}
    seconds: dict[str, list[float]] = {key: [] for key in graders}
    verdicts: dict[str, list[bool]] = {}
    slowest = dict.fromkeys(graders, 0.0)
    for _ in range(rounds):
        for key, grader in graders.items():
            for cached in (quantity, unit, reference):  # every round starts without what the last one left
                cached.cache_clear()
            verdicts[key], begun = [], time.perf_counter()
            for reply, gold, _right in pairs:
                started = time.perf_counter()
                verdicts[key].append(grader(reply, gold))
                slowest[key] = max(slowest[key], time.perf_counter() - started)
            seconds[key].append((time.perf_counter() - begun) / len(pairs))
    ours, theirs = (statistics.median(seconds[key]) for key in graders)
    for key in graders:
        correct = sum(verdict == right for verdict, (_, _, right) in zip(verdicts[key], pairs))
        let_through = sum(verdict and not right for verdict, (_, _, right) in zip(verdicts[key], pairs))
        median = statistics.median(seconds[key])
        print(
            f"| {name} ({len(pairs)}) | {key} | {correct / len(pairs):.1%} | {let_through} | {median * 1e6:,.0f} µs "
            f"| {slowest[key]:.2f} s | {theirs / ours if key == 'ours' else 1:.3g}× |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gsm8k", type=Path, default=ROOT.parent / "shared/data/gsm8k_test.jsonl")
    parser.add_argument("--count", type=int, default=100, help="problems of GSM8K")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    symbolic.warm_up()
    print("| pairs | grader | right | wrong let through | mean time a pair | slowest | speed |\n|" + " --- |" * 7)
    if arguments.gsm8k.exists():
        measure("GSM8K spellings", gsm8k_pairs(arguments.gsm8k, arguments.count), arguments.rounds)
    measure("hard pairs", hard_pairs(), arguments.rounds)
    measure("bombs", bombs(), 1)


if __name__ == "__main__":
    main()
