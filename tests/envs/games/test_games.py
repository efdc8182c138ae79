"""What Sokoban, Tetris and Blocksworld have in common."""

import copy
import json
import math
from collections import deque

import gymnasium
import pytest

from mrlm_envs.checker import check_text_env, play
from tests.support.serving import running

PRESETS = {
    "mrlm/Sokoban-v0": ("simple_sokoban", "large_sokoban"),
    "mrlm/Tetris-v0": ("tetris_4x5", "tetris_type_1_dim_4", "tetris_type_2_dim_4", "tetris_type_2_dim_3"),
    "mrlm/Blocksworld-v0": ("blocksworld_4_text", "blocksworld_text", "blocksworld_1d", "blocksworld_2d_sparse"),
}
EVERY_PRESET = [(env_id, preset) for env_id, presets in PRESETS.items() for preset in presets]
EVERY_GAME = [(env_id, {"preset": preset}) for env_id, preset in EVERY_PRESET] + [
    ("mrlm/Sokoban-v0", {"boxes": 2, "dim": (6, 7), "max_actions": 20}),
    ("mrlm/Sokoban-v0", {"reward": "grl"}),
    ("mrlm/Sokoban-v0", {"compact": True, "separator": ""}),
    ("mrlm/Tetris-v0", {"gravity": True, "reward": "grl"}),
    ("mrlm/Tetris-v0", {"dim": (5, 4), "pieces": ["flat", "square"], "split": "test"}),
    ("mrlm/Blocksworld-v0", {"blocks": 7, "split": "test"}),
    ("mrlm/Blocksworld-v0", {"reward": "grl", "compact": True, "separator": ","}),
]
GAMES = list(PRESETS)


def make(env_id, **kwargs):
    return gymnasium.make(f"mrlm_envs:{env_id}", **kwargs).unwrapped


def solve(env, seed):
    """Play the expert; returns the sum of rewards and whether the task was solved."""
    env.reset(seed=seed)
    total, terminated, info = 0.0, False, {}
    while not terminated:
        _, reward, terminated, _, info = env.step(env.expert())
        total += reward
    return total, info["success"]


@pytest.mark.parametrize(("env_id", "kwargs"), EVERY_GAME)
def test_a_game_keeps_the_contract(env_id, kwargs):
    skipped = check_text_env(gymnasium.make(f"mrlm_envs:{env_id}", **kwargs), episodes=3)
    assert not skipped


@pytest.mark.parametrize(("env_id", "preset"), EVERY_PRESET)
def test_the_expert_solves_every_task(env_id, preset):
    for split in ("train", "test"):
        env = make(env_id, preset=preset, split=split)
        assert all(solve(env, seed) == (1.0, True) for seed in range(25))


@pytest.mark.parametrize(
    ("env_id", "name", "value"),
    [("mrlm/Sokoban-v0", "search_depth", -1), ("mrlm/Sokoban-v0", "boxes", "2"), ("mrlm/Tetris-v0", "lines", 1.5)]
    + [(env_id, "dim", dim) for env_id in ("mrlm/Sokoban-v0", "mrlm/Tetris-v0") for dim in ([6], "66", 6.0, (6, 6.0))]
    + [("mrlm/Blocksworld-v0", "blocks", 3.5)],
)
def test_a_size_that_is_no_whole_number_is_refused(env_id, name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value!r}".translate({ord(c): "." for c in "[]()"})):
        make(env_id, **{name: value})


@pytest.mark.parametrize("env_id", ["mrlm/Sokoban-v0", "mrlm/Tetris-v0"])
def test_without_a_separator_the_expert_writes_letters(env_id):
    env = make(env_id, separator="", reward="grl")
    assert "<answer>Right" not in env.system_prompt and "<answer>Left" not in env.system_prompt
    for seed in range(10):
        env.reset(seed=seed)
        assert env.step(env.expert())[4]["action_valid"]


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "preset"), EVERY_PRESET)
def test_the_expert_solves_500_tasks(env_id, preset):
    env = make(env_id, preset=preset, split="all")
    assert all(solve(env, seed) == (1.0, True) for seed in range(500))


def searched(env):
    """Steps to a solution by breadth-first search over copies of the environment, `math.inf` when there is none."""
    moves = ["Up", "Down", "Left", "Right"]
    if hasattr(env, "blocks"):
        moves = [f"{block}>{onto}" for block in range(1, env.blocks + 1) for onto in range(env.blocks + 1)]
    seen, queue = {env.state_key()}, deque([(0, env)])
    while queue:
        steps, here = queue.popleft()
        for text in moves:
            there = copy.copy(here)  # a game replaces its state, so that a shallow copy will do
            if (move := there.read(text)) is None:
                continue
            outcome = there.act(move)
            if outcome.success:
                return steps + 1
            if not outcome.done and there.state_key() not in seen:
                seen.add(there.state_key())
                queue.append((steps + 1, there))
    return math.inf


@pytest.mark.parametrize(("env_id", "preset"), EVERY_PRESET)
def test_cost_to_go_agrees_with_a_search_over_the_environment(env_id, preset):
    env = make(env_id, preset=preset)
    wrong_turns = {"Sokoban": "Right || Down || Left", "Tetris": "Down || Right || Down", "Blocksworld": "1>0 || 2>0"}
    for seed in range(4):
        env.reset(seed=seed)
        assert env.cost_to_go() == searched(env)
        if not env.step(wrong_turns[env_id[5:-3]])[2]:
            assert env.cost_to_go() == searched(env)


@pytest.mark.parametrize("env_id", GAMES)
def test_cost_to_go_falls_to_zero_along_the_expert_s_way(env_id):
    env = make(env_id, max_actions_per_turn=1, max_turns=60)
    env.reset(seed=5)
    expected = env.cost_to_go()
    while expected:
        assert env.cost_to_go() == expected
        env.step(env.expert())
        expected -= 1
    assert env.cost_to_go() == 0


@pytest.mark.parametrize("env_id", GAMES)
def test_neither_state_key_nor_cost_to_go_nor_the_expert_is_in_info(env_id):
    env = make(env_id)
    _, info = env.reset(seed=2)
    _, *_, after = env.step("nothing")
    for found in (info, after):
        text = json.dumps(found)
        assert "cost" not in text and "state_key" not in text and env.expert() not in text


@pytest.mark.parametrize("env_id", GAMES)
def test_a_test_task_is_never_met_in_training(env_id):
    ids = {
        split: {make(env_id, split=split).reset(seed=s)[1]["task_id"] for s in range(150)}
        for split in ("train", "test")
    }
    assert len(ids["train"]) > 20 and len(ids["test"]) > 5 and not ids["train"] & ids["test"]


@pytest.mark.parametrize("env_id", GAMES)
def test_members_of_a_vector_step_apart_and_equal_single_environments(env_id):
    envs = gymnasium.make_vec(f"mrlm_envs:{env_id}", num_envs=3)
    observations, _ = envs.reset(seed=[4, 5, 6])
    single = make(env_id)
    assert single.reset(seed=6)[0] == observations[2]
    action = single.expert()
    observation, reward, *_ = single.step(action)
    observations, rewards, *_ = envs.step_some([2], [action])
    assert (observations[0], rewards[0]) == (observation, reward)
    assert envs.envs[0].turn == 0


@pytest.mark.parametrize("env_id", GAMES)
def test_a_served_game_plays_as_the_local_one(env_id):
    local = make(env_id, reward="grl")
    local.reset(seed=3)
    said = local.expert()
    with running(env_id) as server:
        over_there = gymnasium.make(
            "mrlm_envs:mrlm/Remote-v0", address=server.address, env_id=env_id, reward="grl", disable_env_checker=True
        )
        assert play(over_there, lambda _, __: said, 3) == play(local, lambda _, __: said, 3)
        over_there.close()


@pytest.mark.parametrize("env_id", GAMES)
def test_an_unknown_preset_is_named(env_id):
    with pytest.raises(ValueError, match="preset must be one of"):
        make(env_id, preset="huge")
