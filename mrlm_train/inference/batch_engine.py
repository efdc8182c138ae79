"""The batch engine: one `generate` over a batch per turn. Any architecture, FSDP, ZeRO-3, and vLLM through TRL.

Shape letters: B rows, T tokens of a turn, V vocabulary.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor

from mrlm_train.inference.sampling import Sampling, decoding, sample_tokens, turn_uniforms
from mrlm_train.inference.types import Conversation, End, Feed, Wait


@dataclass(frozen=True)
class TurnRow:
    """One row of a batch generate.

    Attributes:
        context: every token id so far.
        budget: maximum number of tokens to sample.
        uniforms: one float32 in [0, 1) per token, at least `budget` of them.
    """

    context: list[int]
    budget: int
    uniforms: np.ndarray


SampledTurn = tuple[list[int], list[float] | None]
"""Ids, the stop token included, and their log-probs; None if the engine gives none."""

Turn = Callable[[Sequence[TurnRow]], list[SampledTurn]]
"""Samples one turn for each row."""


def truncated_turn(
    ids: Sequence[int], log_probs: Sequence[float] | None, budget: int, stop_ids: Sequence[int]
) -> SampledTurn:
    """A turn up to its budget or, if that comes first, its first stop id."""
    length = next((i + 1 for i, token in enumerate(ids[:budget]) if token in stop_ids), min(budget, len(ids)))
    return list(ids[:length]), None if log_probs is None else list(log_probs[:length])


# Overrides of a checkpoint's own generation config: `_Draw` alone samples.
_PLAIN = {
    **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0},
    **{"use_cache": True, "return_dict_in_generate": False, "disable_compile": True},
}


class _Draw(LogitsProcessor):
    """Draws each token by `sample_tokens` and masks out all others, so that `generate` takes it.

    A row whose own budget is spent draws a stop token, which ends it.
    """

    def __init__(self, uniforms_BT: torch.Tensor, budgets_B: torch.Tensor, sampling: Sampling) -> None:
        self.uniforms_BT, self.budgets_B, self.sampling = uniforms_BT, budgets_B, sampling
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        step = len(self.log_probs)
        ids_B, log_probs_B = sample_tokens(scores, self.uniforms_BT[:, step], self.sampling)
        self.log_probs.append(log_probs_B)
        ids_B = ids_B.where(step < self.budgets_B, self.sampling.stop_ids[0])
        forced_BV = torch.full_like(scores, -torch.inf)
        return forced_BV.scatter_(-1, ids_B[:, None], 0.0)


@dataclass
class ModelTurn:
    """A `Turn` by `model.generate` over left-padded rows. Works for every causal LM of Transformers.

    Attributes:
        model: the causal LM, already unwrapped.
        sampling: temperature, top_p, top_k and stop ids.
        pad_id: any valid token id; it is masked out.
        synced: set for FSDP and ZeRO-3, so that ranks that finish early keep joining forward passes.
    """

    model: Any
    sampling: Sampling
    pad_id: int = 0
    synced: bool = False

    def __post_init__(self) -> None:
        if not self.sampling.stop_ids:  # else `generate` would take the checkpoint's own and hide it from us
            raise ValueError("sampling.stop_ids is empty: name the token that ends a turn")

    def __call__(self, rows: Sequence[TurnRow]) -> list[SampledTurn]:
        device = self.model.device
        contexts = [torch.tensor(row.context) for row in rows]
        ids_BT = pad_sequence(contexts, batch_first=True, padding_value=self.pad_id, padding_side="left")
        seen = [torch.ones_like(context) for context in contexts]
        mask_BT = pad_sequence(seen, batch_first=True, padding_side="left")
        uniforms_BT = pad_sequence([torch.from_numpy(row.uniforms[: row.budget]) for row in rows], batch_first=True)
        budgets_B = torch.tensor([row.budget for row in rows], device=device)
        draw = _Draw(uniforms_BT.to(device), budgets_B, self.sampling)
        config = GenerationConfig(
            **_PLAIN,
            max_new_tokens=uniforms_BT.shape[1],
            eos_token_id=list(self.sampling.stop_ids),
            pad_token_id=self.pad_id,
        )
        with decoding(self.model):
            out_BT = self.model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                generation_config=config,
                logits_processor=[draw],
                synced_gpus=self.synced,
            )
        sampled = zip(rows, out_BT[:, ids_BT.shape[1] :].tolist(), torch.stack(draw.log_probs, 1).tolist(), strict=True)
        return [truncated_turn(ids, log_probs, row.budget, self.sampling.stop_ids) for row, ids, log_probs in sampled]


@dataclass
class _Row:
    conversation: Conversation
    wish: Feed | Wait | End | None = None  # what the conversation asked for; None after a turn
    context: list[int] = field(default_factory=list)
    turns: int = 0


class BatchEngine:
    """One `generate` over a batch per turn: simple, and correct for every architecture and kind of sharding."""

    def __init__(
        self, turn: Turn, sampling: Sampling, rows: int = 64, reduce: Callable[[int], int] | None = None
    ) -> None:
        """
        Args:
            turn: samples one turn for a batch of rows.
            sampling: only its seed is read, for the uniforms.
            rows: conversations decoded at once.
            reduce: sum of a number over all processes, where every process must join each generate call (FSDP,
                ZeRO-3): a process with nothing left generates one dummy token until all are done.
        """
        self.turn, self.sampling, self.rows, self.reduce = turn, sampling, rows, reduce

    def run(self, conversations: Iterable[Conversation]) -> None:
        """Decode every conversation until it says `End`; see `Engine.run`."""
        queue = iter(conversations)
        live: list[_Row] = []
        patience = 0.0  # seconds to wait for environments that could still join a batch
        while True:
            live += [_Row(conversation) for conversation in itertools.islice(queue, self.rows - len(live))]
            more = len(live) == self.rows  # the queue may hold more conversations
            live, ready, futures = self._poll(live)
            has_room = more and len(live) < self.rows  # the next conversation may be one that the others wait for
            if futures and (ready or not has_room):
                # a fast environment joins this batch; a slow one blocks only where nothing could decode anyway
                wait(futures, *(patience, ALL_COMPLETED) if ready else (None, FIRST_COMPLETED))
                live, ready, _ = self._poll(live)
            left = len(live) + more
            if (left if self.reduce is None else self.reduce(left)) == 0:
                return
            if not ready and self.reduce is None:  # else the other processes are already in a forward pass
                continue
            start = time.monotonic()
            self._decode(ready)
            patience = 0.25 * (time.monotonic() - start)

    def _poll(self, live: list[_Row]) -> tuple[list[_Row], list[_Row], list[Future[Any]]]:
        """Ask every row what it wants: `(rows still alive, rows ready to decode, what the others wait for)`."""
        for row in live:
            if not isinstance(row.wish, Feed):
                row.wish = row.conversation.poll()
                row.context += row.wish.ids if isinstance(row.wish, Feed) else []
        alive = [row for row in live if not isinstance(row.wish, End)]
        ready = [row for row in alive if isinstance(row.wish, Feed)]
        return alive, ready, [row.wish.ready for row in alive if isinstance(row.wish, Wait)]

    def _decode(self, ready: list[_Row]) -> None:
        """Sample one turn for each ready row and hand it in."""
        if not ready:  # only under `reduce`: join the forward passes of the other processes with a dummy row
            self.turn([TurnRow([0], 1, np.zeros(1, np.float32))])
            return
        rows: list[TurnRow] = []
        for row in ready:
            seed, budget = row.conversation.seed, row.conversation.budget
            rows.append(TurnRow(row.context, budget, turn_uniforms(self.sampling.seed, seed, row.turns, budget)))
        for row, (ids, log_probs) in zip(ready, self.turn(rows), strict=True):
            row.context += ids
            row.turns, row.wish = row.turns + 1, None
            row.conversation.submit(ids, log_probs)
