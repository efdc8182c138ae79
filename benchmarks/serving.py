"""Served steps per second: ours against OpenEnv's server and client, the raw batched call and the empty one.

    python benchmarks/serving.py --openenv-python /path/to/a/venv/with/openenv/bin/python

`--frozen` measures something else: what is left for other sessions when 1, 2 and 3 of 4 workers are frozen by a step
that never gives the interpreter's lock back.

Every server and every client is a process of its own. The cases are interleaved in rounds, so that a busy machine
slows all of them; the table shows the median round. Steps per CPU-second count the client's and the servers' time and
hardly feel the neighbours.
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ACTION = "the answer is 42 " * 3
ENV = "benchmarks.serving:bench/Echo-v0"
_SESSION = b"0123456789abcdef"

# name -> (client, servers, what the client does, sessions, observation bytes, milliseconds of CPU a step)
CASES: dict[str, tuple[str, str, str, int, int, float]] = {
    **{f"OpenEnv, {n} concurrent": ("openenv", "openenv", "single", n, 500, 0.0) for n in (1, 8, 64, 256)},
    **{f"ours, {n} concurrent": ("ours", "ours", "single", n, 500, 0.0) for n in (1, 8, 64, 256)},
    **{f"ours, vector of {n}": ("ours", "ours", "vector", n, 500, 0.0) for n in (64, 256)},
    **{f"raw batched call of {n}": ("ours", "raw", "raw", n, 500, 0.0) for n in (64, 256)},
    "OpenEnv, 64 concurrent, 8 kB": ("openenv", "openenv", "single", 64, 8000, 0.0),
    "ours, 64 concurrent, 8 kB": ("ours", "ours", "single", 64, 8000, 0.0),
    "ours, vector of 64, 8 kB": ("ours", "ours", "vector", 64, 8000, 0.0),
    "ours, empty call": ("ours", "ours", "empty", 1, 0, 0.0),
    "ours, vector of 64, 1 ms step, one worker": ("ours", "ours", "vector", 64, 500, 1.0),
    "ours, vector of 64, 1 ms step, two workers": ("ours", "two", "vector", 64, 500, 1.0),
}


def burn(milliseconds: float) -> None:
    """Compute for that much CPU time."""
    if not milliseconds:
        return
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        sum(range(50))


def register() -> None:
    """`bench/Echo-v0`: answers with `size` bytes."""
    import gymnasium

    from mrlm_envs.core import Opening, Options, Reply, TextEnv

    class Echo(TextEnv):
        def __init__(self, size: int = 500, milliseconds: float = 0.0, **kwargs: Any) -> None:
            super().__init__(**{"max_turns": 1_000_000_000, **kwargs})
            self.text, self.milliseconds = "x" * size, milliseconds

        def begin(self, options: Options) -> Opening:
            return Opening(self.text, task_id=str(self.rng.integers(1_000_000)))

        def respond(self, action: str) -> Reply:
            if action == "freeze":
                ctypes.PyDLL(None).sleep(3600)  # holds the interpreter's lock, as a catastrophic pattern does
            if action == "wait":
                time.sleep(0.25)
            burn(self.milliseconds)
            return Reply(self.text, {"echo": 0.0})

    if "bench/Echo-v0" not in gymnasium.registry:
        gymnasium.register("bench/Echo-v0", entry_point=Echo)


if __name__ == "benchmarks.serving":
    register()


def openenv_server(port: int) -> None:
    """The equivalent environment on OpenEnv's server."""
    import uvicorn
    from openenv.core.env_server.http_server import create_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class Say(Action):
        text: str

    class Heard(Observation):
        text: str

    class Echo(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, episode_id: str | None = None, size: int = 500, **_: Any) -> Heard:
            self.text = "x" * size
            return Heard(text=self.text, reward=0.0, done=False)

        def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Heard:
            return Heard(text=self.text, reward=0.0, done=False)

        @property
        def state(self) -> State:
            return State()

    app = create_app(Echo, Say, Heard, env_name="echo", max_concurrent_envs=1024)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", ws_ping_interval=None)


async def openenv_client() -> None:
    """Slices on request, through OpenEnv's own client."""
    from openenv.core.generic_client import GenericEnvClient

    envs: dict[tuple[int, int], list[Any]] = {}
    for order in orders():
        key = order["sessions"], order["size"]
        if key not in envs:
            url = f"http://{order['addresses'][0]}"
            # No pings: between its slices this process answers none.
            made = [GenericEnvClient(base_url=url, websocket_ping_interval_s=None) for _ in range(key[0])]
            for env in made:
                await env.connect()
                await env.reset(size=key[1])
            envs[key] = made
        wait_for_start()
        end, steps = time.perf_counter() + order["seconds"], 0
        start = time.perf_counter()

        async def work(env: Any) -> int:
            count = 0
            while time.perf_counter() < end:  # noqa: B023
                result = await env.step({"text": ACTION})
                assert result.observation["text"]
                count += 1
            return count

        steps = sum(await asyncio.gather(*(work(env) for env in envs[key])))
        report(steps, time.perf_counter() - start)


async def our_client() -> None:
    """Slices on request, through `AsyncClient`, the vector environment, or bare gRPC."""
    import grpc
    import gymnasium

    from mrlm_envs.serving import AsyncClient
    from mrlm_envs.serving import envs_pb2 as pb

    kept: dict[str, Any] = {}
    for order in orders():
        n, end_after, kwargs = order["sessions"], order["seconds"], {"size": order["size"]}
        key = json.dumps({**order, "seconds": 0})
        if order["milliseconds"]:
            kwargs["milliseconds"] = order["milliseconds"]
        if order["how"] == "single":
            if key not in kept:
                client = AsyncClient(order["addresses"])
                kept[key] = [await client.session("bench/Echo-v0", **kwargs) for _ in range(n)]
            # A history without end is not what is measured.
            await asyncio.gather(*(session.reset(seed=0) for session in kept[key]))
            wait_for_start()
            start = time.perf_counter()
            end = start + end_after

            async def work(session: Any) -> int:
                count = 0
                while time.perf_counter() < end:  # noqa: B023
                    await session.step(ACTION)
                    count += 1
                return count

            steps = sum(await asyncio.gather(*(work(session) for session in kept[key])))
        elif order["how"] == "vector":
            if key not in kept:
                remote = {"address": order["addresses"], "env_id": "bench/Echo-v0", **kwargs}
                kept[key] = gymnasium.make_vec("mrlm_envs:mrlm/Remote-v0", num_envs=n, **remote)
            kept[key].reset(seed=0)
            wait_for_start()
            start, steps = time.perf_counter(), 0
            while time.perf_counter() < start + end_after:
                kept[key].step([ACTION] * n)
                steps += n
        else:
            channel = kept.setdefault(order["addresses"][0], grpc.insecure_channel(order["addresses"][0]))
            call = channel.unary_unary(
                "/mrlm.env.v1.Environments/Step",
                request_serializer=pb.StepRequest.SerializeToString,
                response_deserializer=pb.StepReply.FromString,
            )
            wait_for_start()
            start, steps, data = time.perf_counter(), 0, ACTION.encode()
            while time.perf_counter() < start + end_after:
                if order["how"] == "empty":
                    call(pb.StepRequest(), timeout=10)
                    steps += 1
                    continue
                items = [pb.StepItem(session=_SESSION, episode=1, seq=1, action=data) for _ in range(n)]
                for result in call(pb.StepRequest(items=items), timeout=10).results:
                    assert result.observation
                    steps += 1
        report(steps, time.perf_counter() - start)


async def raw_server() -> None:
    """The same messages with nothing behind them: the most a batched call could give."""
    import grpc

    from mrlm_envs.serving import envs_pb2 as pb

    text, info, digest = "x" * 500, b'{"turn":1}' * 10, b"0" * 16

    async def step(request: Any, context: Any) -> Any:
        reply = pb.StepReply()
        for item in request.items:
            reply.results.add(observation=text, reward=0.0, info=info, digest=digest, seq=item.seq)
        return reply

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(step, pb.StepRequest.FromString, pb.StepReply.SerializeToString)
    handler = grpc.method_handlers_generic_handler("mrlm.env.v1.Environments", {"Step": method})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"raw: 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def orders() -> Any:
    """The driver's requests."""
    while line := sys.stdin.readline():
        yield json.loads(line)


def wait_for_start() -> None:
    """Tell the driver that everything is made and reset, and wait until it has read the CPU times."""
    print("ready", flush=True)
    sys.stdin.readline()


def report(steps: int, seconds: float) -> None:
    """Answer the driver."""
    print(json.dumps([steps, seconds]), flush=True)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children that still run."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(word) for word in file.read().split()]
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(child) for child in children)


def wait_for_port(port: int, seconds: float = 300.0) -> None:
    """Wait until something listens there."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


class Peers:
    """The processes of a run."""

    def __init__(self, openenv_python: str | None) -> None:
        self.python = openenv_python
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.addresses: dict[str, list[str]] = {}

    def start(self) -> None:
        """Start all of them, and wait until they are ready."""
        openenv_python = self.python
        serve = [sys.executable, "-m", "mrlm_envs.serving", "--environments", ENV, "--allow-kwargs", "*", "--port", "0"]
        self.begin("ours", serve, 1)
        self.begin("two", [*serve, "--workers", "2"], 2)
        self.begin("raw", [sys.executable, __file__, "--role", "raw-server"], 1)
        self.begin("client of ours", [sys.executable, __file__, "--role", "our-client"], 0)
        if openenv_python:
            self.begin("openenv", [openenv_python, __file__, "--role", "openenv-server", "--port", "8763"], 0)
            self.addresses["openenv"] = ["127.0.0.1:8763"]
            self.begin("client of openenv", [openenv_python, __file__, "--role", "openenv-client"], 0)
            wait_for_port(8763)  # uvicorn says nothing when it is ready

    def begin(self, name: str, command: list[str], lines: int) -> None:
        """Start a process, and read the addresses that it prints."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MRLM_SERVE_PARENT": str(os.getpid())}
        process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        self.processes[name] = process
        self.addresses[name] = [process.stdout.readline().split(": ")[1].split()[0] for _ in range(lines)]

    def measure(self, case: str, seconds: float) -> tuple[float, float]:
        """Steps per second, and steps per CPU-second."""
        client, server, how, sessions, size, milliseconds = CASES[case]
        worker = self.processes[f"client of {client}"]
        assert worker.stdin is not None and worker.stdout is not None
        pids = [worker.pid, self.processes[server].pid]
        order = {"how": how, "sessions": sessions, "size": size, "milliseconds": milliseconds, "seconds": seconds}
        order["addresses"] = self.addresses[server]
        worker.stdin.write(json.dumps(order) + "\n")
        worker.stdin.flush()
        worker.stdout.readline()
        before = sum(map(cpu_seconds, pids))
        worker.stdin.write("\n")
        worker.stdin.flush()
        steps, wall = json.loads(worker.stdout.readline())
        return steps / wall, steps / max(sum(map(cpu_seconds, pids)) - before, 0.01)

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


async def frozen(seconds: float) -> None:
    """Steps a second of 32 sessions whose steps wait for 250 ms, with 0 to 3 of 4 workers frozen."""
    from mrlm_envs.serving import AsyncClient

    print("| frozen | steps/s | of none frozen | of none frozen, after the first 12 s |\n| --- | --- | --- | --- |")
    ideal: list[float] = []
    for count in range(4):
        peers = Peers(None)
        serve = [sys.executable, "-m", "mrlm_envs.serving", "--environments", ENV, "--port", "0", "--workers", "4"]
        peers.begin("servers", [*serve, "--step-timeout", "3600", "--grace", "1"], 4)
        addresses = peers.addresses["servers"]
        try:
            async with AsyncClient(addresses) as client:
                sessions = [await client.session("bench/Echo-v0") for _ in range(32)]
                await asyncio.gather(*(session.reset(seed=0) for session in sessions))
                for address in addresses[:count]:
                    async with AsyncClient(address, step_timeout=1.0) as poisoner:
                        poison = await poisoner.session("bench/Echo-v0")
                        await poison.reset(seed=0)
                        await poison.step("freeze")
                start = time.perf_counter()
                taken: list[float] = []

                async def play(session: Any) -> None:
                    while time.perf_counter() < start + seconds:  # noqa: B023
                        await session.step("wait")
                        taken.append(time.perf_counter() - start)  # noqa: B023

                await asyncio.gather(*(play(session) for session in sessions))
                late = [len(taken) / taken[-1], sum(at > 12 for at in taken) / (taken[-1] - 12)]
                ideal = ideal or late
                shares = [f"{100 * rate / unfrozen:.0f} %" for rate, unfrozen in zip(late, ideal)]
                print(f"| {count} of 4 | {late[0]:,.0f} | {shares[0]} | {shares[1]} |", flush=True)
        finally:
            peers.end()


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openenv-python", help="a Python that has `openenv`; without it OpenEnv is left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each slice")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--frozen", action="store_true", help="measure frozen workers instead, 60 s a row")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.frozen:
        return asyncio.run(frozen(60.0))
    if args.role == "openenv-server":
        return openenv_server(args.port)
    if args.role:
        roles = {"openenv-client": openenv_client, "our-client": our_client, "raw-server": raw_server}
        return asyncio.run(roles[args.role]())
    peers = Peers(args.openenv_python)
    try:
        peers.start()
    except BaseException:
        peers.end()
        raise
    cases = [case for case in CASES if (args.openenv_python or "OpenEnv" not in case) and args.only in case]
    found: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    try:
        for round_number in range(args.rounds + 1):
            for case in cases:
                result = peers.measure(case, args.seconds if round_number else 0.3)
                if round_number:  # the first one warms up
                    found[case].append(result)
    finally:
        peers.end()
    print("| case | steps/s | steps per CPU-second |\n| --- | --- | --- |")
    for case in cases:
        wall, cpu = (statistics.median(column) for column in zip(*found[case]))
        print(f"| {case} | {wall:,.0f} | {cpu:,.0f} |")


if __name__ == "__main__":
    main()
