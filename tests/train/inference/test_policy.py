"""Loading policies: folders, adapters, weight types, and errors of one line."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mrlm_train import tiny
from mrlm_train.inference import policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.evaluation import evaluate
from tests.support.guessing import GuessNumber
from tests.support.playing import TOKENIZER, tiny_model

CPU = torch.device("cpu")
SHORT = Sampling(temperature=0, max_turn_tokens=4, max_episode_tokens=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_policy_acts_as_the_one_in_memory(folder: Path) -> None:
    loaded = policy.make(str(folder))
    in_memory = policy.make(tiny_model(), TOKENIZER)
    assert loaded.name == str(folder) and loaded.chat.stop_ids == in_memory.chat.stop_ids
    assert evaluate(loaded, GuessNumber, 4, sampling=SHORT) == evaluate(in_memory, GuessNumber, 4, sampling=SHORT)


def test_an_adapter_folder_gives_the_base_model_with_its_adapter(folder: Path, tmp_path: Path) -> None:
    base = policy.load_model(str(folder))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    ids = torch.tensor([[5, 6, 7]])
    expected = adapted(ids).logits
    adapted.save_pretrained(str(tmp_path / "adapter"))
    TOKENIZER.save_pretrained(tmp_path / "adapter")
    loaded = policy.make(str(tmp_path / "adapter"))
    assert torch.allclose(loaded.model(ids).logits, expected, atol=1e-6)
    assert not torch.allclose(tiny_model()(ids).logits, expected, atol=1e-3)


@pytest.mark.parametrize("path", ["runs/nothing/here", "./nothing", "/nothing", ""])
def test_a_folder_that_does_not_exist_is_one_line(path: str) -> None:
    for load in (policy.load_model, policy.load_tokenizer):
        with pytest.raises(ValueError, match="no such folder; give a folder with") as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^model {tmp_path}: ") as error:
        policy.load_model(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_chat_template_file_replaces_the_tokenizer_s_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}", "utf-8")
    tokenizer = policy.load_tokenizer(str(folder), str(tmp_path / "plain.jinja"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    with pytest.raises(ValueError, match="no such file"):
        policy.load_tokenizer(str(folder), str(tmp_path / "none.jinja"))


def test_a_model_in_memory_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know its tokenizer"):
        policy.resolve(tiny_model(), None)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (None, torch.float32),
        ("auto", torch.float32),
        ("float16", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float32, torch.float32),
    ],
)
def test_weights_on_a_cpu_are_fp32_unless_bf16_is_asked_for(name: str | None, dtype: torch.dtype) -> None:
    assert policy.weight_dtype(name, CPU) == dtype


@pytest.mark.parametrize("name", ["int8", "half precision", "nn"])
def test_an_unknown_weight_type_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"^dtype '{name}': expected float32"):
        policy.weight_dtype(name, CPU)


def test_the_context_limit_is_the_model_s() -> None:
    model, tokenizer = tiny.build(hidden_size=32, num_layers=1, num_heads=2, max_position_embeddings=77)
    assert policy.make(model, tokenizer).max_context == 77
