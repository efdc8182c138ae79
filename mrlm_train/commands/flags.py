"""Kinds of flags that several commands have, and what commands that train need first."""

import importlib.util
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

SMALL_CPU = 4  # cores; a tiny model on few shared cores is many times slower with two torch threads than with one


def _positive(text: list[str]) -> int:
    value = int(text[0])
    if value < 1:
        raise ValueError(f"must be at least 1, got {value}")
    return value


_POSITIVE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="N",
    instance_from_str=_positive,
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=lambda value: [str(value)],
)
Positive = Annotated[int, _POSITIVE]
Repeated = Annotated[tuple[str, ...], UseAppendAction]
Environments = Annotated[Repeated, arg(metavar="ENV")]
Pairs = Annotated[Repeated, arg(metavar="NAME=VALUE")]
Split = Literal["train", "test", "all"]
Path = Annotated[str | None, arg(metavar="PATH")]
Models = Annotated[Repeated, arg(metavar="PATH")]
Json = Annotated[str, arg(metavar="JSON")]


@dataclass(frozen=True)
class Generation:
    """How replies are sampled.

    Attributes:
        temperature: 0 is greedy.
        max_turn_tokens: Tokens of one reply.
        max_episode_tokens: Tokens after the prompt.
        engine: How tokens are sampled.
        rows: Episodes decoded at once.
        seed: Of the sampling, and of the tasks of `collect`.
    """

    temperature: float = 0.0
    max_turn_tokens: Positive = 256
    max_episode_tokens: Positive = 1024
    engine: Literal["auto", "slot", "turn"] = "auto"
    rows: Positive = 64
    seed: int = 0

    def sampling(self) -> Any:
        """The same as the rollout's `Sampling`."""
        from mrlm_train.inference.sampling import Sampling

        names = ("temperature", "max_turn_tokens", "max_episode_tokens", "seed")
        return Sampling(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Training:
    """A training whose memory is estimated, as `mrlm train` does it.

    Attributes:
        strategy: Of `distributed`; at one process all are the same.
        processes: GPUs, one process each.
        dtype: Of the weights (float32, bfloat16).
        lora: Train an adapter of this rank on all linear layers, not the weights.
        batch: Episodes of one forward pass, per_device_train_batch_size.
        rows: Episodes decoded at once on a GPU.
        tokens: Of the longest episode and its prompt.
        reference: A reference model is kept: DPO, or beta above 0, without LoRA.
    """

    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    processes: Annotated[Positive, arg(name="num-processes")] = 1
    dtype: str = "float32"
    lora: Annotated[Positive | None, arg(metavar="RANK")] = None
    batch: Positive = 8
    rows: Positive = 64
    tokens: Positive = 1280
    reference: bool = False


GREEDY, SAMPLED, ONE_GPU = Generation(), Generation(temperature=1.0), Training()


def need_trainers() -> None:
    """Check that the trainers are installed, and set what has to be set before torch is imported."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("trl") is None:
        raise ModuleNotFoundError('this command needs the trainers; install them: pip install "mrlm[train]"')
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each trainer's construction otherwise
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if not os.environ.get("MRLM_TRACEBACK"):
        warnings.formatwarning = _one_line
    if "OMP_NUM_THREADS" not in os.environ and (os.cpu_count() or 1) <= SMALL_CPU:
        os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is first imported


def _one_line(text: Warning | str, category: type[Warning], *where: Any) -> str:
    """A warning as an error is shown: without the line of source that raised it."""
    return f"mrlm: {'warning' if category is UserWarning else category.__name__}: {text}\n"


def values(flag: str, settings: Sequence[str]) -> dict[str, Any]:
    """The settings `NAME=VALUE` of a flag, the values in YAML."""
    import yaml

    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"{flag} {setting}: expected NAME=VALUE")
        found[name] = yaml.safe_load(text)
    return found
