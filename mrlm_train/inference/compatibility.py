"""Which models the slot engine can run: judged by the configuration, then by a trial.

Shape letters: B rows of a forward pass, T its tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from mrlm_train.inference.kv_cache import SlotModel, compute_dtype
from mrlm_train.inference.sampling import decoding


def supports(model: Any, max_context: int | None = None) -> str | None:
    """Why the slot engine cannot run a model, in a few words, or None if it can.

    Checks the configuration, then runs two short rows through a slot cache and compares the logits with those of a
    plain forward pass, which also decides for architectures that are not listed anywhere.

    Args:
        model: a causal LM of Transformers, or a PEFT model around one.
        max_context: longest context to come; some position encodings depend on it.
    """
    if reason := refusal(model, max_context):
        return reason
    size = model.config.get_text_config().vocab_size
    ids_BT, lengths = np.arange(18).reshape(2, 9) * 7 % size, np.array([9, 5])
    try:
        with decoding(model):
            slots = SlotModel(model, 2)
            slots.forward(np.arange(2), ids_BT[:, :-1], np.zeros(2, np.int64), lengths - 2)
            ours_BV = slots.forward(np.arange(2), ids_BT[[0, 1], lengths - 1][:, None], lengths - 1, lengths - 1)
            rows = [torch.from_numpy(ids[:length])[None].to(model.device) for ids, length in zip(ids_BT, lengths)]
            theirs_BV = torch.cat([model(input_ids=row, use_cache=False).logits[:, -1] for row in rows])
    except Exception as error:  # an architecture may raise anything; all of it means no
        return f"its forward does not take a slot cache ({type(error).__name__}: {str(error)[:100]})"
    apart = _apart(ours_BV, theirs_BV)
    # 16-bit types round each shape differently, and each processor's kernels in their own way
    tolerance = 1e-3 if compute_dtype(model) == torch.float32 else 0.1
    return None if apart <= tolerance else f"its logits through a slot cache are off by {apart:.1%}"


def _apart(ours_BV: torch.Tensor, theirs_BV: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    ours_BV, theirs_BV = ours_BV.float(), theirs_BV.float()
    return float((ours_BV - theirs_BV).abs().max() / theirs_BV.abs().max().clamp(min=1e-3))


def shares(model: Any) -> bool:
    """Whether a model can read the common beginning of rows once for all of them: by configuration, then by a trial."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if model.device.type != "cpu" or model.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False  # untried elsewhere
    if config._attn_implementation != "sdpa" or kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return False
    if model not in _SHARES:
        try:
            _SHARES[model] = _apart(*(_shared_logits(model, tokens) for tokens in (8, 0))) <= 1e-3
        except Exception:  # an architecture may raise anything; all of it means no
            _SHARES[model] = False
    return _SHARES[model]


def _shared_logits(model: Any, tokens: int) -> torch.Tensor:
    """Logits of a trial in which rows that begin alike share the reading of their first tokens."""
    ids_BT = np.arange(33).reshape(3, 11) * 7 % model.config.get_text_config().vocab_size
    ids_BT[:, :8] = ids_BT[0, :8]
    slots, rows = SlotModel(model, 3), np.arange(3)
    slots.forward(rows, ids_BT[:, :9], np.zeros(3, np.int64), np.full(3, 8))
    slots.share(tokens, np.zeros(3, np.int64))
    return torch.cat([slots.forward(rows, ids_BT[:, [at]], *[np.full(3, at)] * 2, shared=True) for at in (9, 10)])


_SHARES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def refusal(model: Any, max_context: int | None = None) -> str | None:
    """Why the configuration alone rules the slot engine out; see `supports`."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention {config._attn_implementation!r} takes no mask by position; load it with 'sdpa' or 'eager'"
    if not kinds <= {"full_attention", "sliding_attention"} or getattr(config, "attention_chunk_size", None):
        return f"its layers ({', '.join(sorted(kinds))}) need more than keys and values by position"
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        if rope.get("rope_type") in ("dynamic", "longrope"):
            longest = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            if max_context is None or max_context > longest:
                return f"its positions ({rope['rope_type']}) depend on the longest row beyond {longest} tokens"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "its adapter adds virtual tokens"
    if any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "its parameters are sharded over processes"
    return None
