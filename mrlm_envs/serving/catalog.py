"""The environments of a server: by which names clients ask for them, with which arguments, and how one is made."""

import json
import re
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Text

from mrlm_envs import ENVIRONMENTS
from mrlm_envs.core import TextEnv
from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.protocol import ItemError
from mrlm_envs.serving.settings import Refused, Settings, words
from mrlm_envs.spaces import Unicode

# Harmless everywhere. Others can name files, data sets and endpoints, so the operator allows them by name.
ALWAYS_ALLOWED = frozenset({"split", "max_turns", "max_length", "system_prompt"})
# Rows of data: what is in them is shown to the agent, and never started or imported.
_ROWS = frozenset({"tasks", "corpus", "scenarios"})
# Never taken from a client, whatever is allowed: these start processes, choose the sandbox, or name a secret.
_NEVER = frozenset({"mcp", "command", "sandbox", "api_key_env"})
_IMPORT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Registration:
    """One environment of a server.

    Args:
        make_id: The id that `gymnasium.make` takes, with the module that registers it.
        preset: Keyword arguments the operator has set.
        settings: Of the server.

    Attributes:
        id: The full id, `mrlm/Math-v0`.
        action_charset: The characters of a narrow action space; "" when every character is allowed.
        slow_s: Seconds of the slowest recent step: its maximum, which decays by 3 % with every step.

    Raises:
        Refused: If the environment cannot be made, or its spaces are not text.
    """

    def __init__(self, make_id: str, preset: Mapping[str, Any], settings: Settings) -> None:
        try:
            env = gymnasium.make(make_id, disable_env_checker=True, **preset)
        except Exception as error:  # an environment's own constructor
            raise Refused(f"environment {make_id!r}: {error}; built in are: {', '.join(ENVIRONMENTS)}") from error
        env.close()
        self._spaces = {"observation": env.observation_space, "action": env.action_space}
        for what, space in self._spaces.items():
            if not isinstance(space, Text):
                raise Refused(f"environment {make_id!r}: its {what} space is {space}, not text")
        assert env.spec is not None and isinstance(env.action_space, Text)
        self.action_charset = "" if isinstance(env.action_space, Unicode) else env.action_space.characters
        self._make_id, self._preset, self._spec = make_id, preset, gymnasium.registry[env.spec.id]
        self._isolate_s = settings.step_timeout if settings.isolate else None
        self._allowed = set(words(settings.allow_kwargs))
        self.id, self.slow_s = self._spec.id, 1.0
        # A `TextEnv` without wrappers is called directly: `gymnasium.make` copies the spec for each instance.
        entry = self._spec.entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        is_plain = self._spec.max_episode_steps is None and not self._spec.additional_wrappers
        is_direct = is_plain and isinstance(creator, type) and issubclass(creator, TextEnv)
        self._env_class: Any = creator if is_direct else None

    def kwargs(self, data: bytes) -> dict[str, Any]:
        """Keyword arguments from a client's JSON.

        Raises:
            Refused: If they are not a JSON object, name one that is not allowed, or one has a value that starts
                processes or imports code.
        """
        kwargs = json_object(data, "kwargs")
        for name, value in kwargs.items():
            if name in ALWAYS_ALLOWED:
                continue
            if not self._allowed & {name, "*"}:
                raise Refused(f"kwarg {name!r} is not allowed here; the server needs --allow-kwargs {name}")
            if (danger := _danger(name, value)) is not None:
                why = "starts processes, imports code or names a secret: only the operator can set it (--kwargs-file)"
                raise Refused(f"kwarg {name!r}: {danger!r} {why}")
        return kwargs

    def make(self, data: bytes) -> gymnasium.Env[str, str]:
        """A fresh environment with a client's arguments; see `kwargs`."""
        kwargs = {**self._preset, **self.kwargs(data)}
        if self._isolate_s is not None:
            from mrlm_envs.serving.isolated import IsolatedEnv

            return IsolatedEnv(self._make_id, kwargs, self._isolate_s)
        if self._env_class is None:
            return gymnasium.make(self._spec, disable_env_checker=True, **kwargs)
        env = self._env_class(**{**self._spec.kwargs, **kwargs})
        for what, space in self._spaces.items():  # shared by all instances: 10,000 sessions have one
            if getattr(env, f"{what}_space") == space:
                setattr(env, f"{what}_space", space)
        return env


class Catalog:
    """The environments of one server, by every name a client may use.

    Args:
        settings: Of the server.

    Raises:
        Refused: If a name is unknown, an environment cannot be made or its spaces are not text.
        OSError: If the file of arguments cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        file = settings.kwargs_file
        preset = json_object(file.read_bytes(), str(file)) if file else {}
        self._by_name: dict[str, Registration] = {}
        for name in words(settings.environments):
            make_id = ENVIRONMENTS[name][0] if name in ENVIRONMENTS else name
            registration = Registration(make_id, preset.pop(name, None) or preset.pop(make_id, None) or {}, settings)
            aliases = {key for key, (env_id, *_) in ENVIRONMENTS.items() if env_id == registration.id}
            self._by_name |= dict.fromkeys({name, make_id, registration.id} | aliases, registration)
        if preset:
            raise Refused(f"arguments are preset for {min(preset)!r}, which is not served")
        if not self._by_name:
            raise Refused(f"no environments to serve; name some of: {', '.join(ENVIRONMENTS)}")

    @property
    def ids(self) -> list[str]:
        """The full ids, in the order given."""
        return list(dict.fromkeys(registration.id for registration in self._by_name.values()))

    def find(self, env_id: str) -> Registration:
        """The environment of that name.

        Raises:
            ItemError: If it is not served.
        """
        if env_id not in self._by_name:
            served = ", ".join(self.ids)
            raise ItemError(pb.UNKNOWN_ENV, f"environment {env_id!r} is not served here; served are: {served}")
        return self._by_name[env_id]


def _danger(name: str, value: Any) -> str | None:
    """The part of a client's argument that starts a process, imports code or names a secret."""
    if name in _NEVER:
        return name
    if isinstance(value, str):
        return value if _IMPORT.fullmatch(value) and not value.startswith("hf:") else None
    if isinstance(value, list):
        parts = [] if name in _ROWS else [("", item) for item in value]
    elif isinstance(value, dict):
        parts = [(name if name in _ROWS else key, item) for key, item in value.items()]
    else:
        return None
    return next((danger for key, item in parts if (danger := _danger(key, item)) is not None), None)


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object; empty bytes are `{}`.

    Raises:
        Refused: If the bytes are anything else.
    """
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise Refused(f"{what} must be a JSON object, got {type(value).__name__}")
    return value
