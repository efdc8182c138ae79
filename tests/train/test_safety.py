"""The trust region: what it measures, what it undoes, how the rate follows, and that checkpoints keep it. Alarms."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.ppo import PPOConfig, PPOTrainer
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.safety import Alarms
from mrlm_train.trl_hooks import loss_mask
from tests.support.playing import TOKENIZER, Radio, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
RADIO = EnvEntry("Radio", {"lines": ["hello", "again"]}, make=Radio)
TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "grpo": (GRPOTrainer, GRPOConfig, {"num_generations": 4}),
    "ppo": (PPOTrainer, PPOConfig, {"value_learning_rate": 1e-2}),
}


class Watch(TrainerCallback):
    """Keeps the policy's weights, the critic's and the rates after every step."""

    def __init__(self) -> None:
        self.policy: list[torch.Tensor] = []
        self.critic: list[torch.Tensor] = []
        self.rates: list[list[float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = list(kwargs["model"].named_parameters())
        self.policy.append(torch.cat([p.detach().flatten() for n, p in named if "value_head" not in n]))
        self.critic.append(torch.cat([p.detach().flatten() for n, p in named if "value_head" in n] or [torch.zeros(1)]))
        self.rates.append([group["lr"] for group in kwargs["optimizer"].param_groups])


def trainer(kind: str, path: Path, model: Any = None, **settings: Any) -> tuple[Any, Watch]:
    make, config, own = TRAINERS[kind]
    values: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "max_completion_length": 80,
        "max_turn_tokens": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "num_minibatches": 2,
        "target_kl": 0.05,
        **own,
        **settings,
    }
    made, watch = make(model or tiny_model(), RADIO, config(str(path), **values), processing_class=TOKENIZER), Watch()
    made.add_callback(watch)
    return made, watch


def column(trained: Any, name: str) -> list[float]:
    return [row[name] for row in trained.state.log_history if name in row]


def test_the_divergence_is_what_the_log_probs_say(tmp_path: Path) -> None:
    made, _ = trainer("grpo", tmp_path)
    made.create_optimizer_and_scheduler(4)
    batch = made.make_batch([{"prompt": "", "entry": 0, "seed": i // 4} for i in range(8)])
    shift_BT = torch.linspace(-1, 1, batch["tool_mask"].numel()).view(batch["tool_mask"].shape)
    made.trust_region.prepare(batch, made.log_probs(batch) - shift_BT)
    shift_N = shift_BT[loss_mask(batch).bool()]  # what the environment says does not count
    assert made.trust_region._kl() == pytest.approx((shift_N.exp() - 1 - shift_N).mean().item(), rel=1e-4)


@pytest.mark.parametrize("kind", sorted(TRAINERS))
def test_every_update_is_measured(kind: str, tmp_path: Path) -> None:
    trained, watch = trainer(kind, tmp_path, target_kl=10.0)
    trained.train()
    assert len(column(trained, "update_kl")) == 4 and min(column(trained, "update_kl")) > 1e-5
    assert column(trained, "rate_scale") == [1.0] * 4 and watch.rates[-1][0] == pytest.approx(1e-2)
    plain, _ = trainer(kind, tmp_path, target_kl=None)
    plain.train()
    assert not column(plain, "update_kl") and not column(plain, "rate_scale")


@pytest.mark.parametrize("kind", sorted(TRAINERS))
def test_an_update_far_beyond_the_target_is_undone_and_the_critic_goes_on(kind: str, tmp_path: Path) -> None:
    trained, watch = trainer(kind, tmp_path, target_kl=1e-9, max_steps=3)
    start = torch.cat([p.detach().flatten() for n, p in trained.model.named_parameters() if "value_head" not in n])
    with pytest.warns(UserWarning, match="more than target_kl=1e-09; the learning rate is now 0.25") as caught:
        trained.train()
    assert len([w for w in caught if "target_kl" in str(w.message)]) == 1
    assert trained.state.global_step == 3  # an update that is undone counts as a step
    assert column(trained, "rejected_updates") == [1.0] * 3
    assert column(trained, "rate_scale") == pytest.approx([0.25, 0.25**2, 0.25**3])
    assert all(torch.equal(start, policy) for policy in watch.policy)
    assert (kind == "ppo") == (not torch.equal(watch.critic[1], watch.critic[2]))
    assert kind == "grpo" or watch.rates[-1][-1] == pytest.approx(1e-2)


@pytest.mark.filterwarnings("ignore:.*target_kl")
@pytest.mark.parametrize("kind", TRAINERS)
def test_a_batch_whose_rewards_are_all_alike_moves_nothing_whatever_the_batches_before_it(
    kind: str, tmp_path: Path
) -> None:
    made, watch = trainer(kind, tmp_path, num_minibatches=1, learning_rate=1e-4)
    collect = made.collect

    def alike_from_the_third_step(rows: list[dict[str, Any]]) -> list[Any]:
        episodes = collect(rows)
        for i, episode in enumerate(episodes):
            signal = float(i % 2) if made.state.global_step < 2 else 0.0
            episode.turn_rewards = [0.0] * (len(episode.turn_rewards) - 1) + [signal]
        return episodes

    made.collect = alike_from_the_third_step
    made.train()
    assert column(made, "held_updates") == [0.0, 0.0, 1.0, 1.0]
    assert not torch.equal(watch.policy[0], watch.policy[1])
    assert torch.equal(watch.policy[1], watch.policy[2]) and torch.equal(watch.policy[2], watch.policy[3])
    assert watch.rates[3][0] == pytest.approx(1e-4)


def test_the_rate_settles_where_the_divergence_is_the_target(tmp_path: Path) -> None:
    trained, _ = trainer("grpo", tmp_path, target_kl=1e-3, max_steps=12)
    trained.train()
    measured, scales = column(trained, "update_kl"), column(trained, "rate_scale")
    assert max(measured[:3]) > 4e-3 and sum(measured[-6:]) / 6 < 2e-3
    assert 0 < scales[-1] < 0.5


def test_a_rate_that_was_lowered_rises_again_but_not_beyond_the_schedule(tmp_path: Path) -> None:
    made, watch = trainer("grpo", tmp_path, learning_rate=1e-6)
    made.state.stateful_callbacks["trust_region"] = {"scale": 0.7}
    made.trust_region._follow(1e-9, 1e-3)
    assert made.trust_region.scale == pytest.approx(0.84)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*target_kl")
        made.train()
    assert made.trust_region.scale == 1.0 and column(made, "rejected_updates") == [0.0] * 4
    assert watch.rates[-1][0] == pytest.approx(1e-6)


def test_a_resumed_run_whose_updates_are_small_is_not_warned_of_its_lowered_rate(tmp_path: Path) -> None:
    made, _ = trainer("grpo", tmp_path, target_kl=1e3)
    made.state.stateful_callbacks["trust_region"] = {"scale": 0.3}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*moved the policy")
        made.trust_region._follow(1e2, 1e3)
    assert made.trust_region.scale == pytest.approx(0.36)
    with pytest.warns(UserWarning, match="moved the policy"):
        made.trust_region._follow(2e3, 1e3)


def test_a_policy_that_has_become_nan_is_undone(tmp_path: Path) -> None:
    made, _ = trainer("grpo", tmp_path)
    weight = next(made.model.parameters())
    made.trust_region._before = [(weight, weight.detach().clone())]
    with torch.no_grad():
        weight.fill_(math.nan)
    with pytest.warns(UserWarning, match="moved the policy by nan"):
        made.trust_region._follow(math.nan, 1e-3)
    assert weight.isfinite().all() and made.trust_region.scale == 0.25


@pytest.mark.filterwarnings("ignore:.*target_kl")
@pytest.mark.parametrize("schedule", ["linear", "reduce_lr_on_plateau"])
@pytest.mark.parametrize("kind", sorted(TRAINERS))
def test_a_rate_that_was_cut_is_in_the_checkpoint(kind: str, schedule: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")

    def run(folder: str, resume: Path | None = None) -> tuple[Any, Watch]:
        saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": schedule}
        if schedule == "reduce_lr_on_plateau":
            saving |= {"eval_strategy": "steps", "eval_steps": 6, "eval_episodes": 1}
            saving |= {"metric_for_best_model": "reward"}
        made, watch = trainer(kind, tmp_path / folder, str(tmp_path / "model"), target_kl=1e-3, **saving)
        made.train(resume_from_checkpoint=None if resume is None else str(resume))
        return made, watch

    whole_run, whole = run("whole")
    resumed_run, resumed = run("resumed", tmp_path / "whole" / "checkpoint-2")
    assert column(whole_run, "rate_scale")[1] < 0.5
    assert column(resumed_run, "rate_scale") == column(whole_run, "rate_scale")
    assert torch.equal(resumed.policy[-1], whole.policy[-1]) and torch.equal(resumed.critic[-1], whole.critic[-1])


def test_an_update_takes_as_many_episodes_with_minibatches_as_without(tmp_path: Path) -> None:
    one, _ = trainer("grpo", tmp_path, num_minibatches=1, max_steps=-1, num_train_epochs=4)
    two, _ = trainer("grpo", tmp_path, num_minibatches=2, max_steps=-1, num_train_epochs=4)
    assert one.args.max_steps == two.args.max_steps == 4
    assert len(one.train_dataset) == len(two.train_dataset) == 8  # tasks; four episodes of each
    one.train()
    two.train()
    assert len(one.episodes) == 8 and len(two.episodes) == 16


def test_the_critic_can_learn_alone_at_first(tmp_path: Path) -> None:
    trained, watch = trainer("ppo", tmp_path, critic_warmup_steps=2)
    start = torch.cat([p.detach().flatten() for n, p in trained.model.named_parameters() if "value_head" not in n])
    trained.train()
    assert torch.equal(watch.policy[1], start) and not torch.equal(watch.policy[2], start)
    assert watch.critic[0].abs().sum() > 0


@pytest.mark.parametrize(("name", "value"), [("target_kl", 0.0), ("num_minibatches", 0)])
def test_a_setting_out_of_range_is_refused(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        GRPOConfig(str(tmp_path), **{name: value})  # type: ignore[arg-type]


HEALTHY = {
    "entropy": 1.0,
    "reward": 0.5,
    "reward_std": 0.3,
    "frac_reward_zero_std": 0.5,
    "completions/clipped_ratio": 0.1,
}


def warned(rows: list[dict[str, float]], num_generations: int = 8) -> list[str]:
    alarms, state = Alarms(), TrainerState(is_world_process_zero=True)
    args: Any = type("Args", (), {"num_generations": num_generations})()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for row in rows:
            alarms.on_log(args, state, TrainerControl(), logs={**HEALTHY, **row})
            alarms.on_log(args, state, TrainerControl(), logs={"eval_reward": 1.0})  # not a log of training
        alarms.on_train_end(args, state, TrainerControl())
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ({"frac_reward_zero_std": 1.0}, "all rewards of a group are equal"),
        ({"completions/clipped_ratio": 1.0}, "no episode ends with an end-of-turn token"),
        ({"entropy": 0.05}, "entropy has collapsed from 1 to 0.05"),
        ({"entropy": 4.0}, "entropy has grown from 1 to 4"),
    ],
)
def test_a_run_that_does_not_learn_is_warned_of_once_with_the_likely_cause(sign: dict[str, float], words: str) -> None:
    said = warned([{}] * 5 + [sign] * 12)
    assert len([text for text in said if text.startswith(words[:20])]) == 1
    assert any(words in text or words[:20] in text for text in said)


def test_a_run_of_two_logs_is_warned_of_at_its_end() -> None:
    [said] = warned([{"completions/clipped_ratio": 1.0}] * 2)
    assert "raise max_completion_length" in said


def test_a_healthy_run_is_not_warned_of() -> None:
    assert warned([]) == warned([{}]) == warned([{}] * 20) == []
    assert warned([{}] * 5 + [{"entropy": 0.05, "reward": 0.95}] * 20) == []  # it has become good, and sure of it
    assert warned([{"frac_reward_zero_std": 1.0}] * 20, num_generations=1) == []  # PPO: a group of one says nothing
