"""Math episodes per second: make the task, take a reply, grade it. Ours beside reasoning-gym, gem and verifiers.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/envs.py

Every contender makes (or takes from its dataset) a sum of two two-digit numbers and grades the right answer. The rounds
are interleaved; a row is the median of the rounds' rates by CPU time (children and threads included), and its ratio to
reasoning-gym. A peer that is not installed is left out and said so.

A second table sets each of our families beside reasoning-gym's nearest one; `--games` prints another, the games beside
gem's and reasoning-gym's Sokoban.

What is compared: reasoning-gym makes each task from its seed and scores by string equality; gem takes rows from a
dataset and grades in a process pool; verifiers takes rows and grades by math-verify in a thread; ours makes each task
from its seed and grades strictly (`mrlm_envs.math.grade`).
"""

import asyncio
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from mrlm_envs.math.env import MathEnv

ROUNDS = 7
PAIRS = {  # our kind -> reasoning-gym's nearest dataset and its settings
    "addition": ("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}),
    "arithmetic": ("basic_arithmetic", {}),
    "fractions": ("fraction_simplification", {}),
    "linear_equations": ("simple_equations", {}),
    "number_theory": ("gcd", {}),
    "geometry": ("simple_geometry", {}),
    "sequences": ("number_sequence", {}),
    "word_problems": ("gsm_symbolic", {}),
}
KWARGS = {"kinds": ["addition"], "difficulty": (2, 2), "split": "all"}


def cpu_seconds() -> float:
    """CPU time of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def single(env: gymnasium.Env) -> Callable[[int], None]:
    """Reset with a new seed and answer, one environment."""
    replies = {seed: _reply(seed) for seed in range(1000)}

    def run(n: int) -> None:
        for seed in range(n):
            env.reset(seed=seed % 1000)
            assert env.step(replies[seed % 1000])[1] == 1.0

    return run


def vector(envs: gymnasium.vector.VectorEnv) -> Callable[[int], None]:
    """Reset all members with new seeds and answer, 64 at once."""
    seeds = [list(range(i * 64, (i + 1) * 64)) for i in range(16)]
    replies = [[_reply(seed) for seed in row] for row in seeds]

    def run(n: int) -> None:
        for i in range(n // 64):
            envs.reset(seed=seeds[i % 16])
            assert envs.step(replies[i % 16])[1].all()

    return run


def _reply(seed: int) -> str:
    env = MathEnv(**KWARGS)
    env.reset(seed=seed)
    return f"\\boxed{{{env.problem.answer}}}"


def ours() -> dict[str, tuple[Callable[[int], None], int]]:
    """Our contenders, with the episodes of a round."""
    make_vec = lambda mode: gymnasium.make_vec("mrlm_envs:mrlm/Math-v0", num_envs=64, vectorization_mode=mode, **KWARGS)
    return {
        "mrlm, class": (single(MathEnv(**KWARGS)), 20_000),
        "mrlm, gymnasium.make": (single(gymnasium.make("mrlm_envs:mrlm/Math-v0", **KWARGS)), 20_000),
        "mrlm, make_vec of 64": (vector(make_vec("vector_entry_point")), 20_480),
        "mrlm in Gymnasium's SyncVectorEnv of 64": (vector(make_vec("sync")), 6_400),
    }


def reasoning_gym() -> dict[str, tuple[Callable[[int], None], int]]:
    """`reasoning_gym.create_dataset("chain_sum")`: make by index, score the answer."""
    import reasoning_gym

    data = reasoning_gym.create_dataset(
        "chain_sum", min_terms=2, max_terms=2, min_digits=2, max_digits=2, allow_negation=False, size=10**6, seed=0
    )
    answers = [data[i]["answer"] for i in range(1000)]

    def run(n: int) -> None:
        for i in range(n):
            entry = data[i % 1000]
            assert data.score_answer(answers[i % 1000], entry) == 1.0

    return {"reasoning-gym": (run, 20_000)}


def gem() -> dict[str, tuple[Callable[[int], None], int]]:
    """gem's `MathEnv` on a dataset of the same sums."""
    from datasets import Dataset
    from gem.envs.math_env import MathEnv as GemMathEnv

    rows = [{"problem": f"What is {i} + {i + 7}?", "answer": str(2 * i + 7)} for i in range(10, 90)]
    env = GemMathEnv(dataset=Dataset.from_list(rows), use_mp=False)

    def run(n: int) -> None:
        for _ in range(n):
            env.reset()
            assert env.step(f"\\boxed{{{env.answer}}}")[1] == 1.0

    return {"gem-llm": (run, 400)}


def verifiers() -> dict[str, tuple[Callable[[int], None], int]]:
    """verifiers' `MathRubric.correct_answer` on the same sums."""
    import verifiers

    rubric = verifiers.MathRubric()
    rows = [(i, [{"role": "assistant", "content": f"\\boxed{{{2 * i + 7}}}"}]) for i in range(10, 90)]

    async def grade(n: int) -> None:
        for k in range(n):
            i, completion = rows[k % 80]
            assert await rubric.correct_answer(rubric.parser, completion, str(2 * i + 7)) == 1.0

    return {"verifiers": (lambda n: asyncio.run(grade(n)), 400)}


def families() -> None:
    """Print our kinds beside reasoning-gym's datasets."""
    try:
        import reasoning_gym
    except ImportError:
        return
    rates: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in PAIRS}
    for _ in range(ROUNDS):
        for kind, (name, settings) in PAIRS.items():
            env = MathEnv(kinds=[kind], difficulty=(1, 3), split="all")
            replies = []
            for seed in range(500):
                env.reset(seed=seed)
                replies.append(f"\\boxed{{{env.problem.answer}}}")
            data = reasoning_gym.create_dataset(name, size=10**6, seed=0, **settings)
            answers = [data[i]["answer"] for i in range(100)]
            start = time.process_time()
            for i in range(500):
                env.reset(seed=i)
                assert env.step(replies[i])[1] == 1.0
            ours, start = time.process_time() - start, time.process_time()
            for i in range(100):
                assert data.score_answer(answers[i], data[i]) == 1.0
            rates[kind][0].append(500 / ours)
            rates[kind][1].append(100 / (time.process_time() - start))
    print("\n| ours | reasoning-gym | ours, episodes/s | reasoning-gym/s | ratio |\n| --- | --- | ---: | ---: | ---: |")
    for kind, (ours, theirs) in rates.items():
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"| {kind} | {PAIRS[kind][0]} | {a:,.0f} | {b:,.0f} | {a / b:.2f}× |")


def games() -> None:
    """Print resets and steps per CPU-second of the games; rooms are 6×6 with one box everywhere."""

    def of(env: Any, say: Callable[[str], str], moves: Sequence[str]) -> tuple[float, float]:
        """Resets, and steps of one random move each, per second."""
        begun = time.process_time()
        for seed in range(100):
            env.reset(seed=seed)
        resets, steps, seconds = 100 / (time.process_time() - begun), 0, 0.0
        replies = [say(move) for move in random.Random(0).choices(moves, k=1000)]
        while steps < 1000:
            env.reset(seed=steps)
            begun = time.process_time()
            for reply in replies[steps:]:
                steps += 1
                _, _, terminated, truncated, _ = env.step(reply)
                if terminated or truncated:
                    break
            seconds += time.process_time() - begun
        return resets, steps / seconds

    answer = lambda move: f"<answer>{move}</answer>"
    contenders: dict[str, Callable[[], tuple[float, float]]] = {}
    presets = {"Tetris": "tetris_type_1_dim_4", "Blocksworld": "blocksworld_text"}  # GRL's boards
    for name, moves in (
        ("Sokoban", ("Up", "Down", "Left", "Right")),
        ("Tetris", ("Left", "Right", "Down")),
        ("Blocksworld", ("(move 1 to 0)", "(move 2 to 0)", "(move 3 to 1)", "(move 1 to 2)")),
        ("WebShop", ("search[waterproof red]", "click[next >]", "click[back to search]")),
        ("SQL", ("SELECT 1",)),  # on six databases, in another process, whose CPU time is not counted
    ):
        board = {"preset": presets[name]} if name in presets else {}
        make = lambda name=name, board=board: gymnasium.make(f"mrlm_envs:mrlm/{name}-v0", max_turns=10, **board)
        contenders[f"mrlm {name}"] = lambda make=make, moves=moves: of(make(), answer, moves)
    try:
        from gem.envs.game_env.sokoban import SokobanEnv

        theirs = lambda: SokobanEnv(dim_room=(6, 6), num_boxes=1, max_turns=10)
        contenders["gem-llm Sokoban"] = lambda: of(
            theirs(), lambda move: f"\\boxed{{{move}}}", ("up", "down", "left", "right")
        )
    except ImportError as error:
        print(f"left out: gem-llm ({error})")
    try:
        import reasoning_gym

        sizes = {"min_w": 6, "max_w": 6, "min_h": 6, "max_h": 6, "min_boxes": 1, "max_boxes": 1}

        def make_rooms() -> tuple[float, float]:
            data = reasoning_gym.create_dataset("sokoban", size=100, seed=0, **sizes)
            begun = time.process_time()
            for i in range(100):
                data[i]
            return 100 / (time.process_time() - begun), float("nan")  # one answer a room: there are no steps

        contenders["reasoning-gym sokoban"] = make_rooms
    except ImportError as error:
        print(f"left out: reasoning-gym ({error})")
    rates = {name: [run() for _ in range(ROUNDS)] for name, run in contenders.items()}
    print("\n| game | resets/s | steps/s |\n| --- | ---: | ---: |")
    for name, rounds in rates.items():
        resets, steps = (statistics.median(values) for values in zip(*rounds))
        shown = "" if math.isnan(steps) else f"{steps:,.0f}"
        print(f"| {name} | {resets:,.0f} | {shown} |")


def main() -> None:
    """Run all rounds and print the tables."""
    if "--games" in sys.argv[1:]:
        games()
        return
    contenders = ours()
    for peer in (reasoning_gym, gem, verifiers):
        try:
            contenders |= peer()
        except ImportError as error:
            print(f"left out: {peer.__name__} ({error})")
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, (run, n) in contenders.items():
            start, wall = cpu_seconds(), time.perf_counter()
            run(n)
            # the peers' workers outlive the round, so their CPU time shows only in the wall time
            seconds = time.perf_counter() - wall if name in ("gem-llm", "verifiers") else cpu_seconds() - start
            rates[name].append(n / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = medians.get("reasoning-gym")
    print("| contender | episodes/s | of reasoning-gym |\n| --- | ---: | ---: |")
    for name, rate in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"| {name} | {rate:,.0f} | {f'{rate / base:.2f}×' if base else ''} |")
    families()


if __name__ == "__main__":
    main()
