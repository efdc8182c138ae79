"""Servers that are killed, stopped, restarted or drained while episodes run on them."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import numpy as np
import pytest

from mrlm_envs.core import EnvFault
from mrlm_envs.serving import envs_pb2 as pb
from tests.support.serving import Probe, Raw, Spawned, code, running, spawned, wait_for


def remote(address: Any, env_id: str = "tests/Probe-v0", **kwargs: Any) -> gymnasium.Env[str, str]:
    return gymnasium.make("mrlm_envs:mrlm/Remote-v0", address=address, env_id=env_id, **kwargs)


def vector(address: Any, num_envs: int, env_id: str = "tests/Probe-v0", **kwargs: Any) -> Any:
    return gymnasium.make_vec("mrlm_envs:mrlm/Remote-v0", num_envs=num_envs, address=address, env_id=env_id, **kwargs)


def digests(env: Any) -> list[bytes]:
    return [member.unwrapped.digest for member in env.envs]


def local_observations(seed: int, num_envs: int, actions: list[list[str]]) -> list[str]:
    """What an uninterrupted local run shows at last."""
    last = []
    for i in range(num_envs):
        env = Probe()
        observation, _ = env.reset(seed=seed + i)
        for step in actions:
            observation, *_ = env.step(step[i])
        last.append(observation)
    return last


def test_kill_9_of_one_of_two_servers_mid_batch_is_not_noticed_by_64_sessions():
    turns, n = 8, 64
    actions = [[f"t{turn} m{i}" for i in range(n)] for turn in range(turns)]
    actions[4] = ["sleep 0.02"] * n  # long enough to be killed under
    with spawned(2) as servers:
        (first, _), (_, address) = servers
        env = vector([address for _, address in servers], n)
        alone = vector(address, n)
        env.reset(seed=1000)
        alone.reset(seed=1000)
        for turn in range(turns):
            if turn == 4:
                threading.Timer(0.1, first.process.kill).start()
            observations, _, terminated, truncated, infos = env.step(actions[turn])
            assert not truncated.any() and not terminated.any() and infos["turn"].tolist() == [turn + 1] * n
            alone.step(actions[turn])
        assert first.process.wait(30) == -signal.SIGKILL
        assert digests(env) == digests(alone)
        assert list(observations) == local_observations(1000, n, actions)


def test_kill_9_under_coalesced_single_environments():
    with spawned(2) as servers:
        addresses = [address for _, address in servers]
        envs = [remote(addresses) for _ in range(16)]
        for i, env in enumerate(envs):
            env.reset(seed=i)

        def episode(env: gymnasium.Env[str, str]) -> str:
            return [env.step(f"sleep 0.0{turn % 3}")[0] for turn in range(30)][-1]

        threading.Timer(0.3, servers[0][0].process.kill).start()
        with ThreadPoolExecutor(16) as threads:
            last = list(threads.map(episode, envs))
        assert servers[0][0].process.wait(30) == -signal.SIGKILL
        assert last == local_observations(0, 16, [[f"sleep 0.0{turn % 3}"] * 16 for turn in range(30)])


def test_a_stopped_server_is_noticed_within_the_deadline_and_replaced():
    with spawned(2) as servers:
        addresses = [address for _, address in servers]
        env = vector(addresses, 8, rpc_timeout=2.0)
        env.reset(seed=0)
        env.step(["a"] * 8)
        servers[0][0].signal_worker(signal.SIGSTOP)
        start = time.monotonic()
        observations, *_ = env.step(["b"] * 8)
        assert time.monotonic() - start < 15.0, "one rpc_timeout, and a replay"
        assert list(observations) == local_observations(0, 8, [["a"] * 8, ["b"] * 8])
        servers[0][0].signal_worker(signal.SIGCONT)
        observations, *_ = env.step(["c"] * 8)
        assert list(observations) == local_observations(0, 8, [[x] * 8 for x in "abc"])


def test_a_slow_step_is_not_a_lost_server():
    with running() as server:
        env = remote(server.address, rpc_timeout=1.5)
        env.reset(seed=1)
        before = Probe.runs.count("sleep 3")
        assert env.step("sleep 3")[4]["turn"] == 1
        assert Probe.runs.count("sleep 3") == before + 1


def test_a_restarted_server_gets_the_episode_again():
    with running() as server:
        env, port = remote(server.address), server.port
        env.reset(seed=3)
        env.step("a")
    with running(port=port):
        observation, *_ = env.step("b")
    assert observation == local_observations(3, 1, [["a"], ["b"]])[0]


def test_a_swept_session_gets_its_episode_again():
    with running(idle_ttl=0.2) as server:
        env = remote(server.address)
        env.reset(seed=3)
        env.step("a")
        wait_for(lambda: server.server.sessions.count == 0)
        assert env.step("b")[0] == local_observations(3, 1, [["a"], ["b"]])[0]


def test_a_long_episode_is_replayed_in_parts(monkeypatch: pytest.MonkeyPatch):
    from mrlm_envs.serving import client

    monkeypatch.setattr(client, "_REPLAY_BYTES", 300)
    actions = [[f"{turn}" * 100] for turn in range(9)]
    with running() as server:
        env, port = remote(server.address), server.port
        env.reset(seed=3)
        for (action,) in actions[:8]:
            env.step(action)
    with running(port=port):
        assert env.step(actions[8][0])[0] == local_observations(3, 1, actions)[0]


def test_an_environment_that_cannot_be_replayed_ends_env_lost_and_masked():
    with running() as server:
        env, port = remote(server.address, "tests/Dice-v0"), server.port
        env.reset(seed=3)
        env.step("a")
    with running(port=port):
        _, reward, terminated, truncated, info = env.step("b")
        assert (reward, terminated, truncated) == (0.0, False, True)
        assert info["stop_reason"] == "env_lost" and info["valid"] is False and info["success"] is False
        env.reset(seed=3)
        assert not env.step("a")[3]


def test_an_environment_that_cannot_be_replayed_outlives_a_lost_reply():
    with spawned(1) as [(server, address)]:
        env = remote(address, "tests/Dice-v0", rpc_timeout=1.5)
        env.reset(seed=3)
        env.step("a")
        server.signal_worker(signal.SIGSTOP)
        threading.Timer(2.0, server.signal_worker, (signal.SIGCONT,)).start()
        observation, _, _, truncated, info = env.step("b")
        assert not truncated and info["turn"] == 2
        assert observation == local_observations(3, 1, [["a"], ["b"]])[0]


def test_an_environment_that_cannot_be_replayed_does_not_wait_for_a_server_that_is_gone():
    with running() as server, running() as other:
        addresses = [server.address, other.address]
        envs = [remote(addresses, "tests/Dice-v0", rpc_timeout=0.5) for _ in range(4)]
        for env in envs:
            env.reset(seed=3)
        server.stop()
        start = time.monotonic()
        results = [env.step("a") for env in envs]
        assert [result[3] for result in results].count(True) == 2, "two of four were on the server that is gone"
        assert time.monotonic() - start < 25.0
        assert not any(env.reset(seed=3) is None or env.step("a")[3] for env in envs)


def test_with_no_server_left_the_episode_ends_env_lost():
    with running() as server:
        env = remote(server.address, step_timeout=1.0)
        env.reset(seed=3)
    start = time.monotonic()
    *_, truncated, info = env.step("b")
    assert truncated and info["stop_reason"] == "env_lost" and info["valid"] is False
    assert time.monotonic() - start < 6.0, "asked for 1 s"


def test_a_step_that_kills_two_workers_is_the_actions_failure_and_is_not_tried_on_a_third():
    with spawned(3) as servers:
        env = vector([address for _, address in servers], 12)
        env.reset(seed=0)
        before = [server.workers() for server, _ in servers]
        _, rewards, terminated, truncated, infos = env.step(["die", *["go"] * 11])
        assert terminated.tolist() == [True] + [False] * 11 and not truncated.any() and rewards[0] == 0.0
        assert infos["stop_reason"][0] == "step_timeout" and infos["valid"][0] and not infos["success"][0]

        def unharmed() -> int:
            return sum(server.workers() == pids for (server, _), pids in zip(servers, before))

        wait_for(lambda: unharmed() <= 1)  # their supervisors have noticed
        env.reset(seed=0, options={"reset_mask": np.arange(12) == 0})
        observations, *_ = env.step(["go"] * 12)
        assert list(observations[1:]) == local_observations(1, 11, [["go"] * 11] * 2)
        assert unharmed() == 1, "the third lives on"


def test_a_step_that_kills_the_only_worker_twice_is_the_actions_failure():
    with spawned(1) as [(_, address)]:
        env = remote(address)
        env.reset(seed=3)
        env.step("a")
        _, reward, terminated, truncated, info = env.step("die")
        assert (reward, terminated, truncated) == (0.0, True, False)
        assert info["stop_reason"] == "step_timeout" and info["valid"] and info["turn"] == 2
        env.reset(seed=3)
        assert not env.step("a")[3]


def test_sigterm_drains_running_steps_finish_new_calls_are_refused_exit_0():
    with spawned(1) as [(server, address)]:
        raw, session, other = Raw(address), os.urandom(16), os.urandom(16)
        raw.reset(session)
        raw.reset(other)
        with ThreadPoolExecutor(1) as threads:
            running_step = threads.submit(raw.step, session, 1, "sleep 1.0")
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            with pytest.raises(Exception, match=r"UNAVAILABLE|CANCELLED"):
                Raw(address).step(other, 1, timeout=10.0)
            result = running_step.result()
        assert not code(result) and result.seq == 1
        assert server.process.wait(50) == 0


def test_workers_listen_on_ports_of_their_own_and_a_lost_one_comes_back_on_its_port():
    server = Spawned("--workers", "2")
    try:
        addresses = server.addresses(2)
        assert len(set(addresses)) == 2
        pids = server.workers()
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        assert server.addresses()[0] in addresses
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    finally:
        server.end()


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("kwargs", "cause"),
    [
        ({"address": "127.0.0.1:9"}, "nothing listens there"),
        ({"address": "no-such-name.invalid:25051"}, "the name is unknown"),
        ({"address": "dns:///no-such-name.invalid:25051"}, "the name has no address"),
        ({"tls": True}, "it does not speak TLS"),
    ],
)
def test_a_server_that_cannot_be_reached_is_reported_within_seconds_with_the_cause(kwargs: dict[str, Any], cause: str):
    start = time.monotonic()
    with running() as server, pytest.raises(EnvFault, match=cause) as error:
        remote(**{"address": server.address, **kwargs})
    assert time.monotonic() - start < 30.0, "told after about 5 s, not after step_timeout (300 s)"
    assert "\n" not in str(error.value)


def test_a_garbled_reply_is_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    from mrlm_envs.serving.sessions import Turn

    answer, garbled = Turn.answer, []

    def garble(self: Turn, results: Any) -> None:
        answer(self, results)
        if results[-1].observation.startswith("total") and self.seq and self.seq not in garbled:
            garbled.append(self.seq)
            results[-1].observation += "?"

    with running() as server:
        env, twin = remote(server.address), remote(server.address)
        for one in (env, twin):
            one.reset(seed=11)
        expected = [twin.step("go")[0] for _ in range(3)]
        monkeypatch.setattr(Turn, "answer", garble)
        assert [env.step("go")[0] for _ in range(3)] == expected
        assert garbled == [1, 2, 3] and Probe.runs.count("go") >= 6


@pytest.mark.slow
def test_10_000_idle_sessions_take_less_than_100_mib():
    with spawned(1, "--max-sessions", "20000", "--max-batch", "2000") as [(server, address)]:
        raw = Raw(address)
        raw.reset(os.urandom(16))
        time.sleep(1)
        before = _resident(server.workers()[0])
        for start in range(0, 10_000, 1000):
            sessions = [os.urandom(16) for _ in range(1000)]
            items = [
                pb.ResetItem(session=session, episode=1, env_id="tests/Probe-v0", seed=start + i)
                for i, session in enumerate(sessions)
            ]
            results = raw.call("Reset", pb.ResetRequest(items=items), pb.ResetReply, timeout=60).results
            steps = [pb.StepItem(session=session, episode=1, seq=1, action=b"hello") for session in sessions]
            stepped = raw.call("Step", pb.StepRequest(items=steps), pb.StepReply, timeout=60).results
            assert not any(code(result) for result in (*results, *stepped))
        grown = _resident(server.workers()[0]) - before
        print(f"10,000 sessions: {grown / 2**20:.1f} MiB")
        assert grown < 100 * 2**20


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
def test_servers_killed_again_and_again_under_a_long_run():
    """Three servers; one is killed every second and comes back; not one episode differs."""
    rng = np.random.default_rng(0)
    servers = [Spawned() for _ in range(3)]
    addresses = [server.addresses()[0] for server in servers]
    stop = threading.Event()

    def reap() -> None:
        while not stop.wait(1.5):
            i = int(rng.integers(3))
            servers[i].end()
            servers[i] = Spawned(port=int(addresses[i].rpartition(":")[2]))
            servers[i].addresses()

    reaper = threading.Thread(target=reap)
    reaper.start()
    try:
        env = vector(addresses, 24, max_turns=40)
        for episode in range(6):
            env.reset(seed=100 * episode)
            actions = [[f"sleep 0.00{(turn + i) % 9}" for i in range(24)] for turn in range(40)]
            for step in actions:
                observations, _, _, truncated, _ = env.step(step)
                assert not truncated.any()
            assert list(observations) == local_observations(100 * episode, 24, actions)
    finally:
        stop.set()
        reaper.join()
        for server in servers:
            server.end()
