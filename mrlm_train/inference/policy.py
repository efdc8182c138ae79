"""The policy: a causal LM, its tokenizer and chat template, and the engine that decodes it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mrlm_train import tiny
from mrlm_train.episodes.chat import Chat
from mrlm_train.inference.batch_engine import BatchEngine, ModelTurn, Turn
from mrlm_train.inference.compatibility import supports
from mrlm_train.inference.hub import check_exists, loading
from mrlm_train.inference.kv_cache import compute_dtype
from mrlm_train.inference.sampling import Sampling
from mrlm_train.inference.slot_engine import SlotEngine
from mrlm_train.inference.types import Engine

if TYPE_CHECKING:
    from peft import PeftModel  # takes a second to import


@dataclass
class Policy:
    """A model that acts.

    Attributes:
        model: the causal LM.
        chat: its tokenizer and template.
        name: written into Episodes.
        engine_name: "auto" or an engine's name, see `engine_for`.
        rows: conversations decoded at once.
        session: opens the model for decoding (unwrapped, gathered); None takes `model` as it is.
        turn: samples turns by other means than `model` (TRL's or vLLM's generation).
        reduce: sum over processes, if every process must join each forward pass (FSDP, ZeRO-3).
    """

    model: Any
    chat: Chat
    name: str = "policy"
    engine_name: str = "auto"
    rows: int = 256
    session: Callable[[], AbstractContextManager[Any]] | None = None
    turn: Turn | None = None
    reduce: Callable[[int], int] | None = None

    @property
    def max_context(self) -> int | None:
        """Maximum context of the model in tokens; None if its config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @contextmanager
    def engine(self, sampling: Sampling) -> Iterator[Engine]:
        """An engine for one run; its caches are freed afterwards."""
        if self.turn is not None:
            yield BatchEngine(self.turn, sampling, self.rows, self.reduce)
            return
        with nullcontext(self.model) if self.session is None else self.session() as model:
            pad_id = self.chat.tokenizer.pad_token_id or 0
            yield engine_for(self.engine_name, model, sampling, pad_id, self.rows, self.reduce)


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
        name: "slot" (the slot engine), "turn" (the batch engine), or "auto": the slot engine if it can run the model,
            else the batch engine, with one warning.
        model: the causal LM, unwrapped.
        sampling: with stop ids.
        pad_id: any valid token id.
        rows: conversations decoded at once.
        reduce: see `BatchEngine`, the only engine that supports it; also keeps `generate` in step across processes.

    Returns:
        An engine for one run.

    Raises:
        ValueError: If the name is unknown, or it is "slot" and that engine cannot run the model.
    """
    if name not in ("auto", "slot", "turn"):
        raise ValueError(f"unknown engine {name!r}; known: auto, slot, turn")
    if name != "turn":
        reasons, key = _REASONS.setdefault(model, {}), (sampling.max_context, compute_dtype(model), reduce is None)
        if is_new := key not in reasons:
            sharded = "its parameters are sharded over processes"
            reasons[key] = supports(model, sampling.max_context) if reduce is None else sharded
        reason = reasons[key]
        if reason is None:
            return SlotEngine(model, sampling, rows)
        if name == "slot":
            raise ValueError(
                f"the slot engine cannot run {type(model).__name__}: {reason}; use engine 'turn' or 'auto'"
            )
        if is_new:
            warnings.warn(f"{type(model).__name__} runs on the slower batch engine: {reason}", stacklevel=2)
    return BatchEngine(ModelTurn(model, sampling, pad_id, synced=reduce is not None), sampling, rows, reduce)


_REASONS: WeakKeyDictionary[Any, dict[Any, str | None]] = WeakKeyDictionary()
"""Reasons why the slot engine cannot run a model, by context limit, compute dtype and sharding; None if it can."""


def make(
    model: PreTrainedModel | PeftModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    system_prompt: str | None = None,
    engine: str = "auto",
    rows: int = 256,
) -> Policy:
    """A policy from objects or from a path.

    Args:
        model: a causal LM, a path or hub name for `load_model`, or `openai:MODEL[@BASE_URL]` (see `endpoint.py`), for
            which only `rows` counts.
        tokenizer: its tokenizer; None loads it from the model's path.
        name: written into Episodes; the model's own name by default.
        chat_template_kwargs: passed to the chat template.
        system_prompt: replaces every environment's own.
        engine: see `engine_for`.
        rows: conversations decoded at once.

    Raises:
        ValueError: If there is no such model, or it has no chat template.
    """
    if isinstance(model, str) and model.startswith("openai:"):
        from mrlm_train.inference.endpoint import EndpointPolicy

        return EndpointPolicy(model, rows)
    loaded: Any = model
    if isinstance(model, str | os.PathLike):
        path = tiny.saved() if model == "tiny" else os.fspath(model)
        loaded, tokenizer = load_model(path), tokenizer or load_tokenizer(path)
        name = name or path
    elif tokenizer is None:
        tokenizer = load_tokenizer(loaded.config.name_or_path)
    chat = Chat(tokenizer, chat_template_kwargs, system_prompt, eos_ids(loaded))
    return Policy(loaded, chat, name or loaded.config.name_or_path or type(loaded).__name__, engine, rows)


def eos_ids(model: Any) -> list[int]:
    """The end tokens of a model's generation config; none for a model that is still a path."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [eos] if isinstance(eos, int) else eos or []


def resolve(
    model: PreTrainedModel | PeftModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Mapping[str, Any] | str | None = None,
) -> tuple[Any, Any]:
    """Model and tokenizer for a TRL trainer: a path stays one (TRL loads it), a LoRA folder is loaded here.

    Raises:
        ValueError: If there is no such model or tokenizer.
    """
    if isinstance(model, str | os.PathLike):
        path = tiny.saved() if model == "tiny" else os.fspath(model)
        tokenizer = tokenizer or load_tokenizer(path)
        if not (Path(path) / "adapter_config.json").is_file():
            return path, tokenizer
        # TRL applies the settings (JSON, or a mapping) only to a model that it loads itself
        settings = dict(json.loads(settings) if isinstance(settings, str) else settings or {})
        device = None if "quantization_config" in settings else "cpu"
        return load_model(path, settings.pop("dtype", "float32"), device, is_trainable=True, **settings), tokenizer
    if tokenizer is None:
        name = getattr(model.config, "name_or_path", None)
        if not name:
            raise ValueError("processing_class is missing: a model in memory does not know its tokenizer")
        tokenizer = load_tokenizer(name)
    return model, tokenizer


def load_model(path: str, dtype: str | torch.dtype | None = None, device: str | None = None, **kwargs: Any) -> Any:
    """A causal LM from a folder or the hub; a folder with a LoRA adapter gives the base model with it.

    Args:
        path: folder or hub name.
        dtype: see `weight_dtype`.
        device: where to put it; None is the GPU if there is one.
        **kwargs: passed to `from_pretrained`, for the base model of an adapter too.

    Raises:
        ValueError: If there is no such model.
    """
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kwargs["dtype"] = weight_dtype(dtype, target)
    if "quantization_config" in kwargs:
        kwargs["device_map"] = {"": target}  # quantized weights cannot be moved afterwards
    check_exists(path)
    loader: Any = AutoModelForCausalLM
    if (Path(path) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM as loader
    with loading(f"model {path}"):
        model = loader.from_pretrained(path, **kwargs)
    return model if "quantization_config" in kwargs else model.to(target)


def load_tokenizer(path: str, chat_template: str | None = None, **kwargs: Any) -> Any:
    """A tokenizer padded on the left, with a pad token.

    Args:
        path: folder or hub name.
        chat_template: a Jinja file that replaces the tokenizer's own.
        **kwargs: passed to `from_pretrained`.

    Raises:
        ValueError: If there is no such tokenizer.
    """
    check_exists(path)
    with loading(f"tokenizer {path}"):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **kwargs)
    if chat_template is not None:
        if not Path(chat_template).is_file():
            raise ValueError(f"model.chat_template {chat_template}: no such file")
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weight_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype in which weights are loaded.

    float16 means fp32 weights (under autocast on a GPU): fp16 weights do not survive an optimizer. By default it is
    bf16 on a GPU that supports it, else fp32.

    Raises:
        ValueError: If the name is unknown.
    """
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype {dtype!r}: expected float32, bfloat16, float16 or auto")
    return torch.float32 if found == torch.float16 else found
