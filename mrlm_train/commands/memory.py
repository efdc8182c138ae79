"""`mrlm info --model M --strategy fsdp --num-processes 8`: what a training needs on each GPU, before one is rented.

Counted from the model's configuration, on PyTorch's meta device: no weights are read or downloaded. Parameters,
gradients, optimizer states and the rollout's cache are exact for what they count; activations are an estimate; CUDA's
own gibibyte, fragmentation and vLLM's reservation come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mrlm_train import tiny
from mrlm_train.commands.flags import Training
from mrlm_train.inference.hub import check_exists, loading
from mrlm_train.inference.kv_cache import width_after
from mrlm_train.inference.policy import weight_dtype

GIB = 2**30
LIVE = 10**9  # parameters that ZeRO-3 keeps gathered at most (`stage3_max_live_parameters`)


@dataclass(frozen=True)
class Shape:
    """What the memory of a causal LM depends on.

    Attributes:
        parameters: all of them, tied ones once.
        block: parameters of the largest transformer block.
        outside: parameters outside the blocks (embeddings, head, last norm).
        linear: sum of inputs and outputs of every linear layer that LoRA's "all-linear" adapts.
        layers: transformer blocks.
        hidden: width.
        vocabulary: tokens.
        cached: numbers that the key-value cache holds for a token.
    """

    parameters: int
    block: int
    outside: int
    linear: int
    layers: int
    hidden: int
    vocabulary: int
    cached: int


def shape(name: str, trust_remote_code: bool = False) -> Shape:
    """The shape of a model.

    Args:
        name: a folder, a hub name, or `tiny`.
        trust_remote_code: run the model's own code.

    Raises:
        ValueError: If there is no such model, in one line.
    """
    if name == "tiny":
        config: Any = tiny.build()[0].config
    else:
        check_exists(name)
        with loading(f"model {name}"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    kinds = getattr(model, "_no_split_modules", None) or ()
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks] or [0]
    parameters = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=parameters,
        block=max(sizes),
        outside=parameters - sum(sizes),
        linear=sum(layer.in_features + layer.out_features for layer in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        cached=2 * text.num_hidden_layers * heads * width,
    )


def estimate(model: Shape, training: Training) -> dict[str, dict[str, tuple[float, str]]]:
    """Bytes on each GPU, in training and while episodes are played; a step needs the larger of the two sums.

    As `mrlm train` does it on a GPU: AdamW, bf16 computation, gradient checkpointing, and for rollouts the slot engine
    or, under FSDP and ZeRO-3, the batch engine, whose cache holds the tokens and no more.

    Args:
        model: Of `shape`.
        training: FSDP is FSDP2, DeepSpeed is ZeRO-3.

    Returns:
        For "training" and "rollout", name to `(bytes, how it is counted)`.

    Raises:
        ValueError: If the dtype is unknown.
    """
    strategy, processes, lora = training.strategy, training.processes, training.lora
    batch, rows, tokens = training.batch, training.rows, training.tokens
    shards = processes if strategy != "ddp" else 1
    zero = strategy == "deepspeed" and shards > 1
    whole, adapter = model.parameters, (lora or 0) * model.linear
    size = weight_dtype(training.dtype, torch.device("cpu")).itemsize
    own = 4 if lora else size  # adapters are fp32
    # DeepSpeed computes on bf16 weights and keeps fp32 ones with the optimizer's states
    weights, adapted, gradients, states = (2, 2, 2, 12) if zero else (size, own, own, 2 * own)
    trained = adapter or whole
    over = f" / {shards}" if shards > 1 else ""
    note = f"{whole:,} parameters of {weights} bytes{over}"
    note += f", {adapter:,} of a LoRA adapter of rank {lora}" if lora else ""
    kept = {"weights": ((weights * whole + adapted * adapter) / shards, note)}
    if training.reference and not lora:
        kept["reference model"] = (weights * whole / shards, "frozen, as large as the weights")
    kept["AdamW"] = (states * trained / shards, f"{states} bytes for each trained parameter{over}")
    copied = (gradients * trained / shards, f"{gradients} bytes for each trained parameter{over}")
    learning, rollout = {**kept, "gradients": copied}, dict(kept)
    if zero:
        rollout["gradients"] = copied  # the others drop them after each optimizer step
        learning["gathered"] = (2 * min(whole, LIVE), f"at most {LIVE:,} parameters at a time, in bf16")
        rollout["gathered"] = (2 * whole, "the whole model (ds3_gather_for_generation), in bf16")
    elif shards > 1:
        blocks = 2 * (model.outside + 2 * model.block)
        learning["gathered"] = rollout["gathered"] = (blocks, "embeddings, head and two blocks, whole, in bf16")
    elif processes > 1:
        learning["buckets"] = rollout["buckets"] = (gradients * trained, "DDP's copy of the gradients")
    spoken = batch * tokens
    learning["activations"] = (
        2 * model.layers * spoken * model.hidden + 34 * spoken * model.hidden + 8 * spoken * model.vocabulary,
        f"estimate: {batch} episodes of {tokens:,} tokens: 2 bytes × width kept a block, 34 in the block at work "
        "(arXiv:2205.05198), 8 × vocabulary for logits and their gradient",
    )
    width = tokens if shards > 1 else width_after(tokens)  # the slot engine's rows have room to grow
    rollout["cache"] = (
        rows * width * 2 * model.cached,
        f"{rows} rows with room for {width:,} tokens, {2 * model.cached:,} bytes each (keys and values in bf16)",
    )
    return {"training": learning, "rollout": rollout}


def text(name: str, training: Training) -> str:
    """The estimate for a model's name as a table."""
    model, processes = shape(name), training.processes
    phases = estimate(model, training)
    what = f"{training.strategy}, {processes} processes" if processes > 1 else "one process"
    lines = [f"{name}: {model.parameters:,} parameters, {what}, on each GPU"]
    totals = {}
    for phase, parts in phases.items():
        lines += ["", phase]
        for part, (size, note) in parts.items():
            lines.append(f"  {part:15} {_bytes(size)}  {note}")
        totals[phase] = sum(size for size, _ in parts.values())
        lines.append(f"  {'sum':15} {_bytes(totals[phase])}")
    need = _bytes(max(totals.values())).strip()
    lines += ["", f"at least {need} on each GPU; CUDA itself takes about 1 GiB more, and memory is never used whole"]
    return "\n".join(lines)


def _bytes(size: float) -> str:
    return f"{size / GIB:8.2f} GiB" if size >= GIB else f"{size / 2**20:8.2f} MiB"
