"""Evaluation of a policy: episodes with seeds 0…n−1 of the test split, and their statistics."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mrlm_train.episodes.record import Episode
from mrlm_train.inference.policy import Policy, make
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.environments import EnvLike, entries
from mrlm_train.rollout.runner import Request, Rollout, check_validity

GREEDY = Sampling(temperature=0.0)
_Z = 1.959964  # 97.5 % quantile of the normal distribution: two-sided 95 %


def evaluate(
    policy: Policy | str,
    envs: EnvLike | Iterable[EnvLike],
    n: int = 200,
    split: str | None = "test",
    sampling: Sampling = GREEDY,
    threads: int = 16,
    progress: Callable[[Episode], object] | None = None,
) -> dict[str, Any]:
    """Play n episodes in each environment and summarise them.

    Args:
        policy: Who acts: a policy, or the folder or name of a model.
        envs: Where.
        n: Episodes per environment; see `evaluation_requests`.
        split: Set on environments that have splits and do not name one themselves; None sets nothing.
        sampling: Greedy unless given.
        threads: Environments stepped at once.
        progress: Called with each episode as it ends.

    Returns:
        `summary` of the episodes.

    Raises:
        InvalidEpisodes: If none of them is valid.
    """
    actor = make(policy) if isinstance(policy, str) else policy
    with evaluation_rollout(actor, envs, split, sampling, threads=threads) as rollout:
        episodes = rollout.run(evaluation_requests(rollout, n), progress)
    require_valid(episodes)
    return summary(episodes)


def evaluation_rollout(
    policy: Policy,
    envs: EnvLike | Iterable[EnvLike],
    split: str | None = "test",
    sampling: Sampling = GREEDY,
    **settings: Any,
) -> Rollout:
    """A rollout on `split` that does not stop for invalid episodes: the summary counts them.

    Args:
        policy: Who acts.
        envs: Where.
        split: As in `evaluate`.
        sampling: Greedy unless given.
        **settings: Passed to `Rollout`: `threads`, `opponents`, `step_timeout`.
    """
    listed = entries(envs)
    if split is not None:
        listed = [entry.on_split(split) for entry in listed]
    return Rollout(policy, listed, sampling, max_invalid_share=1.0, **settings)


def require_valid(episodes: Sequence[Episode]) -> None:
    """Stop when nothing was evaluated.

    Raises:
        InvalidEpisodes: If no episode is valid.
    """
    if not any(episode.valid for episode in episodes):
        check_validity(episodes, max_share=0.0)


def evaluation_requests(rollout: Rollout, n: int, samples: int = 1) -> list[Request]:
    """Tasks with seeds from 0 up, n for each environment on average, each attempted `samples` times.

    The environments share them by their weights, at least one task each. A finite source is played at most once.

    Raises:
        ValueError: If n is below 1, or several samples are asked for at temperature 0.
    """
    if samples > 1 and rollout.sampling.temperature == 0:
        raise ValueError(f"{samples} samples of a task are all alike at temperature 0; raise --temperature")
    if n < 1:
        raise ValueError(f"the number of evaluation episodes must be at least 1, got {n}")
    weight = sum(entry.weight for entry in rollout.envs) / len(rollout.envs)
    shares = [max(1, round(n * entry.weight / weight)) for entry in rollout.envs]
    counts = [
        share if size is None else min(share, size) for share, size in zip(shares, rollout.pool.num_tasks, strict=True)
    ]
    tasks = [(index, seed) for index, count in enumerate(counts) for seed in range(count)]
    return [Request(index, seed, draw) for index, seed in tasks for draw in range(samples)]


def summary(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Statistics of episodes, as JSON values; invalid episodes are only counted.

    Returns:
        `n`, `invalid`, `reward`, `reward_interval`, `success` and `success_interval` (95 %; None if no environment
        reports success), `turns` and `tokens` (sampled; means per episode), `stop_reasons`; where tasks were attempted
        several times, `pass_at` (see `pass_at`; `success` is then avg@k); and with several environments, or several
        agents of a game, `environments`: the same for each, under the names of `Episode.label` (`success` of an agent
        is its share of wins).
    """
    result = _sums(episodes)
    environments = by(episodes, lambda episode: episode.label)
    if len(environments) > 1:
        result["environments"] = environments
    return result


def by(episodes: Sequence[Episode], key: Callable[[Episode], Any]) -> dict[Any, dict[str, Any]]:
    """Statistics as in `summary` for the episodes that share a key, in order of first appearance; None is left out."""
    parts: dict[Any, list[Episode]] = defaultdict(list)
    for episode in episodes:
        parts[key(episode)].append(episode)
    parts.pop(None, None)
    return {name: _sums(part) for name, part in parts.items()}


def _sums(episodes: Sequence[Episode]) -> dict[str, Any]:
    valid = [episode for episode in episodes if episode.valid]
    known = [episode for episode in valid if episode.success is not None]
    rewards = _by_task(valid, lambda episode: episode.reward)
    successes = _by_task(known, lambda episode: float(bool(episode.success)))
    figures = {
        "n": len(valid),
        "invalid": len(episodes) - len(valid),
        "success": _mean(successes),
        "success_interval": success_interval(successes) if successes else None,
        "reward": _mean(rewards),
        "reward_interval": reward_interval(rewards) if len(rewards) > 1 else None,
        "turns": _mean([[len(episode.turn_rewards) for episode in valid]]),
        "tokens": _mean([[e.info.get("completion_tokens", e.sampled_tokens) for e in valid]]),
        "stop_reasons": dict(Counter(episode.stop_reason for episode in episodes)),
    }
    if any(len(attempts) > 1 for attempts in successes):
        figures["pass_at"] = pass_at(successes)
    return figures


def _by_task(episodes: Sequence[Episode], value: Callable[[Episode], float]) -> list[list[float]]:
    """The values of the attempts at each task."""
    tasks: dict[Any, list[float]] = defaultdict(list)
    for episode in episodes:
        tasks[episode.group_id or id(episode)].append(value(episode))
    return list(tasks.values())


def pass_at(tasks: Sequence[Sequence[float]]) -> dict[int, float]:
    """pass@k: the probability that one of k attempts at a task succeeds, for k = 1, 2, 4 … and the most attempts made.

    The unbiased estimator of Chen et al. (2021, arXiv:2107.03374), 1 − C(n − c, k) / C(n, k) for c successes in n
    attempts; its mean over the tasks with at least k valid attempts.

    Args:
        tasks: For each task, the successes (1 or 0) of its attempts.
    """
    counts = [(len(attempts), round(sum(attempts))) for attempts in tasks]
    most = max(n for n, _ in counts)
    sizes = [*(2**i for i in range((most - 1).bit_length())), most]
    return {k: _mean([[1 - math.comb(n - c, k) / math.comb(n, k) for n, c in counts if n >= k]]) or 0.0 for k in sizes}


def success_interval(tasks: Sequence[Sequence[float]]) -> list[float]:
    """95 % interval of the share of successes; further attempts at a task count less than further tasks.

    Wilson's, with the effective number of attempts: the number for which a binomial share has the variance that this
    share has between tasks (Kish's design effect).
    """
    share, variance = _clustered(tasks)
    attempts = sum(map(len, tasks))
    effective = min(attempts, share * (1 - share) / variance) if variance > 0 else len(tasks)
    return wilson_interval(share * effective, effective)


def wilson_interval(successes: float, n: float) -> list[float]:
    """95 % interval of a share (Wilson, 1927), which also holds for small n and for shares near 0 and 1."""
    share, spread = successes / n, _Z * _Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def reward_interval(tasks: Sequence[Sequence[float]]) -> list[float]:
    """95 % interval of the mean, by the normal approximation, from the variance between at least two tasks."""
    mean, variance = _clustered(tasks)
    half = _Z * math.sqrt(variance * len(tasks) / (len(tasks) - 1))
    return [mean - half, mean + half]


def _clustered(tasks: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean of all values, and its variance with the values clustered by task."""
    n, mean = sum(map(len, tasks)), _mean(tasks) or 0.0
    return mean, sum(sum(value - mean for value in values) ** 2 for values in tasks) / n**2


def _mean(tasks: Sequence[Sequence[float]]) -> float | None:
    values = [value for values in tasks for value in values]
    return sum(values) / len(values) if values else None
