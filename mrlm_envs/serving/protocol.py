"""What servers and clients share of the protocol: the calls, an item's error, JSON, and the digest of an episode."""

import hashlib
import json
import math
import struct
from typing import Any

from mrlm_envs.core import plain
from mrlm_envs.serving import envs_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Environments"].full_name
CALLS: dict[str, tuple[Any, Any]] = {  # name -> request and reply
    "Describe": (pb.DescribeRequest, pb.DescribeReply),
    "Reset": (pb.ResetRequest, pb.ResetReply),
    "Step": (pb.StepRequest, pb.StepReply),
    "Close": (pb.CloseRequest, pb.CloseReply),
}

# What `json.dumps(info, separators=(",", ":"), allow_nan=False)` makes anew for every value, at half of its cost.
_encode: Any = json.encoder.c_make_encoder(  # pyright: ignore[reportAttributeAccessIssue]
    None, None, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False
)
_header = struct.Struct("<QIdBII").pack


class ItemError(Exception):
    """An item's error, as the protocol words it."""

    def __init__(self, code: "pb.Code", message: str, *, expected_seq: int = 0, retry_after: float | None = None):
        super().__init__(message)
        self.error = pb.Error(code=code, message=message, expected_seq=expected_seq)
        if retry_after is not None:
            self.error.retry_after_ms = math.ceil(1000 * retry_after)


class ActionFailed(Exception):
    """The step froze or crashed the process of an isolated environment."""


def chained_digest(before: bytes, action: bytes, seq: int, text: bytes, reward: float, ends: int, info: bytes) -> bytes:
    """The digest of an episode after a step: equal for equal episodes.

    Args:
        before: The digest before; empty for a reset.
        action: Empty for a reset.
        seq: Number of the step; 0 for a reset.
        text: The observation.
        reward: The reward.
        ends: 1 if the step has terminated the episode, 2 if it has truncated it, else 0.
        info: JSON.

    Returns:
        BLAKE2b of 16 bytes.
    """
    header = _header(seq, len(action), reward, ends, len(text), len(info))
    return hashlib.blake2b(b"".join((before, header, action, text, info)), digest_size=16).digest()


def encode_info(info: dict[str, Any]) -> bytes:
    """`info` as compact JSON in ASCII."""
    try:
        parts = _encode(info, 0)
    except (TypeError, ValueError):
        parts = _encode(plain(info), 0)
    return "".join(parts).encode()
