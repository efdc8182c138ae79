"""Credit by turn: what each method gives to whom by hand, what is recorded, what is refused, that it learns."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_train.advantages import group_advantages, over_tokens, turn_credit
from mrlm_train.episodes.record import Episode
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.ppo import PPOConfig
from mrlm_train.rollout.branches import Branch, branch_values
from mrlm_train.rollout.environments import EnvEntry
from tests.support.guessing import GuessNumber
from tests.support.playing import TOKENIZER, Radio, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


class Stairs(TextEnv):
    """Three steps up: a reply of a letter is a step, "!" falls for good; the top pays 1. Knows all about itself."""

    def __init__(self, max_turns: int = 4, **kwargs: Any) -> None:
        super().__init__(max_turns=max_turns, **kwargs)

    def begin(self, options: Options) -> Opening:
        self.height, self.has_fallen = 0, False
        return Opening("go", task_id="stairs")

    def respond(self, action: str) -> Reply:
        self.has_fallen |= action.startswith("!")
        self.height += action[:1].isalpha() and not self.has_fallen
        is_up = self.height == 3
        return Reply(str(self.height), {"top": float(is_up)}, done=is_up, success=is_up)

    def state_key(self) -> str:
        return f"{self.height}{self.has_fallen}"

    def cost_to_go(self) -> float:
        return math.inf if self.has_fallen else 3.0 - self.height


STAIRS = EnvEntry("Stairs", {"split": "all"}, make=Stairs)


def episode(rewards: list[float], keys: str = "", costs: list[float | None] | None = None, **more: Any) -> Episode:
    ends = list(range(len(rewards)))
    states: list[str | None] = list(keys)
    return Episode(
        "Test",
        group_id=more.pop("group_id", "g"),
        turn_rewards=rewards,
        turn_ends=ends,
        state_keys=states,
        costs_to_go=costs or [],
        **more,
    )


def test_a_turn_is_compared_with_the_same_turn_of_its_group() -> None:
    played = [episode([0.0, 1.0]), episode([0.0, 0.0]), episode([1.0]), episode([5.0], group_id="other")]
    # returns from the turn on: 1 1 | 0 0 | 1; the first turns have mean 2/3, the second 1/2
    first = [1 / 3, -2 / 3, 1 / 3]
    assert turn_credit(played, "turn", 0.5) == [
        [pytest.approx(first[0]), 0.5],
        [pytest.approx(first[1]), -0.5],
        [pytest.approx(first[2])],
        [0.0],
    ]


def test_a_state_is_compared_with_equal_states_of_its_group_at_any_turn() -> None:
    played = [
        episode([0.0, 1.0], "ab="),  # from b it was solved
        episode([0.0, 0.0], "bc-"),  # from b it was not: here b is the first state
        episode([0.0], "b=", group_id="other"),  # an equal state of another task is another state
    ]
    credit = turn_credit(played, "state", 0.5)
    assert credit == [[0.0, 0.5], [-0.5, 0.0], [0.0]]  # a and c are met once


def test_a_state_without_a_name_is_like_no_other() -> None:
    played: Any = [episode([1.0], ""), episode([0.0], ""), episode([3.0], "a=")]
    for nameless in played[:2]:
        nameless.state_keys = [None, None]
    assert turn_credit(played, "state", 0.9) == [[0.0], [0.0], [0.0]]


def test_an_invalid_episode_is_no_part_of_a_mean() -> None:
    played = [episode([1.0], "a="), episode([0.0], "a-"), episode([9.0], "a-", valid=False)]
    for method in ("turn", "state"):
        assert turn_credit(played, method, 1.0) == [[0.5], [-0.5], [0.0]]


def test_the_solver_credits_progress_punishes_the_losing_turn_and_nothing_after_it() -> None:
    costs: list[float | None] = [5.0, 4.0, 4.0, 1.0, math.inf, math.inf]
    assert turn_credit([episode([0.0] * 5, costs=costs)], "solver", 1.0) == [[1.0, 0.0, 1.0, -1.0, 0.0]]
    unknown: list[float | None] = [None, 3.0, None]
    assert turn_credit([episode([0.0] * 3, costs=unknown)], "solver", 1.0) == [[0.0, 0.0, 0.0]]  # and cut short


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1, 1)), min_size=1, max_size=4), max_size=6),
    st.sampled_from(["turn", "state"]),
)
def test_what_a_group_is_credited_with_sums_to_nothing(plays: list[list[tuple[str, float]]], method: str) -> None:
    played = [episode([r for _, r in turns], "".join(key for key, _ in turns) + "=") for turns in plays]
    assert sum(map(sum, turn_credit(played, method, 0.9))) == pytest.approx(0, abs=1e-9)


def test_each_token_of_a_turn_has_the_turns_value_and_no_other_token_has_one() -> None:
    turns = torch.tensor([[0, 0, -1, 1, -1], [0, -1, -1, -1, -1]])
    assert over_tokens([[2.0, 3.0], [4.0]], turns).tolist() == [[2, 2, 0, 3, 0], [4, 0, 0, 0, 0]]


def test_the_group_advantage_is_grpos() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, torch.nan, 2.0])
    advantages, scales = group_advantages(rewards, 3, "group")
    by_hand = torch.tensor([1.0, 0.0, 0.0]).std() + 1e-4
    assert scales[:3].tolist() == [pytest.approx(by_hand.item())] * 3
    torch.testing.assert_close(advantages[:3], (rewards[:3] - 1 / 3) / by_hand)
    assert advantages[4] == 0 and advantages[5] == -advantages[3] > 0
    plain, ones = group_advantages(rewards, 3, "none")
    assert ones.tolist() == [1.0] * 6 and plain[3:].tolist() == [-0.5, 0.0, 0.5]
    batch, _ = group_advantages(rewards, 3, "batch")
    torch.testing.assert_close(batch[:3], plain[:3] / (rewards[~rewards.isnan()].std() + 1e-4))


def trainer(path: Path, envs: Any = STAIRS, **settings: Any) -> GRPOTrainer:
    values: dict[str, Any] = {
        "per_device_train_batch_size": 16,
        "num_generations": 8,
        "max_steps": 1,
        "max_completion_length": 80,
        "max_turn_tokens": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "save_episodes": 0,
        **settings,
    }
    return GRPOTrainer(tiny_model(), envs, GRPOConfig(str(path), **values), processing_class=TOKENIZER)


@pytest.mark.parametrize("credit", ["turn", "state", "solver"])
def test_a_batch_carries_the_credit_of_each_turn(credit: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, credit=credit, scale_rewards="none", credit_weight=0.5, credit_gamma=0.9)
    made.model.train()
    batch = made.make_batch([{"prompt": "", "entry": 0, "seed": i // 8} for i in range(16)])
    own = torch.tensor([e.reward for e in made.episodes])
    whole = (own.view(2, 8) - own.view(2, 8).mean(1, keepdim=True)).view(-1)
    for b, (played, terms) in enumerate(zip(made.episodes, turn_credit(made.episodes, credit, 0.9), strict=True)):
        assert len(played.turn_ends) > 1
        for end, term in zip(played.turn_ends, terms, strict=True):
            wanted = term if credit == "turn" else whole[b].item() + 0.5 * term
            assert batch["advantages"][b, end].item() == pytest.approx(wanted, abs=1e-6)
    made.current_gradient_accumulation_steps = 1
    assert math.isfinite(made.loss(made.model, batch).item())


class Loose(Stairs):
    """Says that it is deterministic, and is not."""

    resets = 0

    def begin(self, options: Options) -> Opening:
        type(self).resets += 1
        self.number = type(self).resets
        return super().begin(options)

    def respond(self, action: str) -> Reply:
        reply = super().respond(action)
        return Reply(f"{reply.text} {self.number}", reply.rewards, reply.done, reply.success)


def test_a_branch_goes_on_from_the_tokens_and_the_state_of_its_origin(tmp_path: Path) -> None:
    made = trainer(tmp_path, credit="branch")
    played = made.collect([{"prompt": "", "entry": 0, "seed": 5} for _ in range(16)])
    origin = next(e for e in played if len(e.turn_ends) > 2)
    assert origin.prompt_ids and origin.completion_ids
    branches = made.rollout.run([Branch(0, 5, draw, origin=origin, turn=2) for draw in range(100, 104)])
    for branch in branches:
        assert branch.valid and len(branch.turn_ends) == len(branch.turn_rewards) <= 2  # of four
        assert branch.messages[:5] == origin.messages[:5] and branch.group_id == origin.group_id
        start = len(branch.prompt_ids or ()) - len(origin.prompt_ids)
        assert branch.prompt_ids == origin.prompt_ids + origin.completion_ids[:start]
        assert origin.turn_ends[1] < start <= origin.turn_ends[2]
    assert len({tuple(branch.completion_ids or ()) for branch in branches}) > 1
    again = made.rollout.run([Branch(0, 5, 100, origin=origin, turn=2)])
    assert again[0].completion_ids == branches[0].completion_ids


def test_the_value_of_a_state_is_the_mean_return_of_its_branches_and_alike_states_are_one(tmp_path: Path) -> None:
    made = trainer(tmp_path, credit="branch", credit_branches=3)
    played = made.collect([{"prompt": "", "entry": 0, "seed": 5} for _ in range(16)])
    values = branch_values(made.rollout, played, 3, 1000)
    assert [len(row) for row in values] == [len(e.turn_ends) for e in played]
    assert {row[0] for row in values} == {sum(e.reward for e in played) / 16}
    assert all(0 <= v <= 1 and (3 * v).is_integer() for row in values for v in row[1:])
    twin = dataclasses.replace(played[0])
    assert (
        branch_values(made.rollout, [played[0], twin], 3, 1000)[0]
        == branch_values(made.rollout, [played[0]], 3, 1000)[0]
    )
    assert branch_values(made.rollout, [dataclasses.replace(twin, valid=False)], 3, 1000) == [[0.0] * len(values[0])]


def test_a_turn_earns_what_it_adds_to_the_value_of_the_state() -> None:
    played = [episode([0.0, 0.5, 1.0]), dataclasses.replace(episode([1.0]), valid=False)]
    by_hand = [[pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.5)], [0.0]]
    assert turn_credit(played, "branch", 0.9, [[0.6, 0.8, 0.5], [0.3]]) == by_hand


def test_a_replay_that_differs_from_what_was_recorded_ends_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path, EnvEntry("Loose", {"split": "all"}, make=Loose), credit="branch")
    with pytest.raises(ValueError, match=r"Loose seed .*the replay differs from turn 2 on: the environment is not det"):
        made.train()


def test_only_what_the_method_asks_for_is_recorded_and_it_survives_a_file(tmp_path: Path) -> None:
    made = trainer(tmp_path, credit="solver")
    made.train()
    for played in made.episodes:
        assert len(played.costs_to_go) == len(played.turn_ends) + 1 and not played.state_keys
        assert played.costs_to_go[0] == 3.0
        assert Episode.from_json(played.to_json()).costs_to_go == played.costs_to_go
    lost = Episode("Test", costs_to_go=[2.0, None, math.inf])
    assert Episode.from_json(lost.to_json()).costs_to_go == [2.0, None, math.inf]
    plain = trainer(tmp_path)
    plain.train()
    assert not any(e.costs_to_go or e.state_keys for e in plain.episodes)


@pytest.mark.parametrize(
    ("env", "settings", "words"),
    [
        (Radio, {"credit": "state"}, r"credit: state needs state_key\(\) of environment Radio, which gives none"),
        (GuessNumber, {"credit": "solver"}, r"credit: solver needs cost_to_go\(\) of environment GuessNumber"),
        (STAIRS, {"credit": "critic"}, "credit must be one of episode, turn, state, solver, branch, got 'critic'"),
        (Radio, {"credit": "branch"}, "credit: branch replays episodes, and environment Radio does not declare itself"),
    ],
)
def test_a_method_that_cannot_work_is_refused_in_one_line(
    env: Any, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, env, **{"num_minibatches": 1, **settings}).train()


def test_groups_that_straddle_processes_cannot_be_compared_by_turn(tmp_path: Path) -> None:
    args = GRPOConfig(str(tmp_path), per_device_train_batch_size=8, num_minibatches=1, num_generations=4, credit="turn")
    args.per_device_train_batch_size = 6  # of one of two processes, whose 12 make three groups
    with pytest.raises(ValueError, match="credit: turn needs whole groups in each process: 6 episodes do not"):
        GRPOTrainer(tiny_model(), STAIRS, args, processing_class=TOKENIZER)


def test_ppo_credits_by_its_critic_alone(tmp_path: Path) -> None:
    assert PPOConfig(str(tmp_path)).credit == "critic"
    with pytest.raises(ValueError, match="credit must be one of critic, got 'state'"):
        PPOConfig(str(tmp_path), credit="state")


@pytest.mark.parametrize("credit", ["turn", "state", "solver", "branch"])
def test_it_learns_to_climb(credit: str, tmp_path: Path) -> None:
    trained = trainer(tmp_path, credit=credit, per_device_train_batch_size=64, max_steps=40, max_turn_tokens=1)
    trained.train()
    success = [row["success"] for row in trained.state.log_history if "success" in row]
    assert sum(success[-3:]) / 3 > success[0] + 0.2
