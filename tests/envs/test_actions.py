import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrlm_envs.actions import Actions, Outcome, from_preset


class Counter:
    """Executes digits: they are added up; 9 is refused, 0 ends the episode."""

    def __init__(self, **kwargs):
        settings = {"reward": "grl", "max_actions_per_turn": 3, "max_actions": 5, "format_penalty": None}
        self.actions = Actions(**{**settings, "separator": "||", **kwargs})
        self.total = 0

    def say(self, reply):
        return self.actions.play(reply, lambda text: int(text) if text in "0123456789" else None, self.act, self.view)

    def act(self, digit):
        if digit == 9:
            return Outcome({"step": -0.1}, refused="nine is too much")
        self.total += digit
        return Outcome({"step": -0.1, "goal": 10.0 * (digit == 0)}, done=digit == 0, success=digit == 0)

    def view(self):
        return f"total {self.total}"


def test_a_reply_of_several_actions_executes_them_in_order():
    reply = Counter().say("I add. <answer>1 || 2</answer>")
    assert reply.text == "Executed: 1, 2\ntotal 3\n3 actions left."
    assert reply.info["action_valid"] and not reply.done


def test_the_observation_says_what_was_refused_and_why():
    reply = Counter().say("<answer>9 || x || 1 || 2 || 3</answer>")
    assert reply.text == (
        "Executed: 1\nRefused: 9 (nine is too much), x (not an action), 2 more (too many for one reply)\n"
        "total 1\n3 actions left."
    )
    assert not reply.info["action_valid"]


def test_no_action_is_executed_after_the_end():
    counter = Counter()
    reply = counter.say("<answer>0 || 5</answer>")
    assert (reply.done, reply.success, counter.total) == (True, True, 0)


def test_using_up_the_actions_ends_the_episode():
    counter = Counter()
    assert not counter.say("1 || 1 || 1").done
    reply = counter.say("1 || 1 || 1")
    assert (reply.done, reply.success, reply.info["stop_reason"], counter.total) == (True, False, "max_actions", 5)


def test_an_action_that_cannot_be_read_is_not_counted():
    counter = Counter()
    counter.say("<answer>x || y || 1</answer>")
    assert counter.actions.left == 4


def test_a_reply_without_the_tag_counts_only_when_it_is_nothing_but_actions():
    assert Counter().say("1 || 2").text.startswith("Executed: 1, 2")
    assert Counter().say("<think>1 || 1</think> 3").text.startswith("Executed: 3")
    prose = Counter().say("I would add || 1")
    assert prose.text.startswith("No action found") and not prose.info["action_valid"]


def test_nothing_outside_of_the_tag_is_executed_even_when_it_is_empty():
    counter = Counter()
    reply = counter.say("1 || 2 || <answer></answer>")
    assert reply.text.startswith("No action found") and not reply.info["action_valid"] and counter.total == 0


def test_an_empty_separator_makes_every_character_an_action():
    counter = Counter(separator="", compact=True)
    reply = counter.say("12")
    assert (reply.text, counter.actions.left) == ("total 3", 3)
    assert counter.actions.write(["1", "2"]) == "12"


def test_success_alone_is_paid_unless_the_reward_is_grl():
    plain = Counter(reward="success")
    assert plain.say("1").rewards == {"solved": 0.0}
    assert plain.say("0").rewards == {"solved": 1.0}
    assert Counter().say("1 || 0").rewards == pytest.approx({"step": -0.2, "goal": 10.0, "format": 0.0})


def test_a_format_penalty_is_paid_once_for_a_reply():
    assert Counter().say("hello").rewards == {"format": -0.1}
    assert Counter(reward="success", format_penalty=-0.5).say("<answer>x || y</answer>").rewards["format"] == -0.5
    assert Counter(malformed_reward=-5.0).say("<answer>x || y</answer>").rewards["malformed"] == -10.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reward": "points"}, "reward must be one of success, grl, got 'points'"),
        ({"max_actions": 0}, "max_actions must be an integer of at least 1, got 0"),
        ({"max_actions_per_turn": 1.5}, "max_actions_per_turn must be an integer of at least 1, got 1.5"),
        ({"format_penalty": 0.1}, "format_penalty must be 0 or negative, got 0.1"),
    ],
)
def test_a_wrong_setting_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Counter(**kwargs)


def test_a_preset_gives_what_is_not_set():
    presets = {"small": {"dim": 6, "boxes": 1}}
    assert from_preset(presets, "small", dim=None, boxes=2) == {"dim": 6, "boxes": 2}
    with pytest.raises(ValueError, match="preset must be one of small, got 'big'"):
        from_preset(presets, "big")


@given(st.text(alphabet="0123456789|x <>/answer", max_size=60))
def test_any_reply_spends_at_most_its_share_of_the_budget(text):
    counter = Counter()
    reply = counter.say(text)
    assert 2 <= counter.actions.left <= 5
    assert reply.text.endswith(f"{counter.actions.left} action{'s' * (counter.actions.left != 1)} left.")
