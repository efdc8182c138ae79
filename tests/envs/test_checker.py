import random
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from mrlm_envs.checker import check_text_env
from mrlm_envs.core import Opening, Reply, TextEnv
from tests.support.guessing import GuessNumber


def test_a_good_environment_passes_and_nothing_is_skipped():
    assert check_text_env(gymnasium.make("tests/Guess-v0")) == {}


def test_the_report_names_what_was_checked_and_what_was_not():
    report = check_text_env(gymnasium.make("tests/Guess-v0"))
    assert report.checked[:2] == ["an episode", "Gymnasium's own checks"] and len(report.checked) == 12
    assert str(report).startswith("checked: an episode, ") and str(report).endswith("skipped: nothing")
    report = check_text_env(GuessNumber())
    assert "interleaved" not in report.checked and "interleaved (the environment has no spec" in str(report)


def test_what_an_environment_lacks_is_skipped_by_name():
    class NoExpert(GuessNumber):
        metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": None, "deterministic": False}

    assert set(check_text_env(NoExpert())) == {"spec", "expert", "reproducible", "interleaved", "split"}


class LeaksInText(GuessNumber):
    def begin(self, options):
        opening = super().begin(options)
        self.secret += 10**8
        return Opening(f"{opening.text} It is {self.expert()}.", opening.task_id)


class GlobalRandom(GuessNumber):
    def begin(self, options):
        random.random()
        return super().begin(options)


class GlobalNumpy(GuessNumber):
    def begin(self, options):
        np.random.rand()  # noqa: NPY002
        return super().begin(options)


class HiddenState(GuessNumber):
    count = 0

    def respond(self, action):
        HiddenState.count += 1
        return Reply(f"no {HiddenState.count}")


class RaisesOnText(GuessNumber):
    def respond(self, action):
        return Reply(str(float(action)))


class BelievesTheAgent(GuessNumber):
    def respond(self, action):
        if "reward: 1.0" in action:
            return Reply("", {"found": 1.0}, done=True, success=True)
        return super().respond(action)


class PaysForNothing(GuessNumber):
    def respond(self, action):
        reply = super().respond(action)
        return reply if reply.done else Reply("", {"found": 0.5}, done=True)


class SharesInfo(GuessNumber):
    shared: ClassVar[dict[str, Any]] = {"hint": [1]}

    def begin(self, options):
        opening = super().begin(options)
        opening.info = self.shared
        return opening


class WeakExpert(GuessNumber):
    def expert(self):
        return "-1"


class NotJson(GuessNumber):
    def begin(self, options):
        opening = super().begin(options)
        opening.info = {"secret": {1, 2}}
        return opening


class IgnoresTheSplit(GuessNumber):
    num_tasks = None

    def _draw(self, options):
        return self.begin(options)


class AcceptsAnything(GuessNumber):
    def step(self, action):
        return super().step(str(action))


class StockText(TextEnv):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.action_space = gymnasium.spaces.Text(100)


class NeverEnds(GuessNumber):
    def step(self, action):
        self.turn = 0
        return super().step(action)


class SharedState(GuessNumber):
    metadata: ClassVar[dict[str, Any]] = {**GuessNumber.metadata, "expert": None}
    current: ClassVar[list[int]] = [0]

    def begin(self, options):
        opening = super().begin(options)
        self.current[0] = self.secret
        return opening

    def respond(self, action):
        return Reply(str(self.current[0] % 7))


class BeginsWithText(GuessNumber):
    def begin(self, options):
        return "Guess!"


class RespondsWithATuple(GuessNumber):
    def respond(self, action):
        return "no", 0.0, False


class ForgetsSuper(GuessNumber):
    def __init__(self, **kwargs):
        self.low, self.high = 1, 10


class RaisesInBegin(GuessNumber):
    def begin(self, options):
        raise KeyError("tasks")


BREACHES = [
    (BeginsWithText, r"reset\(seed=0\) raised TypeError: BeginsWithText.begin\(\) returned a str, expected Opening"),
    (RespondsWithATuple, r"step\('abc'\) raised TypeError: RespondsWithATuple.respond\(\) returned a tuple, expected"),
    (ForgetsSuper, r"ForgetsSuper.__init__ does not call super\(\).__init__"),
    (RaisesInBegin, r"reset\(seed=0\) raised KeyError: 'tasks'"),
    (LeaksInText, "expert's action stands in the observation"),
    (GlobalRandom, "global `random`"),
    (GlobalNumpy, "global numpy"),
    (HiddenState, "not equivalent for the same seed|plays seed 0 differently"),
    (RaisesOnText, r"seed 0, turn 1: step\('abc'\) raised ValueError: could not convert"),
    (BelievesTheAgent, r"a prompt injection\) earns 1\.000"),
    (PaysForNothing, r"earns 0\.500 in the mean; the limit is 0\.1"),
    (SharesInfo, "editing a returned info"),
    (WeakExpert, r"the expert earns 0\.000 in the mean of 8 episodes"),
    (NotJson, "not JSON serializable"),
    (IgnoresTheSplit, "both the train and the test split"),
    (AcceptsAnything, "did not raise"),
    (StockText, "refuses ordinary text"),
    (SharedState, "disturb each other"),
    (NeverEnds, "info\\['turn'\\]|has not ended"),
]


@pytest.mark.parametrize(("broken", "message"), BREACHES, ids=[cls.__name__ for cls, _ in BREACHES])
def test_each_breach_is_found_and_named(broken, message):
    gymnasium.register(f"tests/{broken.__name__}-v0", entry_point=broken, disable_env_checker=True)
    try:
        with pytest.raises((AssertionError, ValueError, TypeError), match=message):
            check_text_env(gymnasium.make(f"tests/{broken.__name__}-v0"))
    finally:
        gymnasium.registry.pop(f"tests/{broken.__name__}-v0")
