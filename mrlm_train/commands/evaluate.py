"""`mrlm eval`: how well policies do in environments, or how well a model predicts their observations."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mrlm_train.episodes.record import Episode, jsonable, read, write
from mrlm_train.experiment.run_directory import read_environments, write_json
from mrlm_train.inference.endpoint import EndpointPolicy
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout import evaluation
from mrlm_train.rollout import world_model as world_models
from mrlm_train.rollout.environments import EnvEntry

# Heading, key of a summary's row, format of the figure.
COLUMNS = (
    ("success", "success", "7.1%"),
    ("95 % interval", "success_interval", "15"),
    ("reward", "reward", "7.3f"),
    ("turns", "turns", "5.2f"),
    ("tokens", "tokens", "6.1f"),
    ("episodes", "n", "8d"),
    ("invalid", "invalid", "7d"),
)
BREAKDOWNS = ("kind", "difficulty")  # keys of `info` that tell tasks of one environment apart


def trained_environments(models: Sequence[str], envs: Sequence[EnvEntry]) -> list[EnvEntry]:
    """Environments without arguments get those that a model was trained with, if its folder records them.

    All models play the same tasks, so that their figures can be compared.

    Raises:
        ValueError: If two models were trained with other arguments.
    """
    recorded = {model: read_environments(model) for model in models}
    listed = []
    for env in envs:
        found = {model: known[env.id] for model, known in recorded.items() if known.get(env.id)}
        if not env.kwargs and found:
            (first, kwargs), *others = found.items()
            for other, its in others:
                if its != kwargs:
                    raise ValueError(
                        f"eval: {first} was trained on {env.id} with {json.dumps(kwargs)}, {other} with "
                        f"{json.dumps(its)}; say with --env-arg what both are asked"
                    )
            env = replace(env, kwargs=kwargs)
            whose = "the model" if len(models) == 1 else first
            print(f"{env.id} with the arguments {whose} was trained on: {json.dumps(kwargs)}", file=sys.stderr)
        listed.append(env)
    return listed


def run(
    policy: Policy,
    envs: Sequence[EnvEntry],
    num_episodes: int,
    split: str,
    sampling: Sampling,
    samples: int = 1,
) -> tuple[dict[str, Any], list[Episode]]:
    """Evaluate one policy.

    Args:
        policy: Who acts.
        envs: Where.
        num_episodes: Tasks per environment, with seeds from 0.
        split: Which tasks.
        sampling: Temperature and budgets.
        samples: Attempts at each task.

    Returns:
        `evaluation.summary` of the episodes with the same figures by `kind` and `difficulty` in each environment, and
        the episodes.

    Raises:
        InvalidEpisodes: If no episode is valid.
    """
    with evaluation.evaluation_rollout(policy, envs, split, sampling) as rollout:
        requests = evaluation.evaluation_requests(rollout, num_episodes, samples)
        total = sum(rollout.pool.trained_agents(request.entry) for request in requests)
        with tqdm(total=total, unit="episode", desc=policy.name, disable=None) as bar:
            episodes = rollout.run(requests, progress=lambda _: bar.update())
    tell_cost(policy)
    evaluation.require_valid(episodes)
    result = evaluation.summary(episodes)
    result.setdefault("environments", evaluation.by(episodes, lambda episode: episode.label))
    for name, part in result["environments"].items():
        played = [episode for episode in episodes if episode.label == name]
        for key in BREAKDOWNS:
            parts = evaluation.by(played, lambda episode: _plain(episode.info.get(key)))  # noqa: B023
            if len(parts) > 1:
                part[key] = dict(sorted(parts.items(), key=lambda item: (isinstance(item[0], str), item[0])))
    return result, episodes


def _plain(value: Any) -> Any:
    """A kind or difficulty, which an environment may give as anything, as a number or a text."""
    value = jsonable(value)
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def tell_cost(policy: Policy) -> None:
    """What was asked of an endpoint, in tokens, as it counts them."""
    if isinstance(policy, EndpointPolicy):
        used = policy.client.usage
        print(
            f"{policy.name}: {used.calls} calls ({used.failures} failed), {used.prompt_tokens} prompt tokens, "
            f"{used.completion_tokens} completion tokens",
            file=sys.stderr,
        )


def report(
    results: dict[str, tuple[dict[str, Any], list[Episode]]],
    split: str,
    output: str | None = None,
    episodes_file: str | None = None,
    inspect_log: str | None = None,
) -> None:
    """Print the table and write the files.

    Args:
        results: What `run` gives, by model.
        split: Which tasks they were.
        output: A JSON file for the result; several models are a list under `models`.
        episodes_file: A JSONL file for the episodes.
        inspect_log: An Inspect log for the episodes.
    """
    print(table({model: figures for model, (figures, _) in results.items()}))
    if output is not None:
        listed = [
            {"model": model, "split": split, **figures, "episodes": [_line(episode) for episode in episodes]}
            for model, (figures, episodes) in results.items()
        ]
        write_json(Path(output), listed[0] if len(listed) == 1 else {"models": listed})
    played = [episode for _, episodes in results.values() for episode in episodes]
    if episodes_file is not None:
        write(episodes_file, played)
    if inspect_log is not None:
        from mrlm_envs.integrations import inspect  # needs the extra `tools`

        inspect.write_log(map(asdict, played), inspect_log, next(iter(results)))


def _line(episode: Episode) -> dict[str, Any]:
    """What the result file says of an episode; `--episodes` keeps all of it."""
    names = ("seed", "task_id", "success", "reward", "stop_reason", "valid")
    line = {"environment": episode.label, "attempt": episode.sampling["draw"], "turns": len(episode.turn_rewards)}
    line |= {name: getattr(episode, name) for name in names}
    return jsonable(line | {key: episode.info[key] for key in BREAKDOWNS if key in episode.info})


def world_model(model: str, policy: Policy, episodes_file: str, output: str | None = None) -> None:
    """Ask the model for the observations of the episodes in a file, and print how many it gets right."""
    with tqdm(unit="answer", disable=None) as bar:
        found = world_models.evaluate(policy, list(read(episodes_file)), progress=bar.update)
    print(
        f"{found['n']} answers: exact match {found['exact_match']:.1%} (observation {found['observation_match']:.1%}, "
        f"reward {found['reward_match']:.1%}), perplexity {found['perplexity']:.3f} a token"
    )
    if output is not None:
        write_json(Path(output), {"model": model, "world_model": found})


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results of models as aligned rows: for each environment, and for each kind of its tasks, one a model."""
    sections = _sections(list(results.values()))
    attempts = sorted({k for _, rows in sections for row in rows for k in row.get("pass_at", {}) if k > 1})
    columns = [*COLUMNS, *((f"pass@{k}", k, "7.1%") for k in attempts)]
    widths = [max(len(heading), int(form.split(".")[0].rstrip("d"))) for heading, _, form in columns]
    models = [f"  {name.partition('@http')[0]}" if len(results) > 1 else "" for name in results]
    first, second = max(len(label) for label, _ in sections), max(map(len, models))
    lines = [" " * (first + second) + "".join(f"  {name:>{w}}" for (name, _, _), w in zip(columns, widths))]
    for label, rows in sections:
        for model, row in zip(models, rows):
            figures = {**row, **row.get("pass_at", {})}
            cells = (f"  {_cell(figures.get(key), form):>{w}}" for (_, key, form), w in zip(columns, widths))
            lines.append(f"{label:{first}}{model:{second}}" + "".join(cells))
    return "\n".join(lines)


def _sections(results: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """What each row of the table is called, and its figures for each model ({} for one that has none)."""
    environments = list(dict.fromkeys(name for result in results for name in result["environments"]))
    sections: list[tuple[str, list[dict[str, Any]]]] = []
    for environment in environments:
        parts = [result["environments"].get(environment, {}) for result in results]
        sections.append((environment, parts))
        for key in BREAKDOWNS:
            for name in dict.fromkeys(name for part in parts for name in part.get(key, ())):
                sections.append((f"  {key} {name}", [part.get(key, {}).get(name, {}) for part in parts]))
    return [*sections, ("all", results)] if len(environments) > 1 else sections


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    return f"{value[0]:6.1%} - {value[1]:6.1%}" if isinstance(value, list) else f"{value:{form}}"
