"""`TextEnv`: a Gymnasium environment whose observations and actions are text.

A subclass writes `begin` and `respond`; everything the environments share is here: seeding, splits, turn counting,
the keys of `info`, the rendered conversation, the checks of an action.

An episode is a pure function of `(kwargs, split, episode seed, actions)`. An observation is the newest message to
the agent, not the transcript (`mrlm_envs.wrappers.Transcript` gives that).

Keys of `info` with a fixed meaning:

| key | when | meaning |
| --- | --- | --- |
| `task_id` | always | canonical name of the task |
| `seed` | always | the episode seed; `reset(seed=info["seed"])` plays the same task again |
| `turn` | always | actions taken so far |
| `role` | always | who speaks the observation: "user" or "tool" |
| `system` | at reset | the system prompt ("" if none) |
| `tools` | at reset, if any | JSON schemas of the tools |
| `action_valid` | after a step | the action could be parsed |
| `rewards` | after a step | named parts that sum to the reward |
| `success` | at the end | the task was solved |
| `stop_reason` | at the end | "success", "failure", "max_turns", "env_fault", or an environment's own |
| `valid` | at the end | False when the environment, not the agent, failed |
"""

import copy
import hashlib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from mrlm_envs.spaces import Unicode
from mrlm_envs.tasks import SPLITS, Row, Source, Tasks, check_choice, check_counts, in_split, nearest

Info = dict[str, Any]
Options = dict[str, Any]

MAX_OBSERVATION = 65_536  # characters; a longer observation is truncated, and says so
_MAX_DRAWS = 2_000  # redraws until a task of the split turns up; with one in five, chance alone never gets there
_INTEGERS = (int, np.integer)
_SURROGATE = re.compile("[\ud800-\udfff]")


class EnvFault(Exception):
    """The environment failed, not the agent: a broken grader or sandbox, a lost endpoint.

    Raised inside `respond` it ends the episode `truncated` with `info["valid"] = False`; raised inside `begin` it
    leaves `reset`. Trainers mask such episodes.
    """


@dataclass(slots=True)
class Opening:
    """What `begin` returns.

    Args:
        text: The first observation.
        task_id: The canonical content of the task: equal for equal tasks, whatever the seed.
        tools: OpenAI function schemas the agent may call.
        info: Further JSON values for `info`.
    """

    text: str
    task_id: str
    tools: list[dict[str, Any]] | None = None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Reply:
    """What `respond` returns.

    Args:
        text: The next observation.
        rewards: Named parts of this step's reward; the reward is their sum.
        done: The task has ended (`terminated`).
        success: The task has been solved.
        role: Who speaks `text`, "user" or "tool".
        info: Further JSON values for `info`; `action_valid` and `stop_reason` may be set here.
    """

    text: str
    rewards: dict[str, float] = field(default_factory=dict)
    done: bool = False
    success: bool = False
    role: str = "user"
    info: dict[str, Any] = field(default_factory=dict)


class TextEnv(gymnasium.Env[str, str]):
    """Base of every environment of MRLM; see the module docstring for the contract.

    A subclass sets `system_prompt`, `reset_options` (the keys of `reset`'s `options` that it reads besides `task_id`;
    any other is refused) and `metadata` (`expert`: "always", "honest" or None; `deterministic`: whether
    `(kwargs, seed, actions)` replays to the same bytes), writes `begin` and `respond`, and, where it can, `expert`,
    `state_key` and `cost_to_go`. `begin` and `respond` draw from `self.rng` only. A finite task source
    (`read_tasks`, `picked`) sets `self.num_tasks` and does its own splitting.

    Args:
        split: "train", "test" or "all".
        max_turns: Actions after which the episode ends as `terminated` with `stop_reason="max_turns"`.
        max_length: Characters of an action; longer ones are truncated before `respond` sees them.
        system_prompt: Replaces the environment's own system prompt.
        render_mode: "ansi" makes `render()` return the conversation so far.

    Raises:
        TypeError: On an unknown keyword argument; the nearest known one is named.
        ValueError: On a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": None, "deterministic": True}
    system_prompt: str = ""
    tasks: Tasks[Any] | None = None
    num_tasks: int | None = None
    reset_options: tuple[str, ...] = ()
    _gymnasium_generator: np.random.Generator | None = None

    def __init__(
        self,
        *,
        split: str = "train",
        max_turns: int = 1,
        max_length: int = 65_536,
        system_prompt: str | None = None,
        render_mode: str | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise TypeError(_unknown_argument(type(self), next(iter(unknown))))
        check_choice("split", split, SPLITS)
        check_counts(max_turns=max_turns, max_length=max_length)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or 'ansi', got {render_mode!r}")
        self.split, self.max_turns, self.max_length = split, max_turns, max_length
        if system_prompt is not None:
            self.system_prompt = system_prompt
        self.render_mode = render_mode
        self.observation_space = Unicode(MAX_OBSERVATION)
        self.action_space = Unicode(max_length)
        self.rng = np.random.Generator(np.random.PCG64(0))  # takes a new state at each reset
        self.turn = 0
        self._is_open = False
        self._task_id, self.episode_seed = "", 0
        self._messages: list[tuple[str, str]] = []

    def read_tasks(self, source: Source | None, parse: Callable[[Row, int, str], Any]) -> None:
        """Take the tasks of a finite source (see `mrlm_envs.tasks.Tasks`), if there is one, into `self.tasks`."""
        if source is not None:
            self.tasks = Tasks(source, self.split, parse)
            self.num_tasks = len(self.tasks)

    def picked(self, options: Options) -> Any:
        """The task of `self.tasks` that `reset`'s options name, else that of the episode seed; None without them."""
        if self.tasks is None:
            return None
        return self.tasks.named(options["task_id"]) if "task_id" in options else self.tasks.at(self.episode_seed)

    def begin(self, options: Options) -> Opening:
        """Draw a task from `self.rng` (or take the one `options` names) and open the episode.

        The base calls it again, on the same `self.rng`, until the task falls into the split.
        """
        raise TypeError(f"{type(self).__name__} does not define begin(options) -> Opening")

    def respond(self, action: str) -> Reply:
        """Answer the agent. `action` is clean text of at most `max_length` characters."""
        raise TypeError(f"{type(self).__name__} does not define respond(action) -> Reply")

    def expert(self) -> str | None:
        """The reference action for the current turn, or None.

        Privileged, like `state_key` and `cost_to_go`: none of the three is ever part of an observation or of `info`,
        wrappers hide them (callers use `env.unwrapped`), and they are not served over gRPC.
        """
        return None

    def state_key(self) -> str | None:
        """The state of the current task: equal for equal states of one task, whatever led there.

        Optional and privileged (see `expert`). Credit methods group the turns of several episodes of a task by it.
        How many turns or actions are left is not part of the key.

        Returns:
            The key, or None when the environment does not define one.
        """
        return None

    def cost_to_go(self) -> float | None:
        """How many more steps an optimal player needs from the current state.

        Optional and privileged (see `expert`). A step is the environment's own unit, a single action where a reply
        may hold several; the budget of turns and actions is left out of account.

        Returns:
            A number of at least 0 (0 when solved), `math.inf` when the task is lost, None when the environment does
            not define it or its search bound is exceeded.
        """
        return None

    def reset(self, *, seed: int | None = None, options: Options | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: The episode seed (a non-negative integer). Without one, it is drawn from `np_random`.
            options: `{"task_id": …}` picks a task of a finite source; environments document their own.

        Returns:
            The first observation, and `info` (see the module docstring).

        Raises:
            ValueError: On an option that the environment does not read.
        """
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        elif not isinstance(seed, _INTEGERS) or seed < 0:
            raise gymnasium.error.Error(f"seed must be a non-negative integer, got {seed!r}")
        else:
            seed = int(seed)
            self._gymnasium_generator, self._np_random_seed = None, seed
        self.rng.bit_generator.state = _generator_state(seed)
        self._is_open, self.turn, self.episode_seed = False, 0, seed
        opening = self._draw(self._known({} if options is None else options))
        self._task_id = opening.task_id
        text = _clip(opening.text)
        self._messages = [("user", text)]
        self._is_open = True
        info: Info = {"task_id": opening.task_id, "seed": seed, "turn": 0, "role": "user", "system": self.system_prompt}
        info |= opening.info
        if opening.tools is not None:
            info["tools"] = copy.deepcopy(opening.tools)  # the agent may edit what it gets
        return text, info

    @property
    def _np_random(self) -> np.random.Generator | None:
        """Gymnasium's generator, which only unseeded resets draw from: made when it is first asked for."""
        if self._gymnasium_generator is None and self._np_random_seed is not None:
            self._gymnasium_generator = np.random.default_rng(self._np_random_seed)
        return self._gymnasium_generator

    @_np_random.setter
    def _np_random(self, value: np.random.Generator | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._gymnasium_generator = value

    @property
    def is_last_turn(self) -> bool:
        """Within `respond`: whether the episode ends with this action, right or wrong."""
        return self.turn >= self.max_turns

    def _known(self, options: Options) -> Options:
        known = ("task_id", *self.reset_options)
        for name in options:
            if name not in known:
                raise ValueError(f"{type(self).__name__}: unknown reset option {name!r}; {nearest(str(name), known)}")
        return options

    def _draw(self, options: Options) -> Opening:
        if self.num_tasks is None and "task_id" in options:
            raise ValueError("options['task_id'] picks a task of a finite source; generated tasks are picked by seed")
        task_id = ""
        for _ in range(_MAX_DRAWS):
            opening = self.begin(options)
            _expect(opening, Opening, f"{type(self).__name__}.begin", "Opening(text, task_id)")
            task_id = opening.task_id
            if self.num_tasks is not None or in_split(task_id, self.split):
                return opening
        raise ValueError(
            f"no task of split {self.split!r} in {_MAX_DRAWS} draws (the last was {task_id!r}); "
            'widen the range of tasks or pass split="all"'
        )

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one turn.

        Args:
            action: Any string. Lone surrogates are replaced, and it is truncated to `max_length` characters.

        Returns:
            `(observation, reward, terminated, truncated, info)`.

        Raises:
            gymnasium.error.ResetNeeded: Before `reset` or after the end of the episode.
            TypeError: If `action` is not a `str`.
        """
        if not self._is_open:
            raise ResetNeeded(f"{type(self).__name__}: the episode is not open; call reset() before step()")
        if not isinstance(action, str):
            raise TypeError(f"{type(self).__name__}: an action is a str, got {type(action).__name__}")
        action = clean(action[: self.max_length])
        self.turn += 1
        self._messages.append(("assistant", action))
        info: Info = {"task_id": self._task_id, "seed": self.episode_seed, "turn": self.turn, "action_valid": True}
        try:
            reply = self.respond(action)
        except EnvFault as fault:
            self._is_open = False
            text = _clip(f"The environment failed: {fault}")
            info |= {"role": "user", "rewards": {}, "success": False, "stop_reason": "env_fault", "valid": False}
            self._messages.append(("user", text))
            return text, 0.0, False, True, info
        _expect(reply, Reply, f"{type(self).__name__}.respond", "Reply(text, rewards, done, success)")
        info |= {"role": reply.role, "rewards": dict(reply.rewards)}
        terminated = reply.done or self.turn >= self.max_turns
        if terminated:
            self._is_open = False
            reason = "max_turns" if not reply.done else "success" if reply.success else "failure"
            info |= {"success": reply.success, "valid": True, "stop_reason": reason}
        info |= reply.info
        text = _clip(reply.text)
        self._messages.append((reply.role, text))
        return text, float(sum(reply.rewards.values())), terminated, False, info

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The conversation so far under `render_mode="ansi"`, else None."""
        if self.render_mode is None:
            return None
        system = [("system", self.system_prompt)] if self.system_prompt else []
        return "\n\n".join(f"[{role}]\n{text}" for role, text in [*system, *self._messages])


def _expect(value: Any, kind: type, method: str, how: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{method}() returned a {type(value).__name__}, expected {how} from mrlm_envs")


def _generator_state(seed: int) -> dict[str, Any]:
    """A PCG64 state from a hash of the seed: as good as `default_rng(seed)` at a quarter of its 5 µs."""
    digest = hashlib.blake2b(b"%d" % seed, digest_size=32).digest()
    state = {"state": int.from_bytes(digest[:16], "little"), "inc": int.from_bytes(digest[16:], "little") | 1}
    return {"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0}


def clean(text: str) -> str:
    """`text` as a plain `str` that encodes as UTF-8: lone surrogates become U+FFFD."""
    if type(text) is str and text.isascii():
        return text
    return _SURROGATE.sub("\ufffd", str(text))


def _clip(text: str) -> str:
    if len(text) > MAX_OBSERVATION:
        text = text[: MAX_OBSERVATION - 20] + "\n[cut: too long]"
    return clean(text)


def _unknown_argument(cls: type, name: str) -> str:
    known = {
        parameter.name
        for base in cls.__mro__
        if "__init__" in vars(base) and issubclass(base, TextEnv)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and parameter.name != "self"
    }
    return f"{cls.__name__}: unknown argument {name!r}; {nearest(name, sorted(known))}"


def plain(value: Any) -> Any:
    """`value` as JSON can say it: numpy as numbers and lists, non-finite floats as None, the rest as text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)
