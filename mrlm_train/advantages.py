"""From rewards and values to advantages, returns, and the loss of the critic: formulas on tensors.

Shape letters: N episodes of all processes, G groups of M, B episodes of a process, T completion tokens, K turns.
`mask_BT` is 1 where the policy sampled the token. `values_BT[:, t]` is V(s_t), the value before token t. Environment
tokens (mask 0) are not steps of the agent: values pass through them, and nothing is ever read there.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from mrlm_train.episodes.record import Episode

Reduce = Callable[[torch.Tensor], torch.Tensor]
PRIVILEGED = {"state": "state_key", "solver": "cost_to_go"}  # the environment method that a credit method calls


def group_advantages(rewards_N: torch.Tensor, size: int, scale: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Each return against its group's mean (GRPO; Shao et al., 2024, arXiv:2402.03300, section 4.1.2).

    Args:
        rewards_N: returns of the episodes of all processes, group by group; NaN for an episode that does not count.
        size: episodes per group.
        scale: divisor of the difference: the standard deviation of the "group" or of the "batch", or "none".

    Returns:
        `(advantages_N, scales_N)`: advantages, 0 where a return is NaN, and the scales they were divided by.
    """
    groups_GM = rewards_N.view(-1, size)
    advantages_N = (groups_GM - groups_GM.nanmean(1, keepdim=True)).view(-1)
    scales_N = torch.ones_like(rewards_N)
    if scale == "batch":
        scales_N = (_nanstd(rewards_N[None]) + 1e-4).expand_as(rewards_N)
    elif scale == "group":
        scales_N = _nanstd(groups_GM).repeat_interleave(size) + 1e-4
    return (advantages_N / scales_N).nan_to_num(nan=0.0), scales_N


def _nanstd(x_GM: torch.Tensor) -> torch.Tensor:
    """Sample standard deviation of each row without its NaNs; NaN for fewer than two values."""
    count_G = (~x_GM.isnan()).sum(1)
    variance_G = (x_GM - x_GM.nanmean(1, keepdim=True)).square().nanmean(1) * (count_G / (count_G - 1))
    return torch.where(count_G > 1, variance_G, torch.nan).sqrt()


def turn_credit(
    episodes: Sequence[Episode], method: str, gamma: float, values_BK: Sequence[Sequence[float]] = ()
) -> list[list[float]]:
    """The credit of each turn of each episode, apart from the advantage of its episode. Groups must be whole.

    - "turn": the return from the turn on, against the mean of the group's episodes at the same turn.
    - "state": the discounted return from the turn on, against the mean over all turns of the group that begin in the
      same state (GiGPO; Feng et al., 2025, arXiv:2505.10978, eq. 6–8). A state visited once gets 0.
    - "solver": how many steps closer to the solution the turn came, clipped to [-1, 1]; -1 for the turn that loses
      the task, 0 after that (CAST, arXiv:2607.25308). Privileged: it reads the environment's `cost_to_go()`.
    - "branch": the turn's reward plus the change in the value of the state, r + V(s') − V(s); V is 0 at the end
      (VinePPO, Kazemnejad et al., 2024, arXiv:2410.01679, eq. 5).

    Args:
        episodes: B of them; invalid ones get 0 and do not enter any mean.
        method: one of the above.
        gamma: discount per turn, for "state".
        values_BK: the value of the state before each turn, for "branch".

    Returns:
        A value for each turn, B × K.

    Raises:
        ValueError: An environment does not provide what the method needs.
    """
    if method in PRIVILEGED:
        _require_known(episodes, method)
    if method == "branch":
        return [
            [r + v_next - v if e.valid else 0.0 for r, v, v_next in zip(e.turn_rewards, v_K, [*v_K[1:], 0.0])]
            for e, v_K in zip(episodes, values_BK, strict=True)
        ]
    if method == "solver":
        return [
            [_progress(*e.costs_to_go[k : k + 2]) if e.valid else 0.0 for k in range(len(e.turn_ends))]
            for e in episodes
        ]
    anchors_BK: list[list[Any]] = []
    returns_BK: list[list[float]] = []
    members: dict[Any, list[float]] = defaultdict(list)
    for b, episode in enumerate(episodes):
        keys: Sequence[Any] = range(len(episode.turn_ends))
        if method == "state":  # a state without a key equals no other
            keys = [(b, k) if key is None else key for k, key in zip(keys, episode.state_keys)]
        anchors_BK.append([(episode.group_id, key) for key in keys])
        returns_BK.append(_returns_to_go(episode.turn_rewards, 1.0 if method == "turn" else gamma))
        if episode.valid:
            for anchor, value in zip(anchors_BK[b], returns_BK[b], strict=True):
                members[anchor].append(value)
    means = {anchor: sum(values) / len(values) for anchor, values in members.items()}
    return [
        [value - means[anchor] if episode.valid else 0.0 for anchor, value in zip(anchors, values, strict=True)]
        for episode, anchors, values in zip(episodes, anchors_BK, returns_BK, strict=True)
    ]


def _require_known(episodes: Sequence[Episode], method: str) -> None:
    for env_id in {episode.env_id for episode in episodes}:
        played = [e for e in episodes if e.env_id == env_id and e.valid and e.turn_ends]
        known = [value for e in played for value in (e.state_keys if method == "state" else e.costs_to_go)]
        if played and all(value is None for value in known):
            needs = f"credit: {method} needs {PRIVILEGED[method]}() of environment {env_id}"
            raise ValueError(f"{needs}, which gives none; choose credit: turn or episode")


def _returns_to_go(rewards_K: Sequence[float], gamma: float) -> list[float]:
    return list(itertools.accumulate(reversed(rewards_K), lambda later, reward: reward + gamma * later))[::-1]


def _progress(before: float | None = None, after: float | None = None) -> float:
    if before is None or after is None or math.isinf(before):
        return 0.0
    return min(1.0, max(-1.0, before - after))


def turn_columns(mask_BT: torch.Tensor, episodes: Iterable[Episode]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns of tokens from episodes, as the per-token formulas read them.

    Args:
        mask_BT: 1 at the tokens that count; sets shape and device.
        episodes: B of them.

    Returns:
        `(rewards_BT, turns_BT, ends_B)`: each turn's reward at its last token; the turn of each token that counts,
        else -1; the length of each completion.
    """
    rewards_BT = torch.zeros(mask_BT.shape)
    turns_BT = torch.full(mask_BT.shape, -1, dtype=torch.long)
    ends = []
    for b, episode in enumerate(episodes):
        ends.append(len(episode.completion_ids or ()))
        start = 0
        for k, (end, reward) in enumerate(zip(episode.turn_ends, episode.turn_rewards, strict=True)):
            rewards_BT[b, end] += reward
            turns_BT[b, start : end + 1] = k
            start = end + 1
    turns_BT = turns_BT.to(mask_BT.device).masked_fill(mask_BT == 0, -1)
    return rewards_BT.to(mask_BT.device), turns_BT, torch.tensor(ends, device=mask_BT.device)


def over_tokens(values_BK: Sequence[Sequence[float]], turns_BT: torch.Tensor) -> torch.Tensor:
    """Copy the value of each turn to all of its tokens: (B, T), 0 where `turns_BT` is -1."""
    table_BK = pad_sequence([torch.tensor([*values, 0.0]) for values in values_BK], batch_first=True)
    return table_BK.to(turns_BT.device).gather(1, turns_BT.clamp(min=0)).masked_fill(turns_BT < 0, 0.0)


def gae(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    bootstrap_B: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation over the sampled tokens (Schulman et al., 2015, arXiv:1506.02438, eq. 16).

    A_t = δ_t + γλ A_t', δ_t = r_t + γ V(s_t') − V(s_t), where t' is the next *sampled* token, in this turn or the next.

    Args:
        rewards_BT: reward of each step; read at mask 1 only.
        values_BT: V(s_t); read at mask 1 only.
        mask_BT: 1 at sampled tokens.
        bootstrap_B: value after the last step: 0 where the episode is over, V where a time limit cut it off.
        gamma: discount per step.
        gae_lambda: 0 trusts the critic alone, 1 the rewards alone.

    Returns:
        `(advantages_BT, returns_BT)`, returns = advantages + values, both 0 at mask 0.
    """
    taken_BT = mask_BT.bool()
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B, running_B = bootstrap_B.to(values_BT), torch.zeros_like(bootstrap_B).to(values_BT)
    for t in range(values_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        # `where`, not a product with the mask: a NaN on an environment token must not leak
        running_B = torch.where(taken_BT[:, t], delta_B + gamma * gae_lambda * running_B, running_B)
        next_value_B = torch.where(taken_BT[:, t], values_BT[:, t], next_value_B)
        advantages_BT[:, t] = running_B
    advantages_BT = advantages_BT.where(taken_BT, 0.0)
    return advantages_BT, advantages_BT + values_BT.where(taken_BT, 0.0)


def turn_gae(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor,
    turns_BT: torch.Tensor,
    bootstrap_B: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE with a turn as the step: V(s) is the value before a turn's first token, and all its tokens share the result.

    Args:
        rewards_BT: rewards; those of a turn's tokens are summed.
        values_BT: V(s_t); read at the first token of each turn.
        turns_BT: which turn sampled the token, from 0; -1 at environment tokens and padding.
        bootstrap_B: as in `gae`.
        gamma: discount per turn.
        gae_lambda: as in `gae`, over turns.

    Returns:
        As `gae`.
    """
    taken_BT = turns_BT >= 0
    index_BT = turns_BT.clamp(min=0)
    previous_BT = torch.cat([torch.full_like(turns_BT[:, :1], -1), turns_BT.cummax(1).values[:, :-1]], dim=1)
    first_BT = taken_BT & (turns_BT > previous_BT)
    shape = (turns_BT.shape[0], int(index_BT.max()) + 1)

    def per_turn(x_BT: torch.Tensor, where_BT: torch.Tensor) -> torch.Tensor:
        return x_BT.new_zeros(shape).scatter_add(1, index_BT, x_BT.where(where_BT, 0.0))

    rewards_BK, values_BK = per_turn(rewards_BT, taken_BT), per_turn(values_BT, first_BT)
    mask_BK = per_turn(torch.ones_like(values_BT), first_BT)
    by_turn = gae(rewards_BK, values_BK, mask_BK, bootstrap_B, gamma, gae_lambda)
    advantages_BT, returns_BT = (x_BK.gather(1, index_BT).where(taken_BT, 0.0) for x_BK in by_turn)
    return advantages_BT, returns_BT


def whiten(x_BT: torch.Tensor, mask_BT: torch.Tensor, total: Reduce) -> torch.Tensor:
    """Mean 0 and variance 1 over the masked entries of all processes; 0 elsewhere.

    Args:
        x_BT: this process's entries.
        mask_BT: which of them count.
        total: sum of a tensor over all processes.
    """
    mean, variance = masked_moments(x_BT, mask_BT, total)
    return ((x_BT - mean) * torch.rsqrt(variance + 1e-8)).where(mask_BT.bool(), 0.0)


def masked_moments(x_BT: torch.Tensor, mask_BT: torch.Tensor, total: Reduce) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population variance of the masked entries over all processes (0 and 0 when there are none)."""
    kept_N = x_BT[mask_BT.bool()].double()
    sums = total(torch.stack([kept_N.sum(), kept_N.new_tensor(float(kept_N.numel()))]))
    mean = sums[0] / sums[1].clamp(min=1)
    variance = total((kept_N - mean).square().sum()) / sums[1].clamp(min=1)
    return mean.to(x_BT.dtype), variance.to(x_BT.dtype)


def explained_variance(
    values_BT: torch.Tensor, returns_BT: torch.Tensor, mask_BT: torch.Tensor, total: Reduce
) -> torch.Tensor:
    """1 − Var(returns − values) / Var(returns): 1 is a perfect critic, 0 a constant one; NaN for equal returns."""
    _, unexplained = masked_moments(returns_BT - values_BT, mask_BT, total)
    _, variance = masked_moments(returns_BT, mask_BT, total)
    return torch.where(variance > 0, 1 - unexplained / variance, torch.nan)


def value_loss(
    values_BT: torch.Tensor,
    old_values_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    clip: float | None,
) -> torch.Tensor:
    """Half the squared error, summed over the masked tokens; with `clip`, the larger of it and the clipped error.

    The clipped value stays within `clip` of the value at collection (Schulman's PPO code; Huang et al., 2022, "The 37
    implementation details of PPO", no. 9).
    """
    error_BT = (values_BT - returns_BT).square()
    if clip is not None:
        near_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
        error_BT = torch.maximum(error_BT, (near_BT - returns_BT).square())
    return 0.5 * error_BT.where(mask_BT.bool(), 0.0).sum()


def update_baselines(baselines: dict[str, float], returns: Iterable[tuple[str, float]], decay: float) -> None:
    """Move the running mean return of each agent of a game towards the latest returns (SPIRAL, arXiv:2506.24119).

    SPIRAL updates b ← α b + (1 − α) R after each episode. The episodes of a batch have no order, so n of them give
    b ← αⁿ b + (1 − αⁿ) mean(R). An agent's first batch sets its baseline.

    Args:
        baselines: by agent; changed in place.
        returns: `(agent, return)` of each episode.
        decay: α.
    """
    latest: dict[str, list[float]] = defaultdict(list)
    for agent, value in returns:
        latest[agent].append(value)
    for agent, values in latest.items():
        mean, kept = sum(values) / len(values), decay ** len(values)
        baselines[agent] = kept * baselines[agent] + (1 - kept) * mean if agent in baselines else mean
