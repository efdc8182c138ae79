"""The demo's files are right, and the environments take them: `pytest examples/demo_e2e/test_demo.py`, in seconds."""

import json
import sys
from pathlib import Path

import gymnasium
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_data_generator import write_all

FILES = {  # environment: file, id, rows, fields
    "math": ("math_problems.json", "mrlm/Math-v0", 20, {"question", "answer"}),
    "code": ("code_problems.json", "mrlm/Code-v0", 7, {"description", "function_name", "test_cases"}),
    "debate": ("debate_topics.json", "mrlm/Debate-v0", 8, {"topic", "pro_points", "con_points"}),
    "tools": ("tool_scenarios.json", "mrlm/ToolUse-v0", 5, {"task", "required_tools", "expected_answer"}),
}


@pytest.mark.parametrize("environment", FILES)
def test_a_file_has_its_rows_with_exactly_these_fields(environment: str, tmp_path: Path) -> None:
    name, _, count, fields = FILES[environment]
    path = write_all(tmp_path)[environment]
    rows = json.loads(path.read_text("utf-8"))
    assert path.name == name
    assert [row.keys() for row in rows] == [fields | {"id", "difficulty"}] * count
    assert len({row["id"] for row in rows}) == count


def test_the_same_seed_writes_the_same_files_and_another_one_others(tmp_path: Path) -> None:
    first, again, other = (write_all(tmp_path / str(n), seed) for n, seed in enumerate((0, 0, 1)))
    assert all(first[name].read_bytes() == again[name].read_bytes() for name in FILES)
    assert all(first[name].read_bytes() != other[name].read_bytes() for name in ("math", "debate", "tools"))


@pytest.mark.parametrize("environment", FILES)
def test_the_environment_plays_every_row(environment: str, tmp_path: Path) -> None:
    _, env_id, count, _ = FILES[environment]
    kwargs = {"rounds": 1} if environment == "debate" else {"max_turns": 1}
    env = gymnasium.make(f"mrlm_envs:{env_id}", tasks=str(write_all(tmp_path)[environment]), **kwargs)
    played = set()
    for seed in range(count):
        _, info = env.reset(seed=seed)
        played.add(info["task_id"])
        action = env.unwrapped.expert() if environment != "code" else "I do not know."
        _, reward, terminated, _, info = env.step(action)
        assert terminated and info["valid"]
        assert environment in ("code", "debate") or reward == 1.0
    assert len(played) == count
    env.close()


def test_a_right_program_passes_the_hidden_cases_and_one_that_knows_the_shown_case_does_not(tmp_path: Path) -> None:
    env = gymnasium.make("mrlm_envs:mrlm/Code-v0", tasks=str(write_all(tmp_path)["code"]), max_turns=1)
    for body, earned in (("n % 2 == 0", 1.0), ("True", 0.0)):
        env.reset(seed=0, options={"task_id": "code_002"})
        assert env.step(f"```python\ndef is_even(n):\n    return {body}\n```")[1] == earned
    env.close()
