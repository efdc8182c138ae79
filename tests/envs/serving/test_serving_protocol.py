"""What both sides compute alike: the bytes of `info`, and the digest over them."""

import json

import numpy as np
import pytest

from mrlm_envs.serving.protocol import chained_digest, encode_info


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"text": 'é 中 \ud800 \x00 "quoted" \\ </s>', "list": [1, 2.5, None, True, {"a": []}]},
        {"big": 2**80, "small": 1e-300, "minus": -0.0, 3: "a number as key"},
    ],
)
def test_info_has_the_bytes_of_the_standard_librarys_compact_json(info: dict):
    assert encode_info(info) == json.dumps(info, separators=(",", ":"), allow_nan=False).encode()


def test_what_json_cannot_say_becomes_what_it_can():
    info = {"nan": float("nan"), "array": np.arange(2), "set": {1}, "object": json, "scalar": np.float32(0.5)}
    plain = {"nan": None, "array": [0, 1], "set": [1], "object": str(json), "scalar": 0.5}
    assert json.loads(encode_info(info)) == plain


def test_the_digest_is_that_of_earlier_releases():
    """Old and new servers and clients must agree on it."""
    digest = chained_digest(b"d" * 16, b"action", 3, "seen é".encode(), 0.25, 1, b'{"turn":3}')
    assert digest.hex() == "dba2312186918b76d3ba3d4e5b3b3a77"
