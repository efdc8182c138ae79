"""Sampling and the batch engine: right distribution, real log-probs, budgets, refilling, independence of the batch."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mrlm_train.inference.batch_engine import BatchEngine, ModelTurn, TurnRow
from mrlm_train.inference.policy import engine_for
from mrlm_train.inference.sampling import Sampling, sample_tokens, turn_uniforms
from mrlm_train.inference.types import End, Feed, Wait
from tests.support.playing import CLOSE, tiny_model

torch.set_num_threads(1)
ROW = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(ROW, st.sampled_from([0.5, 1.0, 2.0]))
def test_tokens_come_as_often_as_softmax_says(logits: list[float], temperature: float) -> None:
    n = 4000
    logits_V = torch.tensor(logits)
    uniforms_B = (torch.arange(n) + 0.5) / n  # inverse CDF: an even grid of draws meets every share within two cells
    ids_B, log_probs_B = sample_tokens(logits_V.expand(n, -1), uniforms_B, Sampling(temperature=temperature))
    expected_V = torch.softmax(logits_V / temperature, -1)
    shares_V = torch.bincount(ids_B, minlength=len(logits)) / n
    assert (shares_V - expected_V).abs().max() <= 2 / n
    assert torch.allclose(log_probs_B, expected_V.log()[ids_B], atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-8, 8), min_size=2, max_size=12, unique=True),
    st.floats(0, 1, exclude_max=True, width=32),
    st.integers(0, 5),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_truncated_sampling_stays_in_the_nucleus_with_its_renormalised_log_prob(
    logits: list[int], uniform: float, top_k: int, top_p: float
) -> None:
    order = np.argsort(-np.array(logits))[: top_k or len(logits)]
    shares = np.exp(np.array(logits, dtype=np.float64)[order])
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    assume(top_p == 1 or np.abs(before - top_p).min() > 1e-4)
    kept = order[before < top_p] if top_p < 1 else order
    ids_B, log_probs_B = sample_tokens(
        torch.tensor([logits]), torch.tensor([uniform]), Sampling(top_k=top_k, top_p=top_p)
    )
    assert int(ids_B[0]) in kept
    nucleus = np.log(np.exp(np.array(logits, dtype=np.float64)[kept]).sum())
    assert abs(float(log_probs_B[0]) - (logits[int(ids_B[0])] - nucleus)) < 1e-4


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits_BV = torch.full((4, 6), -torch.inf)
    logits_BV[:, 2] = 0.0
    ids_B, log_probs_B = sample_tokens(logits_BV, torch.tensor([0.0, 0.3, 0.7, 1 - 2**-24]), Sampling())
    assert ids_B.tolist() == [2] * 4 and log_probs_B.tolist() == [0.0] * 4


def test_greedy_takes_the_most_probable_token_and_reports_the_model_s_own_log_prob() -> None:
    logits_BV = torch.tensor([[1.0, 3.0, 2.0]])
    ids_B, log_probs_B = sample_tokens(logits_BV, torch.tensor([0.999]), Sampling(temperature=0))
    assert ids_B.tolist() == [1]
    assert torch.allclose(log_probs_B, torch.log_softmax(logits_BV, -1)[0, 1:2])


@given(st.integers(0, 2**63), st.integers(0, 2**64 - 1), st.integers(0, 50), st.integers(0, 30), st.integers(0, 30))
def test_a_longer_draw_begins_with_the_shorter(seed: int, key: int, turn: int, short: int, more: int) -> None:
    long = turn_uniforms(seed, key, turn, short + more)
    assert long[:short].tolist() == turn_uniforms(seed, key, turn, short).tolist()
    assert ((long >= 0) & (long < 1)).all()
    if short:
        assert long[:short].tolist() != turn_uniforms(seed, key, turn + 1, short).tolist()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("top_k", -1), ("max_turn_tokens", 0), ("max_turns", 0)],
)
def test_a_sampling_setting_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{setting} must be .* got {value}"):
        Sampling(**{setting: value})  # type: ignore[arg-type]


def _turn(model: Any, rows: Sequence[tuple[list[int], int]], **settings: Any) -> list[tuple[list[int], Any]]:
    sampling = Sampling(stop_ids=(CLOSE,), **settings)
    uniforms = [turn_uniforms(0, i, 0, 40) for i in range(len(rows))]
    return ModelTurn(model, sampling)([TurnRow(c, b, u) for (c, b), u in zip(rows, uniforms, strict=True)])


def test_a_row_gets_the_same_tokens_alone_and_in_a_batch_of_unequal_rows() -> None:
    model = tiny_model()
    rows = [([5, 6, 7], 9), ([8] * 30, 3), ([9], 20)]
    together = _turn(model, rows)
    assert [len(ids) for ids, _ in together] <= [9, 3, 20]
    for i, (context, budget) in enumerate(rows):
        uniforms = turn_uniforms(0, i, 0, 40)
        [(ids, log_probs)] = ModelTurn(model, Sampling(stop_ids=(CLOSE,)))([TurnRow(context, budget, uniforms)])
        assert ids == together[i][0]
        assert np.allclose(log_probs or [], together[i][1], atol=1e-5)


def test_a_turn_ends_with_its_stop_token_or_its_budget() -> None:
    model = tiny_model()
    with torch.no_grad():  # make the stop token likely
        model.model.embed_tokens.weight[CLOSE] += 0.6 * model.model.embed_tokens.weight[5]
    turns = _turn(model, [([5, 6], 30)] * 40)
    assert any(ids[-1] == CLOSE for ids, _ in turns)
    for ids, log_probs in turns:
        assert CLOSE not in ids[:-1]
        assert len(ids) == 30 or ids[-1] == CLOSE
        assert len(log_probs) == len(ids)


def test_generation_settings_of_the_checkpoint_do_not_leak_in() -> None:
    model = tiny_model()
    plain = _turn(model, [([5, 6, 7], 12)], temperature=0)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.temperature = 0.1
    model.generation_config.top_k = 1
    assert _turn(model, [([5, 6, 7], 12)], temperature=0) == plain
    greedy = plain[0][0]
    assert _turn(model, [([5, 6, 7], 12)])[0][0] != greedy


def test_the_model_is_left_as_it_was_and_sampled_without_dropout() -> None:
    model = tiny_model().train()
    _turn(model, [([5], 2)])
    assert model.training


def test_no_stop_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="stop_ids is empty"):
        ModelTurn(tiny_model(), Sampling())


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(ValueError, match="unknown engine 'fast'"):
        engine_for("fast", tiny_model(), Sampling(stop_ids=(CLOSE,)))


class Talk:
    """A conversation of some turns, that may wait for its environment in between."""

    def __init__(self, name: int, turns: int, log: list[str], waits: bool = False) -> None:
        self.seed = self.prefix = name
        self.budget = 3
        self.turns, self.log, self.waits = turns, log, waits
        self.said: list[list[int]] = []
        self.ready: Future[None] | None = None
        self.owes = True
        self.polls = 0

    def poll(self) -> Feed | Wait | End:
        self.polls += 1
        if self.ready is not None:
            if not self.ready.done():
                return Wait(self.ready)
            self.ready = None
        if len(self.said) == self.turns:
            self.log.append(f"end {self.seed}")
            return End()
        assert self.owes, "polled twice without a turn in between"
        self.owes = False
        return Feed([10 + self.seed, len(self.said)])

    def submit(self, ids: list[int], log_probs: list[float] | None) -> None:
        assert not self.owes
        self.owes = True
        self.said.append(ids)
        if self.waits:
            self.ready = Future()
            threading.Timer(0.01, self.ready.set_result, [None]).start()


def _echo(batches: list[list[list[int]]]) -> Any:
    def turn(rows: Sequence[TurnRow]) -> list[tuple[list[int], list[float] | None]]:
        batches.append([list(row.context) for row in rows])
        return [([row.context[-2], 99][: row.budget], None) for row in rows]

    return turn


@pytest.mark.parametrize("waits", [False, True])
def test_rows_are_refilled_in_order_and_never_more_than_allowed(waits: bool) -> None:
    log: list[str] = []
    talks = [Talk(i, turns=1 + i % 3, log=log, waits=waits) for i in range(10)]
    taken: list[int] = []

    def line() -> Iterator[Talk]:
        for talk in talks:
            taken.append(talk.seed)
            assert len(taken) - len(log) <= 4
            yield talk

    batches: list[list[list[int]]] = []
    BatchEngine(_echo(batches), Sampling(), rows=4).run(line())
    assert taken == list(range(10)) and sorted(log) == sorted(f"end {i}" for i in range(10))
    assert [len(talk.said) for talk in talks] == [1 + i % 3 for i in range(10)]
    assert max(map(len, batches)) <= 4
    assert max(talk.polls for talk in talks) < 200  # it sleeps while nobody can decode
    assert all(len(ids) == 2 for talk in talks for ids in talk.said)


def test_a_context_is_what_was_fed_and_sampled_in_order() -> None:
    batches: list[list[list[int]]] = []
    BatchEngine(_echo(batches), Sampling()).run([Talk(1, 3, [])])
    assert batches == [[[11, 0]], [[11, 0, 11, 99, 11, 1]], [[11, 0, 11, 99, 11, 1, 11, 99, 11, 2]]]


def test_a_process_with_nothing_left_joins_until_all_are_done() -> None:
    batches: list[list[list[int]]] = []
    others = iter([2, 2, 1, 0])  # rows alive in the other process, by round

    def reduce(count: int) -> int:
        return count + next(others)

    BatchEngine(_echo_any(batches), Sampling(), reduce=reduce).run([Talk(1, 1, [])])
    assert [len(batch) for batch in batches] == [1, 1, 1]
    assert batches[0] == [[11, 0]] and batches[1] == batches[2] == [[0]]


def test_processes_join_the_same_forward_passes_while_one_waits_with_room_in_its_batch() -> None:
    rounds, calls, failures = threading.Barrier(2, timeout=60), ["", ""], list[BaseException]()

    def join(rank: int, call: str) -> None:
        """What a collective operation does: it needs the same call of the other process."""
        calls[rank] = call
        rounds.wait()
        assert calls[0] == calls[1]
        rounds.wait()

    def process(rank: int, talks: list[Talk]) -> None:
        def turn(rows: Sequence[TurnRow]) -> list[tuple[list[int], list[float] | None]]:
            join(rank, "forward")
            return [([7], None) for _ in rows]

        def reduce(count: int) -> int:
            left[rank] = count
            join(rank, "reduce")
            total = sum(left)
            rounds.wait()  # before either counts again
            return total

        try:
            BatchEngine(turn, Sampling(), rows=2, reduce=reduce).run(talks)
        except BaseException as error:
            failures.append(error)
            rounds.abort()

    left = [0, 0]
    # the first process: one conversation ends, the other waits for its environment, and the queue holds more
    sets = [[Talk(0, 1, []), Talk(1, 3, [], waits=True), Talk(2, 1, [])], [Talk(3, 8, [])]]
    threads = [threading.Thread(target=process, args=(rank, talks)) for rank, talks in enumerate(sets)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures and [len(talk.said) for talks in sets for talk in talks] == [1, 3, 1, 8]


def _echo_any(batches: list[list[list[int]]]) -> Any:
    def turn(rows: Sequence[TurnRow]) -> list[tuple[list[int], list[float] | None]]:
        batches.append([list(row.context) for row in rows])
        return [([7], None) for _ in rows]

    return turn
