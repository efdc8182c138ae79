"""A causal LM over slots: rows of one key-value buffer per layer, in which a token's index is its position.

Slots have no left padding and no gaps, and the tokens of a row may be computed in any number of passes. The invariant:
a slot holds the tokens before some position, and everything stored at later positions is overwritten before a query
can read it. Padding and idle rows write only to later positions, so they are harmless.

Shape letters: B rows of a forward pass, T its tokens, H key-value heads, D head size, L places read, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from mrlm_train.inference.shared_prefix import ATTENTION, Groups, SharedBeginning


def compute_dtype(like: Any) -> torch.dtype:
    """The dtype that a tensor or a model computes in: autocast's where autocast is on, otherwise its own."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


FIRST_WIDTH = 64  # tokens that fit into a new slot


def grown_width(width: int, needed: int) -> int:
    """The width to which slots of `width` tokens grow to hold `needed` tokens: at least half as wide again."""
    return -(-max(needed, width * 3 // 2) // 64) * 64


def width_after(tokens: int) -> int:
    """The width of slots after their contexts have grown to `tokens` tokens one by one."""
    width = FIRST_WIDTH
    while width < tokens:
        width = grown_width(width, width + 1)
    return width


@dataclass
class _Window:
    """Where a forward pass writes, and what its rows then read: places `start` to `seen` of their slots."""

    slots: int
    width: int
    rows_B: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    places_BT: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    leading: bool = False  # the rows are 0, 1, 2, …, so they can be read without a copy
    start: int = 0  # rows share the places before this one and read them separately
    seen: int = 0
    indices: dict[int, torch.Tensor] = field(default_factory=dict)  # flat indices to write to, by number of heads


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, each of shape (slots, H, width, D)."""

    is_sliding = False
    keys: torch.Tensor  # type: ignore[assignment]
    values: torch.Tensor  # type: ignore[assignment]
    shared: SharedBeginning | None = None

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        """A buffer in all slots for states shaped (B, H, T, D). Zeros, because a masked NaN is still a NaN."""
        shape = self.window.slots, like.shape[1], self.window.width, like.shape[-1]
        dtype = compute_dtype(like)
        if like.device.type != "cpu":
            return like.new_zeros(shape, dtype=dtype)
        # numpy allocates huge pages, which are faster to allocate and to read
        return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new states (B, H, T, D) to their places and return everything the rows read, (B, H, L, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        heads, indices = key_states.shape[1], self.window.indices
        if heads not in indices:  # the first layer of a pass computes them for all layers
            indices[heads] = self._index(self.window.rows_B, self.window.places_BT)
        index = indices[heads]
        keys, values = self._write(self.keys, index, key_states), self._write(self.values, index, value_states)
        if self.window.start:
            keys.shared = self.shared  # type: ignore[attr-defined]
        return keys, values

    def _write(self, buffer: torch.Tensor, index: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        states = states.to(buffer.dtype)  # under autocast, keys come in float32 from the rotary embedding
        buffer.view(-1, buffer.shape[-1]).index_copy_(0, index, states.reshape(-1, states.shape[-1]))
        if self.window.seen == states.shape[2]:
            return states  # nothing came before
        seen = buffer[:, :, self.window.start : self.window.seen]
        return seen[: len(states)] if self.window.leading else seen.index_select(0, self.window.rows_B)

    def _index(self, rows_B: torch.Tensor, places_BT: torch.Tensor) -> torch.Tensor:
        """Indices of rows' places in a buffer flattened to (slots * H * width, D), ordered by row, head and place."""
        heads, width = self.keys.shape[1:3]
        heads_H1 = torch.arange(heads, device=rows_B.device)[:, None]
        return ((rows_B[:, None, None] * heads + heads_H1) * width + places_BT[:, None]).reshape(-1)

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, places: torch.Tensor) -> None:
        """Copy places between rows; everything is read before anything is written."""
        from_index, to_index = self._index(sources, places[:, None]), self._index(targets, places[:, None])
        for buffer in (self.keys, self.values):
            flat = buffer.view(-1, buffer.shape[-1])
            flat.index_copy_(0, to_index, flat.index_select(0, from_index))

    def widen(self) -> None:
        """Grow the buffers to the window's width."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            setattr(self, name, self._buffer(old))
            getattr(self, name)[:, :, : old.shape[2]] = old

    def share(self, groups: Groups | None) -> None:
        """Copy the beginnings that groups share out of their slots; see `SlotModel.share`."""
        self.shared = None if groups is None else SharedBeginning(groups, self.keys, self.values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.seen, 0

    def get_seq_length(self) -> int:
        return 0  # positions and masks are always passed

    def get_max_length(self) -> int:
        return -1


class SlotModel:
    """A causal LM over slots that grow with their contexts."""

    def __init__(self, model: Any, slots: int) -> None:
        """
        Args:
            model: The causal LM, or a PEFT model around one.
            slots: Number of slots.
        """
        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config: Any = base.config.get_text_config()
        self.window = _Window(slots, FIRST_WIDTH)
        self.cache = Cache(layer_class_to_replicate=partial(_SlotLayer, self.window))  # type: ignore[arg-type]
        self.groups: Groups | None = None
        # prefill needs no logits, and decode needs those of one token
        self.keep = {"logits_to_keep": 1} if "logits_to_keep" in signature(type(base).forward).parameters else {}

    def forward(
        self, rows: np.ndarray, ids_BT: np.ndarray, first: np.ndarray, last: np.ndarray, shared: bool = False
    ) -> torch.Tensor:
        """Run the next tokens of some slots through the model.

        Args:
            rows: The slots, (B,). Slots 0, 1, 2, … are read without a copy.
            ids_BT: Their next tokens; shorter rows are padded with any id.
            first: Position of each row's first token in `ids_BT`.
            last: Position of each row's last token; padding follows it.
            shared: Read shared tokens once for each group. Only for slots 0, 1, 2, … with one token each, which must
                follow the shared ones.

        Returns:
            Logits at the last column, (B, V).
        """
        window, device = self.window, self.model.device
        places_BT = first[:, None] + np.arange(ids_BT.shape[1])
        window.start = self.groups.tokens if shared and self.groups is not None else 0
        window.seen = int(places_BT.max()) + 1
        window.indices.clear()
        self.fit(window.seen)
        if device.type == "cuda":  # fused attention kernels want aligned masks
            window.seen = min(-(-window.seen // 16) * 16, window.width)
        window.leading = np.array_equal(rows, np.arange(len(rows)))
        window.rows_B, window.places_BT = torch.from_numpy(rows).to(device), torch.from_numpy(places_BT).to(device)
        # the table of learned position embeddings ends: padding must not index beyond it
        positions_BT = torch.from_numpy(np.minimum(places_BT, last[:, None])).to(device)
        attention = self.config._attn_implementation
        try:
            if window.start:
                self.config._attn_implementation = ATTENTION
            output = self.model(
                input_ids=torch.from_numpy(ids_BT).to(device),
                position_ids=positions_BT,
                attention_mask=self.mask(positions_BT),
                past_key_values=self.cache,
                use_cache=True,
                **self.keep,
            )
        finally:
            self.config._attn_implementation = attention
        return output.logits[:, -1]

    def share(self, tokens: int, groups: np.ndarray) -> None:
        """Let `forward` read the first tokens that slots share once for each group.

        Args:
            tokens: How many first tokens the slots of a group share; 0 stops sharing.
            groups: Group number of each slot, or -1 for slots that `forward` will not run.
        """
        self.groups = Groups(tokens, groups) if tokens else None
        for layer in self.cache.layers:
            layer.share(self.groups)  # type: ignore[union-attr]

    def arrange(self, groups: np.ndarray) -> None:
        """Update the groups after slots have been swapped; `groups` is as in `share`."""
        if self.groups is not None:
            self.groups.arrange(groups)

    def mask(self, positions_BT: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Attention mask (B, 1, T, L), or one for each type of layer if the configuration lists types.

        It is additive, because eager attention adds it. Without masks by type, a sliding window would be ignored.
        """
        places_L = torch.arange(self.window.start, self.window.seen, device=positions_BT.device)
        types: Any = getattr(self.config, "layer_types", None)
        size: Any = getattr(self.config, "sliding_window", None)

        def additive(windowed: bool) -> torch.Tensor:
            hidden_BTL = places_L > positions_BT[..., None]
            if windowed:
                hidden_BTL |= places_L <= positions_BT[..., None] - size
            mask_BTL = torch.zeros(hidden_BTL.shape, dtype=self.model.dtype, device=hidden_BTL.device)
            return mask_BTL.masked_fill_(hidden_BTL, torch.finfo(self.model.dtype).min)[:, None]

        if types is None:
            return additive(size is not None)
        return {kind: additive(kind == "sliding_attention") for kind in set(types)}

    def copy(self, sources: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> None:
        """Copy the first `counts` tokens of slots to other slots; everything is read before anything is written."""
        places = np.concatenate([np.arange(count) for count in counts])
        moves = np.repeat(sources, counts), np.repeat(targets, counts), places
        tensors = [torch.from_numpy(move).to(self.model.device) for move in moves]
        for layer in self.cache.layers:
            layer.copy(*tensors)  # type: ignore[union-attr]

    def fit(self, width: int) -> None:
        """Widen the slots to hold contexts of `width` tokens."""
        if width > self.window.width:
            self.window.width = grown_width(self.window.width, width)
            for layer in self.cache.layers:
                layer.widen()  # type: ignore[union-attr]
