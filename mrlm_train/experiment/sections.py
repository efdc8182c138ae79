"""The sections of a configuration that hold settings of our own; `config.py` reads them from YAML.

The types are what a value is checked against.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Ge, Gt

Positive = Annotated[int, Ge(1)]
Strategy = Literal["ddp", "fsdp", "deepspeed"]


class ConfigError(ValueError):
    """A fault in a configuration, reported in one line."""


@dataclass(frozen=True)
class ModelSection:
    """The policy.

    Attributes:
        model_name_or_path: A folder, a Hub name, or `tiny` for the built-in toy policy.
        tokenizer_name_or_path: Where the tokenizer comes from, if not from the model.
        dtype: Weights as "float32", "bfloat16", "float16" (fp32 weights under autocast) or "auto".
        attn_implementation: "sdpa", "eager", "flash_attention_2", …
        chat_template: A Jinja file that replaces the tokenizer's template.
        chat_template_kwargs: Passed to the template (`enable_thinking` …).
        revision: Revision of the model on the Hub.
        trust_remote_code: Run the model's own code.
        lora: Fields of `peft.LoraConfig`; the same as the top-level section `lora`.
        quantization: Fields of `transformers.BitsAndBytesConfig` (needs a GPU).
        merge: With LoRA, save the whole model in `final/` instead of the adapter.
    """

    model_name_or_path: str = ""
    tokenizer_name_or_path: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    trust_remote_code: bool = False
    lora: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    merge: bool = False


@dataclass(frozen=True)
class DistributedSection:
    """How many processes share the training, and how.

    Attributes:
        enabled: False ignores the rest of the section.
        strategy: "ddp", "fsdp" or "deepspeed"; at one process it changes nothing, and the run says so.
        num_processes: Number of processes over all machines; by default the visible GPUs of each, or 1.
        mixed_precision: "no", "bf16" or "fp16".
        gradient_accumulation_steps: As in `TrainingArguments`.
        config_file: An Accelerate configuration in place of `launch/<strategy>.yaml`: a path, or the name of one in
            `launch/` (`fsdp_offload.yaml`).
        num_machines: Number of machines; each of them runs the same command.
        machine_rank: Which machine this is, from 0.
        main_process_ip: Address of machine 0.
        main_process_port: A free port of machine 0; on a single machine one is chosen.
    """

    enabled: bool = True
    strategy: Strategy = "ddp"
    num_processes: Positive | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_accumulation_steps: Positive | None = None
    config_file: str | None = None
    num_machines: Positive = 1
    machine_rank: int = 0
    main_process_ip: str | None = None
    main_process_port: int | None = None

    def check(self) -> None:
        """Refuse settings that do not fit together.

        Raises:
            ConfigError: In one line.
        """
        machines = self.num_machines
        if self.num_processes is not None and self.num_processes % machines:
            fault = f"num_processes {self.num_processes} is not a multiple of num_machines {machines}"
        elif not 0 <= self.machine_rank < machines:
            fault = f"machine_rank must be 0 to {machines - 1}, got {self.machine_rank}"
        elif machines > 1 and self.main_process_ip is None:
            fault = f"main_process_ip is missing: the address of machine 0, for {machines} machines"
        else:
            return
        raise ConfigError(f"distributed.{fault}")


class EnvironmentKeys(TypedDict, total=False):
    """What an entry of `envs` or `eval_envs` may hold; `config.py` turns it into an `EnvEntry`.

    Attributes:
        id: What `gymnasium.make` takes; a short name (`math`) stands for `mrlm/Math-v0`. `module:function` makes a
            PettingZoo environment, a game of several agents.
        env_type: A short name, instead of `id`.
        kwargs: Arguments of the environment.
        max_turns: Short for `kwargs.max_turns`.
        system_prompt: Short for `kwargs.system_prompt`.
        mode: Only "client": a language model inside the environment is frozen.
        weight: Share of the episodes, relative to the other entries.
        split: By default "train" in `envs`, "test" in `eval_envs`.
        address: `host:port` of `mrlm serve`, or several.
        wrappers: `module:Class` names.
        reward: `module:function`, called `(messages, reward, info) -> reward`.
        agents: Who acts as each agent of a game: `policy`, `past`, a model folder or Hub name, `module:function`, or
            `{policy: past or a folder, refresh_every: steps}`; see `mrlm_train.rollout.agents`.
    """

    id: str
    env_type: str
    kwargs: dict[str, Any]
    max_turns: int
    system_prompt: str
    mode: str
    weight: Annotated[float, Gt(0)]
    split: Literal["train", "test", "all"]
    address: str | list[str]
    wrappers: str | list[str]
    reward: str
    agents: dict[str, Any]
