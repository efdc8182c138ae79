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

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from mrlm_envs.integrations.episode import Episode, make, openings, require
from mrlm_envs.integrations.rewards import last_text

_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}


def environment_reward(completions: Sequence[Any], environments: Sequence[Any], **columns: Any) -> list[float | None]:
    """The return of each episode, after its last message has been taken as an action."""
    return [env._finish(last_text(completion)) for env, completion in zip(environments, completions, strict=True)]


def rollout_reward(completions: Any, episode_return: Sequence[float | None], **columns: Any) -> list[float | None]:
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
    kwargs: str | Mapping[str, Any] = field(default="{}", hash=False)  # a mapping has no hash
    submit: bool = False

    reward_funcs = staticmethod(environment_reward)
    reward = staticmethod(rollout_reward)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the environment."""
        given = json.loads(self.kwargs) if isinstance(self.kwargs, str) else self.kwargs
        return {**given} if self.split is None else {**given, "split": self.split}

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
        require("trl")
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


class _Submission(_Environment):
    """An episode without tools, which is played through one."""

    def submit(self, answer: str) -> str:
        """Hands in an answer and returns what the environment says to it.

        Args:
            answer: The whole answer.
        """
        return self._episode.step(answer)[0]


def _make(spec: Spec) -> _Environment:
    return _environment_class(spec)()


@functools.lru_cache(maxsize=64)  # TRL matches the exact class
def _environment_class(spec: Spec) -> type[_Environment]:
    [(_, _, info)] = openings(spec.env_id, range(1), **spec.arguments)
    tools = [] if spec.submit else info.get("tools") or []
    methods = {tool["function"]["name"]: _method(tool["function"]) for tool in tools}
    base: Any = _Environment if tools else _Submission
    return type("MRLMEnvironment", (base,), {"_spec": spec, **methods})


def _method(schema: Mapping[str, Any]) -> Callable[..., str]:
    """A method with the signature and docstring that make up a tool's schema again."""
    from mrlm_envs.tools.calls import Call, render  # here, because it needs the extra `tools`

    name, parameters = schema["name"], schema.get("parameters", {})

    def method(self: _Environment, **arguments: Any) -> str:
        given = {argument: value for argument, value in arguments.items() if value is not None}
        return self._episode.step(render([Call(name, given)]))[0]

    signature = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    told = []
    for argument, about in parameters.get("properties", {}).items():
        default = inspect.Parameter.empty if argument in parameters.get("required", ()) else None
        kind = _TYPES.get(str(about.get("type")), Any)  # str: it may be a list
        signature.append(inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
        told.append(f"    {argument}: {about.get('description', argument)}\n")
    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"{schema.get('description', name)}\n\n" + "".join(["Args:\n", *told] if told else [])
    method.__annotations__ = {part.name: part.annotation for part in signature[1:]} | {"return": str}
    method.__signature__ = inspect.Signature(signature, return_annotation=str)  # type: ignore[attr-defined]
    return method


def _rollout(spec: Spec, prompts: list[list[dict[str, Any]]], trainer: Any) -> dict[str, Any]:
    """Plays an episode for each prompt, the environment in the user's role."""
    with contextlib.ExitStack() as stack:
        new = (Episode(spec.env_id, **spec.arguments) for _ in prompts)
        return _play([stack.enter_context(contextlib.closing(episode)) for episode in new], prompts, trainer)


def _play(episodes: list[Episode], prompts: list[list[dict[str, Any]]], trainer: Any) -> dict[str, Any]:
    """What TRL takes from a rollout.

    Generation is TRL's own (`_generate_single_turn`). What the environment says enters as the chat template writes it
    between two turns, with mask 0.
    """
    limit, tokenizer = trainer.max_completion_length, trainer.processing_class
    template = functools.partial(
        tokenizer.apply_chat_template, add_generation_prompt=True, **trainer.chat_template_kwargs
    )
    prompt_ids = []
    for episode, prompt in zip(episodes, prompts, strict=True):
        episode.reset(prompt[-1]["seed"])
        plain = [{"role": message["role"], "content": message["content"]} for message in prompt]
        prompt_ids.append(template(plain, return_dict=False))
    completions: list[list[int]] = [[] for _ in prompts]
    masks: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    while live:
        turns, _ = trainer._generate_single_turn([prompt_ids[i] + completions[i] for i in live], None, {}, 1)
        for i, turn in zip(tuple(live), turns, strict=True):
            sampled = list(turn)[: limit - len(masks[i])]
            observation = episodes[i].step(tokenizer.decode(sampled, skip_special_tokens=True))[0]
            heard = _between(tokenizer, template, observation, sampled)
            if episodes[i].is_over or len(masks[i]) + len(sampled) + len(heard) >= limit:
                heard = []
                live.remove(i)
            completions[i] += sampled + heard
            masks[i] += [1] * len(sampled) + [0] * len(heard)
    returns = [episode.reward for episode in episodes]
    played = {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None, "env_mask": masks}
    return {**played, "episode_return": returns}


_TURN = "zqxj"  # stands for what the policy said


def _between(tokenizer: Any, template: Callable[..., Any], observation: str, sampled: list[int]) -> list[int]:
    """The ids from the end of a sampled turn to the beginning of the next."""
    turns = [("user", "?"), ("assistant", _TURN), ("user", observation)]
    text = template([{"role": role, "content": content} for role, content in turns], tokenize=False)
    ids = tokenizer(text=text.split(_TURN, 1)[1], add_special_tokens=False)["input_ids"]
    is_closed = sampled[-1:] == [tokenizer.eos_token_id]
    return ids[1:] if is_closed and ids[0] == tokenizer.eos_token_id else ids
