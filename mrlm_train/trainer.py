"""What the four trainers share: the settings of a rollout, evaluation by playing, the steps of a constructor."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainingArguments

from mrlm_train.checkpoint_files import WholeCheckpoints
from mrlm_train.episodes.chat import Chat
from mrlm_train.inference.policy import Policy, eos_ids
from mrlm_train.inference.sampling import Sampling
from mrlm_train.ranges import refuse_senseless
from mrlm_train.rollout.environments import EnvEntry, EnvLike, entries
from mrlm_train.rollout.evaluation import evaluation_requests, evaluation_rollout, require_valid, summary
from mrlm_train.rollout.pool import STEP_TIMEOUT
from mrlm_train.rollout.runner import Rollout
from mrlm_train.trl_hooks import decoding_session, shards_parameters, trl_turn, vllm_temperature

Config = TypeVar("Config", bound=TrainingArguments)
TRL_ONLY = {"reward_funcs": "envs", "train_dataset": "envs", "eval_dataset": "eval_envs"}  # TRL's argument -> ours


class Strict:
    """Refuses, in one line, keyword arguments that neither a class nor its bases take, and values out of range."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """
        Raises:
            TypeError: For an unknown argument; it names the nearest.
            ValueError: For a value below the setting's range.
        """
        known = {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters} - TRL_ONLY.keys()
        for name in (name for name in given if name not in known):
            near = [TRL_ONLY[name]] if name in TRL_ONLY else difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{cls.__name__}: unknown argument {name!r}{hint}")
        refuse_senseless(cls, given)
        return super().__new__(cls)


@dataclass
class RolloutArguments(Strict):
    """What every trainer's config adds to TRL's for playing episodes, in training or in evaluation.

    Attributes:
        bf16: None turns it on where there is a GPU (TRL turns it on everywhere).
        gradient_checkpointing: None turns it on where there is a GPU (TRL turns it on everywhere).
        max_turns: maximum number of turns of an episode; None leaves it to the environment.
        max_turn_tokens: maximum number of tokens of a turn; None is `max_completion_length`.
        engine: "auto", or one of `policy.engine_for`.
        rows: episodes decoded at once in a process.
        env_threads: environments stepped at once in a process.
        step_timeout: time limit of an environment's step in seconds; a slower step ends its episode with reward 0.
        max_invalid_share: share of invalid episodes in a batch above which training stops.
        system_prompt: replaces every environment's own.
        eval_episodes: episodes per environment in an evaluation.
        eval_temperature: 0 is greedy.
        save_episodes: transcripts written to `output_dir/episodes` at each log.
    """

    bf16: bool | None = field(default=None, metadata={"help": "None: on where there is a GPU."})
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "None: on where there is a GPU."})
    max_turns: int | None = None
    max_turn_tokens: int | None = None
    engine: str = "auto"
    rows: int = 256
    env_threads: int = 16
    step_timeout: float = STEP_TIMEOUT
    max_invalid_share: float = 0.25
    system_prompt: str | None = None
    eval_episodes: int = 200
    eval_temperature: float = 0.0
    save_episodes: int = 8

    def __post_init__(self) -> None:
        """Before TRL's: set bf16, fp16, gradient checkpointing and pinned memory as the CPU or the GPU needs them."""
        args: Any = self
        on_cpu = args.use_cpu or not torch.accelerator.is_available()
        if args.bf16 is None and on_cpu:
            args.bf16 = False
        if args.gradient_checkpointing is None and args.activation_checkpointing is None and not on_cpu:
            args.gradient_checkpointing = True
        if on_cpu:
            args.dataloader_pin_memory = False
            if args.fp16:
                args.fp16 = False
                warnings.warn("fp16 needs a GPU, and there is none here: training is in float32", stacklevel=3)
        super().__post_init__()  # type: ignore[misc]

    def sampling(self) -> Sampling:
        """The rollout's budgets and temperature."""
        args: Any = self
        return Sampling(
            *(args.temperature, args.top_p, args.top_k),
            max_turn_tokens=args.max_turn_tokens or args.max_completion_length,
            max_episode_tokens=args.max_completion_length,
            max_turns=args.max_turns,
            seed=args.seed,
        )


@dataclass
class DatasetArguments(RolloutArguments):
    """`RolloutArguments` for the trainers that learn from Episodes on disk or in memory: SFT and DPO.

    Attributes:
        max_length: longest row in tokens; None, unlike TRL, truncates nothing.
        episodes: in YAML, the path of a file of Episodes (or, for DPO, of preferences).
        max_completion_length: token budget of an episode after its prompt.
        temperature: temperature of the episodes that DPO plays before training; evaluation has `eval_temperature`.
        top_p: probability mass to sample from, in evaluation too; 1 keeps all tokens.
        top_k: number of most probable tokens to sample from, in evaluation too; 0 keeps all.
        chat_template_kwargs: passed to the chat template.
    """

    max_length: int | None = None
    episodes: str | None = None
    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    chat_template_kwargs: dict[str, Any] | None = None


class PlayedEvaluation(Strict, WholeCheckpoints):
    """A `Trainer` whose `evaluate` plays episodes on the test split; a mixin before TRL's class.

    Attributes:
        policy: the model in training, wrapped to play episodes.
        eval_envs: where to evaluate; empty leaves evaluation to TRL.
        opponents: the frozen models of games; those of the rollout unless set.
    """

    args: Any  # our config, a subclass of TRL's
    model: Any
    processing_class: Any
    policy: Policy
    opponents: Any = None
    eval_envs: Sequence[EnvEntry] = ()
    _eval_rollout: Rollout | None = None

    def open_policy(self, chat: Chat, name: str = "policy") -> None:
        """After TRL's constructor: make the model in training a policy that plays, with all processes where needed."""
        trainer: Any = self
        args = self.args
        self.policy = Policy(self.model, chat, name, args.engine, args.rows, session=lambda: decoding_session(self))
        uses_vllm = getattr(args, "use_vllm", False)
        if uses_vllm:
            self.policy.turn = trl_turn(trainer, chat.stop_ids)
        if shards_parameters(self) or (uses_vllm and trainer.accelerator.num_processes > 1):
            accelerator = trainer.accelerator
            self.policy.reduce = lambda count: int(accelerator.reduce(torch.tensor(count, device=accelerator.device)))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Play `eval_episodes` in each evaluation environment on its test split; the processes share the episodes.

        Returns:
            `eval_success`, `eval_reward`, `eval_n` …, and with several environments the same for each.
        """
        trainer: Any = self
        if not self.eval_envs:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[misc]
        args = trainer.args
        if self._eval_rollout is None:
            sampling = dataclasses.replace(args.sampling(), temperature=args.eval_temperature)
            settings = {"threads": args.env_threads, "opponents": self.opponents, "step_timeout": args.step_timeout}
            self._eval_rollout = evaluation_rollout(self.policy, self.eval_envs, "test", sampling, **settings)
        requests = evaluation_requests(self._eval_rollout, args.eval_episodes)
        rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
        with vllm_temperature(trainer, args.eval_temperature):
            played = gather_object(self._eval_rollout.run(requests[rank::world]))
        require_valid(played)
        figures = summary(played)
        parts = {f"{metric_key_prefix}_{name}": part for name, part in figures.pop("environments", {}).items()}
        metrics = {
            f"{prefix}_{key}": float(value)
            for prefix, part in {metric_key_prefix: figures, **parts}.items()
            for key, value in part.items()
            if isinstance(value, int | float)
        }
        was_training = trainer.model.training
        trainer.model.eval()  # TRL's `log` tells train from eval by it
        trainer.log(metrics)
        trainer.model.train(was_training)
        trainer.control = trainer.callback_handler.on_evaluate(args, trainer.state, trainer.control, metrics)
        return metrics


class DatasetTrainer(PlayedEvaluation):
    """The constructor that SFT and DPO share: rows made of Episodes, evaluation by playing; a mixin before TRL's."""

    def open(
        self,
        chat: Chat,
        rows: Dataset,
        eval_rows: Dataset | None,
        eval_envs: EnvLike | Iterable[EnvLike] | None,
        **trl_arguments: Any,
    ) -> None:
        """Call TRL's constructor, then open the policy.

        Args:
            chat: chat template of the policy, for evaluation.
            rows: what to train on, in TRL's columns.
            eval_rows: for the evaluation loss.
            eval_envs: where to play in evaluation.
            **trl_arguments: TRL's other arguments, `model`, `args` and `processing_class` among them.

        Raises:
            ValueError: `rows` do not fill one batch.
        """
        args = trl_arguments["args"]
        if len(rows) < (batch := args.per_device_train_batch_size * args.world_size):
            raise ValueError(
                f"{len(rows)} rows do not fill one batch of {batch}; lower per_device_train_batch_size or "
                "give more episodes"
            )
        self.eval_envs = [] if eval_envs is None else entries(eval_envs)
        if eval_rows is None and self.eval_envs and args.eval_strategy != "no":
            eval_rows = rows.select(range(1))  # Trainer insists on one; `evaluate` plays episodes instead
        super().__init__(train_dataset=rows, eval_dataset=eval_rows, **trl_arguments)  # type: ignore[call-arg]
        self.open_policy(chat)


def check_config(args: Config | None, cls: type[Config]) -> Config:
    """`args`, or the defaults of a trainer's config class.

    Raises:
        TypeError: `args` is TRL's class of the same name, or something else.
    """
    args = cls("trainer_output") if args is None else args
    if not isinstance(args, cls):
        raise TypeError(
            f"args must be a {cls.__module__}.{cls.__name__} (TRL's fields and ours), got {type(args).__module__}."
            f"{type(args).__name__}"
        )
    return args


def model_chat(model: Any, tokenizer: Any, args: Any, single_turn: bool = False) -> Chat:
    """The `Chat` of a model that TRL has not loaded yet."""
    return Chat(tokenizer, args.chat_template_kwargs, args.system_prompt, eos_ids(model), single_turn)
