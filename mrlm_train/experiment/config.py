"""A run as YAML: read, checked, and turned into the arguments of a trainer.

```yaml
experiment_name: math
output_dir: runs/math             # default runs/<experiment_name>
seed: 0
model: {model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct}      # or `tiny`, the built-in toy policy
training: {algorithm: grpo, learning_rate: 1e-6, max_steps: 100, batch_size: 64}
grpo: {num_generations: 8}
envs: [{id: mrlm/Math-v0, kwargs: {difficulty: [1, 2]}, weight: 1.0}]
```

Every section has a table of the keys it takes and their types: `training:` all of `transformers.TrainingArguments`
and a few of ours, an algorithm's section the fields of its own config class, the others the dataclasses in
`sections.py`. An unknown key is an error that names the nearest valid one; a setting given in two places is an error
too. The check imports neither torch nor TRL, so it takes less than a second.
"""

import dataclasses
import difflib
import importlib
import inspect
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Gt
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

import mrlm_envs
from mrlm_train.experiment import ALGORITHMS
from mrlm_train.experiment.fields import fields
from mrlm_train.experiment.sections import ConfigError, DistributedSection, EnvironmentKeys, ModelSection, Positive
from mrlm_train.inference.hub import check_exists
from mrlm_train.ranges import LEAST
from mrlm_train.rollout.environments import EnvEntry

PPO_ALIASES = {"clip_range": "epsilon", "num_ppo_epochs": "num_iterations"}
# Aliases of settings, including the prototype's names.
ALIASES = {"num_epochs": "num_train_epochs", "torch_dtype": "dtype", "env_type": "id", **PPO_ALIASES}
# Keys of `training:` that are not TrainingArguments; the first are fields of `RunConfig`.
RUN_KEYS = {"batch_size": Positive, "early_stopping_patience": Positive, "stop_at_success": float}
TRAINING_KEYS = {**RUN_KEYS, "algorithm": str, "num_epochs": float}
RANGES = {**{name: Ge(least) for name, least in LEAST.items()}, "temperature": Gt(0)}
NULLABLE = (
    "target_kl",
    "value_clip_range",
    "vllm_importance_sampling_clip_max",
)  # settings whose default is not null, and that null switches off
SAMPLING_KEYS = ("max_completion_length", "temperature", "top_p", "top_k", "chat_template_kwargs")
TOP_LEVEL = {
    **{"experiment_name": str, "output_dir": str, "seed": int},
    "model": dict | str,  # a string is its name alone
    **dict.fromkeys(("training", "lora", "rollout", "distributed", *ALGORITHMS), dict),
    **dict.fromkeys(("envs", "eval_envs", "stages"), Any),
}
STAGE_KEYS = ("training", "rollout", "envs", "eval_envs", "lora", *ALGORITHMS)


@dataclass(frozen=True)
class RunConfig:
    """A checked configuration.

    Attributes:
        path: The file it was read from, for messages.
        algorithm: A key of `ALGORITHMS`.
        experiment_name: Name of the run.
        output_dir: The run directory.
        seed: Seed for tasks, sampling and new weights.
        model: The section `model`, with the top-level `lora` in it.
        envs: Where to train; the evaluation environments if there are no others.
        eval_envs: Where to evaluate.
        distributed: The section, or None if there is none or it is not enabled.
        arguments: Arguments of the algorithm's config class, from all sections that set one.
        batch_size: Episodes of one optimizer step, over all processes.
        early_stopping_patience: Evaluations without improvement after which training ends.
        stop_at_success: Share of solved evaluation episodes at which training ends.
        stages: The stages of a staged run, each a whole configuration; empty otherwise.
        raw: The YAML after overrides, as it is written to the run directory.
    """

    path: str
    algorithm: str
    experiment_name: str = "mrlm"
    output_dir: str = ""
    seed: int = 0
    model: ModelSection = field(default_factory=ModelSection)
    envs: tuple[EnvEntry, ...] = ()
    eval_envs: tuple[EnvEntry, ...] = ()
    distributed: DistributedSection | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    early_stopping_patience: int | None = None
    stop_at_success: float | None = None
    stages: tuple["RunConfig", ...] = ()
    raw: dict[str, Any] = field(default_factory=dict)


def load(path: str | Path, overrides: Sequence[str] = (), output_dir: str | None = None) -> RunConfig:
    """Read and check a configuration.

    Args:
        path: The YAML file. `${…}` is OmegaConf's interpolation (`${oc.env:HOME}`).
        overrides: `a.b=value` settings, the value in YAML (`training.max_steps=3`, `envs.0.kwargs.split=test`).
        output_dir: Replaces the file's.

    Raises:
        ConfigError: On the first fault, in one line that names the file, the key and the fix.
    """
    where = f"config {path}"
    try:
        document = OmegaConf.load(path)
        for override in overrides:
            _override(document, override)
        raw: Any = OmegaConf.to_container(document, resolve=True)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected sections, got {type(raw).__name__}")
    _refuse_lost_overrides(raw, overrides)
    if output_dir is not None:
        raw["output_dir"] = output_dir
    return check(raw, where, str(path))


def _override(document: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, for example training.max_steps=3")
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])["value"]
        OmegaConf.update(document, key, value, merge=False)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {text!r} is not YAML") from None
    except (OmegaConfBaseException, ValueError, IndexError) as error:
        raise ConfigError(f"--set {override}: no such place ({str(error).splitlines()[0]})") from None


def _refuse_lost_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """A stage's own setting wins over the common one, so an override of the common one would do nothing."""
    stages = [stage for stage in raw.get("stages") or () if isinstance(stage, dict)]
    for override in overrides:
        section, *rest = override.partition("=")[0].split(".")
        for index, stage in enumerate(stages):
            own = stage.get(section)
            if rest and section in ("training", *ALGORITHMS) and isinstance(own, dict):
                own = own.get(rest[0])  # these are merged key by key; the other sections of a stage replace whole ones
            if own is not None:
                raise ConfigError(
                    f"--set {override}: stage {index + 1} sets this itself, and its own setting wins; "
                    f"use --set stages.{index}.{override} (a list's entries count from 0)"
                )


def check(raw: dict[str, Any], where: str = "config", path: str = "") -> RunConfig:
    """Check a configuration that is already parsed.

    Args:
        raw: The sections.
        where: Begins every message.
        path: The file it was read from.

    Raises:
        ConfigError: On the first fault, in one line.
    """
    try:
        top = _settings(raw, TOP_LEVEL)
        return _check_stages(raw, path) if "stages" in top else _check_one(raw, top, path)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_one(raw: dict[str, Any], top: Mapping[str, Any], path: str) -> RunConfig:
    """A configuration without stages; `top` holds its top-level settings."""
    algorithm = _algorithm(raw, _section(raw, "training"))
    distributed = DistributedSection(**_section(raw, "distributed", _keys(DistributedSection)))
    distributed.check()
    eval_envs = _environments(raw, "eval_envs")
    own, arguments = _arguments(raw, algorithm, distributed)
    if not eval_envs and algorithm in ("sft", "dpo") and arguments.get("eval_strategy", "no") != "no":
        raise ConfigError(
            f"training.eval_strategy {arguments['eval_strategy']!r} needs environments to evaluate in; "
            "add a section 'eval_envs'"
        )
    watched = ("eval_strategy", "metric_for_best_model", "load_best_model_at_end")
    if "early_stopping_patience" in own and not all(arguments.get(key) for key in watched):
        raise ConfigError(f"training.early_stopping_patience needs training.{', '.join(watched)}")
    plays = eval_envs or algorithm in ("grpo", "ppo")
    is_evaluated = arguments.get("eval_strategy", "no") != "no" or (plays and "eval_steps" in arguments)
    if "stop_at_success" in own and not is_evaluated:
        raise ConfigError("training.stop_at_success needs evaluations during the training; set training.eval_strategy")
    name = top.get("experiment_name", "mrlm")
    return RunConfig(
        path=path,
        algorithm=algorithm,
        experiment_name=name,
        output_dir=top.get("output_dir") or f"runs/{name}",
        seed=top.get("seed", 0),
        model=_model(raw),
        envs=_environments(raw, "envs") or tuple(map(_off_the_test_split, eval_envs)),
        eval_envs=eval_envs,
        distributed=distributed if "distributed" in top and distributed.enabled else None,
        arguments=arguments,
        **own,
        raw=raw,
    )


def _off_the_test_split(entry: EnvEntry) -> EnvEntry:
    """An evaluation environment that is trained in too: on its train split, also where it names the other."""
    kwargs = {key: value for key, value in entry.kwargs.items() if (key, value) != ("split", "test")}
    return dataclasses.replace(entry, kwargs=kwargs, split=None if entry.split == "test" else entry.split)


def _check_stages(raw: dict[str, Any], path: str) -> RunConfig:
    """Each stage is the common part overlaid with its own sections; it starts from the previous stage's model."""
    common = {key: value for key, value in raw.items() if key not in ("stages", *ALGORITHMS)}
    if not isinstance(raw["stages"], list) or not raw["stages"]:
        raise ConfigError("'stages' must be a list of at least one stage")
    stages, folder = [], raw.get("output_dir")
    for number, entry in enumerate(raw["stages"], start=1):
        here = f"stages, entry {number}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{here}: expected sections, got {type(entry).__name__}")
        _settings(entry, dict.fromkeys(STAGE_KEYS, Any), here)
        merged = {**common, **entry, "training": {**_section(common, "training"), **_section(entry, "training")}}
        algorithm = _algorithm(entry, merged["training"])
        if algorithm in raw:  # a section outside `stages` is common to all stages of that algorithm
            merged[algorithm] = {**_section(raw, algorithm), **_section(entry, algorithm)}
        stage = check(merged, here, path)
        folder = folder or f"runs/{stage.experiment_name}"
        stages.append(dataclasses.replace(stage, output_dir=f"{folder}/stage-{number}-{stage.algorithm}"))
    used = {stage.algorithm for stage in stages}
    if unused := [name for name in ALGORITHMS if raw.get(name) and name not in used]:
        raise ConfigError(f"section {unused[0]!r} belongs to no stage (they are {', '.join(sorted(used))}); remove it")
    return dataclasses.replace(stages[0], output_dir=str(folder), stages=tuple(stages), raw=raw)


def _algorithm(raw: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    named = [name for name in ALGORITHMS if name in raw]
    algorithm = training.get("algorithm") or (named[0] if len(named) == 1 else None)
    if algorithm is None:
        raise ConfigError(f"training.algorithm is missing; choose one of {', '.join(ALGORITHMS)}")
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"training.algorithm {algorithm!r} is not one of {', '.join(ALGORITHMS)}")
    for name in named:
        if name != algorithm:
            raise ConfigError(f"section {name!r} belongs to another algorithm, not to {algorithm!r}; remove it")
    return algorithm


def _model(raw: Mapping[str, Any]) -> ModelSection:
    if isinstance(raw.get("model"), str):
        raw = {**raw, "model": {"model_name_or_path": raw["model"]}}
    top = {} if raw.get("lora") is None else {"lora": raw["lora"]}
    model = ModelSection(**_settings(_once({"model": _section(raw, "model"), "": top}), _keys(ModelSection), "model"))
    if not model.model_name_or_path:
        raise ConfigError("model.model_name_or_path is missing; name a folder, a Hub model, or tiny")
    if model.lora is not None:
        _settings(model.lora, fields("peft.tuners.lora.config:LoraConfig"), "lora")
    if model.quantization is not None:
        from transformers import BitsAndBytesConfig

        known = inspect.signature(BitsAndBytesConfig.__init__).parameters.keys() - {"self", "kwargs"}
        _settings(model.quantization, dict.fromkeys(known, Any), "model.quantization")
        if not {"load_in_4bit", "load_in_8bit"} & model.quantization.keys():
            raise ConfigError("model.quantization says neither load_in_4bit nor load_in_8bit")
        if model.lora is None and not (Path(model.model_name_or_path) / "adapter_config.json").is_file():
            raise ConfigError("model.quantization needs 'lora': quantized weights cannot be trained themselves")
    return model


def _arguments(
    raw: Mapping[str, Any], algorithm: str, distributed: DistributedSection
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings for `RunConfig` and for the trainer, from all sections that have some."""
    every = _trainer_fields(algorithm)
    general = {key: every[key] for key in fields("transformers:TrainingArguments") if key in every}
    played = fields("mrlm_train.trainer:RolloutArguments").keys() - general.keys()
    aliases = {key: every[name] for key, name in PPO_ALIASES.items() if algorithm == "ppo"}
    training = _section(raw, "training", general | TRAINING_KEYS)
    training.pop("algorithm", None)
    own = {key: training.pop(key) for key in RUN_KEYS if key in training}
    processes: dict[str, Any] = {}
    if distributed.enabled and distributed.gradient_accumulation_steps is not None:
        processes["gradient_accumulation_steps"] = distributed.gradient_accumulation_steps
    if distributed.enabled and distributed.mixed_precision in ("bf16", "fp16"):
        processes[distributed.mixed_precision] = True
    sections = {
        "training": training,
        "rollout": _section(raw, "rollout", {key: every[key] for key in (*played, *SAMPLING_KEYS)}),
        algorithm: _section(raw, algorithm, every | aliases),
        "distributed": processes,
    }
    return own, _once(sections)


def _trainer_fields(algorithm: str) -> dict[str, Any]:
    """Keys and types of an algorithm's config class; the output folder and the seed are the top level's."""
    module, name, _ = ALGORITHMS[algorithm]
    try:
        every = fields(f"{module}:{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f'{error.name} is not installed; install the trainers: pip install "mrlm[train]"') from None
    return {
        key: Annotated[kind, RANGES[key]] if key in RANGES else kind
        for key, kind in every.items()
        if key not in ("output_dir", "seed")
    }


def _environments(raw: Mapping[str, Any], section: str) -> tuple[EnvEntry, ...]:
    entries = raw.get(section) or []
    if isinstance(entries, str | dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise ConfigError(f"{section!r} must be a list of environments, got {type(entries).__name__}")
    return tuple(_environment(entry, f"{section}[{i}]") for i, entry in enumerate(entries))


def _environment(entry: Any, section: str) -> EnvEntry:
    if isinstance(entry, str):
        entry = {"id": entry}
    if not isinstance(entry, dict):
        raise ConfigError(f"{section} must be an id or a mapping, got {type(entry).__name__}")
    given = _settings(entry, _keys(EnvironmentKeys), section)
    short = given.get("env_type", "math")
    if short not in mrlm_envs.ENVIRONMENTS:
        raise ConfigError(_unknown(short, mrlm_envs.ENVIRONMENTS, "env_type", section))
    if (mode := given.pop("mode", "client")) != "client":
        hint = "no built-in environment trains the language model inside it; use mode: client"
        raise ConfigError(f"{section}.mode {mode!r}: {hint}")
    kwargs = {f"{section}.kwargs": given.pop("kwargs", {})}
    kwargs[section] = {key: given.pop(key) for key in ("max_turns", "system_prompt") if key in given}
    given = _once({section: given})
    if not given.get("id"):
        raise ConfigError(f"{section}.id is missing")
    try:
        return EnvEntry(**given, kwargs=_once(kwargs, aliases={}))
    except ValueError as error:
        raise ConfigError(f"{section}: {error}") from None


def _keys(section: type[Any]) -> dict[str, Any]:
    """The keys of one of our own sections, with their types and ranges."""
    return typing.get_type_hints(section, include_extras=True)


def _section(raw: Mapping[str, Any], section: str, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A section's settings, checked against `known` if that is given."""
    entries = raw.get(section)
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise ConfigError(f"{section!r} must be a mapping of settings, got {type(entries).__name__}")
    return entries if known is None else _settings(entries, known, section)


def _settings(entries: Mapping[str, Any], known: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Each setting under a known key and of the right type; null leaves a setting out, except one of `NULLABLE`.

    Args:
        entries: Key to value.
        known: Key to type.
        section: The dotted name of the section.

    Raises:
        ConfigError: On the first fault.
    """
    found = {}
    for key, value in entries.items():
        if key not in known:
            raise ConfigError(_unknown(key, known, "key", section))
        if value is None and key not in NULLABLE:
            continue
        if value is False and key in ("eval_strategy", "save_strategy", "logging_strategy", "mixed_precision"):
            value = "no"  # YAML 1.1 reads a bare `no` as false
        try:
            found[key] = TypeAdapter(known[key]).validate_python(value, strict=True)
        except ValidationError as error:
            needs = " or ".join(dict.fromkeys(_plain(fault["msg"]) for fault in error.errors()))
            raise ConfigError(f"{f'{section}.{key}'.lstrip('.')} must be {needs}, got {value!r}") from None
    return found


def _once(sections: Mapping[str, Mapping[str, Any]], aliases: Mapping[str, str] = ALIASES) -> dict[str, Any]:
    """The settings of several sections under their proper names.

    Raises:
        ConfigError: If one is given twice; it names both places.
    """
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for section, entries in sections.items():
        for key, value in entries.items():
            name, place = aliases.get(key, key), f"{section}.{key}".lstrip(".")
            if name in found:
                raise ConfigError(f"{name!r} is given twice: {places[name]} and {place}")
            found[name], places[name] = value, place
    return found


def _plain(message: str) -> str:
    """Pydantic's "Input should be greater than or equal to 1" as "at least 1"."""
    return message.removeprefix("Input should be ").replace("greater than or equal to", "at least")


def _unknown(key: Any, known: Iterable[str], what: str, section: str) -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1)
    place = f" in {section!r}" if section else ""
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {key!r}{place}{hint}"


def require(config: RunConfig) -> None:
    """Refuse environments that cannot be made and a model that is not there, before TRL is imported.

    Raises:
        ValueError: In one line; an environment may raise other errors, too.
    """
    check_exists(config.model.model_name_or_path)
    stages = config.stages or (config,)
    for env in {repr(env): env for stage in stages for env in (*stage.envs, *stage.eval_envs)}.values():
        env.build().close()


def config_class(algorithm: str) -> type[Any]:
    """The config class of an algorithm: a `transformers.TrainingArguments`. Takes seconds to import."""
    module, name, _ = ALGORITHMS[algorithm]
    return getattr(importlib.import_module(module), name)


def trainer_class(algorithm: str) -> type[Any]:
    """The trainer of an algorithm."""
    module, _, name = ALGORITHMS[algorithm]
    return getattr(importlib.import_module(module), name)
