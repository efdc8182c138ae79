"""Chat endpoints as policies: a real server that limits rates, stumbles, hangs up and refuses keys."""

import json
from pathlib import Path
from typing import Any

import pytest

from examples.chat_server import ChatServer, HTTPFailure
from mrlm_train.cli import main
from mrlm_train.inference.policy import make
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.evaluation import evaluation_requests, evaluation_rollout
from tests.support.guessing import GuessNumber
from tests.support.playing import say, scripted

pytest.importorskip("openai")
GUESS = EnvEntry("Guess", {"low": 1, "high": 15, "split": "all"}, make=GuessNumber)


def bisect(request: dict[str, Any]) -> str:
    """Plays GuessNumber on 1 to 15 perfectly, from the messages alone."""
    low, high = 1, 15
    for said, heard in zip(request["messages"][2::2], request["messages"][3::2]):
        guess = int(said["content"])
        low, high = (guess + 1, high) if heard["content"] == "higher" else (low, guess - 1)
    return str((low + high) // 2)


def play(policy: Any, env: Any = GUESS, n: int = 6, **sampling: Any) -> list[Any]:
    with evaluation_rollout(policy, env, sampling=Sampling(**{"temperature": 0.0, **sampling})) as rollout:
        return rollout.run(evaluation_requests(rollout, n))


def name_of(server: ChatServer) -> str:
    return f"openai:some-model@{server.url}"


def test_an_endpoint_plays_whole_conversations_and_its_episodes_have_no_tokens() -> None:
    with ChatServer(bisect) as server:
        policy = make(name_of(server), rows=4)
        episodes = play(policy)
    assert all(episode.success and episode.valid for episode in episodes)
    assert {(e.prompt_ids, e.completion_ids, e.logprobs, e.tokenizer_hash) for e in episodes} == {(None,) * 4}
    assert episodes[0].messages[0]["role"] == "system" and episodes[0].policy == name_of(server)
    assert sum(e.info["completion_tokens"] for e in episodes) == policy.client.usage.completion_tokens > 0
    assert server.requests[0]["model"] == "some-model" and server.requests[0]["temperature"] == 0.0


def test_rate_limits_errors_and_hang_ups_are_outlasted() -> None:
    stumbles = [
        HTTPFailure(429, "slow down", {"Retry-After": "0.05"}),
        HTTPFailure(500, "oops"),
        HTTPFailure(503, "busy", {"Retry-After": "0.05"}),
        ConnectionAbortedError("the line is dropped"),  # the handler dies, and its socket with it
    ]

    def reply(request: dict[str, Any]) -> str:
        if stumbles:
            raise stumbles.pop()
        return bisect(request)

    with ChatServer(reply) as server:
        policy = make(name_of(server), rows=2)
        assert all(episode.success for episode in play(policy, n=4))
    assert not stumbles and policy.client.usage.failures == 0


def test_no_more_questions_are_in_flight_than_rows() -> None:
    with ChatServer(bisect) as server:
        play(make(name_of(server), rows=3), n=20)
        assert 1 <= server.most_at_once <= 3


def test_an_endpoint_that_breaks_down_later_leaves_invalid_episodes_not_lost_ones() -> None:
    def reply(request: dict[str, Any]) -> str:
        if len(server.requests) > 3:
            raise HTTPFailure(400, "content policy")
        return bisect(request)

    with ChatServer(reply) as server:
        episodes = play(make(name_of(server), rows=1), n=4)
    broken = [episode for episode in episodes if episode.stop_reason == "endpoint_error"]
    assert broken and all(not episode.valid and "content policy" in episode.info["error"] for episode in broken)


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [(401, "Incorrect API key", "OPENAI_API_KEY"), (404, "no such model", "no such model")],
)
def test_a_wrong_key_or_model_stops_at_once_in_one_line(
    status: int, said: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise HTTPFailure(status, said)

    with ChatServer(refuse) as server:
        if status == 401:
            monkeypatch.setattr(
                "examples.chat_server._Handler.do_GET", lambda self: self._send(401, {"error": {"message": said}})
            )
        code = main(["eval", "--model", "openai:m", "--base-url", server.url, "--environment", "math"])
        assert len(server.requests) <= 64
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 1 and error.startswith("mrlm: chat endpoint http") and said in error and expected in error


def test_nobody_at_the_address_is_told_before_anything_is_played(capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(bisect) as server:
        url = server.url
    assert main(["eval", "--model", f"openai:m@{url}", "--environment", "math"]) == 1
    assert "onnection" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["openai:", "openai:@http://127.0.0.1:1/v1"])
def test_an_endpoint_without_a_model_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected openai:MODEL"):
        make(name)


def test_the_token_budgets_hold_as_the_endpoint_counts() -> None:
    with ChatServer(lambda _: "one two three four five six") as server:
        policy = make(name_of(server))
        [episode] = play(policy, n=1, max_turn_tokens=8, max_episode_tokens=10)
        assert [request["max_tokens"] for request in server.requests] == [8, 4]  # six have been said
    assert episode.stop_reason == "token_limit" and episode.truncated and episode.success is False


def test_tools_are_listed_in_the_system_prompt_and_their_results_are_a_user_s_words() -> None:
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "1+1"}}</tool_call>'
    with ChatServer(lambda request: "<answer>2</answer>" if len(request["messages"]) > 2 else call) as server:
        [episode] = play(make(name_of(server)), EnvEntry("mrlm/ToolUse-v0", {"kinds": ["calculator"]}), n=1)
        first, second = server.requests
    assert '"name": "calculator"' in first["messages"][0]["content"]
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]
    assert [message["role"] for message in episode.messages[:4]] == ["system", "user", "assistant", "tool"]


def test_an_endpoint_is_an_opponent() -> None:
    with ChatServer(lambda _: "I disagree.") as server:
        agents = {"pro": "policy", "con": name_of(server)}
        game = EnvEntry("mrlm_envs.debate:parallel_env", {"rounds": 2}, agents=agents)
        [episode] = play(scripted(say("I say so.")), game, n=1, max_turn_tokens=16, max_episode_tokens=4000)
        assert server.requests
    assert episode.agent == "pro" and episode.valid
    assert any("I disagree." in message["content"] for message in episode.messages)


def test_collected_episodes_of_an_endpoint_say_what_they_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.jsonl"
    with ChatServer(lambda _: "\\boxed{1}") as server:
        command = ["collect", "--model", name_of(server), "--environment", "math", "-n", "3", "-o", str(out)]
        assert main(command) == 0
    assert "3 calls (0 failed)" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3 and all(row["prompt_ids"] is None and row["reward"] == 0.0 for row in rows)
