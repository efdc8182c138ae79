"""PPO on environments: the loss by hand, what is masked, what is bootstrapped, what is saved, that it learns."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.wrappers import TimeLimit
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mrlm_train.advantages import turn_columns
from mrlm_train.experiment import config as run_config
from mrlm_train.experiment import train as training
from mrlm_train.grpo import GRPOConfig
from mrlm_train.inference.policy import load_model
from mrlm_train.ppo import PPOConfig, PPOTrainer
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.runner import InvalidEpisodes
from tests.support.guessing import GuessNumber
from tests.support.playing import TOKENIZER, Radio, say, scripted, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
FILE = PPOTrainer.FILE
RADIO = EnvEntry("Radio", {"lines": ["hello", "again"]}, make=Radio)  # two turns
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def config(path: Path, **settings: Any) -> PPOConfig:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
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
    return PPOConfig(str(path), **{**defaults, **settings})


def trainer(path: Path, envs: Any = GuessNumber, model: Any = None, **settings: Any) -> PPOTrainer:
    extra = {name: settings.pop(name) for name in ("peft_config", "value_head", "eval_envs") if name in settings}
    return PPOTrainer(model or tiny_model(), envs, config(path, **settings), processing_class=TOKENIZER, **extra)


def play(trained: PPOTrainer, policy: Any, count: int) -> dict[str, Any]:
    """One generation of `count` episodes of a scripted policy, scored."""
    trained.policy.turn = policy.turn
    trained.model.train()
    return trained._generate_and_score_completions([{"prompt": "", "entry": 0, "seed": i} for i in range(count)])


def words(messages: list[dict[str, Any]], reward: float, info: dict[str, Any]) -> float:
    """A reward that differs from episode to episode, whatever a policy with random weights says."""
    return reward + len(messages[-2]["content"]) / 10


def test_a_multi_turn_step_moves_policy_and_critic_and_says_how_it_went(tmp_path: Path) -> None:
    entry = EnvEntry("Guess", {"low": 1, "high": 3}, make=GuessNumber, reward=words)
    trained = trainer(tmp_path, entry, value_loss_coef=0.1)
    with torch.no_grad():
        trained.value_head.bias.fill_(0.5)
    before = {name: value.detach().clone() for name, value in trained.model.named_parameters()}
    trained.train()
    moved = {name for name, value in trained.model.named_parameters() if not torch.equal(before[name], value)}
    assert {"value_head.weight", "value_head.bias"} <= moved and len(moved) > len(before) / 2
    row = trained.state.log_history[0]
    for name in ("loss", "reward", "success", "invalid", "entropy", "value_loss", "value", "bootstrapped"):
        assert math.isfinite(row[name]), name
    assert row["turns"] > 1.5 and row["value"] == pytest.approx(0.5)


def test_the_loss_is_what_two_episodes_give_by_hand(tmp_path: Path) -> None:
    trained = trainer(tmp_path, per_device_train_batch_size=2, entropy_coef=0.1, loss_type="dapo", target_kl=None)
    with torch.no_grad():  # a model without features: every token has probability 1/V, every value is the bias
        trained.model.model.norm.weight.zero_()
        trained.value_head.bias.fill_(0.5)
    trained.model.train()
    vocabulary = trained.model.config.vocab_size
    log_prob = -math.log(vocabulary)
    ratios = torch.tensor([[1.5, 1.0, 1.1], [0.5, 0.9, 1.0]])
    batch = {
        "prompt_ids": torch.tensor([[5, 6], [7, 8]]),
        "prompt_mask": torch.ones(2, 2, dtype=torch.long),
        "completion_ids": torch.tensor([[9, 10, 11], [12, 13, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1], [1, 1, 1]]),  # the second token of the first episode is the environment's
        "advantages": torch.tensor([[2.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]),
        "returns": torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0]]),
        "old_values": torch.tensor([[0.0, 0.0, 0.4], [0.5, 0.5, 0.0]]),
        "old_per_token_logps": log_prob - ratios.log(),
        "num_items_in_batch": torch.tensor(4.0),
    }
    trained.current_gradient_accumulation_steps = 1
    # epsilon 0.2: min(1.5 * 2, 1.2 * 2) = 2.4; 1.1 * -1; min(0.5 * -1, 0.8 * -1) = -0.8; 0.9 * 1
    policy = -(2.4 - 1.1 - 0.8 + 0.9) / 4
    # (V - R)^2: the first may have moved from 0 to 0.2 only: max(0.25, 0.64); then 0.25; 0; 0.25
    critic = 0.5 * (0.64 + 0.25 + 0.0 + 0.25) / 4
    expected = policy + 0.5 * critic - 0.1 * math.log(vocabulary)
    assert trained.compute_loss(trained.model, batch).item() == pytest.approx(expected, abs=1e-5)


def test_the_value_loss_trains_the_head_and_nothing_else(tmp_path: Path) -> None:
    trained = trainer(tmp_path, Radio, per_device_train_batch_size=4)
    batch = play(trained, scripted(say("12", "7")), 4)
    with torch.no_grad():  # through the head of a fresh critic, which is zero, nothing could flow into the policy
        trained.value_head.weight.fill_(0.01)
    trained.current_gradient_accumulation_steps = 1
    policy: list[torch.Tensor] = []
    for coefficient in (0.0, 0.5):
        trained.model.zero_grad()
        trained.args.value_loss_coef = coefficient
        trained.compute_loss(trained.model, {**batch, "returns": batch["returns"] + 1}).backward()
        head = trained.value_head.weight.grad
        assert head is not None and bool(head.abs().sum() > 0) == (coefficient > 0)
        policy.append(trained.model.model.layers[0].mlp.up_proj.weight.grad.clone())
    assert policy[0].abs().sum() > 0 and torch.equal(*policy)


def test_values_are_read_at_the_position_before_each_token(tmp_path: Path) -> None:
    trained = trainer(tmp_path, per_device_train_batch_size=2)
    with torch.no_grad():
        trained.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    batch = play(trained, scripted(say("12", "7")), 2)
    for row, episode in enumerate(trained.episodes):
        ids = [*(episode.prompt_ids or []), *(episode.completion_ids or [])]
        with torch.no_grad():
            hidden = trained.model.model(torch.tensor([ids])).last_hidden_state
        values = trained.value_head(hidden)[0, len(episode.prompt_ids or []) - 1 :]
        length = len(episode.completion_ids or [])
        torch.testing.assert_close(batch["old_values"][row, :length], values[:length], atol=1e-5, rtol=1e-4)


def test_a_turns_reward_stands_at_its_last_token(tmp_path: Path) -> None:
    trained = trainer(tmp_path, RADIO, per_device_train_batch_size=2, whiten_advantages=False, gae_lambda=1.0)
    batch = play(trained, scripted(say("ab", "c")), 2)  # rewards 2 and 1: the letters heard
    episode = trained.episodes[0]
    rewards, turns, ends = turn_columns(batch["completion_mask"] * batch["tool_mask"], trained.episodes)
    assert rewards[0].nonzero()[:, 0].tolist() == episode.turn_ends
    assert rewards[0, episode.turn_ends].tolist() == [2.0, 1.0]
    assert ends.tolist() == [len(episode.completion_ids or [])] * 2
    sampled = [t for t, bit in enumerate(episode.action_mask or []) if bit]
    assert turns[0, sampled].tolist() == [0, 0, 0, 1, 1]
    # lambda 1, V = 0: what is still to come
    assert batch["advantages"][0, sampled].tolist() == pytest.approx([3, 3, 3, 1, 1])
    assert batch["returns"][0].sum().item() == pytest.approx(11)  # nothing at environment tokens


def test_per_turn_advantages_are_shared_by_the_tokens_of_a_turn(tmp_path: Path) -> None:
    trained = trainer(
        tmp_path,
        RADIO,
        per_device_train_batch_size=2,
        whiten_advantages=False,
        gae_unit="turn",
        gamma=0.5,
        gae_lambda=1.0,
    )
    batch = play(trained, scripted(say("ab", "c")), 2)
    sampled = [t for t, bit in enumerate(trained.episodes[0].action_mask or []) if bit]
    assert batch["advantages"][0, sampled].tolist() == pytest.approx([2.5, 2.5, 2.5, 1, 1])


class Endless(Radio):
    """Pays nothing and never ends."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "go on", 0.0, False, False, {}


def short(max_steps: int) -> Any:
    return EnvEntry("Endless", make=lambda: TimeLimit(Endless(), max_steps))


def total_returns(trained: PPOTrainer, batch: dict[str, Any]) -> list[float]:
    return [row[t].item() for row, t in zip(batch["returns"], (e.turn_ends[-1] for e in trained.episodes))]


def test_an_episode_cut_by_a_clock_is_worth_the_value_of_where_it_was_cut(tmp_path: Path) -> None:
    trained = trainer(tmp_path, short(2), per_device_train_batch_size=2, whiten_advantages=False, gamma=0.5)
    with torch.no_grad():
        trained.value_head.bias.fill_(0.8)
    batch = play(trained, scripted(say("a")), 2)
    assert {e.stop_reason for e in trained.episodes} == {"time_limit"}
    assert total_returns(trained, batch) == pytest.approx([0.4, 0.4])
    # the observation that the clock cut off is in the context, so that V is asked where the next turn would begin
    for episode in trained.episodes:
        assert TOKENIZER.decode((episode.completion_ids or [])[episode.turn_ends[-1] + 1 :]).count("go on") == 1
    trained.args.bootstrap_truncated = False
    assert total_returns(trained, play(trained, scripted(say("a")), 2)) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"max_turns": 2}, "turn_limit"), ({"max_completion_length": 24}, "token_limit")],
)
def test_a_policy_that_stalls_until_its_own_budget_is_spent_gains_nothing(
    tmp_path: Path, limits: dict[str, Any], reason: str
) -> None:
    trained = trainer(tmp_path, short(100), per_device_train_batch_size=2, whiten_advantages=False, **limits)
    with torch.no_grad():
        trained.value_head.bias.fill_(0.8)
    batch = play(trained, scripted(say("a")), 2)
    assert {e.stop_reason for e in trained.episodes} == {reason}
    assert total_returns(trained, batch) == pytest.approx([0.0, 0.0])
    last = [row[e.turn_ends[-1]].item() for row, e in zip(batch["advantages"], trained.episodes)]
    assert last == pytest.approx([-0.8, -0.8])  # worse than hoped


class Shaky(Radio):
    """Pays a fortune and then breaks, for every other seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.breaks = seed is not None and seed % 2 == 1
        return super().reset(seed=seed)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.breaks and len(self.heard) == 2:
            raise RuntimeError("static")
        return observation, 1e6 if self.breaks else reward * (1 + len(self.heard)), terminated, truncated, info


def test_invalid_episodes_are_in_no_loss_no_statistic_and_no_whitening_but_are_counted(tmp_path: Path) -> None:
    trained = trainer(tmp_path, Shaky, per_device_train_batch_size=4, max_invalid_share=0.9)
    batch = play(trained, scripted(say("ab", "c")), 4)
    assert [e.valid for e in trained.episodes] == [True, False, True, False]
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    assert not mask[1::2].any() and mask[::2].any()
    assert not batch["advantages"][1::2].any() and not batch["returns"][1::2].any()
    kept = batch["advantages"][mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-5) and kept.std(unbiased=False).item() == pytest.approx(
        1, abs=1e-4
    )
    metrics = trained._metrics["train"]
    assert metrics["invalid"] == [2] and metrics["reward"][0] < 100
    trained.current_gradient_accumulation_steps = 1

    def gradient(rows: slice) -> torch.Tensor:
        part = {name: value[rows] if value.dim() else value for name, value in batch.items()}
        trained.model.zero_grad()
        trained.compute_loss(trained.model, part).backward()
        return torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(slice(None)), gradient(slice(None, None, 2)), atol=1e-6, rtol=1e-4)


def test_kl_in_the_reward_charges_every_sampled_token(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    settings = {"beta": 0.1, "kl_in": "reward", "whiten_advantages": False, "gae_lambda": 1.0}
    trained = trainer(tmp_path, RADIO, str(tmp_path / "model"), per_device_train_batch_size=2, **settings)
    batch = play(trained, scripted(say("ab", "c")), 2)
    log_probs, values = batch["old_per_token_logps"], torch.zeros(2, batch["old_values"].shape[1] + 1)
    scored = trained.score(trained.episodes, {**batch, "ref_per_token_logps": log_probs - 1}, values)
    sampled = [t for t, bit in enumerate(trained.episodes[0].action_mask or []) if bit]
    assert scored["advantages"][0, sampled].tolist() == pytest.approx([2.5, 2.6, 2.7, 0.8, 0.9], abs=1e-5)
    trained.current_gradient_accumulation_steps = 1
    far = {**batch, "ref_per_token_logps": log_probs - 1}
    assert trained.compute_loss(trained.model, far).item() == pytest.approx(
        trained.compute_loss(trained.model, batch).item()
    )  # and the loss does not charge it again


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped_critic_included(tmp_path: Path, peft_config: Any) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")

    def run(folder: str, resume: Path | None = None) -> PPOTrainer:
        saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "num_iterations": 2}
        trained = trainer(tmp_path / folder, RADIO, str(tmp_path / "model"), peft_config=peft_config, **saving)
        trained.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trained

    whole = run("whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = run("resumed", checkpoint)
    ends = [dict(trained.model.named_parameters()) for trained in (whole, resumed)]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    whole.save_model(str(tmp_path / "final"))
    head = load_file(tmp_path / "final" / FILE)
    assert torch.equal(head["weight"], whole.value_head.weight) and head["weight"].abs().sum() > 0
    # the policy's own files hold the policy and nothing else
    if peft_config is None:
        _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "final", output_loading_info=True)
        assert not report["unexpected_keys"] and not report["missing_keys"]
    else:
        assert not any("value_head" in name for name in load_file(tmp_path / "final" / "adapter_model.safetensors"))
    again = trainer(tmp_path / "again", model=str(tmp_path / "final"))
    assert torch.equal(again.value_head.weight, whole.value_head.weight)


def test_a_configuration_that_goes_on_from_an_adapter_takes_its_value_head(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), LORA).save_pretrained(tmp_path / "adapter")
    TOKENIZER.save_pretrained(tmp_path / "adapter")
    head = {"weight": torch.ones(1, 32), "bias": torch.ones(1)}
    save_file(head, tmp_path / "adapter" / FILE)
    raw = {
        "model": str(tmp_path / "adapter"),
        "output_dir": str(tmp_path / "out"),
        "envs": ["mrlm/Math-v0"],
        "training": {"algorithm": "ppo", "max_steps": 1, "batch_size": 2, "save_strategy": "no"},
        "ppo": {"value_learning_rate": 0.0, "max_completion_length": 8},
    }
    found = load_file(training.run(run_config.check(raw)) / FILE)
    assert all(torch.equal(found[name], value) for name, value in head.items())


def test_a_value_head_that_does_not_fit_is_told_in_one_line(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1, 64), "bias": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="does not fit the model") as told:
        trainer(tmp_path, value_head=tmp_path)
    assert "\n" not in str(told.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        trainer(tmp_path, value_head=tmp_path / "nowhere")


def test_the_critic_has_its_own_learning_rate(tmp_path: Path) -> None:
    trained = trainer(tmp_path, value_learning_rate=0.25)
    groups = trained.create_optimizer().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates.pop(id(trained.value_head.weight)) == rates.pop(id(trained.value_head.bias)) == 0.25
    assert set(rates.values()) == {1e-3} and len(rates) == sum(1 for _ in trained.model.parameters()) - 2


@pytest.mark.parametrize("sizes", [{"num_iterations": 2}, {"steps_per_generation": 2}])
def test_epochs_and_minibatches_over_one_collected_batch_train(tmp_path: Path, sizes: dict[str, int]) -> None:
    trained = trainer(tmp_path, max_steps=4, **sizes)
    trained.train()
    assert trained.state.global_step == 4
    assert all(math.isfinite(row["loss"]) for row in trained.state.log_history if "loss" in row)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, "gamma must be in"),
        ({"gae_unit": "word"}, "gae_unit must be token or turn"),
        ({"kl_in": "both"}, "kl_in must be loss or reward"),
        ({"value_clip_range": 0.0}, "value_clip_range must be above 0"),
        ({"dynamic_sampling": 1}, "set num_generations >= 2"),
    ],
)
def test_a_setting_out_of_range_is_told_in_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


def test_ddp_is_told_not_to_look_for_unused_parameters(tmp_path: Path) -> None:
    assert config(tmp_path).ddp_find_unused_parameters is False
    assert config(tmp_path, ddp_find_unused_parameters=True).ddp_find_unused_parameters is True


def test_odd_batches_and_groups_both_work(tmp_path: Path) -> None:
    assert config(tmp_path, per_device_train_batch_size=7).num_generations == 1
    assert config(tmp_path, num_generations=4).num_generations == 4


def test_the_first_seeds_names_and_every_grpo_field_are_accepted_in_yaml() -> None:
    section = {"clip_range": 0.1, "gamma": 0.9, "gae_lambda": 0.8, "value_loss_coef": 0.3, "entropy_coef": 0.02}
    raw = {
        "model": {"model_name_or_path": "tiny"},
        "training": {"algorithm": "ppo"},
        "ppo": {**section, "num_ppo_epochs": 3, "epsilon_high": 0.3, "loss_type": "dr_grpo"},
        "envs": ["math"],
    }
    arguments = run_config.check(raw).arguments
    assert (arguments["epsilon"], arguments["num_iterations"], arguments["gamma"]) == (0.1, 3, 0.9)
    grpo_fields = {field.name for field in dataclasses.fields(PPOConfig.__mro__[1])}
    assert grpo_fields <= {field.name for field in dataclasses.fields(PPOConfig)}


def test_it_learns_to_speak_in_letters_in_both_turns(tmp_path: Path) -> None:
    settings = {"max_steps": 30, "max_turn_tokens": 2, "learning_rate": 1e-2, "value_learning_rate": 1e-2}
    # random weights have nothing to protect
    trained = trainer(tmp_path, RADIO, per_device_train_batch_size=64, target_kl=None, **settings)
    trained.train()
    rewards = [row["reward"] for row in trained.state.log_history if "reward" in row]
    assert rewards[0] < 1.5 and sum(rewards[-5:]) / 5 > 3  # of 4: a letter for each token


def test_a_lora_run_trains_the_adapter_and_the_critic_and_leaves_the_rest(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    entry = EnvEntry("Guess", make=GuessNumber, reward=words)
    trained = trainer(tmp_path, entry, str(tmp_path / "model"), peft_config=LORA, beta=0.1)
    trained.value_head.bias.data.fill_(0.5)
    before = {name: value.detach().clone() for name, value in trained.model.named_parameters()}
    trained.train()
    moved = {name for name, value in trained.model.named_parameters() if not torch.equal(before[name], value)}
    assert "value_head.bias" in moved and any("lora_B" in name for name in moved)
    assert all("lora_" in name or name.startswith("value_head") for name in moved)
    # the value of the start is the trained critic's, not one read with the adapter off
    assert trained.state.log_history[0]["value"] == pytest.approx(0.5, abs=1e-3)
    trained.save_model(str(tmp_path / "final"))
    assert load_model(str(tmp_path / "final"), device="cpu") is not None


def test_too_many_invalid_episodes_stop_the_run_with_the_count_and_the_first_cause(tmp_path: Path) -> None:
    trained = trainer(tmp_path, EnvEntry("Radio", {"break_at": 1}, make=Radio))
    with pytest.raises(InvalidEpisodes, match=r"8 of 8 episodes invalid, .*; the first: Radio seed .*static"):
        trained.train()


def test_the_constructor_is_reached_from_the_package_and_says_what_is_missing(tmp_path: Path) -> None:
    import mrlm_train

    assert mrlm_train.PPOTrainer is PPOTrainer and mrlm_train.PPOConfig is PPOConfig
    with pytest.raises(ValueError, match="envs is empty"):
        trainer(tmp_path, [])
    with pytest.raises(TypeError, match=r"args must be a mrlm_train\.ppo\.PPOConfig"):
        PPOTrainer(tiny_model(), GuessNumber, GRPOConfig(str(tmp_path)), processing_class=TOKENIZER)  # type: ignore[arg-type]


def test_a_new_value_head_is_float32_whatever_the_models_dtype_and_an_older_one_still_loads(tmp_path: Path) -> None:
    save_file({"weight": torch.full((1, 32), 0.5).bfloat16(), "bias": torch.zeros(1).bfloat16()}, tmp_path / FILE)
    trained = trainer(tmp_path / "run", RADIO, tiny_model().bfloat16(), value_head=tmp_path, value_learning_rate=1e-5)
    assert trained.value_head.weight.dtype == torch.float32 and (trained.value_head.weight == 0.5).all()
    trained.train()
    # in bfloat16 a step of 1e-5 from 0.5 would be lost in rounding
    assert trained.model.dtype == torch.bfloat16 and (trained.value_head.weight != 0.5).any()


def test_an_adapter_folder_is_loaded_with_the_model_settings_asked_for(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    first = trainer(tmp_path, RADIO, str(tmp_path / "model"), peft_config=LORA, max_steps=1)
    first.save_model(str(tmp_path / "adapter"))
    settings = {"attn_implementation": "eager"}
    again = trainer(tmp_path, RADIO, str(tmp_path / "adapter"), model_init_kwargs=settings)
    assert again.model.config._attn_implementation == "eager" != first.model.config._attn_implementation
