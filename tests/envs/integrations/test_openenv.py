"""OpenEnv's protocol, both ways: our server under recorded messages and its own client, and its server as ours."""

import importlib.util
import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("websockets")

from websockets.sync.client import connect

import mrlm_envs
from mrlm_envs.checker import check_text_env
from mrlm_envs.checks import Limits, card
from mrlm_envs.integrations import openenv
from mrlm_train.commands import export

PEER = sys.executable if importlib.util.find_spec("openenv") else None  # in the environment of `make test-peers`


@contextmanager
def served(env_id: str | Any, max_sessions: int = 8, port: int = 0, **kwargs: Any) -> Iterator[str]:
    """Our application, or another one, on a port of this machine."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = port or listener.getsockname()[1]
    app = openenv.app(env_id, max_sessions, **kwargs) if isinstance(env_id, str) else env_id
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def ask(connection: Any, kind: str, **data: Any) -> dict[str, Any]:
    connection.send(json.dumps({"type": kind, "data": data}))
    return json.loads(connection.recv(timeout=60))


def ws(address: str) -> Any:
    return connect(address.replace("http", "ws") + "/ws")


def test_an_episode_over_the_socket_is_the_local_one() -> None:
    local = gymnasium.make("mrlm_envs:mrlm/ToolUse-v0")
    observation, info = local.reset(seed=3)
    with served("mrlm/ToolUse-v0") as address, ws(address) as connection:
        reply = ask(connection, "reset", seed=3, episode_id="mine")
        assert reply["type"] == "observation"
        assert reply["data"]["observation"] == {
            "prompt": observation, "role": "user", "truncated": False, "tools": info["tools"],
        }  # fmt: skip
        assert reply["data"]["metadata"]["system_prompt"] == info["system"]
        assert reply["data"]["metadata"]["task_id"] == info["task_id"]
        done, data = False, reply["data"]
        while not done:
            action = local.unwrapped.expert()  # pyright: ignore[reportAttributeAccessIssue]
            text, reward, done, _, info = local.step(action)
            data = ask(connection, "step", message=action)["data"]
            assert (data["observation"]["prompt"], data["reward"], data["done"]) == (text, reward, done)
        assert data["reward"] == 1.0 and data["metadata"]["success"]
        state = ask(connection, "state")["data"]
        assert (state["episode_id"], state["step_count"]) == ("mine", info["turn"])


def test_two_sessions_do_not_meet_and_a_reconnect_is_no_fresh_environment() -> None:
    with served("mrlm/Math-v0", max_turns=2) as address, ws(address) as one, ws(address) as two:
        first, second = ask(one, "reset", seed=1)["data"], ask(two, "reset", seed=2)["data"]
        assert first["observation"]["prompt"] != second["observation"]["prompt"]
        ask(one, "step", message="wrong")
        assert ask(two, "state")["data"]["step_count"] == 0
        with ws(address) as again:
            assert ask(again, "step", message="wrong")["data"]["code"] == "SESSION_ERROR"
        assert ask(one, "step", message="wrong")["data"]["done"]
        assert ask(one, "step", message="wrong")["data"]["code"] == "SESSION_ERROR"


class Odd(gymnasium.Env[str, str]):
    """Says in its `info` what JSON does not know, and what UTF-8 does not."""

    observation_space = action_space = mrlm_envs.Unicode(100)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return "begin", {"steps": np.int64(3)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "end", 1.0, True, False, {"said": "\ud800"}


def test_an_info_of_numpys_numbers_or_a_lone_surrogate_does_not_end_the_connection() -> None:
    gymnasium.register("tests/OddInfo-v0", entry_point=Odd)
    try:
        with served("tests/OddInfo-v0") as address, ws(address) as connection:
            assert ask(connection, "reset", seed=1)["data"]["metadata"]["steps"] == 3
            assert ask(connection, "step", message="x")["data"]["reward"] == 1.0
    finally:
        del gymnasium.registry["tests/OddInfo-v0"]


def test_nothing_privileged_is_in_an_observation() -> None:
    with served("mrlm/Math-v0") as address, ws(address) as connection:
        for seed in range(20):
            data = ask(connection, "reset", seed=seed)["data"]
            assert set(data["observation"]) <= {"prompt", "role", "truncated", "tools"}
            env = gymnasium.make("mrlm_envs:mrlm/Math-v0")
            env.reset(seed=seed)
            assert env.unwrapped.expert() not in json.dumps(data)  # pyright: ignore[reportAttributeAccessIssue]


def test_evaluation_takes_the_test_split() -> None:
    trained, tested = (gymnasium.make("mrlm_envs:mrlm/Math-v0", split=split) for split in ("train", "test"))
    with served("mrlm/Math-v0") as address, ws(address) as connection:
        for seed in range(5):
            assert ask(connection, "reset", seed=seed)["data"]["observation"]["prompt"] == trained.reset(seed=seed)[0]
            data = ask(connection, "reset", seed=seed, evaluation=True)["data"]
            assert data["observation"]["prompt"] == tested.reset(seed=seed)[0]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("no json", "INVALID_JSON"),
        ("[1]", "VALIDATION_ERROR"),
        ('{"type": "dance"}', "UNKNOWN_TYPE"),
        ('{"type": "step", "data": {"text": "x"}}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": {"message": 7}}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": []}', "SESSION_ERROR"),
        ('{"type": "step", "data": [1]}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": {"message": "x"}}', "SESSION_ERROR"),
        ('{"type": "reset", "data": {"seed": -1}}', "VALIDATION_ERROR"),
        ('{"type": "reset", "data": {"options": 3}}', "VALIDATION_ERROR"),
        ('{"type": "reset", "data": {"options": {"task_id": "nothing"}}}', "EXECUTION_ERROR"),
        ("[" * 100_000, "INVALID_JSON"),
    ],
    ids=range(12),
)
def test_a_bad_message_is_an_error_and_the_session_goes_on(sent: str, code: str) -> None:
    if sent == '{"type": "step", "data": []}':
        code = "VALIDATION_ERROR"  # an empty list is no action either
    with served("mrlm/Math-v0") as address, ws(address) as connection:
        connection.send(sent)
        assert json.loads(connection.recv(timeout=60))["data"]["code"] == code
        assert ask(connection, "reset", seed=1)["type"] == "observation"


def test_sessions_are_limited() -> None:
    with served("mrlm/Math-v0", max_sessions=1) as address, ws(address) as one:
        ask(one, "reset", seed=1)
        with ws(address) as two:
            assert json.loads(two.recv(timeout=60))["data"]["code"] == "CAPACITY_REACHED"


def test_a_game_or_a_box_of_numbers_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="not text"):
        openenv.app("CartPole-v1")


def test_our_environment_behind_their_protocol_is_an_environment_again() -> None:
    with served("mrlm/Math-v0", max_turns=2) as address:
        env = gymnasium.make("mrlm_envs:mrlm/OpenEnv-v0", address=address)
        local = gymnasium.make("mrlm_envs:mrlm/Math-v0", max_turns=2)
        for seed in range(5):
            observation, info = env.reset(seed=seed)
            there, told = local.reset(seed=seed)
            assert (observation, info["task_id"], info["system"]) == (there, told["task_id"], told["system"])
            assert env.step("wrong")[:4] == local.step("wrong")[:4]
            action = local.unwrapped.expert()  # pyright: ignore[reportAttributeAccessIssue]
            result = env.step(action)
            assert (result[1], result[2], result[4]["success"]) == (1.0, True, True)
        check_text_env(env)
        env.close()


def test_a_lost_server_is_an_invalid_episode_and_nothing_at_an_address_is_told() -> None:
    with served("mrlm/Math-v0") as address:
        env = gymnasium.make("mrlm_envs:mrlm/OpenEnv-v0", address=address, timeout_s=20)
        env.reset(seed=1)
    _, reward, terminated, truncated, info = env.step("18")
    assert (reward, terminated, truncated, info["valid"]) == (0.0, False, True, False)
    with pytest.raises(mrlm_envs.EnvFault):
        env.reset(seed=1)
    with pytest.raises(ValueError, match="no OpenEnv server answers there"):
        gymnasium.make("mrlm_envs:mrlm/OpenEnv-v0", address=address, timeout_s=5)


def test_a_reset_over_a_connection_that_the_server_has_closed_connects_again() -> None:
    with served("mrlm/Math-v0") as address:
        env = gymnasium.make("mrlm_envs:mrlm/OpenEnv-v0", address=address, timeout_s=20)
        first = env.reset(seed=1)[0]
    with served("mrlm/Math-v0", port=int(address.rpartition(":")[2])):
        assert env.reset(seed=1)[0] == first
        env.close()


def saying(*replies: str) -> Any:
    """A server that answers the messages of each connection with these replies."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute

    async def answer(websocket: Any) -> None:
        await websocket.accept()
        for reply in replies:
            await websocket.receive_text()
            await websocket.send_text(reply)
        await websocket.close()

    schema = {"action": {"properties": {"message": {"type": "string"}}}}
    return Starlette(routes=[WebSocketRoute("/ws", answer), Route("/schema", lambda request: JSONResponse(schema))])


@pytest.mark.parametrize(
    "data",
    [
        '{"observation": {"prompt": "on"}, "reward": NaN}',
        '{"observation": {"prompt": "on"}, "reward": "much"}',
        '{"observation": "on", "reward": 1.0, "done": true}',
        '["on", 1.0]',
    ],
)
def test_a_reply_that_is_no_observation_or_has_no_finite_reward_is_the_servers_fault(data: str) -> None:
    bad = f'{{"type": "observation", "data": {data}}}'
    with served(saying('{"type": "observation", "data": {"observation": {"prompt": "go"}}}', bad)) as address:
        env = gymnasium.make("mrlm_envs:mrlm/OpenEnv-v0", address=address, timeout_s=20)
        env.reset(seed=1)
        _, reward, _, truncated, info = env.step("18")
        assert (reward, truncated, info["valid"]) == (0.0, True, False)
    with served(saying(bad)) as address:
        env = gymnasium.make("mrlm_envs:mrlm/OpenEnv-v0", address=address, timeout_s=20)
        with pytest.raises(mrlm_envs.EnvFault):
            env.reset(seed=1)


def test_a_step_after_close_opens_no_other_session() -> None:
    with served("mrlm/Math-v0", max_turns=2) as address:
        env = gymnasium.make("mrlm_envs:mrlm/OpenEnv-v0", address=address).unwrapped
        env.reset(seed=1)
        env.close()
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step("18")
        assert env.reset(seed=1)[1]["seed"] == 1
        env.close()


def test_the_exported_folder_serves_the_environment(tmp_path: Path) -> None:
    export.run("openenv", "mrlm/Math-v0", str(tmp_path), kinds=["addition"])
    sys.path.insert(0, str(tmp_path))
    try:
        code = (tmp_path / "server" / "app.py").read_text()
        namespace: dict[str, Any] = {"__name__": "server.app"}
        exec(compile(code, "app.py", "exec"), namespace)
    finally:
        sys.path.remove(str(tmp_path))
    assert {route.path for route in namespace["app"].routes} >= {"/ws", "/health", "/schema"}
    plan = json.loads((tmp_path / "validation" / "runtime.json").read_text())
    assert "boxed" in plan["actions"][0]["message"]


def peer(code: str, *arguments: str, timeout: float = 300) -> str:
    """What a program prints that runs where OpenEnv is installed."""
    assert PEER is not None
    ran = subprocess.run(
        [PEER, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


needs_peer = pytest.mark.skipif(PEER is None, reason="needs OpenEnv in an environment of its own: make test-peers")


@needs_peer
def test_openenvs_own_client_plays_and_its_validator_passes() -> None:
    with served("mrlm/Math-v0") as address:
        said = peer(
            """
            import sys
            from openenv.core.generic_client import GenericEnvClient
            with GenericEnvClient(base_url=sys.argv[1]).sync() as env:
                result = env.reset(seed=4)
                print(result.observation["prompt"])
                result = env.step({"message": "0"})
                print(result.reward, result.done)
            """,
            address,
        )
        local = gymnasium.make("mrlm_envs:mrlm/Math-v0")
        assert local.reset(seed=4)[0] in said and "True" in said
        command = [PEER, "-m", "openenv.cli", "validate", "--url", address]
        ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_peer
def test_the_exported_folder_passes_their_static_validation(tmp_path: Path) -> None:
    export.run("openenv", "mrlm/Math-v0", str(tmp_path / "math"), kinds=["addition"])
    command = [PEER, "-m", "openenv.cli", "validate", str(tmp_path / "math"), "--level", "static"]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_card_of_a_server_says_what_cannot_be_known_from_outside() -> None:
    with served("tests.envs.checks.planted:planted/Sum-v0", max_sessions=64) as address:
        found = {check.name: check for check in card(f"openenv:{address}", limits=Limits(seconds=1, episodes=8)).checks}
    assert {name for name, check in found.items() if check.status == "fail"} == set()
    assert {name for name, check in found.items() if check.status == "skip"} == {"oracle", "pickling", "difficulty"}
    assert found["oracle"].evidence == "cannot be known from outside: an expert is never served"


@pytest.mark.parametrize(
    ("planted", "line"),
    [
        *(("SharesTheQuestion", "interleaving"), ("IgnoresTheSeed", "determinism"), ("PaysForAnyBox", "floor")),
        *(("LeaksInTheObservation", "leakage"), ("RaisesOnNumerals", "faults")),
    ],
)
def test_a_fault_is_found_behind_a_server(planted: str, line: str) -> None:
    with served(f"tests.envs.checks.planted:planted/{planted}-v0", max_sessions=64) as address:
        assert card(f"openenv:{address}", limits=Limits(seconds=1, episodes=8)).failed == [line]


@pytest.mark.skipif(PEER is None, reason="OpenEnv is not installed here; make test-peers")
def test_the_card_is_graders_of_openenvs_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openenv.validation import runner
    from openenv.validation.graders import GraderRegistry, Subject
    from openenv.validation.runner import default_grader_registry, run_validation
    from openenv.validation.types import Level

    export.run("openenv", "tests.envs.checks.planted:planted/SharesTheQuestion-v0", tmp_path / "space")
    registry = GraderRegistry()
    assert registry.load_entry_points() >= 7

    def ours(policy: Any) -> Any:
        core = default_grader_registry(policy)
        core.load_entry_points()
        return core

    monkeypatch.setattr(runner, "default_grader_registry", ours)  # what OpenEnv#778 plans
    with served("tests.envs.checks.planted:planted/SharesTheQuestion-v0", max_sessions=64) as address:
        running = _Running(address)
        report = run_validation(tmp_path / "space", max_level=Level.RUNTIME, provider=_Here(running))
        subject = Subject(tmp_path, report.manifest, None, running, tmp_path)
        semantic = registry.get("semantic.floor_gap").run(subject)
    status = {result.check_id: result.status.value for result in report.results}
    assert status["runtime.startup"] == "pass"
    assert (status["runtime.seed_control"], status["runtime.episode_determinism"]) == ("pass", "pass")
    assert status["runtime.episode_isolation"] == "fail"
    assert semantic.status.value == "pass"


class _Running:
    """A server of this process as OpenEnv's `RunningSubject`."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def inspect(self) -> dict[str, Any]:
        return {}

    def logs(self, max_bytes: int = 65536) -> str:
        return ""

    def stop(self) -> None:
        pass


class _Here:
    """OpenEnv's `ValidationProvider` without Docker: what it starts runs already."""

    name = "here"
    supported_network_modes = frozenset({"no-network"})

    def __init__(self, running: _Running) -> None:
        from openenv.validation.types import ProviderCapability

        self.running, self.capabilities = running, frozenset({ProviderCapability.IMAGE_BUILD})

    def build(self, root: Path, execution: Any) -> str:
        return "sha256:" + "0" * 64

    def start(self, spec: Any) -> _Running:
        return self.running


def test_a_training_against_a_server_does_not_shuffle_every_seed() -> None:
    pytest.importorskip("torch")
    from types import SimpleNamespace

    from mrlm_train.rollout.tasks import training_tasks

    pool: Any = SimpleNamespace(envs=[SimpleNamespace(weight=1.0)], num_tasks=[openenv.OpenEnv.num_tasks])
    picks, seeds = training_tasks(pool, 8, seed=0)
    assert picks == [0] * 8 and len(set(seeds)) == 8
