"""The critic: one linear layer on the policy's last hidden state.

It is a child of the policy's module, so that DDP, FSDP and the optimizer see it, and it reads the backbone's output by
a forward hook, so that it runs inside the policy's own forward pass. In a model folder it is a file of its own,
`value_head.safetensors`: the policy beside it stays an ordinary Hugging Face model or adapter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

NAME = "value_head"
FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """V(s) at every position; starts at 0 everywhere.

    Attributes:
        weight: (1, H).
        bias: (1,).
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))
        self._read: list[torch.Tensor] | None = None

    def forward(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        """Values (B, T) of hidden states (B, T, H), in fp32 whatever the model's type."""
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            return nn.functional.linear(hidden_BTH.float(), self.weight.float(), self.bias.float())[..., 0]

    @contextmanager
    def reading(self) -> Iterator[list[torch.Tensor]]:
        """Within it, every forward pass of the policy adds its values (B, T) to the list."""
        self._read = []
        try:
            yield self._read
        finally:
            self._read = None

    def hook(self, backbone: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the backbone."""
        if self._read is not None:
            self._read.append(self(output.last_hidden_state))


def attach(model: Any) -> ValueHead:
    """Give a causal LM (or a PEFT model around one) a new value head as its child `value_head`."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_size = inner.config.get_text_config().hidden_size
    weight = next(parameter for parameter in inner.parameters() if parameter.is_floating_point())
    head = ValueHead(hidden_size, weight.dtype).to(weight.device)
    model.add_module(NAME, head)
    inner.base_model.register_forward_hook(head.hook)
    return head


def load(head: ValueHead, folder: str | os.PathLike[str]) -> None:
    """Read the head of a model folder.

    Errors: FileNotFoundError, or ValueError when it does not fit the model.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"value head {path}: no such file; only PPO writes one")
    weights = load_file(path)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    if shapes != expected:
        raise ValueError(
            f"value head {path} does not fit the model: it has {shapes}, the model needs {expected}; "
            "give the model it was trained with, or remove the file"
        )
    head.load_state_dict(weights)
