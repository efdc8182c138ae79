"""What the integrations share: one line for what a user can get wrong, and one episode at a time."""

import importlib.metadata

import gymnasium
import pytest

import tests.support.guessing  # noqa: F401  registers tests/Guess-v0
from mrlm_envs.integrations import episode
from mrlm_envs.integrations.episode import Episode, make, openings, require, with_tools


def test_a_package_that_is_not_installed_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(episode.TESTED, "no-such-package", ("1.0.", "debate"))
    with pytest.raises(ModuleNotFoundError, match=r'no-such-package.*not installed; pip install "mrlm\[debate\]"'):
        require("no-such-package")


def test_a_version_outside_the_tested_range_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.metadata.version("gymnasium")
    monkeypatch.setitem(episode.TESTED, "gymnasium", ("0.1.", "train"))
    with pytest.raises(ImportError, match=rf"tested with gymnasium 0\.1\.x, and {found} is installed; pip install"):
        require("gymnasium")


@pytest.mark.parametrize(
    ("env_id", "told"),
    [
        ("CartPole-v1", "not text; wrap it into one that is"),
        ("mrlm_envs.debate:env", "several agents.*use `mrlm train`, or an environment of one agent"),
        ("mrlm/Maths-v0", "mrlm/Maths-v0: .*exist"),
    ],
)
def test_an_environment_that_does_not_fit_is_told_in_one_line(env_id: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        make(env_id)
    assert "\n" not in str(raised.value)


def test_an_episode_keeps_its_rewards_and_says_when_it_is_invalid() -> None:
    played = Episode("tests/Guess-v0", high=4, max_turns=4)
    assert played.is_over and played.step("1")[0] == "The episode is over."
    played.reset(seed=1)
    secret = played.env.unwrapped.expert()  # pyright: ignore[reportAttributeAccessIssue]
    played.step("x")
    played.step(secret)
    assert (played.rewards, played.reward, played.is_over, played.success) == ([0.0, 1.0], 1.0, True, True)
    played.reset(seed=1)
    played.step("break it")
    assert (played.reward, played.is_over, played.is_valid) == (None, True, False)


def test_an_evaluation_draws_test_tasks() -> None:
    played, test = Episode("mrlm/Math-v0"), gymnasium.make("mrlm_envs:mrlm/Math-v0", split="test")
    for seed in range(5):
        assert played.reset(seed, evaluation=True)[0] == test.reset(seed=seed)[0] != played.reset(seed)[0]


def test_tools_go_into_the_system_prompt_where_a_protocol_has_no_place_for_them() -> None:
    [(seed, messages, info)] = openings("mrlm/ToolUse-v0", range(1), tools=["calculator"])
    system, user = with_tools(messages, info)
    assert seed == 0 and user == messages[-1]
    assert '"name": "calculator"' in system["content"] and info["system"] in system["content"]
    [(_, plain, told)] = openings("mrlm/Math-v0", range(1))
    assert with_tools(plain, told) == plain
