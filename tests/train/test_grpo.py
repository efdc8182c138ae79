"""GRPO on environments, and a contract test for every private hook of TRL it hangs on."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer import grpo_config as trl_grpo_config

from mrlm_train import tiny
from mrlm_train.episodes.record import Episode, read
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.inference.batch_engine import TurnRow
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.runner import InvalidEpisodes
from mrlm_train.trl_hooks import decoding_session, trl_turn
from tests.support.guessing import GuessNumber
from tests.support.playing import CLOSE, TOKENIZER, Letters, Radio, say, scripted, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


def config(path: Path, **settings: Any) -> GRPOConfig:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 80,
        "max_turn_tokens": 4,
        "learning_rate": 1e-3,
        "num_minibatches": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return GRPOConfig(str(path), **{**defaults, **settings})


def trainer(path: Path, envs: Any = GuessNumber, model: Any = None, **settings: Any) -> GRPOTrainer:
    eval_envs = settings.pop("eval_envs", None)
    extra = {name: settings.pop(name) for name in ("peft_config", "callbacks") if name in settings}
    args = config(path, **settings)
    return GRPOTrainer(model or tiny_model(), envs, args, eval_envs, processing_class=TOKENIZER, **extra)


def weights(trained: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained.model.named_parameters()}


def test_a_multi_turn_step_runs_and_says_how_it_went(tmp_path: Path) -> None:
    wordy = EnvEntry("Guess", make=GuessNumber, reward=lambda messages, reward, info: len(messages[-2]["content"]))
    trained = trainer(tmp_path, wordy)
    before = weights(trained)
    trained.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(trained).items())
    row = trained.state.log_history[0]
    for name in ("loss", "reward", "reward_std", "success", "invalid", "entropy", "turns", "tokens_per_second"):
        assert math.isfinite(row[name]), name
    assert {"clip_ratio/region_mean", "completions/mean_length", "grad_norm", "frac_reward_zero_std"} <= set(row)
    assert row["turns"] > 1.5
    assert len(list((tmp_path / "episodes").iterdir())) == 2
    saved = list(read(tmp_path / "episodes" / "step-000001.jsonl"))
    assert len(saved) == 8 and {e.valid for e in saved} == {True}


def test_a_turn_closed_by_the_template_is_not_cut_off_where_the_model_has_another_end_token(tmp_path: Path) -> None:
    tokenizer, model = tiny.build_tokenizer(), tiny_model()
    tokenizer.eos_token = tiny.PADDING  # as in a base model: its eos ends texts, its template closes turns
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    args = config(tmp_path, mask_truncated_completions=True)
    trained = GRPOTrainer(model, Radio, args, processing_class=tokenizer)
    trained.policy.turn = scripted(say("hi")).turn
    batch = trained.make_batch([{"entry": 0, "seed": row // 4} for row in range(8)])
    assert trained._metrics["train"]["completions/clipped_ratio"] == [0.0]
    assert batch["completion_mask"].any(1).all()


@pytest.mark.parametrize("other", [{"steps_per_generation": 2}, {"generation_batch_size": 16}])
def test_num_minibatches_is_not_ignored_where_trl_s_own_settings_split_the_batch(other: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"num_minibatches and {next(iter(other))} both"):
        config(tmp_path, num_minibatches=4, **other)


def test_members_of_a_group_share_environment_kwargs_and_seed(tmp_path: Path) -> None:
    envs = [EnvEntry("A", {"high": 50}, make=GuessNumber), EnvEntry("B", {"high": 90}, make=GuessNumber)]
    trained = trainer(tmp_path, envs, per_device_train_batch_size=32, max_steps=1)
    trained.train()
    for start in range(0, 32, 4):
        group = trained.episodes[start : start + 4]
        assert len({(e.env_id, json.dumps(e.kwargs), e.seed, e.task_id, tuple(e.prompt_ids or [])) for e in group}) == 1
        assert len({tuple(e.completion_ids or []) for e in group}) > 1
    assert {e.env_id for e in trained.episodes} == {"A", "B"}
    assert {"success/A", "reward/B"} <= set(trained.state.log_history[0])


def test_no_task_seed_of_an_endless_source_comes_twice(tmp_path: Path) -> None:
    rows: Any = trainer(tmp_path, max_steps=200).train_dataset
    assert len(rows) == 400 and len(set(rows["seed"])) == 400
    assert min(rows["seed"]) >= 2**24
    assert trainer(tmp_path, max_steps=3, seed=7).train_dataset["seed"] != rows["seed"][:6]  # type: ignore[index]


def test_tasks_are_played_in_the_order_of_the_plan(tmp_path: Path) -> None:
    trained = trainer(tmp_path, max_steps=3, save_episodes=0)
    seeds: Any = trained.train_dataset["seed"]  # type: ignore[index]
    trained.train()
    assert [e.seed for e in trained.episodes] == [seeds[4]] * 4 + [seeds[5]] * 4


def test_an_epoch_is_a_pass_over_finite_tasks_and_a_batch_of_endless_ones(tmp_path: Path) -> None:
    finite = trainer(tmp_path, EnvEntry("Finite", make=lambda: _finite(10)), max_steps=-1, num_train_epochs=3)
    assert finite.args.max_steps == 15  # 30 tasks, two a batch
    endless = trainer(tmp_path, max_steps=-1, num_train_epochs=5, gradient_accumulation_steps=2)
    assert endless.args.max_steps == 5
    reused = trainer(tmp_path, max_steps=-1, num_train_epochs=5, num_iterations=3)
    assert reused.args.max_steps == 15


def _finite(n: int) -> Radio:
    env = Radio(["one"])
    env.num_tasks = n  # type: ignore[attr-defined]
    return env


def test_fewer_tasks_than_a_batch_is_an_error_and_not_zero_steps(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"1 epochs of 3 tasks do not fill one batch of 4 tasks \(16 episodes"
    ) as error:
        trainer(
            tmp_path,
            EnvEntry("Finite", make=lambda: _finite(3)),
            max_steps=-1,
            num_train_epochs=1,
            per_device_train_batch_size=16,
        )
    assert "\n" not in str(error.value)


class Fixed(GRPOTrainer):
    """Trains on given episodes: what becomes of them is what is tested."""

    given: Sequence[Episode] = ()

    def collect(self, rows: list[dict[str, Any]]) -> list[Episode]:
        self.rows = rows
        self._count_episodes(list(self.given), 0.0, 0)
        return list(self.given)


def fixed(path: Path, episodes: Sequence[Episode], **settings: Any) -> Fixed:
    size = len(episodes)
    settings = {
        "per_device_train_batch_size": size,
        "num_generations": size,
        "max_invalid_share": 1.0,
        "save_episodes": 0,
        **settings,
    }
    made = Fixed(tiny_model(), GuessNumber, config(path, **settings), processing_class=TOKENIZER)
    made.given = episodes
    return made


def episode(said: str, reward: float, valid: bool = True, heard: str = "") -> Episode:
    ids = TOKENIZER.encode(said)
    tail = TOKENIZER.encode(heard)
    return Episode(
        "Test",
        prompt_ids=TOKENIZER.encode("hello"),
        completion_ids=ids + tail,
        action_mask=[1] * len(ids) + [0] * len(tail),
        logprobs=None,
        turn_rewards=[reward],
        turn_ends=[len(ids) - 1],
        valid=valid,
    )


def scored(made: Fixed) -> dict[str, Any]:
    made.model.train()
    rows = [{"prompt": "", "entry": 0, "seed": 5}] * len(made.given)
    return made._generate_and_score_completions(rows)


def gradient(made: Fixed) -> dict[str, torch.Tensor]:
    inputs = scored(made)
    made.model.zero_grad()
    made.current_gradient_accumulation_steps = 1
    made.compute_loss(made.model, inputs).backward()
    return {name: value.grad.clone() for name, value in made.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_an_invalid_episode_leaves_loss_baseline_and_statistics(tmp_path: Path, loss_type: str) -> None:
    good = [episode("yes", 1.0), episode("no", 0.0, heard=" why"), episode("hm", 0.0)]
    settings = {"loss_type": loss_type, "beta": 0.0}
    gradients, metrics = [], []
    for broken in (episode("xyz", 5.0, valid=False), episode("q" * 20, -3.0, valid=False)):
        made = fixed(tmp_path, [*good, broken], **settings)
        gradients.append(gradient(made))
        metrics.append({name: values[-1] for name, values in made._metrics["train"].items()})
    assert any(value.abs().sum() > 0 for value in gradients[0].values())
    for name, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][name], atol=1e-6), name
    assert metrics[0]["reward"] == metrics[1]["reward"] == pytest.approx(1 / 3)
    assert metrics[0]["entropy"] == pytest.approx(metrics[1]["entropy"], abs=1e-6)
    if loss_type == "dapo":  # divided by all tokens: the same as without the invalid one
        alone = gradient(fixed(tmp_path, good, **settings))
        for name, value in alone.items():
            assert torch.allclose(value, gradients[0][name], atol=1e-6), name


def test_a_batch_of_invalid_episodes_does_not_move_the_policy(tmp_path: Path) -> None:
    made = fixed(tmp_path, [episode("a", 1.0, valid=False), Episode("Test", valid=False)])
    assert all(value.abs().sum() == 0 for value in gradient(made).values())


def test_what_the_environment_said_has_no_part_in_the_loss(tmp_path: Path) -> None:
    pairs = [episode("yes", 1.0, heard=" of course"), episode("no", 0.0)]
    inputs = scored(fixed(tmp_path, pairs))
    assert inputs["tool_mask"][0].tolist() == [1, 1, 1, *[0] * 10]  # TRL's name for our env_mask
    assert inputs["num_items_in_batch"].item() == 5


def test_too_many_invalid_episodes_stop_training(tmp_path: Path) -> None:
    broken = EnvEntry("Radio", {"lines": ["one"], "break_at": 1}, make=Radio)
    with pytest.raises(InvalidEpisodes, match="8 of 8 episodes invalid"):
        trainer(tmp_path, broken).train()


def test_invalid_episodes_are_counted_and_not_printed_at_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    envs = [
        EnvEntry("Radio", {"lines": ["one"], "break_at": 1}, make=Radio),
        EnvEntry("Good", {"lines": ["one"]}, make=Radio),
    ]
    trained = trainer(tmp_path, envs, per_device_train_batch_size=32, max_steps=1, max_invalid_share=0.9)
    trained.train()
    invalid = [e for e in trained.episodes if not e.valid]
    assert trained.state.log_history[0]["invalid"] == len(invalid) > 0
    assert "All reward functions returned None" not in caplog.text


def test_a_third_party_environment_is_learned(tmp_path: Path) -> None:
    trained = trainer(
        tmp_path,
        EnvEntry("Letters", {"letters": "a"}, make=Letters),
        max_steps=40,
        per_device_train_batch_size=64,
        num_generations=16,
        learning_rate=1e-2,
        max_turn_tokens=1,
        lr_scheduler_type="constant",
        save_episodes=0,
        eval_episodes=40,
        target_kl=None,  # random weights have nothing to protect
    )
    trained.train()
    rewards = [row["reward"] for row in trained.state.log_history if "reward" in row]
    assert sum(rewards[:5]) / 5 < 0.1 and sum(rewards[-5:]) / 5 > 0.8
    assert "success" not in trained.state.log_history[0]  # it never says
    assert trained.evaluate()["eval_reward"] > 0.9


def test_training_resumed_from_a_checkpoint_ends_where_the_whole_run_ends(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_episodes": 0}
    whole = trainer(tmp_path, **settings)
    whole.train()
    resumed = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [e.completion_ids for e in resumed.episodes] == [e.completion_ids for e in whole.episodes]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_checkpoints_fall_between_generations_where_a_resume_is_exact(tmp_path: Path) -> None:
    settings = {"num_iterations": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_episodes": 0}
    whole = trainer(tmp_path, **settings)
    assert whole.args.save_steps == 2
    whole.train()
    resumed = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 2, "save_steps": 0.25},  # a share of max_steps
        {"num_minibatches": 1, "steps_per_generation": 3, "gradient_accumulation_steps": 2, "save_steps": 1},
    ],
)
def test_whatever_says_how_often_to_save_checkpoints_fall_between_generations(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    made = trainer(tmp_path, max_steps=4, save_strategy="steps", **settings)
    micro_steps = made.args.save_steps * made.args.gradient_accumulation_steps
    assert micro_steps % (made.args.steps_per_generation * made.args.num_iterations) == 0


@pytest.mark.parametrize(
    ("settings", "eval_steps", "save_steps"),
    [
        ({"save_strategy": "best"}, 4, 500),
        ({"save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True}, 4, 4),
        ({"save_strategy": "steps", "save_steps": 3}, 3, 4),
    ],
)
def test_where_the_best_is_kept_evaluations_fall_between_generations_too(
    settings: dict[str, Any], eval_steps: int, save_steps: int, tmp_path: Path
) -> None:
    watched = {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "eval_reward"}
    args = trainer(tmp_path, max_steps=8, num_iterations=2, **watched, **settings).args
    assert (args.eval_steps, args.save_steps) == (eval_steps, save_steps)


def test_what_costs_on_a_cpu_is_off_unless_asked_for(tmp_path: Path) -> None:
    args = GRPOConfig(str(tmp_path), use_cpu=True)
    assert not args.bf16 and not args.gradient_checkpointing
    asked = GRPOConfig(str(tmp_path), use_cpu=True, bf16=True, gradient_checkpointing=True)
    assert asked.bf16 and asked.gradient_checkpointing


def test_every_field_of_trl_s_config_passes_through(tmp_path: Path) -> None:
    args = GRPOConfig(str(tmp_path), epsilon_high=0.28, loss_type="dr_grpo", scale_rewards="none", top_p=0.9)
    assert (args.epsilon_high, args.loss_type, args.scale_rewards, args.top_p) == (0.28, "dr_grpo", "none", 0.9)


def test_groups_that_teach_nothing_are_replaced_by_others(tmp_path: Path) -> None:
    easy = EnvEntry("Guess", {"low": 1, "high": 1_000_000}, make=GuessNumber)  # nobody ever guesses it
    settings = {"save_episodes": 0, "max_steps": 1, "max_turns": 1}
    plain, replaced = trainer(tmp_path, easy, **settings), trainer(tmp_path, easy, dynamic_sampling=2, **settings)
    plain.train()
    replaced.train()
    assert all(a.task_id != b.task_id for a, b in zip(plain.episodes, replaced.episodes, strict=True))
    for start in range(0, 8, 4):
        assert len({e.task_id for e in replaced.episodes[start : start + 4]}) == 1
    lengths = EnvEntry("Radio", {"lines": ["one"]}, make=Radio)  # the reward is the length heard: groups vary
    kept, again = trainer(tmp_path, lengths, **settings), trainer(tmp_path, lengths, dynamic_sampling=2, **settings)
    kept.train()
    again.train()
    assert [e.completion_ids for e in kept.episodes] == [e.completion_ids for e in again.episodes]


def test_only_the_groups_that_vary_most_enter_the_loss(tmp_path: Path) -> None:
    lengths = EnvEntry("Radio", {"lines": ["one"]}, make=Radio)
    trained = trainer(tmp_path, lengths, top_groups=0.25, per_device_train_batch_size=16, max_steps=1)
    trained.train()
    spread = {}
    for e in trained.episodes:
        spread.setdefault(e.group_id, []).append(e.reward)
    deviation = {group: float(torch.tensor(rewards).std()) for group, rewards in spread.items()}
    entering = {e.group_id for e in trained.episodes if trained.trains_on(e)}
    assert entering == {max(deviation, key=deviation.__getitem__)}


def test_evaluation_in_mid_training_plays_the_test_split(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_episodes": 6, "logging_steps": 2}
    large = {"per_device_train_batch_size": 16, "num_generations": 16}  # above TRL's batch of 8 for evaluations
    trained = trainer(tmp_path, eval_envs=[GuessNumber, Letters], **large, **settings)
    trained.train()
    rows = [row for row in trained.state.log_history if "eval_reward" in row]
    assert len(rows) == 2
    assert rows[0]["eval_n"] == 12 and rows[0]["eval_Letters_n"] == 6 and "eval_GuessNumber_success" in rows[0]
    assert "reward" not in rows[0] and "reward" in trained.state.log_history[1]
    assert trained._eval_rollout is not None and trained._eval_rollout.envs[0].split == "test"
    assert trained.rollout.envs[0].split is None


def test_the_best_checkpoint_is_the_trainer_s_own_by_what_was_played(tmp_path: Path) -> None:
    trained = trainer(
        tmp_path,
        EnvEntry("Letters", {"letters": "a"}, make=Letters),
        eval_strategy="steps",
        eval_steps=1,
        eval_episodes=4,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        save_episodes=0,
    )
    trained.train()
    assert trained.state.best_metric == 0.0 and trained.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")


def test_with_lora_only_the_adapter_learns(tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trained = trainer(tmp_path, EnvEntry("Radio", {"lines": ["a", "b"]}, make=Radio), peft_config=lora)
    before = weights(trained)
    trained.train()
    moved = {name for name, value in weights(trained).items() if not torch.equal(before[name], value)}
    assert moved and all("lora_" in name for name in moved)


def test_a_path_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder") as error:
        GRPOTrainer(str(tmp_path / "nothing"), GuessNumber, config(tmp_path))
    assert "\n" not in str(error.value)


def test_a_saved_model_trains_by_its_path_with_a_reference(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    trained = GRPOTrainer(str(tmp_path / "model"), GuessNumber, config(tmp_path, beta=0.1, max_steps=1))
    trained.train()
    assert math.isfinite(trained.state.log_history[0]["kl"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"beta": 0.1}, "beta > 0 needs a reference policy"), ({"top_groups": 0.0}, r"top_groups must be in \(0, 1\]")],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, **settings)


def test_trl_s_own_config_is_refused_with_the_right_one_named(tmp_path: Path) -> None:
    plain: Any = trl_grpo_config.GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match=r"mrlm_train.grpo.GRPOConfig"):
        GRPOTrainer(tiny_model(), GuessNumber, plain, processing_class=TOKENIZER)


# Contracts: each fails when TRL changes what `trl_hooks` hangs on.


def test_trl_hands_over_all_columns_with_each_row_repeated(tmp_path: Path) -> None:
    made = fixed(tmp_path, [episode("a", 1.0), episode("b", 0.0)], max_steps=1, per_device_train_batch_size=2)
    made.train()
    task: Any = made.train_dataset[0]  # type: ignore[index]
    assert [(row["entry"], row["seed"]) for row in made.rows] == [(task["entry"], task["seed"])] * 2


def test_a_row_without_a_completion_is_taken_when_it_is_masked(tmp_path: Path) -> None:
    inputs = scored(fixed(tmp_path, [episode("a", 1.0), episode("b", 0.0), Episode("Test", valid=False)]))
    assert inputs["completion_ids"].shape == (3, 1)
    assert (inputs["completion_mask"] * inputs["tool_mask"]).sum(1).tolist() == [1, 1, 0]


def test_an_invalid_episode_is_left_out_of_the_baseline(tmp_path: Path) -> None:
    inputs = scored(fixed(tmp_path, [episode("a", 2.0), episode("b", 0.0), episode("c", 9.0, valid=False)]))
    advantages = inputs["advantages"].tolist()
    assert advantages[0] == pytest.approx(-advantages[1]) and advantages[0] > 0.5 and advantages[2] == 0


def test_trl_takes_advantages_per_token(tmp_path: Path) -> None:
    made = fixed(tmp_path, [episode("abc", 1.0), episode("de", 0.0)], scale_rewards="none")
    inputs = scored(made)
    made.current_gradient_accumulation_steps = 1
    plain = made.compute_loss(made.model, inputs)
    inputs["advantages"] = inputs["advantages"][:, None].expand_as(inputs["completion_ids"])
    assert torch.allclose(made.compute_loss(made.model, inputs), plain)


def test_trl_averages_what_is_counted_into_the_next_log(tmp_path: Path) -> None:
    made = fixed(tmp_path, [episode("a", 1.0), episode("b", 0.0)])
    made.model.train()
    made.count("mine", 1.0)
    made.count("mine", 3.0)
    made.log({})
    assert made.state.log_history[-1]["mine"] == 2.0
    made.log({})
    assert "mine" not in made.state.log_history[-1]


def test_real_log_probs_reach_trl_and_masked_positions_do_no_harm(tmp_path: Path) -> None:
    trained = trainer(tmp_path, off_policy_mask_threshold=0.1, max_steps=1)
    trained.train()
    assert math.isfinite(trained.state.log_history[0]["loss"])
    assert trained.episodes[0].logprobs is not None and None in trained.episodes[0].logprobs


def test_the_loss_scores_tokens_as_they_were_sampled(tmp_path: Path) -> None:
    trained = trainer(tmp_path, temperature=0.8, max_steps=1)
    trained.model.train()
    rows = [{"prompt": "", "entry": 0, "seed": 5 + i // 4} for i in range(8)]
    inputs = trained._generate_and_score_completions(rows)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    log_probs, _, _ = trained._get_per_token_logps_and_entropies(
        trained.model, ids, attention, inputs["completion_ids"].shape[1]
    )
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    assert torch.allclose(log_probs[mask], inputs["sampling_per_token_logps"][mask], atol=1e-4)


def test_trl_s_own_generation_serves_as_a_turn(tmp_path: Path) -> None:
    trained = trainer(tmp_path, max_completion_length=6)
    turn = trl_turn(trained, (CLOSE,))
    rows = [TurnRow(TOKENIZER.encode("hello"), 6, None), TurnRow(TOKENIZER.encode("a"), 2, None)]  # type: ignore[arg-type]
    [(first, _), (second, log_probs)] = turn(rows)
    assert 1 <= len(first) <= 6 and 1 <= len(second) <= 2 and log_probs is None
    trained.policy.turn = turn
    trained.train()
    assert trained.state.global_step == 2
    assert all(e.logprobs is None for e in trained.episodes)


def test_a_decoding_session_gives_the_bare_model_and_takes_it_back(tmp_path: Path) -> None:
    trained = trainer(tmp_path, gradient_checkpointing=True)
    trained.model.gradient_checkpointing_enable()
    trained.model.train()
    with decoding_session(trained) as model:
        assert hasattr(model, "generate")
        assert not model.is_gradient_checkpointing
    assert trained.model.is_gradient_checkpointing and trained.model.training
