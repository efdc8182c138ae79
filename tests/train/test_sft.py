"""SFT on Episodes: the loss falls where the mask says, whoever wrote them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mrlm_train import tiny
from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode, write
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.runner import expert_episodes
from mrlm_train.sft import SFTConfig, SFTTrainer, episode_dataset
from tests.support.guessing import GuessNumber
from tests.support.playing import TOKENIZER, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


def config(path: Path, **settings: Any) -> SFTConfig:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "num_episodes": 64,
    }
    return SFTConfig(str(path), **{**defaults, **settings})


def trainer(path: Path, model: Any = None, **arguments: Any) -> SFTTrainer:
    settings = arguments.pop("settings", {})
    return SFTTrainer(model or tiny_model(), args=config(path, **settings), processing_class=TOKENIZER, **arguments)


@pytest.mark.parametrize("source", ["envs", "file"])
def test_experts_are_learned_from_under_the_system_prompt_that_the_policy_is_asked_with(
    source: str, tmp_path: Path
) -> None:
    write(tmp_path / "experts.jsonl", expert_episodes(GuessNumber, 8))
    given: dict[str, Any] = {"envs": GuessNumber} if source == "envs" else {"episodes": tmp_path / "experts.jsonl"}
    args = config(tmp_path, system_prompt="Be brief.", num_episodes=8)
    trained = SFTTrainer(tiny_model(), args=args, processing_class=TOKENIZER, **given)
    rows: Any = trained.train_dataset
    assert all(TOKENIZER.decode(row["input_ids"]).startswith("<|im_start|>system\nBe brief.<|im_end|>") for row in rows)


@pytest.mark.parametrize("mode", ["behavioral_cloning", "world_model", "combined"])
def test_the_labels_are_the_tokens_of_the_mode_and_no_others(tmp_path: Path, mode: str) -> None:
    episodes = expert_episodes(EnvEntry("Guess", {"high": 4}, make=GuessNumber), 8, seed=1)
    # a longer dialogue: the expert's guess comes after a wrong one
    for episode in episodes:
        episode.messages[-1:] = [
            {"role": "user", "content": "higher"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "correct"},
        ]
        episode.turn_rewards[:] = [0.0, 0.5]
    made = trainer(tmp_path, episodes=episodes, settings={"mode": mode})
    seen: list[str] = []
    rows: Any = made.train_dataset
    for labels in made.data_collator([rows[i] for i in range(len(rows))])["labels"].tolist():
        spans = "".join(TOKENIZER.decode([token]) if token >= 0 else "~" for token in labels)
        seen.append("/".join(span for span in spans.split("~") if span))
    said = [f"{episode.messages[2]['content']}<|im_end|>/4<|im_end|>" for episode in episodes]
    heard = ["higher\n[reward 0]<|im_end|>/correct\n[reward 0.5]<|im_end|>"] * 8
    assert seen == {"behavioral_cloning": said, "world_model": heard, "combined": [*said, *heard]}[mode]


def test_experts_teach_the_policy_to_win(tmp_path: Path) -> None:
    env = EnvEntry("Guess", {"low": 7, "high": 8, "split": "all"}, make=GuessNumber)
    made = trainer(tmp_path, envs=env, eval_envs=env, settings={"max_steps": 25, "eval_episodes": 20})
    before = made.evaluate()["eval_success"]
    made.train()
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 3
    assert before == 0.0 and made.evaluate()["eval_success"] > 0.2


def test_a_file_of_episodes_is_read_and_its_ids_are_made(tmp_path: Path) -> None:
    write(tmp_path / "episodes.jsonl", expert_episodes(GuessNumber, 8))
    made = trainer(tmp_path, episodes=tmp_path / "episodes.jsonl")
    made.train()
    assert made.state.global_step == 3


def test_nothing_is_cut_unless_asked_for(tmp_path: Path) -> None:
    long = Episode("E", messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 3000}])
    made = trainer(tmp_path, episodes=[long] * 8)
    assert len(made.train_dataset[0]["input_ids"]) > 3000  # type: ignore[index]


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    other = tiny.build_tokenizer()
    other.add_tokens(["new"])
    from transformers import PreTrainedTokenizerFast

    grown = PreTrainedTokenizerFast(tokenizer_object=other.backend_tokenizer, eos_token="<|im_end|>")
    grown.chat_template = TOKENIZER.chat_template
    episodes = [Chat(grown).with_ids(episode) for episode in expert_episodes(GuessNumber, 8)]
    with pytest.raises(ValueError, match="its ids are of tokenizer"):
        trainer(tmp_path, episodes=episodes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"episodes": []}, "no valid episodes"),
        ({}, "give either episodes or envs"),
        ({"envs": GuessNumber, "episodes": []}, "give either episodes or envs"),
        ({"envs": GuessNumber, "settings": {"num_episodes": 3}}, "3 rows do not fill one batch of 8"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, **arguments)


def test_training_on_the_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose with mode"):
        config(tmp_path, completion_only_loss=False)


def test_invalid_episodes_teach_nothing() -> None:
    episodes = expert_episodes(GuessNumber, 3)
    episodes[1].valid = False
    assert len(episode_dataset(episodes, Chat(TOKENIZER))) == 2
