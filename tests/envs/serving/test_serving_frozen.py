"""Steps that never give the interpreter's lock back, and workers that end: who is blamed, and who goes on."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import gymnasium
import pytest

from mrlm_envs.serving import AsyncClient
from tests.support.fresh import in_fresh_process
from tests.support.serving import ROOT, Raw, Spawned, code, running, spawned, wait_for


def remote(address: Any, env_id: str = "tests/Probe-v0", **kwargs: Any) -> gymnasium.Env[str, str]:
    return gymnasium.make("mrlm_envs:mrlm/Remote-v0", address=address, env_id=env_id, **kwargs)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def freeze(address: str) -> None:
    """Freeze the worker there, and do not wait for it."""
    raw, session = Raw(address), os.urandom(16)
    raw.reset(session)
    with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
        raw.step(session, 1, "freeze", timeout=1.5)
    raw.close()


def answers(address: str) -> bool:
    """The server there begins an episode."""
    raw = Raw(address)
    try:
        return not code(raw.reset(os.urandom(16), timeout=2.0))
    except grpc.RpcError:
        return False
    finally:
        raw.close()


def failed(step: tuple[Any, ...]) -> bool:
    """The step ended its episode as the action's failure."""
    _, reward, terminated, truncated, info = step
    return (reward, terminated, truncated, info["valid"], info["stop_reason"]) == (
        0.0,
        True,
        False,
        True,
        "step_timeout",
    )


def test_a_step_that_freezes_two_servers_fails_and_spares_the_third_and_its_neighbours():
    with spawned(3) as servers:
        addresses = [address for _, address in servers]

        async def main() -> None:
            async with AsyncClient(addresses, rpc_timeout=2.5) as client:
                sessions = [await client.session("tests/Probe-v0") for _ in range(13)]
                await asyncio.gather(*(session.reset(seed=1) for session in sessions))
                steps = await asyncio.gather(
                    *(session.step("freeze" if i == 0 else "go") for i, session in enumerate(sessions))
                )
                assert failed(steps[0])
                assert len({step[0] for step in steps[1:]}) == 1 and not any(step[2] or step[3] for step in steps[1:])

        asyncio.run(main())
        assert sum(answers(address) for address in addresses) == 1


def test_with_every_server_frozen_a_step_ends_within_its_step_timeout():
    with spawned(2) as servers:
        addresses = [address for _, address in servers]
        env = remote(addresses, step_timeout=6.0)
        env.reset(seed=1)
        for address in addresses:
            freeze(address)
        start = time.monotonic()
        *_, truncated, info = env.step("go")
        assert time.monotonic() - start < 30.0, "asked for 6 s"
        assert truncated or info["stop_reason"] == "step_timeout"


def test_a_frozen_worker_is_killed_and_comes_back_on_its_port():
    with spawned(1, "--step-timeout", "2") as [(server, address)]:
        (frozen,) = server.workers()
        freeze(address)
        start = time.monotonic()
        wait_for(lambda: not is_running(frozen), 30)
        assert time.monotonic() - start < 20.0, "a frozen worker lives for at most twice its step_timeout of 2 s"
        wait_for(lambda: answers(address), 60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
        (line,) = [line for line in server.logs() if "ended by signal 9" in line["message"]]
        assert "tests/Probe-v0, task" in line["message"] and line["pid"] == frozen and line["level"] == "error"


def test_a_step_that_freezes_the_only_server_twice_is_the_actions_failure():
    with spawned(1, "--step-timeout", "2") as [(_, address)]:
        env = remote(address, rpc_timeout=1.0)
        env.reset(seed=1)
        assert failed(env.step("freeze"))
        env.reset(seed=1)
        assert not env.step("go")[2]


def test_a_client_process_ends_while_a_step_is_under_way_on_a_frozen_server():
    program = """if True:
        import contextlib, gymnasium, threading
        env = gymnasium.make("mrlm_envs:mrlm/Remote-v0", address="{}", env_id="tests/Probe-v0", rpc_timeout=60.0)
        env.reset(seed=1)
        def freeze():
            with contextlib.suppress(Exception):  # the connection is closed under it
                env.step("freeze")
        threading.Thread(target=freeze, daemon=True).start()
        while not env.unwrapped._lock.locked():
            pass
    """
    with spawned(1) as [(_, address)]:
        command = [sys.executable, "-c", program.format(address)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert not ended.stderr


def test_sigterm_with_a_frozen_worker_ends_within_the_grace():
    with spawned(1, "--grace", "2") as [(server, address)]:
        freeze(address)
        (frozen,) = server.workers()
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        assert time.monotonic() - start < 10.0, "the grace is 2 s"
        assert not is_running(frozen)


def test_frozen_workers_die_with_their_supervisor():
    server = Spawned("--workers", "2")
    try:
        addresses = server.addresses(2)
        pids = server.workers()
        freeze(addresses[0])
        server.process.kill()
        wait_for(lambda: not any(is_running(pid) for pid in pids))
    finally:
        server.end()


def test_an_exit_of_one_worker_is_said_and_stops_nobody_else():
    server = Spawned("--workers", "2")
    try:
        addresses = server.addresses(2)
        raws = [Raw(address) for address in addresses]
        sessions = [os.urandom(16) for _ in raws]
        tasks = [json.loads(raw.reset(session).info)["task_id"] for raw, session in zip(raws, sessions)]
        before = server.workers()
        with pytest.raises(Exception, match="UNAVAILABLE"):
            raws[0].step(sessions[0], 1, "die")
        assert not code(raws[1].step(sessions[1], 1, "go")), "the other worker has not noticed"
        assert server.addresses()[0] == addresses[0], "restarted, on its port"
        assert sum(map(is_running, before)) == 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
        (line,) = [line for line in server.logs() if "ended with status 9" in line["message"]]
        assert sessions[0].hex() in line["message"] and repr(tasks[0]) in line["message"] and line["pid"] > 0
    finally:
        server.end()


@pytest.mark.slow
def test_many_deaths_within_a_minute_stop_everything_and_say_why():
    server = Spawned(environments="tests.envs.serving.test_serving_frozen:tests/Doomed-v0")
    try:
        server.addresses()
        assert server.process.wait(120) == 1
        assert any("died within a minute" in line["message"] and line["level"] == "critical" for line in server.logs())
    finally:
        server.end()


class _Doomed(gymnasium.Env[str, str]):
    """Ends its process a moment after the worker serves."""

    observation_space = action_space = gymnasium.spaces.Text(10)
    timers: list[threading.Timer] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.timers.append(threading.Timer(0.3, os._exit, (7,)))
        if "mrlm_envs.serving.worker" in " ".join(sys.orig_argv):
            self.timers[-1].start()


if "tests/Doomed-v0" not in gymnasium.registry:
    gymnasium.register("tests/Doomed-v0", entry_point="tests.envs.serving.test_serving_frozen:_Doomed")


def test_a_port_taken_while_a_worker_is_away_is_waited_for():
    import socket

    with spawned(1) as [(server, address)]:
        port = int(address.rpartition(":")[2])
        os.kill(server.workers()[0], signal.SIGKILL)
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wait_for(lambda: _bound(thief, port))
            thief.listen()
            time.sleep(2.0)  # the worker has tried and found it taken
            assert server.process.poll() is None
        assert server.addresses()[0] == address


def _bound(one: Any, port: int) -> bool:
    try:
        one.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def test_the_default_port_is_outside_the_ephemeral_range():
    from mrlm_envs.serving.settings import Settings

    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        lowest, highest = map(int, file.read().split())
    assert not lowest <= Settings("math").port <= highest


def test_isolated_environments_cost_a_poisonous_step_one_child_and_no_neighbour():
    with spawned(1, "--isolate", "--step-timeout", "3", "--allow-kwargs", "max_turn") as [(server, address)]:
        before = server.workers()
        envs = [remote(address, rpc_timeout=5.0) for _ in range(3)]
        for env in envs:
            env.reset(seed=5)
        with running() as local:
            twin = remote(local.address)
            twin.reset(seed=5)
            assert envs[1].step("go") == twin.step("go"), "to the byte like one that is not isolated"
            assert envs[1].unwrapped.digest == twin.unwrapped.digest  # pyright: ignore[reportAttributeAccessIssue]
        assert failed(envs[0].step("die"))
        assert not envs[1].step("go")[2]
        assert failed(envs[2].step("freeze"))
        assert not envs[1].step("go")[2]
        envs[0].reset(seed=5)
        assert not envs[0].step("go")[2]
        assert server.workers() == before, "the worker has not noticed"
        with pytest.raises(gymnasium.error.Error, match="max_turns"):
            remote(address, max_turn=3)


def test_an_isolated_environment_that_meets_an_end_of_file_has_failed_and_its_action_has_not():
    with spawned(1, "--isolate") as [(_, address)]:
        env = remote(address)
        env.reset(seed=5)
        observation, reward, terminated, truncated, info = env.step("eof")
        assert (reward, terminated, truncated, info["valid"]) == (0.0, False, True, False), observation
        assert info["stop_reason"] == "env_fault" and "told to" in observation


def test_an_isolated_environment_that_is_refused_leaves_no_child():
    in_fresh_process(
        """
        import multiprocessing
        import pytest
        from mrlm_envs.serving.isolated import IsolatedEnv

        with pytest.raises(ValueError, match="max_turns") as refused:  # holds on to the environment
            IsolatedEnv("tests.support.serving:tests/Probe-v0", {"max_turns": 0}, 60.0)
        assert multiprocessing.active_children() == []
    """,
        timeout=60,
    )


def test_children_of_isolated_environments_end_with_their_server():
    with spawned(1, "--isolate") as [(server, address)]:
        env = remote(address)
        env.reset(seed=5)
        family = _descendants(server.process.pid)
        assert len(family) >= 3, "worker, fork server, child"
        server.process.kill()
        wait_for(lambda: not any(is_running(pid) for pid in family))


def _descendants(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(word) for one in lists for word in one.read_text().split()]
    return children + [each for child in children for each in _descendants(child)]


def test_a_step_that_waits_for_a_lost_server_ends_when_its_client_is_closed():
    async def close_while_waiting(server: Spawned, address: str) -> None:
        client = AsyncClient(address, rpc_timeout=1.0)
        session = await client.session("tests/Probe-v0")
        await session.reset(seed=1)
        server.process.kill()
        step = asyncio.create_task(session.step("go"))
        connection = session.connection
        async with asyncio.timeout(60):
            while not connection.is_blocked:  # pyright: ignore[reportOptionalMemberAccess]
                if step.done():  # the worker outlived its killed parent by a moment, and has answered
                    step = asyncio.create_task(session.step("go"))
                await asyncio.sleep(0.01)
            await client.close()
            with pytest.raises(gymnasium.error.Error, match="the client is closed"):
                await step

    with spawned(1) as [(server, address)]:
        asyncio.run(close_while_waiting(server, address))


def test_a_step_that_only_sleeps_for_too_long_is_the_actions_failure():
    with running(step_timeout=0.8) as server:
        env = remote(server.address)
        env.reset(seed=1)
        assert failed(env.step("sleep 4"))


def test_two_slow_constructors_do_not_hold_up_the_description_of_another_environment():
    with running(step_timeout=4.0) as server:
        threads = [
            threading.Thread(target=lambda i=i: _try(lambda: remote(server.address, making=8.0 + i))) for i in range(6)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        start = time.monotonic()
        remote(server.address, "tests/Dice-v0").reset(seed=1)
        assert time.monotonic() - start < 3.8, "the slow ones are given up after 4 s"
        with pytest.raises(gymnasium.error.Error, match="constructor takes too long"):
            remote(server.address, making=20.0)
        for thread in threads:
            thread.join()


def _try(function: Any) -> None:
    try:
        function()
    except Exception:
        return


def test_a_drain_answers_every_step_at_once_and_loses_none():
    with spawned(2, "--grace", "10") as servers:
        addresses = [address for _, address in servers]

        async def main() -> None:
            async with AsyncClient(addresses) as client:
                sessions = [await client.session("tests/Probe-v0") for _ in range(25)]
                await asyncio.gather(*(session.reset(seed=2) for session in sessions))
                longest = 0.0

                async def play(session: Any) -> None:
                    nonlocal longest
                    for _ in range(60):
                        begun = time.monotonic()
                        step = await session.step("sleep 0.02")
                        longest = max(longest, time.monotonic() - begun)
                        assert not step[2] and not step[3]

                drain = threading.Timer(0.5, servers[0][0].process.send_signal, (signal.SIGTERM,))
                drain.start()
                await asyncio.gather(*(play(session) for session in sessions))
                assert len({session.digest for session in sessions}) == 1
                assert longest < 6.0, "a drained server answers UNAVAILABLE at once"

        asyncio.run(main())
        assert servers[0][0].process.wait(20) == 0


def test_the_python_started_by_hand_needs_no_trainer_and_no_torch():
    program = "import sys, mrlm_envs.serving.worker, mrlm_envs.serving.supervisor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode == 0
