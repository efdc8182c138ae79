"""`mrlm credit-probe`: how well each way of `credit` agrees with Monte Carlo, before anything is trained with it.

A policy plays groups of episodes. The reference advantage of a turn is r + V(s') − V(s), with each V the mean return of
many fresh episodes that branch off there (`rollout.branches`). Beside it stands what each way gives the same turns: the
correlation over turns, and the cosine between the policy gradients. A way that cannot be used there is n/a.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrlm_train.advantages import PRIVILEGED, over_tokens, turn_columns, turn_credit
from mrlm_train.episodes.record import Episode
from mrlm_train.experiment.run_directory import write_json
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.rollout.branches import branch_values
from mrlm_train.rollout.environments import EnvLike
from mrlm_train.trl_hooks import Batch, loss_mask

_REFERENCE_DRAW = 1 << 60  # beyond every draw of a rollout


def run(
    model: str, env: EnvLike, tasks: int = 8, branches: int = 16, output: str | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Probe one environment; print the table.

    Args:
        model: A model folder or hub name.
        env: An environment that can be replayed.
        tasks: Groups that are played.
        branches: Fresh episodes from each state for the reference.
        output: JSON file for the rows.
        **settings: Of `GRPOConfig`: `num_generations`, `temperature`, `seed`, budgets …

    Returns:
        A row for each way: `credit`, `correlation`, `gradient_cosine`, or `why` it is n/a.

    Raises:
        ValueError: The environment cannot be replayed, or no reward differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            folder,
            per_device_train_batch_size=tasks * settings["num_generations"],
            credit="branch",
            max_steps=1,
            report_to=[],
            **settings,
        )
        trainer = GRPOTrainer(model, env, args)
        rows = _probe(trainer, branches)
    print(f"{'credit':8}  {'correlation':>11}  {'gradient cosine':>15}")
    for row in rows:
        figures = f"{row['correlation']:11.2f}  {row['gradient_cosine']:15.2f}" if "why" not in row else row["why"]
        print(f"{row['credit']:8}  {figures}")
    if output is not None:
        write_json(Path(output), rows)
    return rows


def _probe(trainer: GRPOTrainer, branches: int) -> list[dict[str, Any]]:
    args, size = trainer.args, trainer.args.per_device_train_batch_size
    trainer.rollout.pool.privileged = list(PRIVILEGED.values())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    dataset: Any = trainer.train_dataset
    played = trainer.collect([dataset[i // args.num_generations] for i in range(size)])
    batch = trainer.to_batch(played)
    mask_BT = loss_mask(batch)
    values = branch_values(trainer.rollout, played, branches, _REFERENCE_DRAW, from_start=True)
    reference_BK = turn_credit(played, "branch", 1.0, values)
    reference_N = np.concatenate([terms for terms, e in zip(reference_BK, played) if e.valid])
    if np.ptp(reference_N) == 0:
        raise ValueError(
            "credit-probe: all turns are worth the same: no reward differs; take other tasks or a policy "
            "that solves some of them"
        )
    truth = _gradient(trainer, batch, over_tokens(reference_BK, turn_columns(mask_BT, played)[1]))
    rows: list[dict[str, Any]] = []
    for method in args.CREDIT:
        args.credit = method
        try:
            advantages = trainer.credit(played, mask_BT)
        except ValueError as error:
            rows.append({"credit": method, "why": f"n/a: {error}"})
            continue
        advantages_BT = advantages[:, None].expand(mask_BT.shape) if advantages.dim() == 1 else advantages
        cosine = torch.cosine_similarity(_gradient(trainer, batch, advantages_BT), truth, dim=0).item()
        by_turn = np.corrcoef(_by_turn(advantages_BT, played), reference_N)[0, 1]
        rows.append({"credit": method, "correlation": float(by_turn), "gradient_cosine": cosine})
    return rows


def _gradient(trainer: GRPOTrainer, batch: Batch, advantages_BT: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    trainer.loss(trainer.model, {**batch, "advantages": advantages_BT}).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def _by_turn(advantages_BT: torch.Tensor, played: Sequence[Episode]) -> np.ndarray:
    return np.array([advantages_BT[b, end].item() for b, e in enumerate(played) if e.valid for end in e.turn_ends])
