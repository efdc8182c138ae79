"""Episodes as an Inspect log, for `inspect view`. Written against inspect-ai 0.3.285.

    write_log(episodes, "runs/eval.eval", model="my-model")        # episodes: dictionaries, as in an episodes.jsonl

A sample is a task with its seed; repeated attempts are its epochs. The scores are `reward` (the return) and, where the
environment says, `success` ("C" or "I"); an invalid episode has none. Tool calls and the reward of each turn are shown.
Needs `pip install "mrlm[inspect]"`.
"""

# pyright: reportMissingImports=false
import datetime
import itertools
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
        ValueError: There are no episodes, one has no `env_id`, or the path has another ending.
    """
    require("inspect-ai")
    from inspect_ai.log import EvalLog, write_eval_log

    rows = list(episodes)
    if not rows:
        raise ValueError("there are no episodes to export")
    if without := [number for number, row in enumerate(rows, start=1) if "env_id" not in row]:
        raise ValueError(f"episode {without[0]}: field 'env_id' is missing (found: {', '.join(rows[without[0] - 1])})")
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
    now = datetime.datetime.now(datetime.UTC).isoformat()  # when it was written: episodes record no times
    spec = {
        "created": now,
        "task": names.replace("/", "_"),
        "model": model,
        "config": {"epochs": max(attempts.values())},
    }
    spec["dataset"] = {"name": names, "samples": len(attempts), "sample_ids": list(attempts)}
    valid = [row for row in rows if row.get("valid", True)]
    results = {"total_samples": len(rows), "completed_samples": len(valid), "scores": _means(valid)}
    stats = {"started_at": now, "completed_at": now}
    log = {"status": "success", "eval": spec, "results": results, "stats": stats, "samples": samples}
    write_eval_log(EvalLog.model_validate(log), str(path))


def _sample(row: Row, model: str) -> dict[str, Any]:
    """One episode."""
    messages = [_message(message, number) for number, message in enumerate(row.get("messages", ()))]
    said = [message["content"] for message in messages if message["role"] == "assistant"] or [None]
    rewards = [float(reward) for reward in row.get("turn_rewards", ())]
    before = list(itertools.takewhile(lambda message: message["role"] != "assistant", messages))
    scores: dict[str, Any] = {"reward": {"value": sum(rewards), "explanation": f"by turn: {rewards}"}}
    if row.get("success") is not None:
        scores["success"] = {"value": "C" if row["success"] else "I", "answer": said[-1]}
    return {
        "input": before or str(row["env_id"]),
        "messages": messages,
        "output": {"model": model, "choices": [{"message": {"role": "assistant", "content": said[-1] or ""}}]},
        "scores": scores if row.get("valid", True) else None,
        "metadata": {key: row.get(key) for key in _KEPT},
    }


def _message(message: Row, number: int) -> dict[str, Any]:
    """A chat message as Inspect's, with the tool calls that a policy wrote into its reply.

    A tool's message answers the calls of the message before it; it names the first, under which it is shown.
    """
    shown = {"role": message["role"], "content": message.get("content") or ""}
    if shown["role"] == "tool":
        shown["tool_call_id"] = f"{number - 1}-0"
    elif shown["role"] == "assistant":
        calls = [call for call in parse(shown["content"]) if isinstance(call, Call)]
        shown["tool_calls"] = [
            {"id": f"{number}-{index}", "function": call.name, "arguments": call.arguments}
            for index, call in enumerate(calls)
        ] or None
    return shown


def _means(rows: list[Row]) -> list[dict[str, Any]]:
    solved = [float(row["success"]) for row in rows if row.get("success") is not None]
    parts = {"reward": [float(sum(row.get("turn_rewards", ()))) for row in rows], "success": solved}
    means = {name: {"name": "mean", "value": statistics.fmean(values)} for name, values in parts.items() if values}
    return [{"name": name, "scorer": name, "metrics": {"mean": mean}} for name, mean in means.items()]
