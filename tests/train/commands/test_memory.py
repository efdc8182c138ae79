"""`mrlm info --model`: what a training needs, against numbers worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mrlm_train.cli import main
from mrlm_train.commands import memory
from mrlm_train.commands.flags import Training
from mrlm_train.inference.kv_cache import SlotModel
from tests.support.playing import tiny_model

# Qwen2.5-7B's published shape; its card says 7.61 B parameters, 6.53 B without embeddings
QWEN_7B = {
    **{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False},
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064},
    **{"num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768},
}
H, F, V, KV = 3584, 18944, 152064, 4 * 128
ATTENTION = (H * H + H) + 2 * (H * KV + KV) + H * H  # q, k and v have biases
BLOCK = ATTENTION + 3 * H * F + 2 * H
WHOLE = 28 * BLOCK + 2 * V * H + H
LINEAR = 28 * (2 * (H + H) + 2 * (H + KV) + 3 * (H + F))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "config.json").write_text(json.dumps(QWEN_7B))
    return folder


@pytest.fixture(scope="module")
def shape(qwen: Path) -> memory.Shape:
    return memory.shape(str(qwen))


def sizes(shape: memory.Shape, phase: str, **settings) -> dict[str, float]:
    return {name: size for name, (size, _) in memory.estimate(shape, Training(**settings))[phase].items()}


def test_a_config_file_is_enough_to_count_parameters(shape: memory.Shape) -> None:
    assert shape == memory.Shape(WHOLE, BLOCK, 2 * V * H + H, LINEAR, 28, H, V, 2 * 28 * KV)
    assert round(WHOLE / 1e9, 2) == 7.62 and round(28 * BLOCK / 1e9, 2) == 6.53


def test_tied_embeddings_count_once() -> None:
    from mrlm_train import tiny

    model, tokenizer = tiny.build()
    shape = memory.shape("tiny")
    assert shape.parameters == model.num_parameters() and shape.outside == len(tokenizer) * 128 + 128
    assert shape.cached == 2 * 4 * 128


def test_one_gpu_holds_everything(shape: memory.Shape) -> None:
    training = sizes(shape, "training", batch=2, tokens=1000)
    assert training == {
        "weights": 4 * WHOLE,
        "gradients": 4 * WHOLE,
        "AdamW": 8 * WHOLE,
        "activations": 2000 * (2 * 28 * H + 34 * H + 8 * V),
    }
    assert sizes(shape, "rollout", rows=10, tokens=1000)["cache"] == 10 * 1152 * 57_344  # 64 · 1.5 · 1.5 …
    assert sizes(shape, "rollout", rows=10, tokens=1000, strategy="fsdp", processes=2)["cache"] == 10_000 * 57_344
    assert "gradients" not in sizes(shape, "rollout")


def test_the_cache_is_counted_as_the_slot_engine_keeps_it() -> None:
    model = tiny_model()
    slots = SlotModel(model, 3)
    one = np.ones(3, np.int64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for place in range(70):
            slots.forward(np.arange(3), 7 * one[:, None], place * one, place * one)
    kept = sum(buffer.nbytes for layer in slots.cache.layers for buffer in (layer.keys, layer.values))  # type: ignore[union-attr]
    config = model.config
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    shape = memory.Shape(0, 0, 0, 0, config.num_hidden_layers, config.hidden_size, 0, cached)
    assert sizes(shape, "rollout", rows=3, tokens=70)["cache"] == kept


def test_bf16_weights_take_half(shape: memory.Shape) -> None:
    training = sizes(shape, "training", dtype="bfloat16")
    assert (training["weights"], training["gradients"], training["AdamW"]) == (2 * WHOLE, 2 * WHOLE, 4 * WHOLE)


def test_ddp_shares_nothing_and_keeps_a_copy_of_the_gradients(shape: memory.Shape) -> None:
    training = sizes(shape, "training", strategy="ddp", processes=8)
    assert training["weights"] == 4 * WHOLE and training["buckets"] == 4 * WHOLE


def test_fsdp_divides_states_and_gathers_what_computes(shape: memory.Shape) -> None:
    training = sizes(shape, "training", strategy="fsdp", processes=8)
    assert training["weights"] == 4 * WHOLE / 8 and training["AdamW"] == WHOLE
    assert training["gathered"] == 2 * (2 * V * H + H + 2 * BLOCK)
    assert sizes(shape, "rollout", strategy="fsdp", processes=8)["gathered"] == training["gathered"]


def test_zero_3_divides_states_and_gathers_the_whole_model_to_play(shape: memory.Shape) -> None:
    training = sizes(shape, "training", strategy="deepspeed", processes=4)
    assert training["weights"] + training["gradients"] + training["AdamW"] == 16 * WHOLE / 4
    assert training["gathered"] == 2 * 10**9
    assert sizes(shape, "rollout", strategy="deepspeed", processes=4)["gathered"] == 2 * WHOLE


def test_lora_trains_the_adapter_alone(shape: memory.Shape) -> None:
    training = sizes(shape, "training", lora=16, dtype="bfloat16")
    assert training["gradients"] == 4 * 16 * LINEAR and training["AdamW"] == 8 * 16 * LINEAR
    assert training["weights"] == 2 * WHOLE + 4 * 16 * LINEAR


def test_lora_s_adapter_is_what_peft_makes_of_all_linear_layers() -> None:
    from peft import LoraConfig, get_peft_model

    from mrlm_train import tiny

    adapted = get_peft_model(tiny.build()[0], LoraConfig(r=4, target_modules="all-linear"))
    assert adapted.get_nb_trainable_parameters()[0] == 4 * memory.shape("tiny").linear


def test_a_reference_model_is_counted_where_there_is_one(shape: memory.Shape) -> None:
    assert sizes(shape, "training", reference=True)["reference model"] == 4 * WHOLE
    assert "reference model" not in sizes(shape, "training", reference=True, lora=8)


def test_the_command_says_what_each_gpu_needs(qwen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", str(qwen), "--strategy", "fsdp", "--num-processes", "8"]) == 0
    said = capsys.readouterr().out
    assert "7,615,616,512 parameters, fsdp, 8 processes" in said
    assert "weights             3.55 GiB" in said and "at least 31.76 GiB on each GPU" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "./nothing"], "model './nothing': no such folder"),
        (["--model", "tiny", "--dtype", "bloat16"], "dtype 'bloat16': expected float32, bfloat16"),
    ],
)
def test_a_fault_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", *arguments]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and said in errors[0]
