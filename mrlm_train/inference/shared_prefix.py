"""Attention of a decode pass to beginnings that rows share, read once for all of them instead of once for each.

A decode pass is bound by reading keys and values, and the episodes of a group all begin with the same prompt. So the
queries of a group meet one copy of its prompt's keys in a matrix product, each row's query meets what only that row
holds, and one softmax goes over both (Hydragen, https://arxiv.org/abs/2402.05099). It is the same sum as attention
over the whole row.

Shape letters: B rows of a decode pass, G groups, M rows of the largest one, H key-value heads, R query heads of each,
D head size, P places that are shared, S places that follow, T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "mrlm_shared_beginnings"  # the model's `_attn_implementation` in such a pass
WORTH_READING_ONCE = 8  # tokens
MOST_PADDING = 4  # queries computed for each row, at most: groups are padded to the largest


def alike(texts_BT: np.ndarray) -> tuple[int, np.ndarray]:
    """Group texts by their first tokens: by as many as leave the fewest tokens to read.

    Returns:
        How many first tokens each group shares, 0 if sharing is not worth it, and the group of each text, (B,).
    """
    rows, width = texts_BT.shape
    if width >= WORTH_READING_ONCE and rows > 1:
        order = np.array(sorted(range(rows), key=[text.tobytes() for text in texts_BT].__getitem__))
        texts_BT = texts_BT[order]
        common = np.logical_and.accumulate(texts_BT[1:] == texts_BT[:-1], axis=1).sum(1)  # with the text before
        groups = 1 + (common < common[:, None]).sum(1)  # were as many tokens shared
        tokens = int(common[np.argmax(np.where(2 * groups <= rows, common * (rows - groups), 0))])
        numbers = np.empty(rows, np.int64)
        numbers[order] = np.concatenate(([0], np.cumsum(common < tokens)))
        sizes = np.bincount(numbers)
        if tokens >= WORTH_READING_ONCE and 2 * len(sizes) <= rows and len(sizes) * sizes.max() <= MOST_PADDING * rows:
            return tokens, numbers
    return 0, np.zeros(rows, np.int64)


class Groups:
    """Which rows share their first tokens.

    Attributes:
        tokens: how many they share.
        firsts: a row of each group, when they were made, (G,).
        size: rows of the largest now, M.
    """

    def __init__(self, tokens: int, numbers: np.ndarray) -> None:
        """
        Args:
            tokens: how many they share.
            numbers: Group number of each slot, -1 for slots that no pass will run.
        """
        self.tokens = tokens
        self.firsts = np.unique(numbers, return_index=True)[1][-(int(numbers.max()) + 1) :]
        self.arrange(numbers)

    def arrange(self, numbers: np.ndarray) -> None:
        """Update the groups after rows have been swapped or have ended; `numbers` as in the constructor."""
        rows = np.flatnonzero(numbers >= 0)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        within = np.arange(len(rows)) - np.searchsorted(numbers[rows], numbers[rows])
        self.size = int(within.max(initial=0)) + 1
        self.members = np.zeros((len(self.firsts), self.size), np.int64)  # padded with any row
        self.members[numbers[rows], within] = rows
        self.places = np.zeros((len(numbers), 2), np.int64)  # a row's group, and which of its members it is
        self.places[rows, 0], self.places[rows, 1] = numbers[rows], within
        self.indices: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def index(self, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The (row, head) of each (group, head, member) in tensors flattened to one dimension, and the reverse."""
        if heads not in self.indices:
            each = np.arange(heads)
            to_groups = self.members[:, None] * heads + each[:, None]
            to_rows = (self.places[:, :1] * heads + each) * self.size + self.places[:, 1:]
            self.indices[heads] = torch.from_numpy(to_groups.reshape(-1)), torch.from_numpy(to_rows.reshape(-1))
        return self.indices[heads]


class SharedBeginning:
    """The keys and values of one layer that groups share."""

    def __init__(self, groups: Groups, keys: torch.Tensor, values: torch.Tensor) -> None:
        """
        Args:
            groups: who shares them.
            keys: of all slots, (slots, H, width, D).
            values: likewise.
        """
        self.groups = groups
        firsts = torch.from_numpy(groups.firsts)
        self.keys_T = keys[firsts, :, : groups.tokens].flatten(0, 1).mT.contiguous()  # (G * H, D, P)
        self.values = values[firsts, :, : groups.tokens].flatten(0, 1)  # (G * H, P, D)

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of one query a row.

        Args:
            query: (B, H * R, 1, D).
            keys: what follows the shared places, (B, H, S, D).
            values: likewise.
            mask: added to the scores of `keys`, (B, 1, 1, S).
            scale: of all scores.

        Returns:
            (B, H * R, D of the values).
        """
        rows, heads, after, size = keys.shape
        ratio, places = query.shape[1] // heads, self.keys_T.shape[-1]
        to_groups, to_rows = self.groups.index(heads)
        # rows of a group may lie behind those of this pass, and the other way round
        to_groups, to_rows = to_groups.clamp(max=rows * heads - 1), to_rows[: rows * heads]

        def by_group(states: torch.Tensor) -> torch.Tensor:
            return states.index_select(0, to_groups).view(len(self.values), self.groups.size * ratio, -1)

        def by_row(states: torch.Tensor) -> torch.Tensor:
            return states.view(len(to_groups), ratio, -1).index_select(0, to_rows)

        query = (query * scale).view(rows * heads, ratio, size)
        shared = by_row(torch.bmm(by_group(query), self.keys_T))
        own = torch.bmm(query, keys.flatten(0, 1).mT)
        own.view(rows, heads, ratio, after).add_(mask)
        weights = torch.cat((shared, own), -1).softmax(-1)
        output = by_row(torch.bmm(by_group(weights[..., :places]), self.values))
        return output.baddbmm_(weights[..., places:], values.flatten(0, 1)).view(rows, heads * ratio, -1)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as Transformers asks for it. Keys that come with a `SharedBeginning` are what follows it."""
    shared: SharedBeginning | None = getattr(key, "shared", None)
    if shared is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return shared.attend(query, key, value, attention_mask, scale)[:, None], None


AttentionInterface.register(ATTENTION, attention)
