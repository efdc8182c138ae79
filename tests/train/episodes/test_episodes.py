"""The Episode record: JSON both ways, files that are never half-written, views for training."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mrlm_train import tiny
from mrlm_train.episodes.record import (
    Episode,
    check_tokenizer,
    jsonable,
    read,
    reward_stds,
    sft_rows,
    tokenizer_hash,
    write,
)
from tests.support.playing import TOKENIZER

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
EPISODE = st.builds(
    Episode,
    env_id=st.text(min_size=1, max_size=9),
    kwargs=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    seed=st.integers(0, 2**31),
    messages=st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), max_size=3),
    completion_ids=st.none() | st.lists(st.integers(0, 9), max_size=5),
    logprobs=st.none() | st.lists(st.none() | st.floats(-20, 0), max_size=5),
    turn_rewards=st.lists(st.floats(-5, 5), max_size=3),
    success=st.none() | st.booleans(),
    info=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
)


@given(EPISODE)
def test_an_episode_comes_back_from_its_line_as_it_was(episode: Episode) -> None:
    line = episode.to_json()
    assert "\n" not in line
    assert Episode.from_json(line) == episode


def test_what_json_does_not_know_becomes_plain() -> None:
    odd = {1: np.float32(0.5), "a": np.arange(2), "n": math.nan, "s": {3}, "o": object, "bad": "\ud800", "b": np.True_}
    plain = jsonable(odd)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["1"] == 0.5 and plain["a"] == [0, 1] and plain["n"] == "nan" and plain["b"] is True


def some(n: int) -> list[Episode]:
    return [Episode("E", seed=i, group_id=f"g{i % 2}", turn_rewards=[float(i)]) for i in range(n)]


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "episodes.jsonl"
    assert write(path, some(3)) == 3

    def failing() -> Iterator[Episode]:
        yield from some(1)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(path, failing())
    assert [e.seed for e in read(path)] == [0, 1, 2]
    assert os.listdir(path.parent) == ["episodes.jsonl"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": 1}', "row 2: field 'env_id' is missing"),
        ('{"env_id": "E", "sede": 1}', "row 2: unknown field 'sede'"),
        ('{"env_id": ', "row 2: "),
    ],
)
def test_a_row_that_is_no_episode_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{some(1)[0].to_json()}\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match=f"bad.jsonl, {words}"):
        list(read(path))


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mrlm collect"):
        list(read(tmp_path / "none.jsonl"))


def with_ids(**changes: Any) -> Episode:
    fields: dict[str, Any] = {
        "prompt_ids": [1, 2],
        "completion_ids": [3, 4, 5, 6],
        "action_mask": [1, 0, 0, 1],
        "tokenizer_hash": tokenizer_hash(TOKENIZER),
    }
    return Episode("E", **{**fields, **changes})


def test_sft_rows_put_the_loss_on_what_the_policy_said() -> None:
    rows = list(sft_rows([with_ids(), with_ids(valid=False)], TOKENIZER))
    assert rows == [{"input_ids": [1, 2, 3, 4, 5, 6], "completion_mask": [0, 0, 1, 0, 0, 1]}]


def test_sft_rows_refuse_what_they_cannot_use() -> None:
    with pytest.raises(ValueError, match="has no token ids"):
        list(sft_rows([Episode("E")]))


def test_ids_of_another_tokenizer_are_an_error() -> None:
    other = tiny.build_tokenizer()
    assert tokenizer_hash(other) == tokenizer_hash(TOKENIZER)
    other.add_tokens(["new"])
    grown = PreTrainedTokenizerFast(tokenizer_object=other.backend_tokenizer)
    assert tokenizer_hash(grown) != tokenizer_hash(TOKENIZER)
    with pytest.raises(ValueError, match="its ids are of tokenizer"):
        check_tokenizer(with_ids(), grown)
    check_tokenizer(Episode("E"), grown)


def test_group_statistics_leave_invalid_episodes_out() -> None:
    episodes = [
        *some(4),
        Episode("E", group_id="g0", turn_rewards=[99.0], valid=False),
        Episode("E", group_id="x", valid=False),
    ]
    assert reward_stds(episodes) == {"g0": 1.0, "g1": 1.0, "x": 0.0}
