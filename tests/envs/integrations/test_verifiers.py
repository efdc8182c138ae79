"""Our environments in verifiers' own runner, against a local endpoint that streams as their client wants it.

They run in verifiers' own environment (`make test-peers`); its null harness is a `uv` script that is resolved once.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from mrlm_train.commands import export
from tests.support.paths import ROOT

Messages = list[dict[str, Any]]

needs_peer = pytest.mark.skipif(
    importlib.util.find_spec("verifiers") is None,
    reason="needs verifiers in an environment of its own: make test-peers",
)


@contextmanager
def endpoint(say: Callable[[Messages], str]) -> Iterator[str]:
    """A chat endpoint on a free port of this machine that answers each conversation with `say(messages)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            about = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
            deltas = [{"role": "assistant", "content": ""}, {"content": say(body["messages"])}, {}]
            chunks: list[dict[str, Any]] = []
            for number, delta in enumerate(deltas):
                choice = {"index": 0, "delta": delta, "finish_reason": "stop" if number == 2 else None}
                chunks.append({**about, "choices": [choice]})
            chunks.append({**about, "choices": [], "usage": usage})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            lines = [*map(json.dumps, chunks), "[DONE]"]
            self.wfile.write("".join(f"data: {line}\n\n" for line in lines).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def evaluate(tmp_path: Path, env_id: str, say: Callable[[Messages], str], n: int = 2, **kwargs: Any) -> Messages:
    """The episodes of `vf-eval` on the exported package."""
    package = tmp_path / "package"
    if not package.exists():
        export.run("verifiers", env_id, package, **kwargs)
    [name] = [path.name for path in package.iterdir() if (path / "__init__.py").exists()]
    program = "from verifiers.v1.cli.eval.main import main; main()"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}", "VF_KEY": "none"}
    with endpoint(say) as address:
        flags = ["--client.base-url", address, "--client.api-key-var", "VF_KEY", "--model", "scripted", "-n", str(n)]
        flags += ["--env.taskset.num-tasks", str(n), "--output-dir", str(tmp_path / "out"), "--no-rich", "--no-push"]
        command = [sys.executable, "-c", program, name.replace("_", "-"), *flags]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, cwd=tmp_path, check=False)
    [found] = list((tmp_path / "out").rglob("traces.jsonl")) or pytest.fail(ran.stdout[-3000:] + ran.stderr[-3000:])
    episodes = [json.loads(line) for line in found.read_text().splitlines()]
    return episodes


def traces(episodes: Messages) -> Messages:
    return [trace for episode in episodes for trace in episode["traces"]]


@needs_peer
def test_a_single_turn_environment_is_scored_by_their_runner(tmp_path: Path) -> None:
    env = gymnasium.make("mrlm_envs:mrlm/Math-v0", kinds=["addition"])
    known = {env.reset(seed=0)[0]: env.unwrapped.expert()}  # pyright: ignore[reportAttributeAccessIssue]
    export.run("verifiers", "mrlm/Math-v0", tmp_path / "source", kinds=["addition"])
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    command = [*pip, "--target", str(tmp_path / "package"), str(tmp_path / "source")]  # as `pip install` would
    subprocess.run(command, check=True, timeout=200)
    found = evaluate(
        tmp_path, "mrlm/Math-v0", lambda said: known.get(said[-1]["content"], "no idea"), kinds=["addition"]
    )
    by_name = {trace["task"]["data"]["name"]: trace for trace in traces(found)}
    solved, failed = by_name["mrlm/Math-v0#0"], by_name["mrlm/Math-v0#1"]
    assert (solved["rewards"]["reward"]["score"], solved["metrics"]["success"]) == (1.0, 1.0)
    assert (failed["rewards"]["reward"]["score"], failed["metrics"]["success"]) == (0.0, 0.0)
    assert solved["nodes"][0]["message"]["role"] == "system" and solved["ok"]


@needs_peer
def test_a_multi_turn_environment_answers_as_the_user_and_a_fault_is_an_error(tmp_path: Path) -> None:
    def say(messages: Messages) -> str:
        heard = [message["content"] for message in messages if message["role"] == "user"]
        if len(heard) == 1:
            return "2"
        return "3" if heard[-1] == "higher" else "1"

    found = evaluate(tmp_path, "tests.support.guessing:tests/Guess-v0", say, n=6, high=4, max_turns=3)
    played = traces(found)
    assert {tuple(trace["info"]["turn_rewards"]) for trace in played} <= {
        (1.0,),
        (0.0, 1.0),
        (0.0, 0.0, 0.0),
    } and any(len(trace["info"]["turn_rewards"]) > 1 for trace in played)
    for trace in played:
        turns = [node["message"]["content"] for node in trace["nodes"] if node["sampled"]]
        assert len(turns) == len(trace["info"]["turn_rewards"])
        assert trace["rewards"]["reward"]["score"] == sum(trace["info"]["turn_rewards"])
    broken = evaluate(tmp_path / "broken", "tests.support.guessing:tests/Guess-v0", lambda _: "break it", n=1)
    assert "EnvFault" in json.dumps(broken[0]["errors"]) and not broken[0]["ok"]


@needs_peer
def test_tools_are_told_in_the_system_prompt_and_called_in_text(tmp_path: Path) -> None:
    local = gymnasium.make("mrlm_envs:mrlm/ToolUse-v0", tools=["calculator"]).unwrapped
    systems: list[str] = []

    def say(messages: Messages) -> str:
        systems.append(messages[0]["content"])
        local.reset(seed=0)
        for message in messages:
            if message["role"] == "assistant":
                local.step(message["content"])
        return local.expert()  # pyright: ignore[reportAttributeAccessIssue]

    [trace] = traces(evaluate(tmp_path, "mrlm/ToolUse-v0", say, n=1, tools=["calculator"]))
    assert trace["rewards"]["reward"]["score"] == 1.0 and len(trace["info"]["turn_rewards"]) > 1
    assert '"name": "calculator"' in systems[0] and "<tool_call>" in systems[0]


@pytest.mark.skipif(importlib.util.find_spec("verifiers") is not None, reason="verifiers is installed")
def test_without_verifiers_the_install_line_is_told() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"verifiers, which is not installed; pip install \"mrlm\[verifiers"):
        importlib.import_module("mrlm_envs.integrations.verifiers")
