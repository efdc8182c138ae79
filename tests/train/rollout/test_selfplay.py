"""Self-play: games of several agents as PettingZoo has them, each agent an Episode of its own, and training on them."""

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from pettingzoo import ParallelEnv

from benchmarks import selfplay
from examples.selfplay.number_game import NumberGame, careless, perfect
from mrlm_envs.spaces import Unicode
from mrlm_train.advantages import update_baselines
from mrlm_train.cli import main
from mrlm_train.commands.collect import collect
from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode, read
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.ppo import PPOConfig, PPOTrainer
from mrlm_train.rollout.conversation import EpisodeConversation
from mrlm_train.rollout.environments import EnvEntry, entries
from mrlm_train.rollout.evaluation import evaluate
from mrlm_train.rollout.games import episode_by_row, rows_by_request
from mrlm_train.rollout.opponents import FILE
from mrlm_train.rollout.pool import EnvPool
from mrlm_train.rollout.runner import Request, Rollout, expert_episodes
from tests.support.playing import CLOSE, TOKENIZER, say, scripted, tiny_model, tiny_policy
from tests.support.processes import ALL_FOUR, metrics, train, write_config
from tests.train.rollout.test_runner import reference

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
MODULE = "examples.selfplay.number_game"
GAME = f"{MODULE}:env"
LARGE = Sampling(max_turn_tokens=1000, max_episode_tokens=4000)
SHORT = Sampling(max_turn_tokens=4, max_episode_tokens=400)


class Talk(ParallelEnv[str, str, str]):
    """All speak at once and hear what the others said; each leaves after its own number of rounds.

    A word is worth its length to the speaker. With `break_at` the game raises in that round (0: in reset).
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "talk_v0"}

    def __init__(self, rounds: Mapping[str, int], break_at: int | None = None, space: Any = None) -> None:
        self.possible_agents, self.rounds, self.break_at = list(rounds), dict(rounds), break_at
        self.agents: list[str] = []
        self.spoken: list[dict[str, str]] = []
        self.space = Unicode() if space is None else space

    def observation_space(self, agent: str) -> Any:
        return self.space

    def action_space(self, agent: str) -> Any:
        return Unicode()

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.agents, self.spoken = list(self.possible_agents), []
        if self.break_at == 0:
            raise RuntimeError("static")
        return dict.fromkeys(self.agents, f"seed {seed}"), {agent: {"system": f"be {agent}"} for agent in self.agents}

    def step(self, actions: dict[str, str]) -> Any:
        assert set(actions) == set(self.agents)
        self.spoken.append(actions)
        if len(self.spoken) == self.break_at:
            raise RuntimeError("static")
        heard = {a: " ".join(f"{b}:{word}" for b, word in actions.items() if b != a) for a in actions}
        rewards = {agent: float(len(word)) for agent, word in actions.items()}
        over = {agent: len(self.spoken) == self.rounds[agent] for agent in actions}
        self.agents = [agent for agent in self.agents if not over[agent]]
        return heard, rewards, over, dict.fromkeys(actions, False), {agent: {} for agent in actions}


def talk(rounds: Mapping[str, int], agents: Mapping[str, Any] | None = None, **kwargs: Any) -> EnvEntry:
    return EnvEntry("Talk", {"rounds": dict(rounds), **kwargs}, make=Talk, agents=agents or {})


def play(policy: Any, envs: Any, sampling: Sampling = LARGE, seeds: int = 1, **settings: Any) -> list[Episode]:
    with Rollout(policy, envs, sampling, threads=4, max_invalid_share=1.0, **settings) as rollout:
        return rollout.run([Request(index, seed) for index in range(len(rollout.envs)) for seed in range(seeds)])


def chatter() -> Talk:
    """A game by name."""
    return Talk({"a": 2, "b": 1})


def polite(messages: list[dict[str, Any]], rng: Any) -> str:
    return f"{len(messages)}th"


@pytest.mark.parametrize("words", ["perfect", "careless", "illegal"])
def test_the_number_game_is_zero_sum_and_ends_in_pettingzoo_s_own_loop(words: str) -> None:
    game, rng, returns = NumberGame(), np.random.default_rng(0), {"first": 0.0, "second": 0.0}
    says: Any = {"perfect": perfect, "careless": careless, "illegal": lambda messages, rng: "9"}[words]
    game.reset(seed=5)
    for agent in game.agent_iter(max_iter=100):
        observation, reward, terminated, truncated, _ = game.last()
        returns[agent] += reward
        assert observation is not None
        game.step(None if terminated or truncated else says([{"content": observation}], rng))
    assert not game.agents and sorted(returns.values()) == [-1.0, 1.0]
    assert returns["first"] == (-1.0 if words == "illegal" else 1.0) or words == "careless"


def test_each_agent_of_a_game_in_turns_is_a_token_exact_episode() -> None:
    first, second = play(scripted(say("1", "2", "1")), GAME)
    assert (first.agent, second.agent) == ("first", "second")
    assert sorted((first.reward, second.reward)) == [-1.0, 1.0] and first.success != second.success
    for episode in (first, second):
        assert episode.prompt_ids and episode.completion_ids and episode.action_mask
        ids, mask = reference(episode.messages)
        assert episode.prompt_ids + episode.completion_ids == ids
        assert [0] * len(episode.prompt_ids) + episode.action_mask == mask
        assert len(episode.turn_ends) == len(episode.turn_rewards) and episode.terminated
        assert [p is None for p in episode.logprobs or []] == [bit == 0 for bit in episode.action_mask]
    left = [int(message["content"].split()[0]) for message in first.messages if message["role"] == "user"]
    assert left == sorted(left, reverse=True) and left[0] - left[1] == 2  # both have moved in between
    assert first.group_id != second.group_id


def test_in_a_simultaneous_game_all_are_heard_together_and_one_may_leave_before_the_others() -> None:
    a, b, c = play(scripted(say("yes")), talk({"a": 1, "b": 3, "c": 2}))
    assert [len(e.turn_rewards) for e in (a, b, c)] == [1, 3, 2]
    assert a.messages[:2] == [{"role": "system", "content": "be a"}, {"role": "user", "content": "seed 0"}]
    assert [m["content"] for m in b.messages if m["role"] == "user"][1:] == ["a:yes c:yes", "c:yes", ""]
    assert [e.reward for e in (a, b, c)] == [3.0, 9.0, 6.0]
    assert all(e.terminated and e.valid and e.info["returns"] == {"a": 3.0, "b": 9.0, "c": 6.0} for e in (a, b, c))
    assert [e.success for e in (a, b, c)] == [False, True, False]


def test_the_turn_based_and_the_simultaneous_debate_are_the_same_game() -> None:
    ids = ("mrlm_envs.debate:parallel_env", "mrlm_envs.debate:env")
    envs = [{"id": name, "kwargs": {"rounds": 2}} for name in ids]
    played = play(tiny_policy(), envs, Sampling(max_turn_tokens=12, max_episode_tokens=2000), seeds=3)
    parallel, in_turn = played[:6], played[6:]
    assert [e.agent for e in parallel] == ["pro", "con"] * 3
    for one, other in zip(parallel, in_turn, strict=True):
        assert one.messages == other.messages and one.turn_rewards == other.turn_rewards
        assert one.prompt_ids == other.prompt_ids and one.info["success"] == other.info["success"]


def test_an_agent_whose_budget_is_spent_falls_silent_and_bears_the_outcome() -> None:
    sampling = Sampling(max_turn_tokens=4, max_episode_tokens=4)
    envs = talk({"a": 3, "b": 3}, {"b": polite})
    [a] = play(scripted(lambda turn: TOKENIZER.encode("hello")), envs, sampling)
    assert (a.truncated, a.terminated, a.stop_reason) == (True, False, "token_limit")
    assert a.completion_ids == TOKENIZER.encode("hell") and len(a.turn_rewards) == 1
    assert a.info["returns"] == {"a": 0.0, "b": 9.0}  # the cut word was not said, the game went on without a
    lost = play(
        scripted(lambda turn: TOKENIZER.encode("11111")), GAME, Sampling(max_turn_tokens=2, max_episode_tokens=2)
    )
    assert {e.reward for e in lost} == {-1.0, 0.0} and len({e.success for e in lost}) == 2


def test_an_endless_game_in_which_nobody_can_speak_any_more_is_stopped() -> None:
    for episode in play(scripted(say("yes")), talk({"a": 10**9, "b": 10**9}), Sampling(max_turns=2)):
        assert (episode.stop_reason, episode.truncated, len(episode.turn_rewards)) == ("turn_limit", True, 2)


@pytest.mark.parametrize("break_at", [0, 2])
def test_a_game_that_breaks_makes_all_its_agents_invalid_and_no_other_game(break_at: int) -> None:
    envs = [talk({"a": 2, "b": 3}, break_at=break_at), talk({"a": 2, "b": 3})]
    played = play(scripted(say("yes")), envs, seeds=2) if break_at else play(scripted(say("yes")), envs)
    half = len(played) // 2
    assert [e.valid for e in played] == [False] * half + [True] * half
    assert all("static" in e.info["error"] for e in played[:half])


@pytest.mark.filterwarnings("ignore:an environment took longer")
@pytest.mark.timeout(60)
def test_a_game_whose_agent_cannot_go_on_ends_for_the_others_too() -> None:
    policy = scripted(say("hi"))
    template = TOKENIZER.chat_template
    shouts = "{%- if messages[-1].content == 'b:hi' %}{{ raise_exception('no') }}{% endif %}"
    policy.chat.tokenizer.chat_template = shouts + template.replace("message.content or ''", "message.content | trim")
    try:
        a, b, *others = play(
            Policy(policy.model, Chat(TOKENIZER), turn=policy.turn), [talk({"a": 3, "b": 3}), talk({"c": 2, "d": 2})]
        )
    finally:
        policy.chat.tokenizer.chat_template = template
    assert (a.stop_reason, a.valid, b.stop_reason, b.valid) == ("render_error", False, "env_error", False)
    assert "agent a" in b.info["error"] and all(episode.valid for episode in others)


def test_a_step_of_a_game_that_hangs_ends_it_for_all_its_agents_without_a_reward() -> None:
    def hang(messages: list[dict[str, Any]], rng: Any) -> str:
        if len(messages) > 3:
            threading.Event().wait()
        return "yes"

    envs = [talk({"a": 3, "b": 3, "c": 3}, {"c": hang}), talk({"a": 1, "b": 1})]
    *hung, one, other = play(scripted(say("hi")), envs, step_timeout=1.0)
    for episode in hung:
        assert (episode.stop_reason, episode.valid, episode.terminated) == ("step_timeout", True, True)
        assert episode.turn_rewards == [0.0]  # what the hanging step would have paid is not known
    assert one.valid and other.valid and one.stop_reason != "step_timeout"


def test_a_reward_function_sees_each_agent_s_own_conversation() -> None:
    envs = EnvEntry("Talk", {"rounds": {"a": 2, "b": 2}}, make=Talk, agents={}, reward=lambda m, r, i: len(m) + r / 10)
    assert [e.turn_rewards for e in play(scripted(say("yes")), envs)] == [[4.3, 6.3]] * 2


def test_a_frozen_model_plays_with_its_own_weights_and_gives_no_episodes(tmp_path: Path) -> None:
    tiny_model(seed=7).save_pretrained(tmp_path / "other")
    TOKENIZER.save_pretrained(tmp_path / "other")
    sampling = Sampling(max_turn_tokens=6, max_episode_tokens=500, seed=3)
    rounds = {"a": 3, "b": 3}

    def words(policy: Any, agents: Mapping[str, Any], seen: str) -> list[list[str]]:
        played = [e for e in play(policy, talk(rounds, agents), sampling, seeds=4) if e.agent == seen]
        heard = "user" if agents else "assistant"
        return [[m["content"].partition(":")[2] for m in e.messages if m["role"] == heard][1:] for e in played]

    frozen = words(scripted(say("yes")), {"b": str(tmp_path / "other")}, "a")  # b as a hears it
    spoken = play(tiny_policy(7), talk(rounds, {"a": lambda m, r: "yes"}), sampling, seeds=4)
    itself = [[m["content"] for m in e.messages if m["role"] == "assistant"] for e in spoken]
    assert frozen == itself and len(frozen) == 4 and len({str(w) for w in frozen}) > 1


@pytest.mark.parametrize("engine", ["slot", "turn"])
def test_an_agent_s_tokens_do_not_depend_on_who_shares_its_batch(engine: str) -> None:
    sampling = Sampling(max_turn_tokens=5, max_episode_tokens=300)
    few = play(tiny_policy(engine_name=engine, rows=2), talk({"a": 3, "b": 3}), sampling, seeds=5)
    many = play(tiny_policy(rows=64), talk({"a": 3, "b": 3}), sampling, seeds=5)
    assert [e.completion_ids for e in few] == [e.completion_ids for e in many]
    assert few[0].completion_ids != few[1].completion_ids


@pytest.mark.parametrize("engine", ["slot", "turn"])
def test_games_with_fewer_rows_than_their_agents_need_at_once_still_end(engine: str) -> None:
    """A game whose last agent waits for a row that another game frees."""
    played = play(tiny_policy(engine_name=engine, rows=5), talk({"a": 2, "b": 3, "c": 1}), SHORT, 6)
    assert [len(e.turn_rewards) for e in played] == [2, 3, 1] * 6


def test_a_frozen_model_that_fails_stops_the_run_with_its_own_error(tmp_path: Path) -> None:
    def broken(turn: int) -> list[int]:
        raise MemoryError("no room for the opponent")

    with Rollout(scripted(say("yes")), talk({"a": 2, "b": 2}, {"b": "past"}), LARGE) as rollout:
        other = scripted(broken)
        rollout.opponents = lambda agent: rollout.policy if agent.trains else other  # type: ignore[assignment]
        with pytest.raises(MemoryError, match="no room"):
            rollout.run([Request(0, seed) for seed in range(3)])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": "mrlm_envs.debate:parallel_env", "agents": {"pr": "policy"}}, "unknown agent 'pr'; .*pro, con"),
        ({"id": GAME, "agents": {"first": "past", "second": "past"}}, "the policy plays no agent"),
        ({"id": GAME, "agents": {"first": "no/such/folder"}}, "no such folder"),
        ({"id": GAME, "agents": {"first": "nowhere:move"}}, "agents.first: 'nowhere:move'"),
        ({"id": GAME, "agents": {"first": {"policy": "past", "refresh": 3}}}, "unknown key 'refresh'"),
        ({"id": GAME, "agents": {"first": {"policy": "past", "refresh_every": 0}}}, "at least 1, got 0"),
        ({"id": GAME, "agents": {"first": {"refresh_every": 3}}}, "not for policy"),
        ({"id": GAME, "agents": {"first": 3}}, "got 3"),
        ({"id": GAME, "agents": ["first"]}, "must map agent names"),
        ({"id": "mrlm/Math-v0", "agents": {"pro": "policy"}}, "named module:function"),
        ({"id": GAME, "address": "127.0.0.1:1", "agents": {"first": "policy"}}, "remove address"),
        ({"id": f"{MODULE}:careless"}, "environment .*careless"),
        ({"id": GAME, "kwargs": {"hight": 3}}, "unexpected keyword argument 'hight'"),
    ],
)
def test_a_game_that_does_not_fit_is_one_line(entry: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        Rollout(scripted(say("1")), [entry], LARGE)
    assert "\n" not in str(caught.value)


def test_a_game_that_is_not_of_text_names_the_agent_and_the_space() -> None:
    with pytest.raises(TypeError, match=r"observation space of 'a' is Discrete\(3\), not text"):
        EnvPool([talk({"a": 1, "b": 1}, space=Discrete(3))])


def test_without_pettingzoo_a_game_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    monkeypatch.delitem(sys.modules, "mrlm_envs.debate.game", raising=False)
    with pytest.raises(ValueError, match=r'pettingzoo is not installed; .*pip install "mrlm\[debate\]"'):
        EnvPool(entries("mrlm_envs.debate:parallel_env"))


def test_experts_of_a_game_play_every_agent() -> None:
    for episode in expert_episodes(GAME, 7, seed=2):
        assert episode.agent in ("first", "second") and episode.valid and episode.policy == "expert"
        said = [m["content"] for m in episode.messages if m["role"] == "assistant"]
        assert set(said) <= {"1", "2", "3"} and len(said) == len(episode.turn_rewards)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_every_row_is_filled_by_one_agent_of_its_own_task(tasks: list[tuple[int, int]]) -> None:
    agents = [entry + 1 for entry, _ in tasks]  # entry 0 is no game, 1 has two agents, 2 three
    shares = rows_by_request(tasks, agents)
    assert [row for share in shares for row in share] == list(range(len(tasks)))
    played = [
        Episode(str(tasks[share[0]]), agent=f"{number}.{agent}")
        for number, share in enumerate(shares)
        for agent in range(agents[share[0]])
    ]
    filled = episode_by_row(played, shares, agents)
    assert [episode.env_id for episode in filled] == [str(task) for task in tasks]
    assert len({episode.agent for episode in filled}) == len(tasks)


def test_a_baseline_is_the_running_mean_of_its_agent() -> None:
    baselines: dict[str, float] = {}
    update_baselines(baselines, [("a", 1.0), ("a", 0.0), ("b", -1.0)], decay=0.9)
    assert baselines == {"a": 0.5, "b": -1.0}
    update_baselines(baselines, [("a", 1.0), ("a", 1.0)], decay=0.9)
    assert baselines == {"a": pytest.approx(0.81 * 0.5 + 0.19), "b": -1.0}


def settings(path: Path, **changes: Any) -> dict[str, Any]:
    return {
        **{"output_dir": str(path), "per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 1e-3},
        **{"max_completion_length": 60, "max_turn_tokens": 4, "logging_steps": 1, "save_strategy": "no"},
        **{"report_to": [], "disable_tqdm": True, "use_cpu": True, "num_minibatches": 1},
        **changes,
    }


def grpo(path: Path, agents: Mapping[str, Any] | None = None, envs: Any = None, **changes: Any) -> GRPOTrainer:
    args = GRPOConfig(**settings(path, num_generations=4, **changes))
    envs = talk({"a": 2, "b": 1}, agents) if envs is None else envs
    return GRPOTrainer(tiny_model(), envs, args, processing_class=TOKENIZER)


def ppo(path: Path, agents: Mapping[str, Any] | None = None, **changes: Any) -> PPOTrainer:
    args = PPOConfig(**settings(path, **changes))
    return PPOTrainer(tiny_model(), talk({"a": 2, "b": 1}, agents), args, processing_class=TOKENIZER)


def test_grpo_measures_an_agent_against_its_own_mean_return_and_not_its_group_s(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, max_steps=1)
    batches: list[dict[str, Any]] = []
    inner = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (batches.append(inputs), inner(model, inputs))[1]  # type: ignore
    trainer.train()
    assert [e.agent for e in trainer.episodes] == ["a", "b"] * 4
    assert len({e.seed for e in trainer.episodes[:4]}) == 1  # a group: two games of one seed
    for agent in ("a", "b"):
        rewards = [e.reward for e in trainer.episodes if e.agent == agent]
        assert trainer.baselines[f"Talk/{agent}"] == pytest.approx(sum(rewards) / 4)
    wanted = {e.reward - trainer.baselines[e.label] for e in trainer.episodes}
    assert {round(float(v), 4) for v in batches[0]["advantages"]} == {round(v, 4) for v in wanted}
    row = trainer.state.log_history[0]
    assert row["baseline/Talk/a"] == trainer.baselines["Talk/a"] and "reward/Talk/b" in row and "success/Talk/b" in row


def test_ppo_measures_returns_from_the_mean_of_the_agent(tmp_path: Path) -> None:
    trainer = ppo(tmp_path, max_steps=1, whiten_advantages=False, gae_lambda=1.0)
    scored: list[dict[str, Any]] = []
    inner = trainer.score
    trainer.score = lambda *args: (scored.append(inner(*args)), scored[-1])[1]  # type: ignore[method-assign]
    trainer.train()
    assert [e.agent for e in trainer.episodes] == ["a", "b"] * 4
    assert [e.seed for e in trainer.episodes[::2]] == [e.seed for e in trainer.episodes[1::2]]
    assert len({e.seed for e in trainer.episodes}) == 4
    for b, episode in enumerate(trainer.episodes):  # the critic is still 0: the first return is what the mean leaves
        wanted = episode.reward - trainer.baselines[episode.label]
        assert float(scored[0]["returns"][b, 0]) == pytest.approx(wanted, abs=1e-4)


def test_a_trainer_makes_a_game_once_before_it_plays(tmp_path: Path) -> None:
    made: list[Talk] = []

    def make(**kwargs: Any) -> Talk:
        made.append(Talk(**kwargs))
        return made[-1]

    grpo(tmp_path, envs=EnvEntry("Talk", {"rounds": {"a": 2, "b": 1}}, make=make, agents={}))
    assert len(made) == 1


def test_rows_that_are_no_whole_number_of_games_are_filled(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, envs=[talk({"a": 1, "b": 1, "c": 1}), talk({"a": 1, "b": 1}, {"b": polite})], max_steps=3)
    trainer.train()
    assert len(trainer.episodes) == 8 and all(e.valid and e.completion_ids for e in trainer.episodes)


def test_a_frozen_past_copy_does_not_train_and_is_renewed_on_time(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, {"b": {"policy": "past", "refresh_every": 2}}, max_steps=5)
    seen: list[tuple[int, bool]] = []
    start = {name: value.clone() for name, value in trainer.model.named_parameters()}
    inner = trainer.collect

    def collect(rows: Any) -> Any:
        played = inner(rows)
        [held] = trainer.opponents._copies.values()
        named = dict(held.policy.model.named_parameters())
        seen.append((held.step, all(torch.equal(named[name], value) for name, value in start.items())))
        return played

    trainer.collect = collect  # type: ignore[method-assign]
    trainer.train()
    assert {e.agent for e in trainer.episodes} == {"a"}
    assert seen == [(0, True), (0, True), (2, False), (2, False), (4, False)]
    assert not any(p.requires_grad for p in next(iter(trainer.opponents._copies.values())).policy.model.parameters())


@pytest.mark.parametrize("how", ["full", "lora", "resumed"])
def test_a_past_opponent_computes_with_its_own_weights_while_the_policy_trains(how: str, tmp_path: Path) -> None:
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_episodes": 0, "learning_rate": 0.05}
    saving["target_kl"] = None  # the trust region would undo such updates
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if how == "lora" else None

    def begin() -> GRPOTrainer:
        args = GRPOConfig(**settings(tmp_path, num_generations=4, **saving))
        return GRPOTrainer(tiny_model(), talk({"a": 2, "b": 1}, {"b": "past"}), args, None, TOKENIZER, peft_config=lora)

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(torch.arange(40)[None]).logits

    trainer = begin()
    start = logits(trainer.model)
    trainer.train()
    if how == "resumed":
        trainer = begin()
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(logits(trainer.opponents["b"].model), start)
    assert (logits(trainer.model) - start).abs().max() > 0.1
    assert trainer.opponents["a"].model is trainer.model


@pytest.mark.parametrize("make", [grpo, ppo])
def test_a_resumed_run_goes_on_with_its_baselines_and_its_past_copy(make: Any, tmp_path: Path) -> None:
    agents = {"b": {"policy": "past", "refresh_every": 2}}
    # two engines: who shares a decode depends on the clock, which the slot engine's rounding may show
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "save_episodes": 0, "engine": "turn"}
    whole = make(tmp_path, agents, **saving)
    whole.train()
    assert (tmp_path / "checkpoint-3" / FILE).is_file()
    resumed = make(tmp_path, agents, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.baselines == whole.baselines and list(resumed.baselines) == ["Talk/a"]
    assert [e.completion_ids for e in resumed.episodes] == [e.completion_ids for e in whole.episodes]
    for (name, value), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_two_engines_at_work_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plays: list[EpisodeConversation] = []

    class Watched(EpisodeConversation):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            plays.append(self)

    monkeypatch.setattr("mrlm_train.rollout.runner.EpisodeConversation", Watched)
    trainer = ppo(tmp_path, {"b": "past"}, max_steps=3, learning_rate=0.0)  # so both models stay as they are
    trainer.train()
    assert {play.episode.agent for play in plays} == {"a", "b"} and len(plays) == 48
    for episode in (play.episode for play in plays):
        assert episode.prompt_ids and episode.completion_ids and episode.logprobs
        ids, start = episode.prompt_ids + episode.completion_ids, len(episode.prompt_ids) - 1
        with torch.no_grad():
            wanted = torch.log_softmax(trainer.model(torch.tensor([ids])).logits[0, start:-1], -1)
        for at, (token, found) in enumerate(zip(episode.completion_ids, episode.logprobs, strict=True)):
            assert found is None or found == pytest.approx(float(wanted[at, token]), abs=1e-4), episode.agent


def test_greedy_sampling_in_training_is_refused_with_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"temperature must be above 0 in training \(eval_temperature: 0 .*\), got 0"):
        GRPOConfig("unused", temperature=0)


def test_a_checkpoint_without_the_past_copies_is_one_line(tmp_path: Path) -> None:
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    grpo(tmp_path, **saving).train()
    assert not (tmp_path / "checkpoint-1" / FILE).exists()
    with pytest.raises(FileNotFoundError, match=f"has no {FILE}"):
        grpo(tmp_path, {"b": "past"}, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_evaluation_tells_the_agents_apart() -> None:
    agents = [EnvEntry(GAME, agents={agent: f"{MODULE}:perfect"}) for agent in ("first", "second")]
    figures = evaluate(scripted(say("1")), [*agents, GAME], n=20, sampling=LARGE)
    names = {f"{GAME}/second", f"{GAME}#2/first", f"{GAME}#3/first", f"{GAME}#3/second"}
    assert figures["n"] == 80 and set(figures["environments"]) == names
    itself = evaluate(scripted(say("1")), GAME, n=20, sampling=LARGE)
    first, second = (itself["environments"][f"{GAME}/{agent}"] for agent in ("first", "second"))
    assert first["success"] + second["success"] == 1.0 and first["reward"] == -second["reward"]


def test_a_collection_of_games_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    output, whole = tmp_path / "some.jsonl", tmp_path / "whole.jsonl"
    sampling = Sampling(max_turn_tokens=3, max_episode_tokens=60)
    collect(tiny_policy(), GAME, 3, whole, sampling)
    assert [episode.agent for episode in read(whole)] == ["first", "second"] * 3  # whichever of them ended first
    seen: list[Episode] = []

    def cut(episode: Episode) -> None:
        seen.append(episode)
        if len(seen) == 5:  # in the middle of a game
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(tiny_policy(), GAME, 3, output, sampling, progress=cut)
    found = collect(tiny_policy(), GAME, 3, output, sampling)
    assert (found.played, found.resumed) == (6, 4)
    assert [(e.agent, e.completion_ids) for e in read(output)] == [(e.agent, e.completion_ids) for e in read(whole)]


def test_the_commands_play_games_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--environment", GAME, "--num-episodes", "5"]
    limits = ["--max-turn-tokens", "2", "--agent", f"second={MODULE}:perfect"]
    assert main(["eval", *command, *limits]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == [f"{GAME}/first", "0.0%"]
    assert main(["collect", *command, *limits, "-o", str(tmp_path / "games.jsonl")]) == 0
    assert [e.agent for e in read(tmp_path / "games.jsonl")] == ["first"] * 5
    assert main(["eval", *command, "--agent", "third=policy"]) == 1
    assert "unknown agent 'third'; the game has first, second" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_play_themselves_as_one_does_and_share_their_baselines(tmp_path: Path) -> None:
    game = {"id": "tests.train.rollout.test_selfplay:chatter", "agents": {"b": {"policy": "past", "refresh_every": 1}}}
    # each process splits its own share of a batch: only whole batches are the same
    limits = {"max_completion_length": 60, "max_turn_tokens": 4, "num_minibatches": 1}
    raw = {
        **{key: ALL_FOUR[key] for key in ("model", "training", "distributed")},
        "envs": [game, {"id": "tests.train.rollout.test_selfplay:chatter"}],
        "stages": [
            {"grpo": {"num_generations": 4, **limits}},
            {
                "ppo": limits,
                "envs": ["tests.train.rollout.test_selfplay:chatter"],
            },  # so that no game lies across the processes
        ],
    }
    config = write_config(tmp_path / "c.yaml", raw)
    alone = ["--config", str(config), "--output", str(tmp_path / "1"), "--set", "distributed.num_processes=1"]
    assert main(["train", *alone]) == 0
    code, said = train(config, tmp_path / "2", timeout=800)
    assert code == 0, said
    name = "tests.train.rollout.test_selfplay:chatter"
    for stage, agents in (("stage-1-grpo", {f"{name}/a", f"{name}#2/a", f"{name}#2/b"}), ("stage-2-ppo", None)):
        alone, shared = (metrics(tmp_path / processes / stage) for processes in ("1", "2"))
        assert len(alone) == 2
        for one, two in zip(alone, shared, strict=True):
            assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
            kept = {key.removeprefix("baseline/") for key in one if key.startswith("baseline")}
            assert kept == (agents or {f"{name}/a", f"{name}/b"})


@pytest.fixture(scope="module")
def start_of_the_number_game(tmp_path_factory: pytest.TempPathFactory) -> str:
    return selfplay.start(0, tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_toy_learns_the_number_game_from_nothing_but_itself(algorithm: str, start_of_the_number_game: str) -> None:
    row = selfplay.run(algorithm, 0, start_of_the_number_game, {"max_steps": 100})
    assert row["after"] > row["before"] + 0.1, row  # random moves, which it never meets in training


def test_words_of_a_turn_end_as_they_were_sampled() -> None:
    first, _ = play(scripted(say("2", "1")), GAME)
    assert first.completion_ids is not None and first.completion_ids[1] == CLOSE
