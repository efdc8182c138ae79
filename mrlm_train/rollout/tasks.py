"""Which tasks a training or a collection plays: entries drawn by weight, and episode seeds for each entry."""

from __future__ import annotations

import math

import numpy as np

from mrlm_train.rollout.conversation import Request
from mrlm_train.rollout.pool import EnvPool

_FIRST_TRAINING_SEED = 2**24  # evaluation takes seeds from 0 up, so training never meets its tasks


def training_tasks(pool: EnvPool, count: int, seed: int) -> tuple[list[int], list[int]]:
    """The tasks of a whole training run: the entry and the episode seed of each, drawn from `seed`.

    Environments are drawn by weight. An endless source never repeats a seed. A finite one goes through its n tasks in a
    new order each pass: seed `p·n + i` is task `i` in pass `p`. A longer plan starts with the shorter one.
    """
    weights = np.array([entry.weight for entry in pool.envs], dtype=np.float64)
    draws = np.random.default_rng(seed).random(count)
    picks = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], draws, side="right")
    seeds = np.zeros(count, dtype=np.int64)
    for index in range(len(pool.envs)):
        places = np.flatnonzero(picks == index)
        rng = np.random.default_rng([seed, index])
        size = pool.num_tasks[index]
        if size is None or size > _FIRST_TRAINING_SEED:  # also a server's 2³¹ seeds, which are too many to shuffle
            seeds[places] = np.arange(len(places)) + rng.integers(_FIRST_TRAINING_SEED, 2**30)
        else:
            passes = [p * size + rng.permutation(size) for p in range(math.ceil(len(places) / size))]
            seeds[places] = np.concatenate([*passes, np.zeros(0, np.int64)])[: len(places)]
    return picks.tolist(), seeds.tolist()


def group_requests(pool: EnvPool, tasks: int, group_size: int, seed: int) -> list[Request]:
    """`group_size` attempts at each of `tasks` tasks drawn as for training; the members of a group are consecutive.

    Request i has draw i, so that no two have the same samples.
    """
    drawn = zip(*training_tasks(pool, tasks, seed), strict=True)
    return [
        Request(entry, task, draw=group * group_size + member)
        for group, (entry, task) in enumerate(drawn)
        for member in range(group_size)
    ]
