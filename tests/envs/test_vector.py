import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import SyncVectorEnv

from mrlm_envs.vector import TextVectorEnv
from tests.support.guessing import GuessNumber


def assert_same(a, b):
    """Equal, arrays and nested dicts of arrays included, dtypes too."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("mode", ["Disabled", "NextStep", "SameStep"])
def test_it_returns_what_sync_vector_env_returns(mode):
    ours = TextVectorEnv(GuessNumber, 3, autoreset_mode=mode, max_turns=3)
    theirs = SyncVectorEnv([lambda: GuessNumber(max_turns=3)] * 3, autoreset_mode=gymnasium.vector.AutoresetMode(mode))
    assert_same(ours.reset(seed=4), theirs.reset(seed=4))
    for turn in range(3 if mode == "Disabled" else 9):
        actions = ["1", ours.envs[1].expert() if turn == 2 else "no", "500"]
        assert_same(ours.step(actions), theirs.step(actions))


def test_a_member_equals_the_single_environment_with_its_seed():
    envs = TextVectorEnv(GuessNumber, 4)
    observations, infos = envs.reset(seed=[9, 2, 9, 5])
    for i, seed in enumerate([9, 2, 9, 5]):
        single = GuessNumber()
        observation, info = single.reset(seed=seed)
        assert (observations[i], infos["task_id"][i]) == (observation, info["task_id"])
        assert envs.envs[i].step("500")[:4] == single.step("500")[:4]


def test_step_some_steps_only_those_and_answers_in_their_order():
    envs = TextVectorEnv(GuessNumber, 4)
    envs.reset(seed=0)
    envs.step_some([2], ["500"])
    observations, rewards, terminated, _, infos = envs.step_some([2, 0], ["x", envs.envs[0].expert()])
    assert observations == ("I need a number.", "correct")
    assert rewards.tolist() == [0.0, 1.0] and terminated.tolist() == [False, True]
    assert infos["turn"].tolist() == [2, 1] and infos["_success"].tolist() == [False, True]


def test_the_members_to_step_may_come_as_an_array_and_may_be_none():
    envs = TextVectorEnv(GuessNumber, 3)
    envs.reset(seed=0)
    observations, rewards, *_, infos = envs.step_some(np.array([2, 0]), ["x", "x"])
    assert observations == ("I need a number.",) * 2 and infos["turn"].tolist() == [1, 1]
    observations, rewards, *_, infos = envs.step_some([], [])
    assert (observations, rewards.shape, infos) == ((), (0,), {})


def test_a_finished_member_needs_a_reset_and_nobody_is_stepped_without_it():
    envs = TextVectorEnv(GuessNumber, 2)
    with pytest.raises(ResetNeeded):
        envs.step(["1", "1"])
    envs.reset(seed=0)
    envs.step(["500", envs.envs[1].expert()])
    with pytest.raises(ResetNeeded, match=r"members \[1\]"):
        envs.step(["500", "500"])
    assert envs.envs[0].turn == 1
    _, infos = envs.reset(seed=[7, 7], options={"reset_mask": np.array([False, True])})
    assert infos["_seed"].tolist() == [False, True] and infos["seed"][1] == 7
    envs.step(["500", "500"])
    assert [env.turn for env in envs.envs] == [2, 1]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda e: e.step(["1"]), "expected 2 actions"),
        (lambda e: e.step_some([0, 0], ["1", "1"]), "distinct"),
        (lambda e: e.step_some([0], ["1", "1"]), "one action for each"),
        (lambda e: e.reset(options={"reset_mask": [True]}), "shape"),
        (lambda e: e.reset(seed=[1, 2, 3]), "one integer or 2"),
        (lambda e: TextVectorEnv(GuessNumber, 0), "num_envs"),
    ],
)
def test_wrong_shapes_are_named(call, error):
    envs = TextVectorEnv(GuessNumber, 2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=error):
        call(envs)


def test_an_action_of_another_type_steps_nobody():
    envs = TextVectorEnv(GuessNumber, 2)
    envs.reset(seed=0)
    with pytest.raises(TypeError, match="member 1"):
        envs.step(["1", 3])
    assert envs.envs[0].turn == 0


def test_max_episode_steps_truncates():
    envs = TextVectorEnv(GuessNumber, 1, max_episode_steps=2)
    envs.reset(seed=0)
    envs.step(["x"])
    assert [a.tolist() for a in envs.step(["x"])[2:4]] == [[False], [True]]


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point", None])
def test_make_vec_gives_the_same_text_in_every_mode(mode):
    envs = gymnasium.make_vec(
        "mrlm_envs:mrlm/Math-v0", num_envs=3, vectorization_mode=mode, kinds=["addition"], difficulty=(2, 2)
    )
    try:
        observations, infos = envs.reset(seed=11)
        singles = [gymnasium.make("mrlm/Math-v0", kinds=["addition"], difficulty=(2, 2)) for _ in range(3)]
        expected = [env.reset(seed=11 + i) for i, env in enumerate(singles)]
        assert tuple(observations) == tuple(observation for observation, _ in expected)
        answers = [env.unwrapped.expert() for env in singles]
        _, rewards, terminated, _, infos = envs.step([answers[0], "no", answers[2]])
        assert rewards.tolist() == [1.0, 0.0, 1.0] and terminated.tolist() == [True, True, True]
        assert infos["success"].tolist() == [True, False, True]
    finally:
        envs.close()


def test_a_seed_beyond_63_bits_is_in_the_infos_of_a_vector() -> None:
    envs = gymnasium.make_vec("mrlm_envs:mrlm/Math-v0", num_envs=2, kinds=["arithmetic"])
    _, infos = envs.reset(seed=2**63)
    assert list(infos["seed"]) == [2**63, 2**63 + 1]
