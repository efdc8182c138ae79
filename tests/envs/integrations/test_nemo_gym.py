"""Our environments behind NeMo-Gym's requests, recorded from its `simple_agent` and `library_judge_math/client.py`.

NeMo-Gym is not on the package index: `Recorded` stands for its base class with the routes that this publishes.
"""

import json
import sys
import types
from typing import Any

import gymnasium
import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import tests.support.guessing  # noqa: F401  registers tests/Guess-v0
from mrlm_envs.integrations import nemo_gym
from mrlm_envs.integrations.nemo_gym import rows, server
from mrlm_envs.tools.calls import Call, parse
from tests.support.serving import Probe


class Recorded:
    """`SimpleResourcesServer` as published: its own `/seed_session`, `/verify` and `/aggregate_metrics`."""

    def setup_webserver(self) -> Starlette:
        paths = ("/seed_session", "/verify", "/aggregate_metrics")
        return Starlette(routes=[Route(path, lambda _: JSONResponse("theirs"), methods=["POST"]) for path in paths])


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("nemo_gym.base_resources_server")
    module.SimpleResourcesServer = Recorded
    monkeypatch.setitem(sys.modules, "nemo_gym", types.ModuleType("nemo_gym"))
    monkeypatch.setitem(sys.modules, "nemo_gym.base_resources_server", module)


def client(env_id: str, **kwargs: Any) -> TestClient:
    return TestClient(server(env_id, **kwargs)().setup_webserver())


def response(*output: dict[str, Any]) -> dict[str, Any]:
    """A recorded object of the Responses API."""
    fixed = {"id": "response_1", "created_at": 1.0, "model": "m", "object": "response", "tools": []}
    return {**fixed, "output": list(output), "parallel_tool_calls": False, "tool_choice": "none"}


def message(text: str) -> dict[str, Any]:
    content = [{"annotations": [], "text": text, "type": "output_text"}]
    return {"id": "message_1", "content": content, "role": "assistant", "status": "completed", "type": "message"}


def test_a_single_turn_is_verified() -> None:
    env = gymnasium.make("mrlm_envs:mrlm/Math-v0")
    for row in rows("mrlm/Math-v0", n=2):
        env.reset(seed=row["seed"])
        right = env.unwrapped.expert()  # pyright: ignore[reportAttributeAccessIssue]
        for text, reward in ((right, 1.0), ("no idea", 0.0)):
            with client("mrlm/Math-v0") as web:
                seeded = web.post("/seed_session", json=row)
                request = {**row, "response": response(message(text))}
                verdict = web.post("/verify", json=request, cookies=seeded.cookies).json()
            assert (verdict["reward"], verdict["mask_sample"]) == (reward, False)
            assert verdict["responses_create_params"] == row["responses_create_params"]  # theirs echoes the request
            assert verdict["response"] == request["response"]


def test_the_agent_calls_tools_by_path_and_keeps_the_cookies_of_the_last_reply() -> None:
    [row] = rows("mrlm/ToolUse-v0", n=1, tools=["calculator"])
    assert row["responses_create_params"]["tools"][0]["name"] == "calculator"
    local = gymnasium.make("mrlm_envs:mrlm/ToolUse-v0", tools=["calculator"]).unwrapped
    local.reset(seed=0)
    with client("mrlm/ToolUse-v0", tools=["calculator"]) as web:
        web.cookies.clear()
        reply = web.post("/seed_session", json=row)
        while True:
            action = local.expert()  # pyright: ignore[reportAttributeAccessIssue]
            said = local.step(action)[0]
            calls = [call for call in parse(action) if isinstance(call, Call)]
            if not calls:
                break
            web.cookies.clear()
            reply = web.post(f"/{calls[0].name}", json=calls[0].arguments, cookies=reply.cookies)
            assert reply.text == said
        web.cookies.clear()
        body = {**row, "response": response(message(action))}
        verdict = web.post("/verify", json=body, cookies=reply.cookies).json()
    assert (verdict["reward"], verdict["success"]) == (1.0, True)


def test_without_nemo_gym_or_with_a_box_of_numbers_one_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not text"):
        server("CartPole-v1")
    monkeypatch.setitem(sys.modules, "nemo_gym.base_resources_server", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match="NeMo-Gym is not installed; run this in its repository"):
        server("mrlm/Math-v0")


def test_what_failed_for_reasons_of_ours_is_masked() -> None:
    [row] = rows("tests/Guess-v0", n=1)
    body = {**row, "response": response(message("break it"))}
    with client("tests/Guess-v0") as web:
        lost = web.post("/verify", json=body).json()
        web.post("/seed_session", json=row)
        broken = web.post("/verify", json=body).json()
    assert (lost["reward"], lost["mask_sample"], lost["failure_reason"]) == (0.0, True, "the session is lost")
    assert (broken["reward"], broken["mask_sample"]) == (0.0, True)


def test_sessions_are_bounded_and_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemo_gym, "_MAX_SESSIONS", 2)
    sessions = nemo_gym.Sessions("tests/Guess-v0", high=4)
    for name in ("a", "b", "c"):
        sessions.answer("seed_session", {"seed": 1}, name)
    bodies = [sessions.answer("verify", {"response": response(message("9"))}, name) for name in ("a", "b", "c")]
    assert [body["mask_sample"] for body in bodies] == [True, False, False]


def test_an_episode_is_closed_when_its_session_begins_another() -> None:
    sessions = nemo_gym.Sessions("tests.support.serving:tests/Probe-v0")
    before = Probe.alive
    for seed in (1, 2):
        sessions.answer("seed_session", {"seed": seed}, "a")
    assert Probe.alive == before + 1
    sessions.answer("verify", {"response": response(message("done"))}, "a")
    assert Probe.alive == before


def test_their_other_paths_stay_theirs_and_a_reply_without_words_is_an_action() -> None:
    [row] = rows("mrlm/Math-v0", n=1)
    with client("mrlm/Math-v0") as web:
        assert web.post("/aggregate_metrics", json={}).json() == "theirs"
        web.post("/seed_session", json=row)
        verdict = web.post("/verify", json={**row, "response": response()}).json()
    assert (verdict["reward"], verdict["mask_sample"]) == (0.0, False)
    assert json.dumps(verdict)
