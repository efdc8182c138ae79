import math

import gymnasium
import pytest

from mrlm_envs.games import tetris
from mrlm_envs.games.stacking import Game, solve
from mrlm_envs.games.tetris import TetrisEnv


def playing(*pieces, dim=(4, 4), gravity=False, lines=1, **kwargs):
    """An environment that plays these pieces, given as (shape, column)."""
    env = TetrisEnv(dim=dim, gravity=gravity, lines=lines, **kwargs)
    env.reset(seed=0)
    env.game = Game(dim[1], dim[0], pieces, lines, gravity)
    env.position = env.game.start()
    return env


def test_a_piece_falls_by_a_row_for_each_down_and_stays_where_it_cannot_fall():
    env = playing(("dot", 1), ("dot", 3))
    env.step("Down || Down")
    assert env.view() == "____\n____\n_X__\n____"
    env.step("Down")
    assert env.view() == "___X\n____\n____\n_#__"


def test_a_piece_that_a_move_takes_onto_another_stays_there():
    env = playing(("upright", 0), ("flat", 1))
    env.step("Down || Down || Down")
    assert env.view() == "_XX_\n____\n#___\n#___"
    env.step("Down || Left")
    assert env.view() == "X___\n##__\n#___\n#___"


def test_walls_and_filled_cells_block_the_way():
    env = playing(("dot", 3))
    assert "Refused: Right (the way is blocked)" in env.step("Right")[0]
    env = playing(("upright", 0), ("dot", 1), dim=(4, 4))
    env.step("Down || Down || Down || Down || Down")
    assert "Refused: Left (the way is blocked)" in env.step("Left")[0]


def test_with_gravity_a_move_to_the_side_falls_too():
    env = playing(("dot", 1), gravity=True)
    env.step("Right")
    assert env.view() == "____\n__X_\n____\n____"
    env.step("Down")
    assert env.view() == "____\n____\n__X_\n____"


def test_a_full_row_is_cleared_and_what_lies_above_falls():
    env = playing(("upright", 0), ("flat", 1), ("dot", 3), dim=(4, 4), lines=2, max_actions=60)
    env.step("Down || Down || Down")
    env.step("Down || Down || Down")
    observation, *_ = env.step("Down || Down || Down")
    assert env.position.lines == 1 and observation.split("\n")[-2] == "#___"


def test_the_first_line_solves_the_task_and_pays_ten_under_grl():
    env = playing(("flat", 0), ("flat", 2), reward="grl")
    env.step("Down || Down || Down")
    _, _, terminated, _, info = env.step("Down || Down || Down || Left")
    assert terminated and info["success"]
    assert info["rewards"] == pytest.approx({"step": -0.3, "lines": 10.0, "format": 0.0})
    assert env.view() == "____\n____\n____\n____"


def test_a_stack_that_reaches_the_top_loses():
    env = playing(("upright", 0))
    env.step("Down || Down || Down")
    _, _, terminated, _, info = env.step("Down || Down")
    assert terminated and not info["success"] and info["stop_reason"] == "failure"
    assert env.cost_to_go() == math.inf and env.expert() is None


def test_tasks_that_cannot_be_solved_are_not_issued():
    impossible = Game(3, 3, (("upright", 0), ("upright", 0), ("upright", 0)), 1, False)
    assert solve(Game(3, 2, (("square", 0),), 1, False), Game(3, 2, (("square", 0),), 1, False).start())[0] is None
    assert solve(impossible, impossible.start())[0] is not None  # three side by side
    env = TetrisEnv(preset="tetris_type_2_dim_3", split="all")
    assert all(env.reset(seed=seed) and env.cost_to_go() < math.inf for seed in range(100))
    with pytest.raises(ValueError, match="no sequence of square that 40 actions solve on a board of 3×3"):
        TetrisEnv(dim=3, pieces=["square"]).reset(seed=0)


def test_a_task_that_needs_more_actions_than_there_are_is_not_issued():
    env = TetrisEnv(preset="tetris_type_1_dim_4", max_actions=12, split="all")
    assert all(env.reset(seed=seed) and env.cost_to_go() <= 12 for seed in range(40))


def test_a_task_id_names_only_pieces_that_come():
    env = TetrisEnv(preset="tetris_type_2_dim_4", split="all")
    for seed in range(50):
        _, info = env.reset(seed=seed)
        position, came = env.position, set()
        for move in solve(env.game, position)[0]:
            came.add(position.number)
            position, _ = env.game.after(position, move)
        assert len(came) == len(info["task_id"].partition(": ")[2].split())


def test_the_sequence_of_pieces_begins_again():
    env = playing(("dot", 0), ("dot", 1))
    for column, height in ((0, 3), (1, 3), (0, 2), (1, 2)):
        assert env.view().split("\n")[0].find("X") == column
        env.step(" || ".join(["Down"] * height))


def test_cost_to_go_is_none_when_the_search_gives_up(monkeypatch):
    from mrlm_envs.games import stacking

    env = TetrisEnv()
    env.reset(seed=0)
    stacking.solve.cache_clear()
    monkeypatch.setattr(stacking, "MAX_POSITIONS", 10)
    assert env.cost_to_go() is None and env.expert() is None
    stacking.solve.cache_clear()


def test_state_key_is_equal_for_equal_states_whatever_led_there():
    env = playing(("dot", 1), ("dot", 3))
    key = env.state_key()
    env.step("Right")
    assert env.state_key() != key
    env.step("Left || Left || Right")
    assert env.state_key() == key


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dim": 2}, "dim must be from 3×2 to 32×32, in whole numbers, got 2"),
        ({"pieces": ["L"]}, "pieces must be among dot, upright, flat, square, got"),
        ({"lines": 0}, "lines must be an integer of at least 1, got 0"),
        ({"symbols": "__X"}, "symbols must be 3 different characters, got '__X'"),
    ],
)
def test_a_wrong_setting_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make("mrlm_envs:mrlm/Tetris-v0", **kwargs)


def test_a_board_beyond_the_search_is_refused_soon(monkeypatch):
    asked = []
    monkeypatch.setattr(tetris, "solve", lambda game, start: asked.append(start) or (None, False))
    env = tetris.TetrisEnv(dim=(20, 10))
    with pytest.raises(ValueError, match="dim 20×10 is too large for the search; choose a smaller one"):
        env.reset(seed=0)
    assert len(asked) < 500
