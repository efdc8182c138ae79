"""Our environments in TRL's own trainers, without `mrlm_train`. Written for TRL 1.16.

    spec = Spec("mrlm/ToolUse-v0", n=1000)
    GRPOTrainer(model, train_dataset=spec.train_dataset, environment_factory=spec.environment_factory,
                reward_funcs=spec.reward_funcs, args=…)

`environment_factory` is for environments that answer in the tool's role: those with tools, whose tools become methods,
and single-turn or feedback environments, which are played through one tool, `submit`. Environments that answer in the
user's role (games, debates) take `rollout_func`:

    GRPOTrainer(model, train_dataset=spec.train_dataset, rollout_func=spec.rollout_func,
                reward_funcs=spec.reward, args=…)

What is lost against `mrlm_train`: rewards of single turns (TRL takes one number for an episode), the slot engine, the
pool of environments. An episode that failed for reasons of the environment gets None, which TRL masks.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium

from mrlm_envs.integrations.episode import Episode, make, openings, require
from mrlm_envs.integrations.rewards import last_text

_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}


def environment_reward(completions: Sequence[Any], environments: Sequence[Any], **columns: Any) -> list[float | None]:
    """The return of each episode, after its last message has been taken as an action."""
    return [env._finish(last_text(completion)) for env, completion in zip(environments, completions, strict=True)]


def rollout_reward(
    completions: Sequence[Any], episode_return: Sequence[float | None], **columns: Any
) -> list[float | None]:
    """The returns that `rollout_func` handed over."""
    return list(episode_return)


@dataclass(frozen=True)
class Spec:
    """An environment as TRL's trainers take it. Equal specs share one class; it pickles.

    `reward_funcs` goes with `environment_factory`: it hands the last message to the environment and gives the return.
    `reward` goes with `rollout_func`.

    Args:
        env_id: What `gymnasium.make` takes.
        split: Passed to the environment as `split`, unless None.
        n: Rows of the dataset; row i is the episode with seed i.
        kwargs: Arguments of the environment, as JSON text or a mapping.
        submit: Play through the one tool `submit` although the environment has tools of its own.
    """

    env_id: str
    split: str | None = "train"
    n: int = 1000
    kwargs: str | Mapping[str, Any] = "{}"
    submit: bool = False

    reward_funcs = staticmethod(environment_reward)
    reward = staticmethod(rollout_reward)

    def __post_init__(self) -> None:
        text = self.kwargs if isinstance(self.kwargs, str) else json.dumps(self.kwargs, sort_keys=True)
        object.__setattr__(self, "kwargs", text)  # a frozen dataclass with a mapping cannot be hashed

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the environment."""
        return json.loads(str(self.kwargs)) | ({} if self.split is None else {"split": self.split})

    def make(self) -> gymnasium.Env[str, str]:
        """A fresh environment.

        Raises:
            ValueError: It is a game of several agents, or its actions are not text.
        """
        return make(self.env_id, **self.arguments)

    @property
    def train_dataset(self) -> Any:
        """A `datasets.Dataset`: `prompt` (system and first observation), `seed`, `task_id`.

        The seed makes the members of a group draw one task. It is also in the prompt's messages, as `rollout_func`
        sees nothing but prompts.
        """
        import datasets

        rows = []
        for seed, messages, info in openings(self.env_id, range(self.n), **self.arguments):
            prompt = [{**message, "seed": seed} for message in messages]
            rows.append({"prompt": prompt, "seed": seed, "task_id": str(info.get("task_id", seed))})
        return datasets.Dataset.from_list(rows)

    @property
    def environment_factory(self) -> Callable[[], Any]:
        """What `GRPOTrainer(environment_factory=…)` takes."""
        require("trl")
        return functools.partial(_make, self)

    @property
    def rollout_func(self) -> Callable[[list[Any], Any], dict[str, Any]]:
        """What `GRPOTrainer(rollout_func=…)` takes."""
        require("trl")
        return functools.partial(_rollout, self)


class _Environment:
    """One running episode. Methods without an underscore are what the policy may call."""

    _spec: Spec

    def __init__(self) -> None:
        self._episode = Episode(self._spec.env_id, **self._spec.arguments)

    def reset(self, seed: int, **row: Any) -> None:
        """TRL calls it with the dataset's row; the prompt already holds the observation."""
        self._episode.reset(seed)

    def _finish(self, text: str) -> float | None:
        if text:
            self._episode.step(text)
        return self._episode.reward


def _make(spec: Spec) -> _Environment:
    return _environment_class(spec)()


@functools.lru_cache(maxsize=64)  # TRL matches the exact class
def _environment_class(spec: Spec) -> type[_Environment]:
    [(_, _, info)] = openings(spec.env_id, range(1), **spec.arguments)
    tools = [] if spec.submit else info.get("tools") or []
    schemas = [tool["function"] for tool in tools] or [_SUBMIT]
    methods = {schema["name"]: _method(schema, is_tool=bool(tools)) for schema in schemas}
    return type("MRLMEnvironment", (_Environment,), {"_spec": spec, **methods})


_SUBMIT = {
    "name": "submit",
    "description": "Hands in an answer and returns what the environment says to it.",
    "parameters": {
        "properties": {"answer": {"type": "string", "description": "The whole answer."}},
        "required": ["answer"],
    },
}


def _method(schema: Mapping[str, Any], is_tool: bool) -> Callable[..., str]:
    """A method with the signature and docstring that make up a tool's schema again."""
    from mrlm_envs.tools.calls import Call, render

    name, parameters = schema["name"], schema.get("parameters", {})
    required = set(parameters.get("required", ()))
    known = parameters.get("properties", {})

    def method(self: _Environment, **arguments: Any) -> str:
        if not is_tool:
            return self._episode.step(arguments["answer"])[0]
        given = {argument: value for argument, value in arguments.items() if value is not None}
        return self._episode.step(render([Call(name, given)]))[0]

    ordered = sorted(known, key=lambda argument: argument not in required)
    types = {argument: _TYPES.get(known[argument].get("type"), Any) for argument in ordered}
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    parts = [inspect.Parameter("self", kind)]
    for argument in ordered:
        default = empty if argument in required else None
        parts.append(inspect.Parameter(argument, kind, default=default, annotation=types[argument]))
    told = "\n".join(f"    {argument}: {known[argument].get('description', argument)}" for argument in ordered)
    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"{schema.get('description', name)}\n\n" + (f"Args:\n{told}\n" if ordered else "")
    method.__annotations__ = {**types, "return": str}
    method.__signature__ = inspect.Signature(parts, return_annotation=str)  # type: ignore[attr-defined]
    return method


def _rollout(spec: Spec, prompts: list[list[dict[str, Any]]], trainer: Any) -> dict[str, Any]:
    """Plays an episode for each prompt, the environment in the user's role.

    Generation is TRL's own (`_generate_single_turn`). What the environment says enters as the chat template writes it
    between two turns, with mask 0.
    """
    limit = trainer.max_completion_length
    episodes = [Episode(spec.env_id, **spec.arguments) for _ in prompts]
    prompt_ids = []
    for episode, prompt in zip(episodes, prompts, strict=True):
        episode.reset(prompt[-1]["seed"])
        plain = [{"role": message["role"], "content": message["content"]} for message in prompt]
        options = {"add_generation_prompt": True, "return_dict": False, **trainer.chat_template_kwargs}
        prompt_ids.append(trainer.processing_class.apply_chat_template(plain, **options))
    completions: list[list[int]] = [[] for _ in prompts]
    masks: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    while live:
        turns, _ = trainer._generate_single_turn([prompt_ids[i] + completions[i] for i in live], None, {}, 1)
        going = []
        for i, turn in zip(live, turns, strict=True):
            sampled = list(turn)[: limit - len(masks[i])]
            observation = episodes[i].step(trainer.processing_class.decode(sampled, skip_special_tokens=True))[0]
            heard = _between(trainer.processing_class, observation, sampled, trainer.chat_template_kwargs)
            if episodes[i].is_over or len(masks[i]) + len(sampled) + len(heard) >= limit:
                heard = []
            completions[i] += sampled + heard
            masks[i] += [1] * len(sampled) + [0] * len(heard)
            if heard:
                going.append(i)
        live = going
    returns = [episode.reward for episode in episodes]
    return {
        "prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None, "env_mask": masks,
        "episode_return": returns,
    }  # fmt: skip


_TURN = "zqxj"  # stands for what the policy said


def _between(tokenizer: Any, observation: str, sampled: list[int], options: Mapping[str, Any]) -> list[int]:
    """The ids from the end of a sampled turn to the beginning of the next."""
    turns = [("user", "?"), ("assistant", _TURN), ("user", observation)]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
    ids = tokenizer(text=text.split(_TURN, 1)[1], add_special_tokens=False)["input_ids"]
    is_closed = sampled[-1:] == [tokenizer.eos_token_id]
    return ids[1:] if is_closed and ids[0] == tokenizer.eos_token_id else ids
