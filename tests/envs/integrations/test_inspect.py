"""Episodes exported to Inspect, read back by Inspect's own reader. Without inspect-ai only the refusals are tested."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mrlm_envs.integrations import inspect

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>'


def episode(**changes: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "6 times 7?"},
        {"role": "assistant", "content": CALL},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "\\boxed{42}"},
        {"role": "user", "content": "Correct."},
    ]
    plain = {
        "env_id": "mrlm/ToolUse-v0", "kwargs": {"split": "test"}, "seed": 3, "task_id": "t", "messages": messages,
        "turn_rewards": [0.0, 1.0], "success": True, "valid": True, "policy": "toy", "stop_reason": "success",
    }  # fmt: skip
    return {**plain, **changes}


def test_importing_it_imports_nothing_of_inspect() -> None:
    code = "import sys, mrlm_envs.integrations.inspect; print('inspect_ai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_log_is_read_back_by_inspect(tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log")
    path = tmp_path / "out.eval"
    failed = episode(success=False, turn_rewards=[0.0, 0.0])
    invalid = episode(seed=4, valid=False, success=None)
    silent = episode(seed=5, success=None, turn_rewards=[0.25], messages=[{"role": "user", "content": "hm"}])
    inspect.write_log([episode(), failed, invalid, silent], path)
    read = log.read_eval_log(str(path))
    assert (read.status, read.eval.model, read.results.total_samples) == ("success", "toy", 4)
    samples = {(sample.id, sample.epoch): sample for sample in read.samples}
    assert set(samples) == {("t#3", 1), ("t#3", 2), ("t#4", 1), ("t#5", 1)}
    first = samples["t#3", 1]
    assert (first.scores["reward"].value, first.scores["success"].value) == (1.0, "C")
    assert samples["t#3", 2].scores["success"].value == "I"
    assert samples["t#4", 1].scores is None  # invalid: no score
    assert set(samples["t#5", 1].scores) == {"reward"}
    calls = [call for message in first.messages for call in getattr(message, "tool_calls", None) or ()]
    assert [(call.function, call.arguments) for call in calls] == [("calculator", {"expression": "6*7"})]
    [call], [result] = calls, [message for message in first.messages if message.role == "tool"]
    assert result.tool_call_id == call.id and read.stats.completed_at
    assert first.metadata["turn_rewards"] == [0.0, 1.0]
    assert [message.role for message in first.messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    means = {score.name: score.metrics["mean"].value for score in read.results.scores}
    assert means == {"reward": pytest.approx(1.25 / 3), "success": 0.5}


def test_no_episodes_or_another_ending_are_told_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    with pytest.raises(ValueError, match="no episodes"):
        inspect.write_log([], tmp_path / "x.eval")
    with pytest.raises(ValueError, match=r"episode 2: field 'env_id' is missing \(found: seed\)"):
        inspect.write_log([episode(), {"seed": 3}], tmp_path / "x.eval")
    with pytest.raises(ValueError, match=r"\.eval or \.json"):
        inspect.write_log([episode()], tmp_path / "x.txt")


@pytest.mark.skipif("inspect_ai" in sys.modules, reason="inspect-ai is installed")
def test_without_inspect_the_install_line_is_told(tmp_path: Path) -> None:
    try:
        import inspect_ai  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match=r"mrlm\[inspect\]"):
            inspect.write_log([episode()], tmp_path / "x.eval")
