import math
import re
import time
from collections import deque

import gymnasium
import pytest

from mrlm_envs.games.rooms import Room, cells
from mrlm_envs.games.sokoban import SokobanEnv


def room_of(text):
    """A room and its state from a drawing."""
    rows = text.split()
    flat = "".join(rows)
    where = lambda symbols: sum(1 << cell for cell, symbol in enumerate(flat) if symbol in symbols)
    room = Room(len(rows), len(rows[0]), where("#"), where("O√S"))
    return room, (cells(where("PS"))[0], where("X√"))


def placed(text, **kwargs):
    """An environment in which this room is being played."""
    env = SokobanEnv(**kwargs)
    env.reset(seed=0)
    env.room, env.state = room_of(text)
    env._distances, env._is_complete = {}, False
    return env


def steps_forward(room, start):
    """Steps of a shortest solution by breadth-first search forward; None when there is none."""
    seen, queue = {start}, deque([(start, 0)])
    while queue:
        state, steps = queue.popleft()
        if state[1] == room.targets:
            return steps
        for move in room.moves:
            after = room.after(state, move)
            if after is not None and after not in seen:
                seen.add(after)
                queue.append((after, steps + 1))
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [{}, {"preset": "large_sokoban"}, {"dim": 7, "boxes": 2, "max_actions": 20}])
def test_500_rooms_are_solvable_in_exactly_the_steps_that_reverse_play_counted(kwargs):
    env = SokobanEnv(split="all", **kwargs)
    for seed in range(500):
        env.reset(seed=seed)
        assert 0 < steps_forward(env.room, env.state) == env.cost_to_go() <= env.max_steps


def test_every_state_that_reverse_play_leaves_out_is_lost():
    env = SokobanEnv()
    for seed in range(3):
        env.reset(seed=seed)
        distances, is_complete = env.room.distances()
        assert is_complete
        floor = [cell for cell in range(36) if not env.room.walls >> cell & 1]
        for player in floor:
            for box in floor:
                if player != box:
                    state = player, 1 << box
                    assert distances.get(state) == steps_forward(env.room, state)


def test_a_box_is_pushed_and_neither_pulled_nor_pushed_into_another_box_or_a_wall():
    env = placed("####### #P_X_O# #_X__O# #######", max_actions=20)
    env.step("Right || Right")
    assert env.view().split()[1] == "#__PXO#"
    env.step("Left || Left")
    assert env.view().split()[1] == "#P__XO#"
    env.step("Right || Right || Right || Right")
    assert env.view().split()[1] == "#___P√#"
    env = placed("####### #PXX_O# #____O# #######")
    assert "Refused: Right (the way is blocked)" in env.step("Right")[0]


def test_the_rewards_of_grl():
    env = placed("###### #PXO_# #____# ######", reward="grl", max_actions=20, boxes=1)
    assert env.step("Right")[4]["rewards"] == pytest.approx({"step": -0.1, "box": 1.0, "solved": 10.0, "format": 0.0})
    env = placed("####### #PXOX_# #__O__# #######", reward="grl")
    assert env.step("Right")[1] == pytest.approx(-0.1 + 1.0)
    env.step("Left || Down || Right || Right || Right || Up")
    assert env.step("nonsense")[1] == pytest.approx(-0.1)


def test_pushing_a_box_off_its_target_costs_what_pushing_it_on_paid():
    env = placed("####### #P√_XO# #######", reward="grl")
    assert env.step("Right")[4]["rewards"]["box"] == -1.0


def test_a_stuck_box_is_lost_and_said_at_the_end_only():
    env = placed("###### #_P__# #X__O# ######", max_turns=2)
    assert env.cost_to_go() == math.inf and env.expert() is None
    first = env.step("Left")[0]
    last = env.step("Right")[0]
    assert "no longer" not in first and "The room could no longer be solved: a box was stuck." in last


def test_a_room_that_can_be_solved_is_not_called_lost():
    env = SokobanEnv(max_turns=1)
    env.reset(seed=0)
    assert "no longer" not in env.step("x")[0]


def test_cost_to_go_is_none_beyond_the_bound(monkeypatch):
    env = placed("######## #O___O_# #_X__X_# #__P___# #______# ########", boxes=2)
    monkeypatch.setattr(Room.distances, "__defaults__", (None, 20))
    assert env.cost_to_go() is None and env.expert() is None


def test_state_key_is_equal_for_equal_states_whatever_led_there():
    env = placed("###### #P__O# #__X_# #____# ######")
    key = env.state_key()
    env.step("Right")
    assert env.state_key() != key
    env.step("Down || Up || Left")
    assert env.state_key() == key


def test_a_target_under_the_player_and_under_a_box_is_drawn():
    env = placed("###### #S_√_# #XO__# ######", boxes=2)
    assert env.view() == "######\n#S_√_#\n#XO__#\n######"
    env = placed("###### #S_√_# #XO__# ######", boxes=2, symbols="w.tTbpP")
    assert env.view() == "wwwwww\nwP.T.w\nwbt..w\nwwwwww"


def test_rooms_have_the_size_and_the_boxes_asked_for():
    env = SokobanEnv(dim=(5, 8), boxes=2, max_actions=30)
    text = env.reset(seed=1)[0]
    assert re.fullmatch(r"([#_OXPS√]{8}\n){5}30 actions left\.", text)
    assert (text.count("X"), text.count("O") + text.count("S")) == (2, 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dim": 3}, "dim must be from 4×4 to 32×32, in whole numbers, got 3"),
        ({"boxes": 0}, "boxes must be an integer of at least 1, got 0"),
        ({"symbols": "##OXPS_"}, "symbols must be 7 different characters"),
    ],
)
def test_a_wrong_setting_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make("mrlm_envs:mrlm/Sokoban-v0", **kwargs)


def test_a_room_that_cannot_exist_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no room of 4×4 with 3 boxes that 10 steps solve; raise dim"):
        SokobanEnv(dim=4, boxes=3).reset(seed=0)


def test_a_thousand_rooms_a_second():
    env = SokobanEnv()
    start = time.process_time()
    for seed in range(200):
        env.reset(seed=seed)
    assert time.process_time() - start < 5 * 200 / 1_000  # a hang guard with five times slack
