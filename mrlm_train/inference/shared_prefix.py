"""Attention over a prefix that several rows share: a decode pass reads the prefix once for each group of rows.

The cost of a decode pass is mostly reading keys and values, and all episodes of a group begin with the same prompt. So
one matrix product multiplies the queries of a group with one copy of the prompt's keys, another multiplies each row's
query with that row's own keys, and one softmax covers both (Hydragen, https://arxiv.org/abs/2402.05099). The result
equals attention over the whole row.

Shape letters: B rows of a decode pass, G groups, M rows of the largest one, H key-value heads, R query heads of each,
D head size, P shared places, S places that follow them, T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "mrlm_shared_beginnings"  # the model's `_attn_implementation` in a pass with shared prefixes
WORTH_READING_ONCE = 8  # tokens; a shorter prefix is not worth sharing
MOST_PADDING = 4  # most queries computed for each row: groups are padded to the size of the largest


def alike(texts_BT: np.ndarray) -> tuple[int, np.ndarray]:
    """Group texts by their first tokens, by as many as minimise the tokens that a pass reads.

    Returns:
        How many first tokens each group shares (0 if sharing is not worth it), and the group of each text, (B,).
    """
    rows, width = texts_BT.shape
    if width >= WORTH_READING_ONCE and rows > 1:
        order = np.array(sorted(range(rows), key=[text.tobytes() for text in texts_BT].__getitem__))
        texts_BT = texts_BT[order]
        common = np.logical_and.accumulate(texts_BT[1:] == texts_BT[:-1], axis=1).sum(1)  # with the previous text
        groups = 1 + (common < common[:, None]).sum(1)  # how many there are if so many tokens are shared
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
        tokens: How many tokens they share.
        firsts: One row of each group at the time the groups were made, (G,).
        size: Rows of the largest group now, M.
    """

    def __init__(self, tokens: int, numbers: np.ndarray) -> None:
        """
        Args:
            tokens: How many tokens they share.
            numbers: Group number of each slot, or -1 for slots that no pass will run.
        """
        self.tokens = tokens
        self.firsts = np.unique(numbers, return_index=True)[1][-(int(numbers.max()) + 1) :]
        self.arrange(numbers)

    def arrange(self, numbers: np.ndarray) -> None:
        """Update the groups after rows have been swapped or have ended; `numbers` is as in the constructor."""
        rows = np.flatnonzero(numbers >= 0)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        within = np.arange(len(rows)) - np.searchsorted(numbers[rows], numbers[rows])
        self.size = int(within.max(initial=0)) + 1
        self.members = np.zeros((len(self.firsts), self.size), np.int64)  # padded with any row
        self.members[numbers[rows], within] = rows
        self.places = np.zeros((len(numbers), 2), np.int64)  # each row's group, and its number among the members
        self.places[rows, 0], self.places[rows, 1] = numbers[rows], within
        self.indices: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def index(self, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat indices that reorder (row, head) to (group, head, member), and those that reverse it."""
        if heads not in self.indices:
            each = np.arange(heads)
            to_groups = self.members[:, None] * heads + each[:, None]
            to_rows = (self.places[:, :1] * heads + each) * self.size + self.places[:, 1:]
            self.indices[heads] = torch.from_numpy(to_groups.reshape(-1)), torch.from_numpy(to_rows.reshape(-1))
        return self.indices[heads]


class SharedBeginning:
    """One layer's keys and values of the tokens that groups share."""

    def __init__(self, groups: Groups, keys: torch.Tensor, values: torch.Tensor) -> None:
        """
        Args:
            groups: The groups that share tokens.
            keys: Keys of all slots, (slots, H, width, D).
            values: Values of all slots, of the same shape.
        """
        self.groups = groups
        firsts = torch.from_numpy(groups.firsts)
        self.keys_T = keys[firsts, :, : groups.tokens].flatten(0, 1).mT.contiguous()  # (G * H, D, P)
        self.values = values[firsts, :, : groups.tokens].flatten(0, 1)  # (G * H, P, D)

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention with one query for each row.

        Args:
            query: Queries, (B, H * R, 1, D).
            keys: Keys of the places that follow the shared ones, (B, H, S, D).
            values: Values of those places, of the same shape.
            mask: Added to the scores of `keys`, (B, 1, 1, S).
            scale: Factor of all scores.

        Returns:
            The attention's output, (B, H * R, D of the values).
        """
        rows, heads, after, size = keys.shape
        ratio, places = query.shape[1] // heads, self.keys_T.shape[-1]
        to_groups, to_rows = self.groups.index(heads)
        # a pass may run fewer rows than the groups know: members beyond them are clamped, and their places cut off
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
    """Attention as Transformers calls it. Keys with a `SharedBeginning` are those that follow it."""
    shared: SharedBeginning | None = getattr(key, "shared", None)
    if shared is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return shared.attend(query, key, value, attention_mask, scale)[:, None], None


AttentionInterface.register(ATTENTION, attention)
