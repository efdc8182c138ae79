"""What a trainer thought of each token of an episode, for the report's token viewer.

Shape letters: B episodes, T completion tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mrlm_train.episodes.record import Episode

Columns = dict[str, torch.Tensor]


def annotate(episodes: Sequence[Episode], batch: Mapping[str, Any], tokenizer: Any) -> None:
    """Fill in `Episode.token_figures`: the text of each token and, where the policy sampled it, its figures.

    Args:
        episodes: With ids; the first rows of the batch.
        batch: Of a trainer (`make_batch`): `advantages` (B,) or (B, T), and where there are such, `old_values` and
            `ref_per_token_logps` (B, T).
        tokenizer: Of the ids.
    """
    columns: Columns = {"advantage": batch["advantages"]}
    if "old_values" in batch:
        columns["value"] = batch["old_values"]
    log_probs_BT = batch.get("old_per_token_logps", batch.get("sampling_per_token_logps"))
    if log_probs_BT is not None and "ref_per_token_logps" in batch:
        columns["kl"] = log_probs_BT - batch["ref_per_token_logps"]  # its expectation over samples is the KL
    for row, episode in enumerate(episodes):
        ids, mask = episode.completion_ids or [], episode.action_mask or []
        episode.token_figures = {"text": texts(ids, tokenizer)}
        for name, values in columns.items():
            figures = values[row].expand(len(ids)) if values.dim() == 1 else values[row, : len(ids)]
            known = zip(figures.tolist(), mask, strict=True)
            episode.token_figures[name] = [float(f"{value:.4g}") if bit else None for value, bit in known]


def texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text that each token adds to the one before it: some tokenizers drop a space where a text begins."""
    alone = tokenizer.batch_decode([[token] for token in ids])
    pairs = tokenizer.batch_decode([list(pair) for pair in itertools.pairwise(ids)])
    return alone[:1] + [pair[len(first) :] for first, pair in zip(alone, pairs)]
