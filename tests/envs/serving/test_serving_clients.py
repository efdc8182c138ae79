"""The clients: a remote environment is an environment like any other."""

import asyncio
import pickle
import socket
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

import mrlm_envs
from mrlm_envs.checker import Policy, check_text_env, play
from mrlm_envs.core import EnvFault
from mrlm_envs.serving import AsyncClient, server_pool
from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.connection import Access
from mrlm_envs.serving.server_pool import ServerPool
from tests.support.fresh import in_fresh_process
from tests.support.guessing import GuessNumber
from tests.support.serving import DICE, PROBE, Probe, Running, running

GUESS = "tests.support.guessing:tests/Guess-v0"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(PROBE, DICE, GUESS, "math") as server:
        yield server


@pytest.fixture
def calls(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the Step calls that reach the server."""
    sizes: list[int] = []
    answer = server.server._answer

    async def counted(admit: Any, request: Any, *rest: Any) -> Any:
        if isinstance(request, pb.StepRequest):
            sizes.append(len(request.items))
        return await answer(admit, request, *rest)

    monkeypatch.setattr(server.server, "_answer", counted)
    return sizes


def remote(server: Running, env_id: str = "tests/Probe-v0", **kwargs: Any) -> gymnasium.Env[str, str]:
    return gymnasium.make("mrlm_envs:mrlm/Remote-v0", env_id=env_id, **{"address": server.address, **kwargs})


def test_importing_the_environments_does_not_import_grpc():
    import subprocess
    import sys

    code = "import sys, mrlm_envs, mrlm_envs.serving; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("env_id", ["tests/Guess-v0", "mrlm/Math-v0", "math"])
def test_a_remote_environment_keeps_the_contract(server: Running, env_id: str):
    skipped = check_text_env(remote(server, env_id), episodes=4)
    assert "expert" in skipped and "reproducible" not in skipped


def _scraps(seed: int) -> Policy:
    """Says a random piece of what it was told."""
    rng = np.random.default_rng(seed)
    return lambda _, text: text[: int(rng.integers(0, 40))]


@pytest.mark.parametrize("name", sorted(mrlm_envs.ENVIRONMENTS))
def test_the_same_seed_gives_the_same_bytes_locally_and_remotely(name: str):
    try:
        local = gymnasium.make(f"mrlm_envs:{mrlm_envs.ENVIRONMENTS[name][0]}", disable_env_checker=True)
    except Exception as error:
        pytest.skip(f"{name} cannot be made without arguments: {error}")
    if not local.unwrapped.metadata.get("deterministic", True):
        pytest.skip(f"{name} is not deterministic")
    with running(name) as server:
        over_there = remote(server, name)
        for seed in range(3):
            assert play(local, _scraps(seed), seed, 500) == play(over_there, _scraps(seed), seed, 500)
        over_there.close()
    local.close()


def test_expert_is_refused(server: Running):
    with pytest.raises(gymnasium.error.Error, match="not served"):
        remote(server, "tests/Guess-v0").unwrapped.expert()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_served_environment_has_no_state_key_and_no_cost_to_go(server: Running):
    over_there = remote(server, "tests/Guess-v0").unwrapped
    assert not hasattr(over_there, "state_key") and not hasattr(over_there, "cost_to_go")


def test_a_spec_pickles_and_makes_the_same_environment(server: Running):
    env = remote(server, "tests/Guess-v0", max_turns=2)
    again = gymnasium.make(pickle.loads(pickle.dumps(env.spec)))
    assert env.reset(seed=5) == again.reset(seed=5)


def test_rendering_and_metadata_are_those_of_the_environment(server: Running):
    env, local = remote(server, "tests/Guess-v0", render_mode="ansi"), GuessNumber(render_mode="ansi")
    for member in (env, local):
        member.reset(seed=1)
        member.step("\ud800 500")
    assert env.render() == local.render()
    assert env.unwrapped.metadata["deterministic"] and env.action_space == local.action_space


def test_unknown_environments_kwargs_and_addresses_are_one_line_errors(server: Running):
    for kwargs, words in (
        ({"env_id": "tests/Nothing-v0"}, "served are"),
        ({"env_id": "tests/Guess-v0", "hig": 3}, "did you mean 'high'"),
        ({"env_id": "math", "difficulty": [9, 3]}, "difficulty"),
    ):
        with pytest.raises(Exception, match=words) as error:
            remote(server, **kwargs)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="host:port"):
        gymnasium.make("mrlm_envs:mrlm/Remote-v0", address="nowhere", env_id="math")
    with pytest.raises(EnvFault, match="no server answers"):
        gymnasium.make("mrlm_envs:mrlm/Remote-v0", address="127.0.0.1:9", env_id="math", step_timeout=0.5)


def test_the_token_comes_from_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch):
    with running(tokens="me secret") as server:
        assert remote(server, token="secret").reset(seed=1)
        with pytest.raises(gymnasium.error.Error, match="UNAUTHENTICATED"):
            remote(server)
        with pytest.raises(gymnasium.error.Error, match="UNAUTHENTICATED"):
            remote(server, token="other")
        monkeypatch.setenv("MRLM_TOKEN", "secret")
        assert remote(server).reset(seed=1)


def test_an_environment_that_raises_ends_its_episode_invalid(server: Running):
    env = remote(server)
    env.reset(seed=1)
    env.step("fine")
    observation, reward, terminated, truncated, info = env.step("raise ouch")
    assert (reward, terminated, truncated) == (0.0, False, True) and "ouch" in observation
    assert info["valid"] is False and info["stop_reason"] == "env_fault" and info["turn"] == 2
    with pytest.raises(ResetNeeded):
        env.step("more")
    env.reset(seed=1)
    env.step("fine")
    with pytest.raises(EnvFault, match="cannot begin"):
        env.reset(options={"fail": True})
    with pytest.raises(ResetNeeded):
        env.step("more")


def test_a_vector_step_is_one_call_and_members_equal_single_environments(server: Running, calls: list[int]):
    vector = gymnasium.make_vec(
        "mrlm_envs:mrlm/Remote-v0", num_envs=16, address=server.address, env_id="tests/Probe-v0", max_turns=3
    )
    singles = [remote(server, max_turns=3) for _ in range(16)]
    observations, infos = vector.reset(seed=100)
    opened = [single.reset(seed=100 + i) for i, single in enumerate(singles)]
    assert list(observations) == [o for o, _ in opened]
    assert list(infos["task_id"]) == [i["task_id"] for _, i in opened]
    calls.clear()
    for turn in range(3):
        observations, _, terminated, truncated, infos = vector.step([f"a{i}" for i in range(16)])
        assert calls == [16] * (turn + 1)
    calls_before = len(calls)
    for _ in range(3):
        stepped = [single.step(f"a{i}") for i, single in enumerate(singles)]
    assert len(calls) > calls_before
    assert list(observations) == [step[0] for step in stepped] and terminated.all() and not truncated.any()
    assert list(infos["stop_reason"]) == [step[4]["stop_reason"] for step in stepped]
    with pytest.raises(ResetNeeded):
        vector.step([""] * 16)
    mask = np.arange(16) < 2
    vector.reset(options={"reset_mask": mask})
    observations, *_ = vector.step_some([1, 0], ["x", "y"])  # pyright: ignore[reportAttributeAccessIssue]
    assert len(observations) == 2
    vector.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_of_the_remote_vector_is_that_of_the_local_one(server: Running, mode: AutoresetMode):
    from mrlm_envs.vector import TextVectorEnv

    over_there = gymnasium.make_vec(
        "mrlm_envs:mrlm/Remote-v0",
        num_envs=3,
        address=server.address,
        env_id="tests/Probe-v0",
        max_turns=2,
        autoreset_mode=mode.value,
    )
    local = TextVectorEnv(Probe, 3, max_turns=2, autoreset_mode=mode)
    over_there.reset(seed=1), local.reset(seed=1)
    for _ in range(5):
        mine, theirs = local.step(["a", "bb", "c"]), over_there.step(["a", "bb", "c"])
        assert mine[1].tolist() == theirs[1].tolist() and mine[2].tolist() == theirs[2].tolist()
        assert mine[4].keys() == theirs[4].keys() and mine[4]["turn"].tolist() == theirs[4]["turn"].tolist()
    over_there.close()


def test_steps_of_many_threads_travel_together(server: Running, calls: list[int]):
    envs = [remote(server) for _ in range(32)]
    for env in envs:
        env.reset(seed=1)
    calls.clear()
    barrier = threading.Barrier(32)

    def work(env: gymnasium.Env[str, str]) -> str:
        barrier.wait()
        return [env.step("together")[0] for _ in range(10)][-1]

    with ThreadPoolExecutor(32) as threads:
        last = list(threads.map(work, envs))
    assert len(set(last)) == 1
    # more than 320 where a late answer was asked for again
    assert sum(calls) >= 320 and len(calls) < 160, f"{len(calls)} calls for {sum(calls)} steps"


def test_one_environment_may_be_stepped_by_several_threads(server: Running):
    env = remote(server)
    env.reset(seed=1)
    with ThreadPoolExecutor(8) as threads:
        turns = list(threads.map(lambda _: env.step("t")[4]["turn"], range(40)))
    assert sorted(turns) == list(range(1, 41))


def test_concurrent_steps_of_the_async_client_travel_together(server: Running, calls: list[int]):
    async def main() -> None:
        async with AsyncClient(server.address) as client:
            sessions = [await client.session("tests/Probe-v0") for _ in range(64)]
            await asyncio.gather(*(session.reset(seed=3) for session in sessions))
            calls.clear()
            for _ in range(5):
                results = await asyncio.gather(*(session.step("go") for session in sessions))
                assert len({result[0] for result in results}) == 1
            assert sum(calls) >= 320 and len(calls) <= 40
            await asyncio.gather(*(session.close() for session in sessions))

    asyncio.run(main())
    assert server.server.sessions.count < 64, "the sessions have been closed"


def test_a_slow_step_does_not_hold_up_the_others(server: Running):
    async def main() -> None:
        async with AsyncClient(server.address) as client:
            slow, quick = await client.session("tests/Probe-v0"), await client.session("tests/Probe-v0")
            await slow.reset(seed=1)
            await quick.reset(seed=1)
            waiting = asyncio.ensure_future(slow.step("sleep 4.01"))
            start, longest = time.monotonic(), 0.0
            for _ in range(50):
                begun = time.monotonic()
                await quick.step("go")
                longest = max(longest, time.monotonic() - begun)
            assert not waiting.done() or time.monotonic() - start > 3.9
            assert longest < 2.5
            assert (await waiting)[4]["turn"] == 1
            assert time.monotonic() - start > 3.9

    asyncio.run(main())
    assert Probe.runs.count("sleep 4.01") == 1


def test_an_environment_that_takes_long_to_make_is_waited_for(server: Running):
    env = remote(server, making=2.2, rpc_timeout=1.5)
    assert env.reset(seed=1)[0] == remote(server).reset(seed=1)[0]


def test_a_cancelled_step_can_be_taken_again_otherwise(server: Running):
    async def main() -> None:
        async with AsyncClient(server.address) as client:
            session, clean = await client.session("tests/Probe-v0"), await client.session("tests/Probe-v0")
            for one in (session, clean):
                await one.reset(seed=9)
                await one.step("first")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.step("sleep 0.6"), 0.15)
            assert await session.step("other") == await clean.step("other")
            assert session.digest == clean.digest

    asyncio.run(main())


def test_overload_and_quota_are_waited_out():
    with running(max_tenant_sessions=1, max_queue=3, threads=2) as server:
        first, second = remote(server), remote(server)
        first.reset(seed=1)
        threading.Timer(0.5, first.close).start()
        start = time.monotonic()
        second.reset(seed=1)
        assert time.monotonic() - start > 0.3
        second.close()

    with running(max_queue=3, threads=2) as server:
        envs = [remote(server) for _ in range(12)]
        for env in envs:
            env.reset(seed=1)
        with ThreadPoolExecutor(12) as threads:
            results = list(threads.map(lambda env: env.step("sleep 0.05"), envs))
        assert all(result[4]["turn"] == 1 and not result[3] for result in results)
        assert server.server.metrics.errors.labels("OVERLOADED")._value.get() > 0


def test_too_many_calls_are_waited_out():
    with running(max_calls=1) as server:
        envs = [remote(server, rpc_timeout=5.0 + i) for i in range(4)]  # four clients, as they differ

        def episode(env: gymnasium.Env[str, str]) -> int:
            env.reset(seed=1)
            return [env.step("sleep 0.01")[4]["turn"] for _ in range(5)][-1]

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(episode, envs)) == [5] * 4


def test_closing_frees_the_session_and_so_does_forgetting(server: Running):
    from tests.support.serving import wait_for

    before = server.server.sessions.count
    env, other = remote(server), remote(server)
    env.reset(seed=1)
    other.reset(seed=1)
    assert server.server.sessions.count == before + 2
    env.close()
    wait_for(lambda: server.server.sessions.count == before + 1)
    del other
    wait_for(lambda: server.server.sessions.count == before)


def test_requests_over_256_kib_are_sent_again(server: Running):
    """gRPC's own retries silently stop there."""
    with running() as lost:
        addresses = [lost.address, server.address]
        envs = [remote(server, address=addresses, max_length=200_000) for _ in range(3)]
        envs.append(remote(server, max_length=200_000))
        big = "\u4e2d" * 130_000
        for env in envs:
            env.reset(seed=4)
            env.step(big)
        assert lost.server.sessions.count > 0
    assert len({env.step(big)[0] for env in envs}) == 1
    assert len({env.unwrapped.digest for env in envs}) == 1  # pyright: ignore[reportAttributeAccessIssue]


_FORKS = """
    import multiprocessing, sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    import gymnasium

    def remote(env_id="tests/Probe-v0", **kwargs):
        return gymnasium.make("mrlm_envs:mrlm/Remote-v0", address=sys.argv[1], env_id=env_id, **kwargs)

    def in_child(play):
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=lambda: queue.put(play()))
        child.start()
        got = queue.get(timeout=120)
        child.join(120)
        assert child.exitcode == 0, child.exitcode
        return got
"""


def fork_from_a_fresh_process(server: Running, code: str) -> None:
    """Run a client that forks where no thread but its own can hold a lock; the server is the fixture's."""
    in_fresh_process(textwrap.dedent(_FORKS) + textwrap.dedent(code), server.address)


def test_a_forked_environment_goes_on_in_a_session_of_its_own(server: Running):
    fork_from_a_fresh_process(
        server,
        """
        env, twin = remote(), remote()
        for one in (env, twin):
            one.reset(seed=8)
            one.step("before")
        got = in_child(lambda: (env.step("child"), env.unwrapped.digest))
        assert got == (twin.step("child"), twin.unwrapped.digest), got
        assert env.step("parent")[4]["turn"] == 2, "the parent's session has not moved"
        """,
    )


def test_forks_while_steps_are_under_way(server: Running):
    fork_from_a_fresh_process(
        server,
        """
        envs = [remote() for _ in range(8)]
        for env in envs:
            env.reset(seed=1)
        stop = threading.Event()

        def work(env):
            turn = 0
            while not stop.is_set():
                turn = env.step("sleep 0.01")[4]["turn"]
            return turn

        with ThreadPoolExecutor(8) as threads:
            working = [threads.submit(work, env) for env in envs]
            try:
                spare = remote()
                spare.reset(seed=2)
                for _ in range(4):
                    assert in_child(lambda: spare.step("child"))[4]["turn"] == 1
                    time.sleep(0.05)
            finally:
                stop.set()
            assert all(future.result(120) > 0 for future in working)
        """,
    )


def test_forks_under_one_long_step_do_not_lose_it(server: Running):
    fork_from_a_fresh_process(
        server,
        """
        env = remote()
        env.reset(seed=1)
        with ThreadPoolExecutor(1) as threads:
            step = threads.submit(env.step, "sleep 1.7")
            for _ in range(6):
                time.sleep(0.15)
                in_child(int)
            result = step.result(120)
        assert not result[3] and result[4]["turn"] == 1, result
        """,
    )
    assert Probe.runs.count("sleep 1.7") == 1


def test_a_closed_client_says_so(server: Running):
    async def main() -> None:
        client = AsyncClient(server.address)
        session = await client.session("tests/Probe-v0")
        await session.reset(seed=1)
        await client.close()
        with pytest.raises(gymnasium.error.Error, match="closed"):
            await session.step("go")

    asyncio.run(main())


def test_async_vector_env_works_after_the_parent_has_used_a_client(server: Running):
    fork_from_a_fresh_process(
        server,
        """
        from gymnasium.vector import AsyncVectorEnv

        env = remote("tests/Guess-v0")
        env.reset(seed=1)
        make = lambda: remote("tests/Guess-v0", max_turns=3)
        vector = AsyncVectorEnv([make] * 3, context="fork")
        observations, _ = vector.reset(seed=5)
        singles = [make() for _ in range(3)]
        assert list(observations) == [single.reset(seed=5 + i)[0] for i, single in enumerate(singles)]
        actions = "1", "500", "999"
        observations, *_ = vector.step(actions)
        assert list(observations) == [single.step(action)[0] for single, action in zip(singles, actions)]
        vector.close()
        assert env.step("1")[4]["turn"] == 1
        """,
    )


def test_data_loader_workers_use_an_inherited_environment(server: Running):
    pytest.importorskip("torch")
    fork_from_a_fresh_process(
        server,
        """
        import torch

        env = remote("tests/Guess-v0")
        env.reset(seed=1)

        class Episodes(torch.utils.data.Dataset):
            def __len__(self):
                return 6

            def __getitem__(self, index):
                return env.reset(seed=index)[1]["task_id"]

        loader = torch.utils.data.DataLoader(
            Episodes(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120
        )
        assert list(loader) == [env.reset(seed=seed)[1]["task_id"] for seed in range(6)]
        """,
    )


def test_the_client_answers_to_a_name_with_several_addresses(server: Running):
    env = gymnasium.make(
        "mrlm_envs:mrlm/Remote-v0", address=f"dns:///localhost:{server.port}", env_id="tests/Probe-v0", step_timeout=20
    )
    assert env.reset(seed=1)[0] == remote(server).reset(seed=1)[0]


def test_a_failed_look_up_of_one_name_keeps_its_servers(monkeypatch: pytest.MonkeyPatch):
    look_up, is_down = socket.getaddrinfo, False

    def flaky(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "other.test" and is_down:
            raise socket.gaierror("try again")
        return look_up("127.0.0.1", *args, **kwargs)

    async def pick_twice() -> str:
        nonlocal is_down
        pool = ServerPool(["dns:///one.test:1001", "dns:///other.test:1002"], Access())
        await pool.pick()
        is_down = True
        picked = await pool.pick(tried=["127.0.0.1:1001"])
        pool.close()
        return picked.address

    monkeypatch.setattr(socket, "getaddrinfo", flaky)
    monkeypatch.setattr(server_pool, "_RESOLVE", 0.0)
    assert asyncio.run(asyncio.wait_for(pick_twice(), 60)) == "127.0.0.1:1002"


def test_sessions_spread_evenly_over_servers(server: Running):
    with running() as other:
        vector = gymnasium.make_vec(
            "mrlm_envs:mrlm/Remote-v0", num_envs=16, address=[server.address, other.address], env_id="tests/Probe-v0"
        )
        vector.reset(seed=0)
        assert other.server.sessions.count == 8
        vector.close()
