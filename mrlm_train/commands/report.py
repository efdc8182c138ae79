"""`mrlm report`: run directories as one page: curves, tables, configurations, and sampled episodes token by token.

The page is `report.html` beside this file with the runs' data in it as JSON; it loads nothing else. It is made of
what is on disk, so a run that still goes on can be looked at as well.
"""

import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).with_name("report.html")
POINTS = 1000  # of a curve; longer ones are thinned out
STEPS, EPISODES, TOKENS = 8, 4, 3000  # sampled: steps of a run, episodes of a step, tokens of an episode
FIGURES = ("text", "advantage", "value", "kl")
KEPT = ("seed", "agent", "success", "valid", "stop_reason")


def write(runs: Sequence[str], output: str) -> None:
    """Write the page.

    Args:
        runs: Run directories; one with stages counts as a run for each.
        output: The HTML file.

    Raises:
        ValueError: If a folder is not a run directory.
    """
    folders = [folder for run in runs for folder in _folders(Path(run))]
    data = {"written": time.strftime("%Y-%m-%d %H:%M"), "runs": [_run(folder) for folder in folders]}
    finite = json.loads(json.dumps(data, default=str), parse_constant=lambda _: None)  # null for NaN and infinity
    text = json.dumps(finite).replace("<", "\\u003c")  # no episode can close the script
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(TEMPLATE.read_text("utf-8").replace("/*DATA*/", text), "utf-8")


def _folders(run: Path) -> list[Path]:
    by_number = lambda path: (len(path.parent.name.split("-")[1]), path)  # stage-2 before stage-10
    stages = sorted(run.glob("stage-*/metrics.jsonl"), key=by_number)
    if (run / "metrics.jsonl").is_file():
        return [run]
    if not stages:
        raise ValueError(f"report: {run} has no metrics.jsonl; give the output directory of a `mrlm train`")
    return [path.parent for path in stages]


def _run(folder: Path) -> dict[str, Any]:
    config = folder / "config.yaml"
    settings = yaml.safe_load(config.read_text("utf-8")) if config.is_file() else {}
    series: dict[str, list[list[float]]] = {}
    for row in _rows(folder / "metrics.jsonl"):
        step = row.pop("step", None)
        for name, value in row.items():
            if isinstance(step, int) and isinstance(value, int | float):
                series.setdefault(name, []).append([step, value])
    name = folder.name if not folder.name.startswith("stage-") else f"{folder.parent.name}/{folder.name}"
    return {
        "name": name,
        "config": settings,
        "series": {name: points[:: -(-len(points) // POINTS)] for name, points in series.items()},
        "environments": _environments(settings, series),
        "samples": list(_samples(folder / "episodes")),
    }


def _environments(settings: dict[str, Any], series: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """For each environment the mean of the last ten training figures, and the last and the best of the evaluations.

    With one environment alone, the figures have no name of it.
    """
    matches = [re.match(r"(?:reward|success)/(.+)|eval_(.+)_(?:reward|success)$", key) for key in series]
    names = {found[1] or found[2] for found in matches if found}
    listed = settings.get("envs") or settings.get("eval_envs") or ["all"]
    only = listed[0] if isinstance(listed, list) else listed
    only = only.get("id") or only.get("env_type") if isinstance(only, dict) else only
    rows = []
    for name in sorted(names) or [None]:
        train, test = ("{}", "eval_{}") if name is None else (f"{{}}/{name}", f"eval_{name}_{{}}")
        row: dict[str, Any] = {"name": only if name is None else name}
        for key in ("reward", "success"):
            points = [value for _, value in series.get(train.format(key), [])[-10:]]
            row[f"training {key}"] = sum(points) / len(points) if points else None
        tested = series.get(test.format("success")) or series.get(test.format("reward")) or []
        row["test"] = tested[-1][1] if tested else None
        row["at step"], row["best test"] = max(tested, key=lambda point: point[1], default=(None, None))
        rows.append(row)
    return rows


def _samples(folder: Path) -> Iterator[dict[str, Any]]:
    """Episodes of a few steps, the first and the last among them."""
    files = sorted(folder.glob("step-*.jsonl"))
    if len(files) > STEPS:
        files = [files[i * (len(files) - 1) // (STEPS - 1)] for i in range(STEPS)]
    for path in files:
        rows = [row for row, _ in zip(_rows(path), range(EPISODES))]
        yield {"step": int(path.stem.partition("-")[2]), "episodes": [_episode(row) for row in rows]}


def _episode(row: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of an episode; without the texts of its tokens, its messages."""
    kept = {name: row.get(name) for name in KEPT} | {"environment": row.get("name") or row.get("env_id")}
    kept |= {name: row.get(name) or [] for name in ("messages", "turn_rewards", "turn_ends")}
    columns = {name: values for name, values in (row.get("token_figures") or {}).items() if name in FIGURES}
    if columns:
        columns |= {"log-prob": row.get("logprobs") or [], "mask": row.get("action_mask") or []}
        kept["tokens"] = {name: values[:TOKENS] for name, values in columns.items()}
    return kept


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a last line that is still being written is left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
