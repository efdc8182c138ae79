"""How a token is drawn: settings, uniforms and the inverse CDF, the same for both engines.

Both engines sample through `sample_tokens` with the uniforms of `turn_uniforms`, so an episode's tokens depend on its
own seed and not on which episodes share its batch.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Sampling:
    """How a policy samples, and how much.

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


def turn_uniforms(seed: int, conversation_seed: int, turn: int, count: int) -> np.ndarray:
    """The uniforms in [0, 1) that decide turn `turn` (from 0) of a conversation, one a token.

    Random access by (seed, conversation, turn), so it does not matter how many tokens earlier turns took;
    a longer draw begins with the shorter.

    Args:
        seed: `Sampling.seed`.
        conversation_seed: `Conversation.seed`.
        turn: index of the turn.
        count: how many tokens at most.

    Returns:
        float32 of shape (count,).
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

    Returns:
        `(ids_B, log_probs_B)`, int64 and float32; log-probs as `Conversation.submit` wants them.
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
