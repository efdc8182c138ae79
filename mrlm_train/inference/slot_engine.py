"""The slot engine: our own token loop over a slot cache, the reason our rollouts are fast.

Every conversation has a row, and the row's slot of the cache holds its keys and values (see `kv_cache.py`), so nothing
is prefilled twice. Rows are asynchronous: each waits for its environment, has ids *pending* (a prompt, an observation),
or is *sampling*. A step decodes one token for every sampling row. Pending ids are prefilled together once an eighth of
the rows have some; the last pending id of a row goes through decode, like a sampled token. A row is refilled as soon as
its conversation ends. A prefix that a prompt shares with another slot is copied from there.

Shape letters: B rows of a forward pass, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch

from mrlm_train.inference.compatibility import refusal, shares, supports
from mrlm_train.inference.kv_cache import SlotModel
from mrlm_train.inference.sampling import Sampling, decoding, sample_tokens, turn_uniforms
from mrlm_train.inference.shared_prefix import alike
from mrlm_train.inference.types import Conversation, Feed, Wait

__all__ = ["SlotEngine", "supports"]

CHUNK_TOKENS = 4096  # maximum of one prefill pass; bounds its activations
PIECE_TOKENS = 512  # maximum of one row in a pass; bounds the attention mask
WORTH_SHARING = 8  # tokens; a shorter shared prefix of two prompts is not worth a copy


class State(Enum):
    """What a row is doing."""

    FREE = 0  # it has no conversation
    WAITING = 1  # its environment is busy
    PENDING = 2  # ids of its context are not in the cache yet
    SAMPLING = 3


@dataclass(slots=True)
class _Row:
    """A conversation, its turn in progress, and what its slot of the cache holds. Row i owns slot i."""

    state: State = State.FREE
    conversation: Any = None
    ready: Future[Any] | None = None  # in WAITING: poll again when it is done
    length: int = 0  # tokens of the context
    cached: int = 0  # how many of them, from the first on, are in the slot
    group: int = -1  # rows with the same number share a prefix; -1 before that is known
    turns: int = 0  # turns that have ended
    start: int = 0  # where the current turn begins in the context
    budget: int = 0  # maximum number of tokens of the current turn
    uniforms: list[float] = field(default_factory=list)  # one draw in [0, 1) for each of them
    log_probs: list[float] = field(default_factory=list)  # one for each token sampled so far


class SlotEngine:
    """Decodes many conversations over a slot cache; see the module docstring.

    An episode's tokens depend on its own seed alone: not on batch order, the number of slots, the environment's
    threads or the neighbours (exactly in fp32; 16-bit types round each batch shape differently).

    Attributes:
        sampled_tokens: Tokens sampled by the last `run`.
        prefilled_tokens: Tokens of prompts and observations that it computed, without padding.
        copied_tokens: Tokens of prompts that it copied from another slot.
    """

    def __init__(self, model: Any, sampling: Sampling, slots: int = 64) -> None:
        """
        Args:
            model: The causal LM, already unwrapped.
            sampling: Temperature, top_p, top_k, stop ids and seed.
            slots: Conversations decoded at once.

        Raises:
            ValueError: If the model's configuration rules the engine out (`supports` also tries the model).
        """
        if reason := refusal(model, sampling.max_context):
            raise ValueError(f"the slot engine cannot run {type(model).__name__}: {reason}; use engine 'turn'")
        self.model, self.sampling, self.slots = model, sampling, slots

    def run(self, conversations: Iterable[Conversation]) -> None:
        """Decode every conversation until it says `End`; see `Engine.run`."""
        self.sampled_tokens = self.prefilled_tokens = self.copied_tokens = 0
        queue = iter(conversations)
        first = list(itertools.islice(queue, self.slots))
        self.queue, self.has_more = itertools.chain(first, queue), True  # the queue may hold more conversations
        self.rows = [_Row() for _ in first]
        self.context = np.zeros((len(first), 64), np.int64)  # token ids by row
        self.cache = SlotModel(self.model, len(first))
        with decoding(self.model):
            self._loop()

    def _loop(self) -> None:
        """Run until every conversation has ended and the queue is empty."""
        while True:
            for i, row in enumerate(self.rows):
                if row.ready is not None and row.ready.done():
                    self.poll(i)
                if row.state is State.FREE and self.has_more:
                    self.refill(i)
            pending, sampling = self.in_state(State.PENDING), self.in_state(State.SAMPLING)
            busy = len(self.rows) - len(self.in_state(State.FREE))
            if pending and (not sampling or 8 * len(pending) >= busy):
                self.prefill(pending)
            elif sampling:
                self.decode(self.pack(sampling))
            elif waiting := [row.ready for row in self.rows if row.ready is not None]:
                wait(waiting, return_when=FIRST_COMPLETED)
            else:
                return

    def in_state(self, state: State) -> list[int]:
        """The numbers of the rows in a state, ascending."""
        return [i for i, row in enumerate(self.rows) if row.state is state]

    def column(self, name: str, rows: Iterable[int] | None = None) -> np.ndarray:
        """One attribute of some rows, of all unless given, as an array of int64."""
        chosen = self.rows if rows is None else [self.rows[i] for i in rows]
        return np.array([getattr(row, name) for row in chosen], np.int64)

    def refill(self, i: int) -> None:
        """Give a free row the next conversation of the queue that does not end at once."""
        row = self.rows[i]
        while row.state is State.FREE and self.has_more:
            row.conversation = next(self.queue, None)
            self.has_more = row.conversation is not None
            if self.has_more:
                row.length = row.turns = 0
                self.poll(i)

    def poll(self, i: int) -> None:
        """Ask a row's conversation what comes next."""
        row = self.rows[i]
        wish = row.conversation.poll()
        row.ready = None
        if isinstance(wish, Feed):
            self.feed(i, wish.ids)
        elif isinstance(wish, Wait):
            row.state, row.ready = State.WAITING, wish.ready
        else:
            row.state, row.conversation = State.FREE, None

    def feed(self, i: int, ids: list[int]) -> None:
        """Append ids to a row's context and begin its next turn."""
        row = self.rows[i]
        old, new = row.length, row.length + len(ids)
        self.widen(new + 1)
        if old == 0:  # a new prompt: the prefix that it shares with the slot's last conversation is cached already
            held = min(row.cached, len(ids) - 1)
            row.cached = int(common_length(self.context[i : i + 1, :held], np.array(ids[:held]))[0])
            row.group = -1
        self.context[i, old:new] = ids
        row.length = row.start = new
        row.budget, row.log_probs = row.conversation.budget, []
        row.uniforms = turn_uniforms(self.sampling.seed, row.conversation.seed, row.turns, row.budget).tolist()
        row.state = State.PENDING if new - row.cached > 1 else State.SAMPLING

    def prefill(self, pending: list[int]) -> None:
        """Fill the slots of pending rows up to their last token, copying the prefixes that other slots hold."""
        for i in pending:
            self.rows[i].state = State.SAMPLING
        while pending:
            held = self.column("cached")
            coming = np.zeros_like(held)  # tokens that slots will hold after this pass
            copies: list[tuple[int, int, int]] = []
            later: list[int] = []
            for i in pending:
                row, want = self.rows[i], self.rows[i].length - 1
                if row.turns == 0:  # a prompt
                    probe = min(want, WORTH_SHARING) - 1  # rows that differ here share too little
                    near = np.flatnonzero(self.context[:, probe] == self.context[i, probe])
                    shared = common_length(self.context[near, :want], self.context[i, :want])
                    now, soon = np.minimum(shared, held[near]), np.minimum(shared, coming[near])
                    if soon.max() >= now.max() + WORTH_SHARING:  # another row of this pass computes more of it
                        later.append(i)
                        continue
                    if now.max() > held[i]:
                        row.cached = int(now.max())
                        copies.append((int(near[now.argmax()]), i, row.cached))
                coming[i] = want
            self.copy(copies)
            self.copied_tokens += sum(count - int(held[i]) for _, i, count in copies)
            self.extend(np.flatnonzero(coming))
            pending = later

    def extend(self, rows: np.ndarray) -> None:
        """Compute the missing tokens of rows, all but the last, in padded chunks of similar length."""
        wanted, cached = self.column("length", rows) - 1, self.column("cached", rows)
        self.prefilled_tokens += int((wanted - cached).sum())
        while (missing := np.minimum(wanted - cached, PIECE_TOKENS)).any():
            longest = int(missing.max())
            chunk = np.flatnonzero((missing > 0) & (2 * missing + 8 >= longest))[: max(1, CHUNK_TOKENS // longest)]
            self.forward(rows[chunk], longest)
            cached[chunk] = np.minimum(cached[chunk] + longest, wanted[chunk])
            for i, count in zip(rows[chunk].tolist(), cached[chunk].tolist(), strict=True):
                self.rows[i].cached = count

    def forward(self, rows: np.ndarray, tokens: int, shared: bool = False) -> torch.Tensor:
        """Run the next `tokens` tokens of rows through the model; returns the logits of the last, (B, V)."""
        first, last = self.column("cached", rows), np.maximum(self.column("length", rows) - 1, 0)
        places_BT = np.minimum(first[:, None] + np.arange(tokens), last[:, None])
        return self.cache.forward(rows, self.context[rows[:, None], places_BT], first, last, shared)

    def decode(self, sampling: list[int]) -> None:
        """Sample one token for each of the (ascending) rows, and submit the turns that end with it."""
        rows = [self.rows[i] for i in sampling]
        if any(row.group < 0 for row in rows):
            self.share()
        logits_BV = self.forward(np.arange(sampling[-1] + 1), 1, shared=True)
        if len(sampling) < len(logits_BV):
            logits_BV = logits_BV[torch.tensor(sampling, device=logits_BV.device)]
        draws = [row.uniforms[row.length - row.start] for row in rows]
        uniforms_B = torch.tensor(draws, dtype=torch.float32, device=logits_BV.device)
        ids_B, log_probs_B = sample_tokens(logits_BV, uniforms_B, self.sampling)
        ids = ids_B.tolist()
        lengths = [row.length for row in rows]
        self.widen(max(lengths) + 1)
        self.context[sampling, lengths] = ids
        self.sampled_tokens += len(rows)
        ended: list[int] = []
        for i, row, token, log_prob in zip(sampling, rows, ids, log_probs_B.tolist(), strict=True):
            row.log_probs.append(log_prob)
            row.cached, row.length = row.length, row.length + 1
            if token in self.sampling.stop_ids or row.length - row.start >= row.budget:
                ended.append(i)
        for i in ended:
            row = self.rows[i]
            row.turns += 1
            row.conversation.submit(self.context[i, row.start : row.length].tolist(), row.log_probs)
            self.poll(i)

    def share(self) -> None:
        """Group the rows by shared prefix, so that a decode reads each prefix once for its group."""
        rows = [
            i
            for i, row in enumerate(self.rows)
            if row.state is State.SAMPLING or (row.state is not State.FREE and row.turns > 0)
        ]
        tokens, groups = alike(self.context[rows, : self.column("cached", rows).min()])
        for row in self.rows:
            row.group = -1
        for i, group in zip(rows, groups.tolist(), strict=True):
            self.rows[i].group = group
        self.cache.share(tokens if tokens and shares(self.model) else 0, self.column("group"))

    def pack(self, sampling: list[int]) -> list[int]:
        """Swap idle rows with the last sampling ones if more than an eighth of a decode would be idle rows.

        A decode runs rows 0 to the last sampling one; the idle rows among them are computed for nothing.

        Returns:
            The sampling rows.
        """
        count, width = len(sampling), sampling[-1] + 1
        if 8 * (width - count) <= width:
            return sampling
        late = [i for i in sampling if i >= count]
        idle = [i for i in range(count) if self.rows[i].state is not State.SAMPLING]
        for i in self.in_state(State.FREE):
            self.rows[i].cached = 0  # no conversation is left that could use it
        sources, targets = [*late, *idle], [*idle, *late]
        self.copy([(source, target, self.rows[source].cached) for source, target in zip(sources, targets, strict=True)])
        self.context[targets] = self.context[sources]
        for one, other in zip(late, idle, strict=True):
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
        self.cache.arrange(np.array([-1 if row.state is State.FREE else row.group for row in self.rows]))
        return list(range(count))

    def copy(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copy prefixes between slots, one for each `(source, target, tokens)`."""
        if copies:
            self.cache.copy(*np.array(copies).T)

    def widen(self, width: int) -> None:
        """Make room for `width` tokens in the contexts."""
        if (extra := width - self.context.shape[1]) > 0:
            self.context = np.pad(self.context, ((0, 0), (0, max(extra, self.context.shape[1] // 2))))


def common_length(texts_BT: np.ndarray, prompt_T: np.ndarray) -> np.ndarray:
    """Length of the prefix that each text shares with a prompt, (B,)."""
    return np.logical_and.accumulate(texts_BT == prompt_T, axis=1).sum(1)
