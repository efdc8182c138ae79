"""The protocol: exactly once, errors of one item only."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from mrlm_envs.serving import envs_pb2 as pb
from tests.support.serving import PROBE, Probe, Raw, Running, code, running, spawned, wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture
def raw(server: Running) -> Iterator[Raw]:
    raw = Raw(server.address)
    yield raw
    raw.close()


def ran(action: str) -> int:
    return Probe.runs.count(action)


def test_a_step_repeated_after_it_ended_gets_the_same_reply_and_runs_once(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    first = raw.step(session, 1, "after-end")
    assert first == raw.step(session, 1, "after-end")
    assert ran("after-end") == 1


def test_a_step_repeated_while_the_first_still_runs_gets_the_same_reply(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(raw.step, session, 1, "sleep 0.31") for _ in range(4)]
        results = [call.result() for call in calls]
    assert all(result == results[0] and not code(result) for result in results)
    assert ran("sleep 0.31") == 1


def test_a_reply_lost_after_the_step_ran_is_given_again(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    raw.abandon(session, 1, "sleep 0.33")
    result = raw.step(session, 1, "sleep 0.33")
    assert not code(result) and result.seq == 1
    assert ran("sleep 0.33") == 1


def test_a_reset_repeated_gets_the_same_reply(raw: Raw):
    session = os.urandom(16)
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(raw.reset, session, options=b'{"sleep": 0.2}') for _ in range(3)]
        results = [call.result() for call in calls]
    assert results[0] == results[1] == results[2] == raw.reset(session, options=b'{"sleep": 0.2}')
    assert not code(results[0])


def test_a_late_duplicate_of_a_reset_does_not_restart_the_episode(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    first = raw.step(session, 1)
    assert code(raw.reset(session)) == "BAD_SEQ"
    assert raw.step(session, 1) == first


def test_a_gap_is_bad_seq_and_says_what_is_expected(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    raw.step(session, 1)
    for seq in (0, 3, 9):
        result = raw.step(session, seq)
        assert code(result) == "BAD_SEQ" and result.error.expected_seq == 2
    assert raw.step(session, 2).seq == 2


def test_a_taken_step_is_not_given_to_another_action(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    raw.step(session, 1, "mine")
    assert code(raw.step(session, 1, "other")) == "BAD_SEQ"


def test_an_empty_action_before_any_step_is_not_taken_for_the_reset(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    assert code(raw.step(session, 0, "")) == "BAD_SEQ"
    assert raw.step(session, 1, "").seq == 1


def test_a_step_after_the_end_is_episode_over(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    last = raw.step(session, 1, "done")
    assert last.terminated
    assert code(raw.step(session, 2)) == "EPISODE_OVER"
    assert raw.step(session, 1, "done") == last


def test_a_step_of_an_old_episode_never_lands_on_the_fresh_one(raw: Raw):
    session = os.urandom(16)
    opening = raw.reset(session)
    raw.abandon(session, 1, "sleep 0.4")
    assert raw.reset(session, episode=2).digest == opening.digest  # the seed is the same
    result = raw.step(session, 1, "sleep 0.4", episode=1)
    assert code(result) == "BAD_SEQ"
    wait_for(lambda: ran("sleep 0.4") == 1)
    fresh, other = raw.step(session, 1, "a", episode=2), os.urandom(16)
    raw.reset(other)
    assert fresh.digest == raw.step(other, 1, "a").digest


def test_a_session_never_made_is_unknown(raw: Raw):
    assert code(raw.step(os.urandom(16), 1)) == "UNKNOWN_SESSION"


def test_a_restarted_server_does_not_know_the_session(server: Running):
    session = os.urandom(16)
    with running() as other:
        raw = Raw(other.address)
        raw.reset(session)
        raw.close()
    with running(port=other.port) as again:
        raw = Raw(again.address)
        assert code(raw.step(session, 1)) == "UNKNOWN_SESSION"
        raw.close()


def test_a_replay_goes_on_where_the_episode_was(raw: Raw):
    session, other = os.urandom(16), os.urandom(16)
    raw.reset(session)
    digests = [raw.step(session, seq, f"r{seq}").digest for seq in (1, 2, 3)]
    replayed = raw.reset(other, actions=[b"r1", b"r2"], digest=digests[1])
    assert replayed.seq == 2 and replayed.digest == digests[1]
    assert raw.step(other, 2, "r2").digest == digests[1], "a repeat of the last replayed step"
    assert raw.step(other, 3, "r3").digest == digests[2]


def test_a_replay_rewinds_a_session_that_went_on(raw: Raw):
    session = os.urandom(16)
    raw.reset(session)
    digests = [raw.step(session, seq, f"r{seq}").digest for seq in (1, 2, 3)]
    assert raw.reset(session, actions=[b"r1"], digest=digests[0]).digest == digests[0]
    assert raw.step(session, 2, "r2").digest == digests[1]


def test_a_replay_that_gives_something_else_is_diverged_and_leaves_no_session(server: Running, raw: Raw):
    before = server.server.sessions.count
    session = os.urandom(16)
    assert code(raw.reset(session, actions=[b"r1"], digest=b"0" * 16)) == "REPLAY_DIVERGED"
    assert code(raw.reset(session, actions=[b"done", b"r1"], digest=b"0" * 16)) == "REPLAY_DIVERGED"
    assert server.server.sessions.count == before


def test_an_environment_that_is_not_deterministic_is_not_replayed(raw: Raw):
    result = raw.reset(os.urandom(16), env_id="tests/Dice-v0", actions=[b"r1"], digest=b"0" * 16)
    assert code(result) == "NOT_DETERMINISTIC"


def test_two_tenants_with_the_same_session_id_do_not_meet():
    with running(tokens="a one\nb two") as server:
        first, second, session = Raw(server.address, "one"), Raw(server.address, "two"), os.urandom(16)
        first.reset(session, seed=1)
        assert code(second.step(session, 1)) == "UNKNOWN_SESSION"
        second.reset(session, seed=2)
        assert first.step(session, 1).digest != second.step(session, 1).digest
        assert second.call("Close", pb.CloseRequest(sessions=[session]), pb.CloseReply).results[0] == pb.CloseResult()
        assert first.step(session, 2).seq == 2


@pytest.mark.parametrize(("token", "what"), [("no", "wrong"), (None, "missing")])
def test_a_wrong_or_missing_token_is_refused(token: str | None, what: str):
    with running(tokens="a one") as server:
        with pytest.raises(grpc.RpcError) as error:
            Raw(server.address, token).reset(os.urandom(16))
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED and what in error.value.details()
        assert server.server.sessions.count == 0


def test_bad_items_are_answered_one_by_one_and_the_good_ones_run(raw: Raw):
    sessions = [os.urandom(16) for _ in range(4)]
    for session in sessions:
        raw.reset(session)
    actions = [b"fine", b"\xff\xfe", b"x" * 2_000_000, b"fine too"]
    items = [pb.StepItem(session=s, episode=1, seq=1, action=a) for s, a in zip(sessions, actions)]
    results = raw.call("Step", pb.StepRequest(items=items), pb.StepReply).results
    assert [code(result) for result in results] == ["", "BAD_ACTION", "TOO_LARGE", ""]
    assert not code(raw.step(sessions[1], 1, "better")), "a refused action does not use up its step"


def test_garbage_bytes_are_refused_and_the_server_goes_on(raw: Raw):
    for data in (b"\xff" * 40, os.urandom(300), b"\x0a\xff\xff\xff\xff\x0f"):
        for method, reply in (("Reset", pb.ResetReply), ("Step", pb.StepReply), ("Describe", pb.DescribeReply)):
            with pytest.raises(grpc.RpcError) as error:
                raw.call(method, data, reply)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    session = os.urandom(16)
    assert not code(raw.reset(session)) and not code(raw.step(session, 1))


def test_items_beyond_the_batch_limit_are_too_large_and_the_others_run():
    with running(max_batch=2) as server:
        raw = Raw(server.address)
        items = [pb.ResetItem(session=os.urandom(16), episode=1, env_id="tests/Probe-v0") for _ in range(3)]
        results = raw.call("Reset", pb.ResetRequest(items=items), pb.ResetReply).results
        assert [code(result) for result in results] == ["", "", "TOO_LARGE"]
        raw.close()


def test_a_reply_beyond_the_message_limit_is_given_in_parts():
    with running(max_message_bytes=10_000) as server:
        raw, sessions = Raw(server.address), [os.urandom(16) for _ in range(8)]
        for session in sessions:
            raw.reset(session, kwargs=b'{"size": 4000}')
        waiting, calls = set(sessions), 0
        while waiting:
            calls += 1
            items = [pb.StepItem(session=session, episode=1, seq=1, action=b"parts") for session in sorted(waiting)]
            results = raw.call("Step", pb.StepRequest(items=items), pb.StepReply).results
            waiting -= {item.session for item, result in zip(items, results) if not code(result)}
        assert calls > 1 and ran("parts") == 8
        raw.close()


@pytest.mark.parametrize("action", ["raise ouch", "exit"])
def test_an_environment_that_raises_fails_only_its_own_session(raw: Raw, action: str):
    sessions = [os.urandom(16) for _ in range(3)]
    for session in sessions:
        raw.reset(session)
    items = [
        pb.StepItem(session=session, episode=1, seq=1, action=a.encode())
        for session, a in zip(sessions, ("one", action, "three"))
    ]
    results = raw.call("Step", pb.StepRequest(items=items), pb.StepReply).results
    assert [code(result) for result in results] == ["", "ENV_FAILED", ""]
    assert code(raw.step(sessions[1], 1, action)) == "ENV_FAILED", "the failure is the kept answer"
    assert code(raw.step(sessions[1], 2)) == "EPISODE_OVER"
    assert not code(raw.reset(sessions[1], episode=2)) and not code(raw.step(sessions[1], 1, episode=2))


def test_a_sleeping_step_is_step_timeout_and_the_rest_of_the_batch_is_answered(raw: Raw):
    sessions = [os.urandom(16) for _ in range(5)]
    for session in sessions:
        raw.reset(session)
    actions = ["a", "sleep 3.2", "b", "c", "d"]
    items = [
        pb.StepItem(session=session, episode=1, seq=1, action=action.encode())
        for session, action in zip(sessions, actions)
    ]
    results = raw.call("Step", pb.StepRequest(items=items), pb.StepReply, timeout=1.6).results
    assert [code(result) for result in results] == ["", "STEP_TIMEOUT", "", "", ""]
    assert results[1].error.HasField("retry_after_ms")
    late = raw.step(sessions[1], 1, "sleep 3.2")
    assert not code(late) and ran("sleep 3.2") == 1


def test_a_step_beyond_the_servers_limit_is_given_up_and_its_thread_replaced():
    with running(step_timeout=0.7, threads=2) as server:
        raw, sessions = Raw(server.address), [os.urandom(16) for _ in range(3)]
        for session in sessions:
            raw.reset(session)
        for session in sessions[:2]:
            result = raw.step(session, 1, "sleep 3.5")
            assert code(result) == "STEP_TIMEOUT" and not result.error.HasField("retry_after_ms")
        assert code(raw.step(sessions[0], 1, "sleep 3.5")) == "STEP_TIMEOUT"
        assert code(raw.step(sessions[0], 2)) == "EPISODE_OVER"
        assert not code(raw.step(sessions[2], 1, "go on"))
        assert not code(raw.reset(sessions[0], episode=2)) and not code(raw.step(sessions[0], 1, episode=2))
        pool = server.server._pool
        wait_for(lambda: pool.lost == 0 and pool._drains == 0 and pool.busy == 0)
        raw.close()


def test_waiting_steps_run_at_the_same_time(raw: Raw):
    sessions = [os.urandom(16) for _ in range(32)]
    for session in sessions:
        raw.reset(session)
    items = [pb.StepItem(session=session, episode=1, seq=1, action=b"sleep 0.2") for session in sessions]
    start = time.monotonic()
    results = raw.call("Step", pb.StepRequest(items=items), pb.StepReply).results
    assert time.monotonic() - start < 6.0, "32 sleeps of 0.2 s in a row would take 6.4 s"
    assert not any(code(result) for result in results)


def test_with_wait_ms_the_quick_are_answered_before_the_slow_end(raw: Raw):
    sessions = [os.urandom(16) for _ in range(2)]
    for session in sessions:
        raw.reset(session)
    items = [
        pb.StepItem(session=session, episode=1, seq=1, action=a)
        for session, a in zip(sessions, (b"quick", b"sleep 3.0"))
    ]
    start = time.monotonic()
    results = raw.call("Step", pb.StepRequest(items=items, wait_ms=20), pb.StepReply).results
    assert time.monotonic() - start < 2.5
    assert [code(result) for result in results] == ["", "STEP_TIMEOUT"]
    while code(again := raw.step(sessions[1], 1, "sleep 3.0", wait_ms=20)):  # then the call waits for the first
        assert again.error.HasField("retry_after_ms") and time.monotonic() - start < 60
    assert time.monotonic() - start > 2.9


def test_idle_sessions_are_swept_and_their_environments_closed():
    with running(idle_ttl=0.2) as server:
        before = Probe.alive
        raw, session = Raw(server.address), os.urandom(16)
        raw.reset(session)
        assert Probe.alive == before + 1
        wait_for(lambda: server.server.sessions.count == 0)
        wait_for(lambda: Probe.alive == before)
        assert not server.server.sessions.tenants
        assert code(raw.step(session, 1)) == "UNKNOWN_SESSION"
        raw.close()


def test_a_closed_session_is_gone_even_while_its_step_runs(server: Running, raw: Raw):
    session, before = os.urandom(16), Probe.alive
    raw.reset(session)
    assert code(raw.step(session, 1, "sleep 3.0", wait_ms=20)) == "STEP_TIMEOUT"
    raw.call("Close", pb.CloseRequest(sessions=[session]), pb.CloseReply)
    assert code(raw.step(session, 1, "sleep 3.0")) == "UNKNOWN_SESSION"
    wait_for(lambda: Probe.alive == before)
    assert code(raw.call("Close", pb.CloseRequest(sessions=[session]), pb.CloseReply).results[0]) == "UNKNOWN_SESSION"


def test_an_environment_that_closes_slowly_holds_up_nobody(raw: Raw):
    slow, quick = os.urandom(16), os.urandom(16)
    raw.reset(slow, kwargs=b'{"closing": 4.0}')
    raw.reset(quick)
    start = time.monotonic()
    raw.call("Close", pb.CloseRequest(sessions=[slow]), pb.CloseReply)
    assert not code(raw.step(quick, 1))
    assert time.monotonic() - start < 3.5


def test_threads_are_bounded_when_no_step_ever_ends():
    with running(step_timeout=0.2, threads=1) as server:
        raw, sessions = Raw(server.address), [os.urandom(16) for _ in range(6)]
        for session in sessions:
            raw.reset(session)
        for session in sessions:
            assert code(raw.step(session, 1, "sleep 2.5", wait_ms=20)) == "STEP_TIMEOUT"
        assert len(server.server._pool.executor._threads) <= 2
        wait_for(lambda: server.server._pool.busy == 0 and server.server._pool.lost == 0, 20)
        raw.close()


@pytest.mark.parametrize(
    ("item", "expected", "words"),
    [
        ({"env_id": "tests/Nothing-v0"}, "UNKNOWN_ENV", "served are"),
        ({"kwargs": b"[1]"}, "BAD_REQUEST", "JSON object"),
        ({"kwargs": b'{"max_turn": 3}'}, "BAD_REQUEST", "max_turns"),
        ({"options": b"nonsense"}, "BAD_REQUEST", "JSON object"),
        ({"options": b'{"task_id": "x"}'}, "BAD_REQUEST", "task_id"),
        ({"options": b'{"fail": true}'}, "ENV_FAILED", "cannot begin"),
        ({"session": b"short"}, "BAD_REQUEST", "16 bytes"),
        ({"episode": 0}, "BAD_REQUEST", "from 1"),
        ({"actions": [b"\xff"]}, "BAD_REQUEST", "utf-8"),
    ],
)
def test_a_reset_that_cannot_be_says_why_and_leaves_no_session(
    server: Running, raw: Raw, item: dict[str, Any], expected: str, words: str
):
    before = server.server.sessions.count
    result = raw.reset(**{"session": os.urandom(16), **item})
    assert code(result) == expected and words in result.error.message
    assert server.server.sessions.count == before


def test_only_allowed_kwargs_pass():
    with running(allow_kwargs="") as server:
        raw = Raw(server.address)
        refused = raw.reset(os.urandom(16), kwargs=b'{"size": 3}')
        assert code(refused) == "BAD_REQUEST" and "--allow-kwargs size" in refused.error.message
        assert not code(raw.reset(os.urandom(16), kwargs=b'{"max_turns": 3}'))
        raw.close()


def test_the_operators_kwargs_reach_the_environment():
    with running(PROBE, preset={PROBE: {"size": 50}}, allow_kwargs="") as server:
        raw, session = Raw(server.address), os.urandom(16)
        raw.reset(session)
        assert len(raw.step(session, 1).observation) > 50
        raw.close()


def test_quota_and_a_full_server_say_when_to_come_again():
    with running(tokens="a one\nb two", max_tenant_sessions=2, max_sessions=3) as server:
        first, second = Raw(server.address, "one"), Raw(server.address, "two")
        assert [code(first.reset(os.urandom(16))) for _ in range(3)] == ["", "", "QUOTA"]
        results = [second.reset(os.urandom(16)) for _ in range(2)]
        assert [code(result) for result in results] == ["", "OVERLOADED"]
        assert results[1].error.retry_after_ms > 0


def test_a_full_queue_is_overloaded():
    with running(max_queue=2, threads=1) as server:
        raw, sessions = Raw(server.address), [os.urandom(16) for _ in range(4)]
        for session in sessions:
            raw.reset(session)
        with ThreadPoolExecutor(2) as threads:
            slow = [threads.submit(raw.step, session, 1, "sleep 0.5") for session in sessions[:2]]
            wait_for(lambda: server.server._pool.busy == 2)
            result = raw.step(sessions[2], 1)
            assert code(result) == "OVERLOADED" and result.error.retry_after_ms > 0
            assert not any(code(call.result()) for call in slow)
        assert not code(raw.step(sessions[2], 1)), "an overloaded step has not been taken"
        raw.close()


def test_health_answers_while_environments_burn_cpu():
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with spawned(1) as [(_, address)]:
        raw = Raw(address)
        sessions = [os.urandom(16) for _ in range(2)]
        for session in sessions:
            raw.reset(session)
        burning = [threading.Thread(target=raw.step, args=(session, 1, "burn 3.0")) for session in sessions]
        for thread in burning:
            thread.start()
        stub, slowest, start = health_pb2_grpc.HealthStub(raw.channel), 0.0, time.monotonic()
        while time.monotonic() - start < 1.0:
            asked = time.monotonic()
            answer = stub.Check(health_pb2.HealthCheckRequest(service="mrlm.env.v1.Environments"), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            slowest = max(slowest, time.monotonic() - asked)
        assert slowest < 2.0, "not for as long as they burn"
        for thread in burning:
            thread.join()
        raw.close()


def test_the_bytes_of_a_tenants_sessions_are_limited():
    with running(tokens="a one\nb two", max_tenant_bytes=1_000_000) as server:
        first, second = Raw(server.address, "one"), Raw(server.address, "two")
        prompt = json.dumps({"system_prompt": "x" * 100_000}).encode()
        codes = [code(first.reset(os.urandom(16), kwargs=prompt)) for _ in range(5)]
        assert codes == ["", "", "QUOTA", "QUOTA", "QUOTA"]
        assert not code(second.reset(os.urandom(16), kwargs=prompt)), "another tenant has bytes of its own"
        assert first.reset(os.urandom(16), kwargs=prompt).error.retry_after_ms > 0
        first.close(), second.close()


def test_closing_sessions_gives_their_bytes_back():
    with running(max_tenant_bytes=1_000_000) as server:
        raw, sessions = Raw(server.address), [os.urandom(16) for _ in range(4)]
        for session in sessions:
            raw.reset(session, kwargs=b'{"size": 20000}')
            for seq in (1, 2, 3):
                raw.step(session, seq, "x" * 5000)
        tenant = server.server.sessions.tenants[""]
        assert 4 * 3 * 5000 < tenant.size < 1_000_000
        raw.call("Close", pb.CloseRequest(sessions=sessions), pb.CloseReply)
        assert tenant.size == 0
        raw.close()


def _is_closed(connection: socket.socket) -> bool:
    """The other side has hung up."""
    connection.setblocking(False)
    try:
        while True:
            if not connection.recv(1000):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_connections_beyond_the_limit_are_closed_and_those_within_it_go_on():
    with running(max_connections=3) as server, contextlib.ExitStack() as stack:
        raw, session = Raw(server.address), os.urandom(16)
        raw.reset(session)
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5.0)) for _ in range(8)]
        wait_for(lambda: sum(map(_is_closed, idle)) == 6)
        assert not code(raw.step(session, 1))
        for connection in idle:
            connection.close()
        wait_for(lambda: answers(server.address))
        raw.close()


def answers(address: str) -> bool:
    raw = Raw(address)
    try:
        return not code(raw.reset(os.urandom(16), timeout=2.0))
    except grpc.RpcError:
        return False
    finally:
        raw.close()
