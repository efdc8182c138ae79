"""Episodes as an Inspect log, for `inspect view`. Written against inspect-ai 0.3.285.

    write_log(episodes, "runs/eval.eval", model="my-model")        # episodes: dictionaries, as in an episodes.jsonl

A sample is a task with its seed; repeated attempts are its epochs. The scores are `reward` (the return) and, where the
environment says, `success` ("C" or "I"); an invalid episode has none. Tool calls and the reward of each turn are shown.
Needs `pip install "mrlm[inspect]"`.
"""

# pyright: reportMissingImports=false
import datetime
import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mrlm_envs.integrations.episode import require
from mrlm_envs.tools.calls import Call, parse

Row = Mapping[str, Any]
_KEPT = ("env_id", "kwargs", "seed", "agent", "stop_reason", "turn_rewards", "valid")


def write_log(episodes: Iterable[Row], path: str | os.PathLike[str], model: str = "") -> None:
    """Write episodes as an Inspect log.

    Args:
        episodes: Episodes as dictionaries, the lines of an `episodes.jsonl`.
        path: Ends in `.eval` or `.json`.
        model: Shown as the model; the episodes' policy when empty.

    Raises:
        ModuleNotFoundError: inspect-ai is not installed.
        ValueError: There are no episodes, or the path has another ending.
    """
    require("inspect-ai")
    from inspect_ai.log import EvalLog, write_eval_log

    rows = list(episodes)
    if not rows:
        raise ValueError("there are no episodes to export")
    if not str(path).endswith((".eval", ".json")):
        raise ValueError(f"path {path}: an Inspect log ends in .eval or .json")
    model = model or str(rows[0].get("policy") or "policy")
    attempts: Counter[str] = Counter()
    samples = []
    for row in rows:
        name = f"{row.get('task_id') or row['env_id']}#{row.get('seed', 0)}"
        attempts[name] += 1
        samples.append({"id": name, "epoch": attempts[name], "target": "", **_sample(row, model)})
    names = " + ".join(dict.fromkeys(str(row["env_id"]) for row in rows))
    now = datetime.datetime.now(datetime.UTC).isoformat()
    spec = {
        "created": now,
        "task": names.replace("/", "_"),
        "dataset": {"name": names, "samples": len(attempts), "sample_ids": list(attempts)},
        "model": model,
        "config": {"epochs": max(attempts.values())},
    }
    valid = [row for row in rows if row.get("valid", True)]
    results = {"total_samples": len(rows), "completed_samples": len(valid), "scores": _means(valid)}
    stats = {"started_at": now, "completed_at": now}  # when it was written: episodes record no times
    log = {"status": "success", "eval": spec, "results": results, "stats": stats, "samples": samples}
    write_eval_log(EvalLog.model_validate(log), str(path))


def _sample(row: Row, model: str) -> dict[str, Any]:
    """One episode."""
    messages = [_message(message, number) for number, message in enumerate(row.get("messages", ()))]
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    start = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    scores: dict[str, Any] | None = None
    if row.get("valid", True):
        scores = {"reward": {"value": _return(row), "explanation": f"by turn: {row.get('turn_rewards')}"}}
        if row.get("success") is not None:
            scores["success"] = {"value": "C" if row["success"] else "I", "answer": said[-1] if said else None}
    last = {"role": "assistant", "content": said[-1] if said else ""}
    return {
        "input": messages[:start] or str(row["env_id"]),
        "messages": messages,
        "output": {"model": model, "choices": [{"message": last}]},
        "scores": scores,
        "metadata": {key: row.get(key) for key in _KEPT},
    }


def _message(message: Row, number: int) -> dict[str, Any]:
    """A chat message as Inspect's, with the tool calls that a policy wrote into its reply.

    A tool's message answers the calls of the message before it; it names the first, under which it is shown.
    """
    role, content = message["role"], message.get("content") or ""
    if role == "tool":
        return {"role": role, "content": content, "tool_call_id": f"{number - 1}-0"}
    if role != "assistant":
        return {"role": role, "content": content}
    calls = []
    given = message.get("tool_calls") or [vars(call) for call in parse(content) if isinstance(call, Call)]
    for index, call in enumerate(given):
        function = call.get("function", call)
        arguments = function.get("arguments") or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append({"id": f"{number}-{index}", "function": str(function.get("name")), "arguments": arguments})
    return {"role": role, "content": content, "tool_calls": calls or None}


def _return(row: Row) -> float:
    return float(sum(row.get("turn_rewards", ())))


def _means(rows: list[Row]) -> list[dict[str, Any]]:
    solved = [float(row["success"]) for row in rows if row.get("success") is not None]
    parts = {"reward": [_return(row) for row in rows], "success": solved}
    means = {name: {"name": "mean", "value": statistics.fmean(values)} for name, values in parts.items() if values}
    return [{"name": name, "scorer": name, "metrics": {"mean": mean}} for name, mean in means.items()]
