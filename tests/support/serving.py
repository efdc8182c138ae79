"""Servers, environments and a bare protocol client for the serving tests."""

import asyncio
import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import grpc
import gymnasium

from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.server import Server
from mrlm_envs.serving.settings import Settings
from tests.support.paths import ROOT

PROBE = "tests.support.serving:tests/Probe-v0"
DICE = "tests.support.serving:tests/Dice-v0"
_SERVICE = "/mrlm.env.v1.Environments/"


class Probe(TextEnv):
    """Answers with a sum over its random draws and all actions; commands make it slow, busy or broken."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": None, "deterministic": True}
    runs: ClassVar[list[str]] = []  # every action that ran in this process
    alive: ClassVar[int] = 0

    def __init__(
        self, max_turns: int = 1000, size: int = 0, making: float = 0.0, closing: float = 0.0, **kwargs: Any
    ) -> None:
        time.sleep(making)
        super().__init__(max_turns=max_turns, **kwargs)
        self.size, self.closing = size, closing
        Probe.alive += 1

    def close(self) -> None:
        Probe.alive -= 1
        time.sleep(self.closing)

    reset_options = ("fail", "die", "sleep")

    def begin(self, options: Options) -> Opening:
        if options.get("fail"):
            raise RuntimeError("cannot begin")
        if options.get("die"):
            os._exit(9)
        if "sleep" in options:
            time.sleep(options["sleep"])
        self.total = int(self.rng.integers(1_000_000))
        return Opening(f"total {self.total}", task_id=str(self.total))

    def respond(self, action: str) -> Reply:
        Probe.runs.append(action)
        command, _, argument = action.partition(" ")
        if command == "raise":
            raise RuntimeError(f"told to: {argument}")
        if command == "eof":
            raise EOFError("told to")
        if command == "exit":
            sys.exit(3)
        if command == "die":
            os._exit(9)
        if command == "sleep":
            time.sleep(float(argument))
        if command == "freeze":  # never gives Python's interpreter lock back
            ctypes.PyDLL(None).sleep(600)  # as a catastrophic regular expression does, without burning a core
        if command == "burn":
            end = time.monotonic() + float(argument)
            while time.monotonic() < end:
                sum(range(1000))
        self.total += int(self.rng.integers(1_000_000)) + sum(action.encode())
        done = command == "done"
        return Reply(f"total {self.total}" + "x" * self.size, {"step": 0.25}, done=done, success=done)


class Dice(Probe):
    """The same, not replayable."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": None, "deterministic": False}


for _name, _class in (("tests/Probe-v0", Probe), ("tests/Dice-v0", Dice)):
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point=f"tests.support.serving:{_class.__name__}")


class Running:
    """A server in this process, on a loop and a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server: Server = self.run(self._start(settings))
        self.port = self.server.port
        self.address = f"127.0.0.1:{self.port}"

    async def _start(self, settings: Settings) -> Server:
        server = Server(settings)
        await server.start()
        return server

    def run(self, coroutine: Any, timeout: float = 60.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def stop(self, grace: float = 0.0) -> None:
        if not self.thread.is_alive():
            return
        self.run(self.server.stop(grace))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)


@contextlib.contextmanager
def running(*environments: str, tokens: str = "", preset: Any = None, **settings: Any) -> Iterator[Running]:
    """A server in this process; `tokens` and `preset` are what its files hold."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("token_file", tokens), ("kwargs_file", json.dumps(preset) if preset else "")):
            if text:
                settings[name] = Path(folder) / name
                settings[name].write_text(text)
        settings = {"port": 0, "allow_kwargs": "*", **settings}
        server = Running(Settings(",".join(environments or (PROBE, DICE)), **settings))
        try:
            yield server
        finally:
            server.stop()


class Spawned:
    """`mrlm serve` in a process of its own."""

    def __init__(self, *flags: str, environments: str = f"{PROBE},{DICE}", port: int = 0) -> None:
        command = [sys.executable, "-m", "mrlm_envs.serving", "--environments", environments, "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MRLM_SERVE_PARENT": str(os.getpid())},  # ends with us
        )

    def addresses(self, count: int = 1) -> list[str]:
        """Wait for the lines that say where it listens."""
        assert self.process.stdout is not None and self.process.stderr is not None
        found = []
        while len(found) < count:
            line = self.process.stdout.readline()
            assert line, f"mrlm serve ended: {self.process.stderr.read()}"
            found.append(line.split()[2])
        return found

    def workers(self) -> list[int]:
        """Process ids of the workers that run now."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return [int(word) for word in file.read().split()]

    def signal_worker(self, number: int) -> None:
        """Send the only worker a signal, behind its supervisor's back."""
        os.kill(self.workers()[0], number)

    def logs(self) -> list[dict[str, Any]]:
        """What it has logged, once it has ended."""
        assert self.process.stderr is not None
        return [json.loads(line) for line in self.process.stderr.read().splitlines()]

    def end(self) -> None:
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def spawned(count: int, *flags: str, **kwargs: Any) -> Iterator[list[tuple[Spawned, str]]]:
    servers = [Spawned(*flags, **kwargs) for _ in range(count)]
    try:
        yield [(server, server.addresses()[0]) for server in servers]
    finally:
        for server in servers:
            server.end()


class Raw:
    """The protocol and nothing else."""

    def __init__(self, address: str, token: str | None = None) -> None:
        self.channel = grpc.insecure_channel(address)
        self.metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def call(self, method: str, request: Any, reply: Any, timeout: float = 10.0) -> Any:
        stub = self.channel.unary_unary(
            _SERVICE + method,
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        return stub(request, timeout=timeout, metadata=self.metadata)

    def reset(
        self, session: bytes, episode: int = 1, *, env_id: str = "tests/Probe-v0", timeout: float = 10.0, **item: Any
    ):
        items = [pb.ResetItem(session=session, episode=episode, env_id=env_id, **{"seed": 7, **item})]
        return self.call("Reset", pb.ResetRequest(items=items), pb.ResetReply, timeout).results[0]

    def step(
        self, session: bytes, seq: int, action: str | bytes = "go", episode: int = 1, timeout: float = 10.0, wait_ms=0
    ):
        data = action.encode() if isinstance(action, str) else action
        items = [pb.StepItem(session=session, episode=episode, seq=seq, action=data)]
        return self.call("Step", pb.StepRequest(items=items, wait_ms=wait_ms), pb.StepReply, timeout).results[0]

    def abandon(self, session: bytes, seq: int, action: str) -> None:
        """Send a step, and hang up as soon as it runs."""
        stub = self.channel.unary_unary(_SERVICE + "Step", request_serializer=pb.StepRequest.SerializeToString)
        item = pb.StepItem(session=session, episode=1, seq=seq, action=action.encode())
        call: Any = stub.future(pb.StepRequest(items=[item]), metadata=self.metadata)
        wait_for(lambda: action in Probe.runs)
        call.cancel()

    def close(self) -> None:
        self.channel.close()


def code(result: Any) -> str:
    """The name of a result's error code, or ""."""
    return pb.Code.Name(result.error.code) if result.HasField("error") else ""


def wait_for(what: Any, seconds: float = 60.0) -> None:
    """Wait until `what()` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def free_port() -> int:
    """A port that is free right now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
