"""Generation: token ids in, token ids and log-probs out, behind one small non-blocking interface.

An *engine* decodes many *conversations* at once. A conversation is one agent's view of one episode: it says what
to append to its context (`Feed`), that its environment is still busy (`Wait`), or that it is over (`End`), and takes
each sampled turn by `submit`. The engine knows tokens and nothing of environments; `rollout.py` knows environments and
nothing of caches.

Two engines: `TurnEngine` here (one batch generate a turn; any architecture, FSDP, ZeRO-3, vLLM through TRL) and
`slots.SlotEngine` (our own token loop over a slot cache; fast). Both sample through `sample_tokens` with the uniforms
of `turn_uniforms`, so an episode's tokens depend on its own seed and not on who shares its batch.

Shape letters: B rows, T tokens of a turn, V vocabulary.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from mrlm_train.slot_cache import ONE_PASS


@dataclass(frozen=True)
class Sampling:
    """How a policy speaks, and how much.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of tokens with this much probability; 1 keeps all (right for training:
            importance ratios are biased otherwise).
        top_k: keep this many most probable tokens; 0 keeps all.
        max_turn_tokens: most tokens sampled in one turn. A turn cut here is submitted as it stands.
        max_episode_tokens: most tokens after the prompt, sampled and observed together; a cut here ends the episode.
        max_turns: most turns of an episode, None for the environment's own limit only.
        max_context: most tokens of prompt and completion together (the model's positions), None for no limit.
        seed: with a conversation's own seed, decides every sampled token.
        stop_ids: token ids that end a turn; the stop token is part of the turn.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_turn_tokens: int = 256
    max_episode_tokens: int = 1024
    max_turns: int | None = None
    max_context: int | None = None
    seed: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        for name in ("max_turn_tokens", "max_episode_tokens", "max_turns", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Feed:
    """Append `ids` to the context, then sample a turn of at most `Conversation.budget` tokens."""

    ids: list[int]


@dataclass(frozen=True)
class Wait:
    """The environment is busy: poll again when `ready` is done (it carries no result the engine may read)."""

    ready: Future[Any]


@dataclass(frozen=True)
class End:
    """The episode is over: forget the conversation."""


class Conversation(Protocol):
    """One agent's view of one episode, as an engine sees it.

    The engine's duty, in this order and from one thread:

    1. `poll()`. The first `Feed` carries the prompt (never empty), later ones what the environment said. A `Wait`
       may come at any time, before the first `Feed` as well (the environment is being reset).
    2. After a `Feed`, read `budget` (at least 1) and sample until a stop id is drawn (it is part of the turn) or
       `budget` tokens are.
    3. `submit(ids, log_probs)`, then `poll()` again. After `End`, neither is called any more.

    The context is exactly the ids fed and submitted, in order: it only grows.
    """

    @property
    def seed(self) -> int:
        """Seed of this conversation's sampling (not negative); see `turn_uniforms`."""
        ...

    @property
    def budget(self) -> int:
        """Most tokens that may be sampled in the coming turn; valid after a `Feed`."""
        ...

    @property
    def prefix(self) -> Hashable:
        """A hint: conversations with equal keys (not None) most likely have equal prompts (compare the ids)."""
        ...

    def poll(self) -> Feed | Wait | End:
        """What to do next. Never blocks."""
        ...

    def submit(self, ids: list[int], log_probs: list[float] | None) -> None:
        """Take a sampled turn: its ids (at least one) and their log-probs, None where the engine has none.

        Log-probs are under the distribution the ids were drawn from (temperature, top_p and top_k applied);
        for greedy decoding, under the model's own at temperature 1.
        """
        ...


class Engine(Protocol):
    """Runs conversations to their end."""

    def run(self, conversations: Iterable[Conversation]) -> None:
        """Decode every conversation until it says `End`.

        Takes a conversation from the iterable when a row is free for it, in order; members of one game or group
        come one after another. Never waits for an environment while another row can decode.

        Errors: what the model raises. A conversation never raises (it turns failures of its environment into
        invalid episodes), except to stop the whole run.
        """
        ...


def turn_uniforms(seed: int, conversation_seed: int, turn: int, count: int) -> np.ndarray:
    """The uniforms in [0, 1) that decide turn `turn` (from 0) of a conversation, one a token.

    Random access by (seed, conversation, turn), so it does not matter how many tokens earlier turns took;
    a longer draw begins with the shorter.

    Args:
        seed: `Sampling.seed`.
        conversation_seed: `Conversation.seed`.
        turn: index of the turn.
        count: how many tokens at most.

    Returns: float32 of shape (count,).
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, conversation_seed, turn]))
    return np.random.Generator(bits).random(count, dtype=np.float32)


def sample_tokens(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one token a row by inverse CDF.

    Args:
        logits_BV: raw logits, any float type.
        uniforms_B: float32 in [0, 1).
        sampling: temperature, top_p, top_k.

    Returns: `(ids_B, log_probs_B)`, int64 and float32; log-probs as `Conversation.submit` wants them.
    """
    logits_BV = logits_BV.float()
    if sampling.temperature == 0:
        ids_B = logits_BV.argmax(-1)
        return ids_B, torch.log_softmax(logits_BV, -1).gather(-1, ids_B[:, None])[:, 0]
    log_probs_BV = torch.log_softmax(logits_BV / sampling.temperature, -1)
    if sampling.top_k or sampling.top_p < 1:
        log_probs_BV = _truncate(log_probs_BV, sampling.top_k, sampling.top_p)
    cdf_BV = log_probs_BV.exp().cumsum(-1)
    # scaled by the total, so that rounding in the sum cannot push a draw past the last token
    draws_B1 = (uniforms_B * cdf_BV[:, -1])[:, None]
    ids_B = torch.searchsorted(cdf_BV, draws_B1, right=True)[:, 0].clamp_(max=logits_BV.shape[-1] - 1)
    return ids_B, log_probs_BV.gather(-1, ids_B[:, None])[:, 0]


def _truncate(log_probs_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Log-probs renormalised over the top_k tokens and the nucleus of top_p, -inf elsewhere."""
    sorted_BV, order_BV = log_probs_BV.sort(-1, descending=True)
    drop_BV = torch.zeros_like(sorted_BV, dtype=torch.bool)
    if top_k:
        drop_BV[:, top_k:] = True
    if top_p < 1:
        kept_BV = sorted_BV.masked_fill(drop_BV, -torch.inf).softmax(-1)
        drop_BV |= kept_BV.cumsum(-1) - kept_BV >= top_p  # mass before the token: the first one always stays
    sorted_BV = sorted_BV.masked_fill(drop_BV, -torch.inf).log_softmax(-1)
    return torch.empty_like(sorted_BV).scatter_(-1, order_BV, sorted_BV)


@dataclass(frozen=True)
class TurnRow:
    """One row of a batch generate.

    Attributes:
        context: every token id so far.
        budget: most tokens to sample.
        uniforms: one float32 in [0, 1) a token, at least `budget` of them.
    """

    context: list[int]
    budget: int
    uniforms: np.ndarray


Turn = Callable[[Sequence[TurnRow]], list[tuple[list[int], list[float] | None]]]
"""Samples one turn for each row: `(ids, log_probs or None)`, the stop token included."""


@contextmanager
def decoding(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores the mode after (in train mode, checkpointing disables caches)."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: its tensors cannot meet autograd later
            yield
    finally:
        model.train(was_training)


class _Draw(LogitsProcessor):
    """Draws each token by `sample_tokens` and leaves `generate` no choice but to take it."""

    def __init__(self, uniforms_BT: torch.Tensor, sampling: Sampling) -> None:
        self.uniforms_BT, self.sampling = uniforms_BT, sampling
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        ids_B, log_probs_B = sample_tokens(scores, self.uniforms_BT[:, len(self.log_probs)], self.sampling)
        self.log_probs.append(log_probs_B)
        forced_BV = torch.full_like(scores, -torch.inf)
        return forced_BV.scatter_(-1, ids_B[:, None], 0.0)  # type: ignore[return-value]


class _Spent(StoppingCriteria):
    """Ends a row when its own budget of tokens is spent."""

    def __init__(self, prompt_length: int, budgets_B: torch.Tensor) -> None:
        self.prompt_length, self.budgets_B = prompt_length, budgets_B

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return input_ids.shape[1] - self.prompt_length >= self.budgets_B  # type: ignore[return-value]


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

    def __call__(self, rows: Sequence[TurnRow]) -> list[tuple[list[int], list[float] | None]]:
        device = self.model.device
        longest, budget = max(len(row.context) for row in rows), max(row.budget for row in rows)
        ids_BT = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        uniforms_BT = torch.zeros((len(rows), budget), dtype=torch.float32)
        for i, row in enumerate(rows):
            ids_BT[i, longest - len(row.context) :] = torch.tensor(row.context)
            mask_BT[i, longest - len(row.context) :] = 1
            uniforms_BT[i, : row.budget] = torch.from_numpy(row.uniforms[: row.budget])
        draw = _Draw(uniforms_BT.to(device), self.sampling)
        config = GenerationConfig(
            max_new_tokens=budget,
            do_sample=False,  # `draw` samples; what else the checkpoint may ask for is switched off here
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_length=0,
            eos_token_id=list(self.sampling.stop_ids),
            pad_token_id=self.pad_id,
            use_cache=True,
            return_dict_in_generate=False,
            disable_compile=True,
        )
        with decoding(self.model), ONE_PASS:
            out_BT = self.model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                generation_config=config,
                logits_processor=[draw],
                stopping_criteria=[_Spent(longest, torch.tensor([row.budget for row in rows], device=device))],
                synced_gpus=self.synced,
            )
        sampled = out_BT[:, longest:].tolist()
        log_probs = torch.stack(draw.log_probs, 1).tolist()
        turns: list[tuple[list[int], list[float] | None]] = []
        for row, ids, probs in zip(rows, sampled, log_probs, strict=True):
            length = turn_length(ids[: row.budget], self.sampling.stop_ids)
            turns.append((ids[:length], probs[:length]))
        return turns


def turn_length(ids: Sequence[int], stop_ids: Sequence[int]) -> int:
    """Tokens up to and with the first stop id; all of them where there is none."""
    return next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))


@dataclass
class _Row:
    conversation: Conversation
    context: list[int] = field(default_factory=list)
    turns: int = 0


class TurnEngine:
    """One batch generate a turn: simple, and right for every architecture and every kind of sharding.

    Attributes:
        sampled_tokens: tokens sampled by the last `run`.
    """

    def __init__(
        self,
        turn: Turn,
        sampling: Sampling,
        rows: int = 64,
        reduce: Callable[[int], int] | None = None,
    ) -> None:
        """
        Args:
            turn: samples one turn for a batch of rows.
            sampling: its seed, for the uniforms.
            rows: conversations alive at once.
            reduce: sum of a number over all processes, where every process must join each generate call (FSDP,
                ZeRO-3): a process with nothing left generates one dummy token until all are done.
        """
        self.turn, self.sampling, self.rows, self.reduce = turn, sampling, rows, reduce
        self.sampled_tokens = 0

    def run(self, conversations: Iterable[Conversation]) -> None:
        """Decode every conversation until it says `End`; see `Engine.run`."""
        waiting_line = iter(conversations)
        live: list[_Row] = []
        patience = 0.0  # seconds; how long a full batch is worth waiting for
        self.sampled_tokens = 0
        more = True
        while True:
            while more and len(live) < self.rows:
                conversation = next(waiting_line, None)
                if conversation is None:
                    more = False
                else:
                    live.append(_Row(conversation))
            live, ready, futures = self._poll(live)
            if futures:
                # a fast environment joins this batch; a slow one blocks only where nothing could decode anyway
                wait(
                    futures,
                    timeout=patience if ready else None,
                    return_when=ALL_COMPLETED if ready else FIRST_COMPLETED,
                )
                live, joined, _ = self._poll(live, skip=ready)
                ready += joined
            if self.reduce is not None and self.reduce(len(live) + more) == 0:
                return
            if self.reduce is None and not live and not more:
                return
            if not ready and self.reduce is None:
                continue
            start = time.monotonic()
            self._decode(ready)
            patience = 0.25 * (time.monotonic() - start)

    def _poll(self, live: list[_Row], skip: Sequence[_Row] = ()) -> tuple[list[_Row], list[_Row], list[Future[Any]]]:
        """Ask every row what it wants: `(rows still alive, rows ready to decode, what the others wait for)`."""
        alive: list[_Row] = []
        ready: list[_Row] = []
        futures: list[Future[Any]] = []
        skipped = {id(row) for row in skip}
        for row in live:
            wish = None if id(row) in skipped else row.conversation.poll()
            if isinstance(wish, End):
                continue
            alive.append(row)
            if isinstance(wish, Feed):
                row.context += wish.ids
                ready.append(row)
            elif isinstance(wish, Wait):
                futures.append(wish.ready)
        return alive, ready, futures

    def _decode(self, ready: list[_Row]) -> None:
        """Sample one turn for each ready row and hand it in."""
        rows = [
            TurnRow(
                row.context,
                row.conversation.budget,
                turn_uniforms(self.sampling.seed, row.conversation.seed, row.turns, row.conversation.budget),
            )
            for row in ready
        ]
        if not rows:  # only under `reduce`: join the others' forward passes with a row nobody reads
            self.turn([TurnRow([0], 1, np.zeros(1, np.float32))])
            return
        for row, (ids, log_probs) in zip(ready, self.turn(rows), strict=True):
            row.context += ids
            row.turns += 1
            self.sampled_tokens += len(ids)
            row.conversation.submit(ids, log_probs)


def engine_for(
    name: str,
    model: Any,
    sampling: Sampling,
    pad_id: int = 0,
    rows: int = 256,
    reduce: Callable[[int], int] | None = None,
) -> Engine:
    """The engine called `name`.

    Args:
        name: "slot", "turn", or "auto": the slot engine where it can run, else the turn engine, with one warning.
        model: the causal LM, unwrapped.
        sampling: with stop ids.
        pad_id: any valid token id.
        rows: conversations alive at once.
        reduce: see `TurnEngine`, the one engine that can; also keeps `generate` in step across processes.

    Errors: ValueError for an unknown name, or for "slot" with a model that it cannot run.
    """
    from mrlm_train.slots import SlotEngine, supports  # down here, because it imports this module

    if name not in ("auto", "slot", "turn"):
        raise ValueError(f"unknown engine {name!r}; known: auto, slot, turn")
    if name != "turn":
        verdicts, key = _VERDICTS.setdefault(model, {}), sampling.max_context
        is_known = key in verdicts
        if not is_known:
            verdicts[key] = supports(model, key) if reduce is None else "its parameters are sharded over processes"
        reason = verdicts[key]
        if reason is None:
            return SlotEngine(model, sampling, rows)
        if name == "slot":
            raise ValueError(
                f"the slot engine cannot run {type(model).__name__}: {reason}; use engine 'turn' or 'auto'"
            )
        if not is_known:
            warnings.warn(f"{type(model).__name__} runs on the slower turn engine: {reason}", stacklevel=2)
    return TurnEngine(ModelTurn(model, sampling, pad_id, synced=reduce is not None), sampling, rows, reduce)


_VERDICTS: WeakKeyDictionary[Any, dict[int | None, str | None]] = WeakKeyDictionary()  # of `supports`, a model
