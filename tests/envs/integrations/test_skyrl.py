"""Our environments in SkyRL-gym, through its own registry. Runs in its environment: make test-peers."""

import re
from typing import Any

import gymnasium
import pytest

skyrl_gym = pytest.importorskip("skyrl_gym", reason="needs skyrl-gym in an environment of its own: make test-peers")

import tests.support.guessing  # noqa: E402, F401  registers tests/Guess-v0
from mrlm_envs.integrations.skyrl import rows  # noqa: E402
from tests.support.paths import ROOT  # noqa: E402


@pytest.fixture(autouse=True)
def registered() -> Any:
    skyrl_gym.register("mrlm", "mrlm_envs.integrations.skyrl:TextEnvironment")
    yield
    skyrl_gym.envs.registration.registry.pop("mrlm")


def test_the_block_of_the_page_runs() -> None:
    skyrl_gym.envs.registration.registry.pop("mrlm")
    page = (ROOT / "docs" / "integrations.md").read_text("utf-8")
    [block] = [
        block for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "skyrl" in block
    ]
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(names["data"]) == 4 and start(names["data"][0])[1] == names["data"][0]["prompt"]


def start(row: dict[str, Any]) -> tuple[Any, list[dict[str, str]]]:
    """As SkyRL's generator does: the columns but the prompt and the class are `extras`."""
    extras = {name: value for name, value in row.items() if name not in ("prompt", "env_class")}
    env = skyrl_gym.make(row["env_class"], env_config={}, extras=extras)
    return env, env.init(row["prompt"])[0]


def test_a_reference_trajectory_earns_everything() -> None:
    for row in rows("mrlm/ToolUse-v0", n=3, tools=["calculator"]):
        env, prompt = start(row)
        assert prompt == row["prompt"] and '"name": "calculator"' in prompt[0]["content"]
        local = gymnasium.make("mrlm_envs:mrlm/ToolUse-v0", tools=["calculator"]).unwrapped
        assert local.reset(seed=row["seed"])[0] == prompt[-1]["content"]
        done, total, result = False, 0.0, {}
        while not done:
            action = local.expert()  # pyright: ignore[reportAttributeAccessIssue]
            observation = local.step(action)[0]
            result = env.step(action)
            done, total = result["done"], total + result["reward"]
            assert result["observations"] == ([] if done else [{"role": "tool", "content": observation}])
        assert total == 1.0 and result["metadata"]["success"]
        env.close()


def test_an_environment_answers_as_the_user_and_a_fault_is_marked() -> None:
    [row] = rows("tests/Guess-v0", n=1, high=4)
    env, _ = start(row)
    assert env.step("x")["observations"] == [{"role": "user", "content": "I need a number."}]
    broken = env.step("break it")
    assert (broken["done"], broken["reward"], broken["metadata"]["valid"]) == (True, 0.0, False)
