"""Every key of the section `model` reaches the model, and what cannot work is one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mrlm_train.experiment import config
from mrlm_train.experiment import train as training
from mrlm_train.experiment.config import ConfigError, check
from mrlm_train.inference.policy import load_model
from tests.support.playing import TOKENIZER, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
SUMS = {"id": "mrlm/Math-v0", "kwargs": {"kinds": ["addition"], "difficulty": [1, 1]}}


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def adapter(model: str, tmp_path: Path) -> str:
    base = tiny_model()
    base.config.name_or_path = model
    base.name_or_path = model
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = model
    adapted.save_pretrained(str(tmp_path / "adapter"))
    TOKENIZER.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def trainer(tmp_path: Path, algorithm: str = "grpo", settings: dict[str, Any] | None = None, **section: Any) -> Any:
    """The trainer that a configuration makes."""
    raw = {
        "output_dir": str(tmp_path / "run"),
        "model": section,
        "training": {"algorithm": algorithm, "batch_size": 8, "max_steps": 1},
        algorithm: settings or {},
        "envs": [SUMS],
    }
    run = check(raw)
    args = training._training_arguments(run)
    return training._trainer(run, args, training._model_path(run, tmp_path / "run"))


def inner(made: Any) -> Any:
    return made.model.get_base_model() if hasattr(made.model, "get_base_model") else made.model


def test_weights_and_attention_are_of_the_kind_asked_for(model: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, model_name_or_path=model, dtype="bfloat16", attn_implementation="eager")
    assert made.model.dtype == torch.bfloat16 and made.model.config._attn_implementation == "eager"
    plain = trainer(tmp_path, model_name_or_path=model)
    assert plain.model.dtype == torch.float32 and plain.model.config._attn_implementation == "sdpa"


def test_an_adapter_as_the_model_takes_them_too(adapter: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, model_name_or_path=adapter, dtype="bfloat16", attn_implementation="eager")
    assert inner(made).config._attn_implementation == "eager" and inner(made).lm_head.weight.dtype == torch.bfloat16
    assert any(parameter.requires_grad for parameter in made.model.parameters())


def test_a_foreign_tokenizer_does_not_take_the_model_s_revision(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    load = training.load_tokenizer
    monkeypatch.setattr(
        training, "load_tokenizer", lambda path, *more, **keys: asked.append(keys["revision"]) or load(path)
    )
    shutil.copytree(model, tmp_path / "tokenizer")
    foreign = str(tmp_path / "tokenizer")
    trainer(tmp_path, model_name_or_path=model, revision="v2", tokenizer_name_or_path=foreign)
    made = trainer(tmp_path, model_name_or_path=model, revision="v2")
    assert asked == ["main", "v2"] and made.args.model_init_kwargs["revision"] == "v2"


def test_lora_takes_every_field_of_peft_s_config(model: str, tmp_path: Path) -> None:
    lora = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], "use_rslora": True, "lora_dropout": 0.1}
    made = trainer(tmp_path, model_name_or_path=model, lora=lora).model.peft_config["default"]
    assert {name: getattr(made, name) for name in lora} == lora | {"target_modules": {"q_proj", "v_proj"}}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"lora": {"rank": 3}}, "unknown key 'rank' in 'lora'"),
        ({"lora": {"lora_alhpa": 3}}, "unknown key 'lora_alhpa' in 'lora'; did you mean 'lora_alpha'?"),
        ({"quantization": {"load_in_5bit": True}, "lora": {}}, "unknown key 'load_in_5bit' in 'model.quantization'"),
        ({"quantization": {"load_in_4bit": True}}, "model.quantization needs 'lora'"),
        ({"quantization": {}, "lora": {}}, "says neither load_in_4bit nor load_in_8bit"),
    ],
)
def test_what_the_section_cannot_mean_is_one_line(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        check({"model": {"model_name_or_path": "tiny", **section}, "training": {"algorithm": "sft"}, "envs": [SUMS]})


def test_quantization_says_what_it_lacks_here(model: str, tmp_path: Path) -> None:
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        lacks = "needs bitsandbytes; install it"
    else:
        if torch.cuda.is_available():
            pytest.skip("it lacks nothing here")
        lacks = "needs a GPU, and there is none here"
    section = {"quantization": {"load_in_4bit": True}, "lora": {"r": 2}}
    with pytest.raises(ConfigError, match=f"model.quantization {lacks}"):
        trainer(tmp_path, model_name_or_path=model, **section)


def test_a_revision_of_an_adapter_folder_is_refused(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter_config\.json names the base's revision"):
        trainer(tmp_path, model_name_or_path=adapter, revision="v2")


def test_an_adapter_on_an_adapter_is_merged_or_refused(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is an adapter, and a second one on top would not record it: remove 'lora'"):
        trainer(tmp_path, model_name_or_path=adapter, lora={"r": 2})
    assert trainer(tmp_path, model_name_or_path=adapter, lora={"r": 2}, merge=True).model.peft_config["default"].r == 2


def test_merge_leaves_the_whole_model_and_the_critic_in_place_of_the_adapter(model: str, tmp_path: Path) -> None:
    raw = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_name_or_path": model, "lora": {"r": 2, "target_modules": "all-linear"}, "merge": True},
        "training": {"algorithm": "ppo", "batch_size": 4, "max_steps": 1, "learning_rate": 0.1, "save_strategy": "no"},
        "ppo": {"max_completion_length": 8, "max_turn_tokens": 4, "value_learning_rate": 0.1, "target_kl": None},
        "envs": [{**SUMS, "reward": "tests.support.processes:lottery"}],
    }
    final = training.run(check(raw))
    assert {"model.safetensors", "value_head.safetensors"} <= {path.name for path in final.iterdir()}
    assert not list(final.glob("adapter_*"))
    before, after = (load_model(str(path), device="cpu").state_dict() for path in (model, final))
    assert before.keys() == after.keys()
    assert any((after[name] - weight).abs().max() > 1e-4 for name, weight in before.items())


def test_dpo_plays_its_groups_with_the_model_as_it_is_configured(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrlm_train import dpo

    played_with = []
    load = dpo.load_model
    monkeypatch.setattr(dpo, "load_model", lambda *a, **k: played_with.append(load(*a, **k)) or played_with[-1])
    short = {"num_tasks": 2, "num_generations": 2, "max_completion_length": 4}
    with pytest.raises(ValueError, match=r"no pair in"):  # this model knows nothing yet
        trainer(tmp_path, "dpo", short, model_name_or_path=model, dtype="bfloat16", attn_implementation="eager")
    assert played_with[0].dtype == torch.bfloat16 and played_with[0].config._attn_implementation == "eager"


def test_the_configuration_of_a_section_is_the_one_written(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: {model_name_or_path: tiny, lora: {r: 2}}\nsft: {num_episodes: 4}\n")
    assert config.load(tmp_path / "run.yaml").model.lora == {"r": 2}
