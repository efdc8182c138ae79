import json

import pytest

pytest.importorskip("trl")

from mrlm_train.experiment import checkpoints, config
from mrlm_train.experiment import train as training
from mrlm_train.experiment.config import ConfigError
from tests.support.paths import SHARED

SEED_CONFIG = SHARED / "seed_config.yaml"
GOOD = """
experiment_name: t
seed: 3
model: {model_name_or_path: tiny}
training: {algorithm: grpo, learning_rate: 1e-6, num_epochs: 4, batch_size: 16}
grpo: {num_generations: 4, beta: 0.01}
envs:
  - math
  - {id: "mrlm/Math-v0", kwargs: {kinds: [addition]}, weight: 2, split: all}
eval_envs: [{env_type: math, mode: client, max_turns: 3}]
distributed: {enabled: true, strategy: ddp, mixed_precision: bf16}
"""


def load(tmp_path, text, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return config.load(path, overrides)


def test_a_good_file_reads_as_it_says(tmp_path):
    run = load(tmp_path, GOOD)
    assert (run.algorithm, run.seed, run.batch_size, run.output_dir) == ("grpo", 3, 16, "runs/t")
    assert run.arguments == {
        "learning_rate": 1e-6,  # YAML 1.1 reads 1e-6 as a string
        "num_train_epochs": 4.0,
        "num_generations": 4,
        "beta": 0.01,
        "bf16": True,
    }
    assert [env.id for env in run.envs] == ["mrlm/Math-v0", "mrlm/Math-v0"]
    assert (run.envs[1].weight, run.envs[1].split, run.envs[1].kwargs) == (2.0, "all", {"kinds": ["addition"]})
    assert run.eval_envs[0].kwargs == {"max_turns": 3}


def test_without_envs_the_eval_envs_serve_both(tmp_path):
    text = "model: {model_name_or_path: tiny}\ntraining: {algorithm: grpo}\neval_envs: [math]\n"
    run = load(tmp_path, text)
    assert run.envs == run.eval_envs and len(run.envs) == 1


@pytest.mark.parametrize("entry", ["{id: math, split: test}", "{id: math, kwargs: {split: test}}"])
def test_eval_envs_that_serve_both_are_not_trained_in_on_the_test_split(tmp_path, entry):
    text = f"model: {{model_name_or_path: tiny}}\ntraining: {{algorithm: grpo}}\neval_envs: [{entry}]\n"
    run = load(tmp_path, text)
    splits = [entry.on_split(split).record for entry, split in ((run.envs[0], "train"), (run.eval_envs[0], "test"))]
    assert [kwargs["split"] for kwargs in splits] == ["train", "test"]


def test_eval_steps_without_eval_envs_evaluate_where_it_trains(tmp_path):
    text = "model: {model_name_or_path: tiny}\ntraining: {algorithm: grpo, eval_steps: 5}\nenvs: [math]\n"
    args = training._training_arguments(load(tmp_path, text))
    assert (args.eval_strategy.value, args.eval_steps) == ("steps", 5)


def test_overrides_reach_any_key(tmp_path):
    run = load(
        tmp_path, GOOD, "training.num_epochs=1", "envs.1.kwargs.difficulty=[2, 2]", "lora.r=4", "grpo.epsilon=1e-1"
    )
    assert run.arguments["num_train_epochs"] == 1.0 and run.arguments["epsilon"] == 0.1
    assert run.envs[1].kwargs == {"kinds": ["addition"], "difficulty": [2, 2]}
    assert run.model.lora == {"r": 4}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("learning_rate", "lerning_rate", "unknown key 'lerning_rate' in 'training'; did you mean 'learning_rate'?"),
        (
            "num_generations",
            "num_generation",
            "unknown key 'num_generation' in 'grpo'; did you mean 'num_generations'?",
        ),
        ("envs:", "env:", "unknown key 'env'; did you mean 'envs'?"),
        ("weight", "wieght", r"unknown key 'wieght' in 'envs\[1\]'; did you mean 'weight'?"),
        ("env_type: math", "env_type: maths", "unknown env_type 'maths' in 'eval_envs\\[0\\]'; did you mean 'math'"),
        ("mode: client", "mode: sever", "mode 'sever'"),
        ("algorithm: grpo", "algorithm: gppo", "training.algorithm 'gppo' is not one of sft, grpo, ppo, dpo"),
        ("grpo: {num", "sft: {max_length: 4}\ngrpo: {num", "section 'sft' belongs to another algorithm"),
        ("grpo: {num", "grpo: {learning_rate: 1.0, num", "'learning_rate' is given twice: training.* and grpo"),
        ("1e-6", "fast", "training.learning_rate must be a valid number, got 'fast'"),
        ("batch_size: 16", "batch_size: many", "training.batch_size must be a valid integer, got 'many'"),
        ("batch_size: 16", "batch_size: 0", "training.batch_size must be at least 1, got 0"),
        ("strategy: ddp", "strategy: dpd", "distributed.strategy must be 'ddp', 'fsdp' or 'deepspeed', got 'dpd'"),
        ("model_name_or_path: tiny", "dtype: float32", "model_name_or_path is missing"),
        ("seed: 3", "seed: 3\nseed: 4", "found duplicate key seed"),
        ("seed: 3", "seed: x", "seed must be a valid integer"),
        ("seed: 3", "seed: [", "not valid YAML"),
        ("- math", "- 7", r"envs\[0\] must be an id or a mapping"),
        ("max_turns: 3", "max_turns: 3, kwargs: {max_turns: 2}", "'max_turns' is given twice"),
    ],
)
def test_a_fault_is_one_line_that_names_key_and_fix(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=message) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert "\n" not in str(error.value) and "run.yaml" in str(error.value)


def test_a_missing_file_and_a_bad_override_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        config.load("nowhere.yaml")
    with pytest.raises(ConfigError, match="--set training: expected key=value"):
        load(tmp_path, GOOD, "training")
    with pytest.raises(ConfigError, match=r"--set envs\.9\.weight=1: no such place \(list index out of range\)"):
        load(tmp_path, GOOD, "envs.9.weight=1")


@pytest.mark.skipif(not SEED_CONFIG.is_file(), reason="the prototype's configuration is not beside this checkout")
def test_the_prototypes_configuration_reads_as_it_stands():
    pytest.importorskip("mrlm_train.ppo")
    run = config.load(SEED_CONFIG, ["training.num_epochs=1"])
    assert (run.algorithm, run.batch_size) == ("ppo", 16)
    assert run.arguments["epsilon"] == 0.2 and run.arguments["num_train_epochs"] == 1.0
    assert run.envs[0].id == "mrlm/Code-v0" and run.envs[0].kwargs == {"max_turns": 3}
    assert run.distributed is not None and run.distributed.strategy == "fsdp"


def test_an_environments_own_arguments_keep_their_names(tmp_path):
    entry = '{id: "my:Own-v0", kwargs: {env_type: a, num_epochs: 3, torch_dtype: b}}'
    run = load(
        tmp_path, GOOD.replace('{id: "mrlm/Math-v0", kwargs: {kinds: [addition]}, weight: 2, split: all}', entry)
    )
    assert run.envs[1].kwargs == {"env_type": "a", "num_epochs": 3, "torch_dtype": "b"}


def test_a_section_that_no_stage_reads_is_refused():
    with pytest.raises(ConfigError, match=r"section 'ppo' belongs to no stage \(they are grpo, sft\); remove it"):
        config.check({"model": "tiny", "envs": "math", "ppo": {"bogus": 1}, "stages": [{"sft": {}}, {"grpo": {}}]})


@pytest.mark.parametrize("name", ["value_clip_range", "vllm_importance_sampling_clip_max", "target_kl"])
def test_null_switches_off_what_has_a_default(name):
    assert config.check({"model": "tiny", "envs": "math", "ppo": {name: None}}).arguments == {name: None}


@pytest.mark.parametrize(("common", "differs"), [({}, True), ({"envs": "math"}, False)])
def test_eval_envs_belong_to_the_run_where_it_trains_in_them(common, differs):
    before, now = (
        {"model": "tiny", "grpo": {}, **common, "eval_envs": [{"id": "math", "kwargs": {"difficulty": level}}]}
        for level in (1, 3)
    )
    changed = checkpoints.difference(checkpoints.identity(before), checkpoints.identity(now))
    assert changed == ("envs.0.kwargs.difficulty was 1 and is 3" if differs else "")


def test_a_checkpoint_from_before_eval_envs_counted_goes_on(tmp_path):
    now = checkpoints.identity({"training": {"learning_rate": 0.1}, "eval_envs": [{"id": "math"}]})
    run = {key: value for key, value in now.items() if not key.startswith("envs.")}
    (tmp_path / checkpoints.FILE).write_text(json.dumps({"files": {}, "processes": 1, "run": run}))
    checkpoints.check(tmp_path, now, 1)
    with pytest.raises(checkpoints.CheckpointError, match=r"training.learning_rate was 0.1 and is 0.2"):
        checkpoints.check(tmp_path, {**now, "training.learning_rate": 0.2}, 1)
