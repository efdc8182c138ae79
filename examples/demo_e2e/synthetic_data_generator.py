"""Write the demo's problems: 20 math, 7 code, 8 debate and 5 tool problems, as JSON that the environments load.

    python examples/demo_e2e/synthetic_data_generator.py                       # into data/ beside this file
    python examples/demo_e2e/synthetic_data_generator.py --output-dir my_data --seed 1

The same seed writes the same files. Each environment takes its file as `tasks=`; so it does with a file of your own
that has these fields:

| file | rows |
| --- | --- |
| `math_problems.json` | `id, question, answer, difficulty` |
| `code_problems.json` | `id, description, function_name, test_cases: [{input, output}], difficulty` |
| `debate_topics.json` | `id, topic, pro_points, con_points, difficulty` |
| `tool_scenarios.json` | `id, task, required_tools, expected_answer, difficulty` |
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from mrlm_envs.debate.topics import builtin
from mrlm_envs.tools.tasks import generate

Row = dict[str, Any]

NAMES = ("Ada", "Bela", "Carla", "Dana", "Emil", "Fiona")
THINGS = ("apples", "pencils", "marbles", "stickers", "books")
MATH = (  # difficulty, question, answer
    ("easy", "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", lambda a, b, c: a + b),
    ("easy", "{name} has {a} {thing} and gives {b} away. How many {thing} are left?", lambda a, b, c: a - b),
    ("medium", "A box holds {b} rows of {c} {thing}. How many {thing} are in the box?", lambda a, b, c: b * c),
    ("hard", "{name} has {a} {thing}, gives {b} away and gets {c} back. How many now?", lambda a, b, c: a - b + c),
)
CODE = (  # difficulty, function, what it returns, a solution that makes the expected outputs, inputs
    ("easy", "sum_list", "the sum of a list of integers", sum, ([1, 2, 3], [10, -4], [])),
    ("easy", "is_even", "True if an integer is even, else False", lambda n: n % 2 == 0, (4, 7, 0)),
    ("easy", "reverse_string", "a string backwards", lambda text: text[::-1], ("hello", "ab", "")),
    ("easy", "max_in_list", "the largest integer of a list", max, ([1, 5, 3], [-2, -7], [4])),
    ("medium", "count_vowels", "the number of vowels (aeiou) in a string", lambda text: sum(map(text.count, "aeiou")),
     ("hello", "rhythm", "aeiou")),
    ("medium", "factorial", "the factorial of an integer", lambda n: 1 if n < 2 else n * CODE[5][3](n - 1), (5, 3, 0)),
    ("medium", "is_palindrome", "True if a string reads the same backwards, else False",
     lambda text: text == text[::-1], ("racecar", "hello", "a")),
)  # fmt: skip


def generate_math_problems(rng: random.Random, num_problems: int = 20) -> list[Row]:
    """Word problems, no two alike; the answer is a whole number of at least 0."""
    rows: list[Row] = []
    while len(rows) < num_problems:
        difficulty, template, solve = MATH[len(rows) % len(MATH)]
        numbers = {"a": rng.randint(20, 60), "b": rng.randint(2, 19), "c": rng.randint(2, 9)}
        question = template.format(name=rng.choice(NAMES), thing=rng.choice(THINGS), **numbers)
        if all(row["question"] != question for row in rows):
            answer = solve(**numbers)
            rows.append({"id": _id("math", rows), "question": question, "answer": answer, "difficulty": difficulty})
    return rows


def generate_code_problems() -> list[Row]:
    """Functions to write; inputs and outputs are Python literals, of which the first is shown to the agent."""
    rows: list[Row] = []
    for difficulty, name, returns, solve, inputs in CODE:
        cases = [{"input": repr(value), "output": repr(solve(value))} for value in inputs]
        about = {"description": f"Write a function that returns {returns}.", "function_name": name}
        rows.append({"id": _id("code", rows), **about, "test_cases": cases, "difficulty": difficulty})
    return rows


def generate_debate_topics(rng: random.Random, num_topics: int = 8) -> list[Row]:
    """Motions with points for both sides, from the package's own."""
    rows: list[Row] = []
    for topic in rng.sample(list(builtin().values()), num_topics):
        points = {f"{side}_points": [item.claim for item in topic.case(side).evidence] for side in ("pro", "con")}
        rows.append({"id": _id("debate", rows), "topic": topic.motion, **points, "difficulty": "medium"})
    return rows


def generate_tool_scenarios(rng: random.Random) -> list[Row]:
    """Tasks for each built-in tool; `required_tools` are names that the environment's `tools=` takes."""
    a, b, n = rng.randint(1_000, 9_999), rng.randint(100, 999), rng.randint(50, 99)
    prices = [rng.randint(10, 99) for _ in range(3)]
    looked_up = generate(np.random.default_rng(rng.randrange(2**32)), ["lookup"], (1, 1))
    tasks = (
        ("easy", f"What is {a} times {b}?", ["calculator"], str(a * b)),
        ("easy", f"What is 5 percent of {4 * a}, plus {b}?", ["calculator"], f"{a / 5 + b:g}"),
        ("medium", looked_up.question, ["knowledge"], looked_up.answer),
        ("medium", f"Add up the squares of 1 to {n} in Python.", ["python"], str(sum(i * i for i in range(n + 1)))),
        ("hard", f"Write {prices} into prices.txt, read it back, and say the sum.", ["files", "calculator"],
         str(sum(prices))),
    )  # fmt: skip
    rows: list[Row] = []
    for difficulty, task, tools, answer in tasks:
        asked = {"id": _id("tool", rows), "task": task, "required_tools": tools}
        rows.append({**asked, "expected_answer": answer, "difficulty": difficulty})
    return rows


def _id(kind: str, rows: list[Row]) -> str:
    return f"{kind}_{len(rows) + 1:03d}"


def write_all(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write the four files; returns the path of each by the short name of its environment."""
    rng = random.Random(seed)
    files = {
        "math": ("math_problems.json", generate_math_problems(rng)),
        "code": ("code_problems.json", generate_code_problems()),
        "debate": ("debate_topics.json", generate_debate_topics(rng)),
        "tools": ("tool_scenarios.json", generate_tool_scenarios(rng)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.values():
        (folder / name).write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{len(rows):3} rows in {folder / name}")
    return {environment: folder / name for environment, (name, _) in files.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).with_name("data"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_all(args.output_dir, args.seed)
