"""DPO on Episodes: which pairs are made, which tokens count, and that a policy learns from its own groups."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from mrlm_train.dpo import DPOConfig, DPOTrainer
from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.preferences import is_preference_file, pair_rows, pairs, read_preferences
from mrlm_train.episodes.record import Episode, write
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.runner import Request, Rollout
from mrlm_train.trl_hooks import PairCollator
from tests.support.playing import CLOSE, TOKENIZER, Letters, Radio, scripted, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
CHAT = Chat(TOKENIZER)


def episode(group: str, reward: float, said: str = "a", valid: bool = True) -> Episode:
    """One of three turns: `said`, and between them the environment speaks."""
    messages = [{"role": "user", "content": "go"}]
    for _ in range(2):
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "well"}]
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "bye"}]
    return Episode("E", group_id=group, messages=messages, turn_rewards=[0.0, reward], valid=valid)


def saved_model(path: Path) -> str:
    tiny_model().save_pretrained(path / "model")
    TOKENIZER.save_pretrained(path / "model")
    return str(path / "model")


def config(path: Path, **settings: Any) -> DPOConfig:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return DPOConfig(str(path / "out"), **{**defaults, **settings})


def test_the_best_meets_the_worst_of_its_task_and_nothing_else() -> None:
    played = [
        episode("one", 0.5),
        episode("two", 1.0),
        episode("one", 0.1, "b"),
        episode("one", 0.9, "c"),
        episode("two", 1.0),
        episode("three", 0.0),
        episode("one", 9.0, valid=False),
    ]
    assert list(pairs(played)) == [(played[3], played[2])]  # equal rewards and single attempts make none
    assert not list(pairs(played, margin=0.9))
    assert len(list(pairs(played, margin=0.7))) == 1


def test_attempts_of_a_games_second_mover_meet_only_behind_one_prompt() -> None:
    def second(heard: str, reward: float, *said: str) -> Episode:
        messages = [{"role": "user", "content": heard}, *({"role": "assistant", "content": word} for word in said)]
        return Episode("G", group_id="g/black", agent="black", messages=messages, turn_rewards=[reward] * len(said))

    played = [second("e4", 1.0, "c5"), second("d4", 0.0, "f6"), second("e4", -1.0, "f6"), second("a4", 0.0)]
    assert [(b.reward, w.reward) for b, w in pairs(played)] == [(1.0, -1.0)]
    parts: Any = [{"type": "text", "text": "e4"}]  # content of several parts
    assert len(list(pairs([second(parts, 1.0, "c5"), second(parts, 0.0, "f6")]))) == 1
    assert not list(pairs([second("white left", 0.0), second("e4", -1.0, "f6")]))  # the better had no turn


def test_length_matching_takes_the_two_that_come_closest() -> None:
    good, bad = (
        [episode("t", 1.0, "x" * 9), episode("t", 1.0, "x" * 3)],
        [episode("t", 0.0, "y"), episode("t", 0, "yyyy")],
    )
    assert list(pairs([*good, *bad])) == [(good[0], bad[0])]
    assert list(pairs([*good, *bad], length_matched=True)) == [(good[1], bad[1])]


def test_only_the_policys_tokens_count_in_a_pair_of_several_turns() -> None:
    [row] = pair_rows([(episode("t", 1.0, "yes"), episode("t", 0.0, "no"))], CHAT)
    batch = PairCollator(TOKENIZER.pad_token_id).torch_call([row])
    for ids, mask, said in zip(batch["input_ids"], batch["completion_mask"], ("yes", "no")):
        kept = TOKENIZER.decode([token for token, bit in zip(ids.tolist(), mask.tolist()) if bit])
        assert kept == f"{said}<|im_end|>" * 3
    assert batch["completion_mask"].shape == batch["input_ids"].shape


def test_the_loss_does_not_move_when_the_environments_words_are_scored_otherwise(tmp_path: Path) -> None:
    trained = DPOTrainer(
        saved_model(tmp_path),
        [episode("t", 1.0, "yes"), episode("t", 0.0, "no")] * 1,
        config(tmp_path, per_device_train_batch_size=1),
    )
    batch = trained.data_collator([trained.train_dataset[0]])
    # a policy unlike its reference, or everything cancels
    with torch.no_grad():
        for weight in trained.model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    found = trained.compute_loss(trained.model, dict(batch)).item()

    def side(model: Any, row: int) -> float:
        """Log-prob of the policy's own tokens, summed in plain Python."""
        ids, mask = batch["input_ids"][row], batch["completion_mask"][row]
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids[None]).logits[0].float(), -1)
        return sum(log_probs[t - 1, ids[t]].item() for t in range(1, len(ids)) if mask[t])

    gaps = [side(trained.model, row) - side(trained.ref_model, row) for row in (0, 1)]
    assert abs(gaps[0] - gaps[1]) > 1e-3
    assert found == pytest.approx(math.log1p(math.exp(-0.1 * (gaps[0] - gaps[1]))), abs=1e-4)
    everything = {**batch, "completion_mask": batch["attention_mask"]}
    assert abs(trained.compute_loss(trained.model, everything).item() - found) > 1e-5


def test_sampled_ids_enter_a_pair_exactly_as_they_were_sampled() -> None:
    odd = [token for letter in "What is " for token in TOKENIZER.encode(letter)] + [
        CLOSE
    ]  # text would encode otherwise
    with Rollout(scripted(lambda turn: odd), Radio, Sampling(max_turns=1)) as rollout:
        [good, bad] = rollout.run([Request(0, 1), Request(0, 1, draw=1)])
    bad.turn_rewards = [-1.0]
    [row] = pair_rows(pairs([good, bad]), CHAT)
    assert row["chosen_ids"] == odd == row["rejected_ids"]


def test_preference_files_of_text_and_of_messages_are_read(tmp_path: Path) -> None:
    user = {"role": "user", "content": "hi"}
    history = [user, {"role": "assistant", "content": "old"}, {"role": "user", "content": "more"}]
    say_ = lambda text: [{"role": "assistant", "content": text}]
    path = tmp_path / "prefs.jsonl"
    rows = [
        {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
        {"prompt": history, "chosen": [*say_("a"), user, *say_("b")], "rejected": say_("c")},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert is_preference_file(path)
    plain, chat = read_preferences(path, CHAT)
    assert TOKENIZER.decode(plain["prompt_ids"]) == "2+2=" and TOKENIZER.decode(plain["chosen_ids"]) == "4<|im_end|>"

    def counted(side: str) -> str:
        return TOKENIZER.decode([token for token, bit in zip(chat[f"{side}_ids"], chat[f"{side}_mask"]) if bit])

    assert counted("chosen") == "a<|im_end|>b<|im_end|>"  # neither the history nor the user
    assert counted("rejected") == "c<|im_end|>"
    whole = TOKENIZER.decode(chat["prompt_ids"] + chat["rejected_ids"])
    rendered = TOKENIZER.apply_chat_template([*history, *say_("c")], tokenize=False)
    assert rendered.startswith(whole)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "row 2: field 'rejected' is missing \\(found: prompt, chosen\\)"),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, "row 2: field 'chosen' is missing"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "row 2: field 'chosen' is missing"),
        ({"prompt": "a", "chosen": [{"role": "assistant", "content": "x"}], "rejected": "c"}, "all text, or all lists"),
        (
            {
                "prompt": [{"role": "user", "content": "x"}],
                "chosen": [{"role": "user", "content": "x"}],
                "rejected": [1],
            },
            "message",
        ),
    ],
)
def test_a_faulty_row_is_told_by_file_row_and_field(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "prefs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=message) as told:
        list(read_preferences(path, CHAT))
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_a_run_needs_pairs_a_source_and_a_reference(tmp_path: Path) -> None:
    model = saved_model(tmp_path)
    with pytest.raises(ValueError, match="either episodes"):
        DPOTrainer(model, args=config(tmp_path))
    with pytest.raises(ValueError, match="no pair in 1 episodes"):
        DPOTrainer(model, [episode("t", 1.0)], config(tmp_path))
    with pytest.raises(ValueError, match="needs a reference policy"):
        DPOTrainer(tiny_model(), [episode("t", 1.0)], config(tmp_path), processing_class=TOKENIZER)
    with pytest.raises(ValueError, match="do not fill one batch of 4"):
        DPOTrainer(model, [episode("t", 1.0), episode("t", 0.0)], config(tmp_path))
    foreign = episode("t", 1.0)
    foreign.prompt_ids, foreign.tokenizer_hash = [1], "another"
    with pytest.raises(ValueError, match="its ids are of tokenizer another"):
        DPOTrainer(model, [foreign, episode("t", 0.0)], config(tmp_path))


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")])
def test_training_on_a_file_of_episodes_widens_the_margin(tmp_path: Path, peft_config: Any) -> None:
    write(tmp_path / "e.jsonl", [e for i in range(8) for e in (episode(str(i), 1, "yes"), episode(str(i), 0, "no"))])
    args = config(tmp_path, max_steps=8, learning_rate=1e-2)
    trained = DPOTrainer(saved_model(tmp_path), tmp_path / "e.jsonl", args, peft_config=peft_config)
    trained.train()
    margins = [row["rewards/margins"] for row in trained.state.log_history if "rewards/margins" in row]
    assert margins[0] == pytest.approx(0, abs=1e-4) and margins[-1] > 0.1


def test_a_policy_learns_from_groups_it_has_played_itself(tmp_path: Path) -> None:
    settings = {"max_steps": 30, "learning_rate": 1e-2, "num_tasks": 60, "num_generations": 8, "max_turn_tokens": 2}
    trained = DPOTrainer(
        saved_model(tmp_path),
        envs=Radio,
        args=config(tmp_path, per_device_train_batch_size=16, eval_temperature=1.0, eval_episodes=60, **settings),
        eval_envs=Radio,
    )
    before = trained.evaluate()["eval_reward"]
    trained.train()
    assert trained.evaluate()["eval_reward"] > before + 1  # of 6: a letter for each token it may say


def test_letters_is_no_help_to_a_policy_that_never_wins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DPO needs tasks with a better and a worse attempt"):
        settings = config(tmp_path, num_tasks=2, num_generations=2, max_turn_tokens=1)
        DPOTrainer(saved_model(tmp_path), envs=Letters, args=settings)
