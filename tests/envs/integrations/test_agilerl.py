"""Our environments behind AgileRL's clients, in process and over OpenEnv's socket. Runs in its environment."""

# pyright: reportMissingImports=false
from typing import Any

import gymnasium
import pytest

pytest.importorskip("agilerl", reason="needs agilerl in an environment of its own: make test-peers")

from agilerl.llm_envs.openenv import InProcessEnvClient, RemoteEnvClient

import tests.support.guessing  # noqa: F401  registers tests/Guess-v0
from mrlm_envs.integrations.episode import Episode
from tests.envs.integrations.test_openenv import served


def clients(env_id: str, **kwargs: Any) -> Any:
    """The client in the process, then the one over the socket."""
    yield InProcessEnvClient(Episode(env_id, **kwargs))
    with served(env_id, **kwargs) as address:
        client = RemoteEnvClient(address, timeout_s=60)
        yield client
        client.close()


def test_a_reference_trajectory_earns_everything_and_the_tools_are_told() -> None:
    for client in clients("mrlm/ToolUse-v0", tools=["calculator"]):
        local = gymnasium.make("mrlm_envs:mrlm/ToolUse-v0", tools=["calculator"]).unwrapped
        observation, told = local.reset(seed=3)
        payload, info = client.reset(seed=3)
        assert payload["prompt"] == observation
        assert [tool["function"]["name"] for tool in client.tools] == ["calculator"]
        assert info["system_prompt"] == told["system"]
        done, total, truncated = False, 0.0, False
        while not done:
            action = local.expert()  # pyright: ignore[reportAttributeAccessIssue]
            said = local.step(action)[0]
            payload, reward, terminated, truncated, _ = client.step(action)
            assert payload["prompt"] == said
            done, total = terminated or truncated, total + reward
        assert total == 1.0 and not truncated


def test_their_evaluation_draws_test_tasks() -> None:
    test = gymnasium.make("mrlm_envs:mrlm/Math-v0", split="test")
    for client in clients("mrlm/Math-v0"):
        with client.eval_mode():
            for seed in range(3):
                assert client.reset(seed=seed)[0]["prompt"] == test.reset(seed=seed)[0]


@pytest.mark.parametrize(("kwargs", "times"), [({}, 2), ({"system_prompt": ""}, 0)])
def test_their_harness_repeats_a_system_prompt_after_the_observation(kwargs: dict[str, Any], times: int) -> None:
    from agilerl.llm_envs import RolloutHarness

    from mrlm_train import tiny

    _, tokenizer = tiny.build(0, hidden_size=32, num_layers=2, num_heads=2)
    harness = RolloutHarness.local(Episode("tests/Guess-v0", **kwargs), tokenizer=tokenizer, max_turns=4)
    harness.reset(seed=0)
    assert harness.full_ids is not None
    text = tokenizer.decode(harness.full_ids.flatten().tolist())
    assert text.count("Guess.") == times and "I think of a number" in text
