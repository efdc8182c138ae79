"""What a server offers: environments by name, the keyword arguments clients may set, and how one is made."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.spaces import Text

from mrlm_envs import ENVIRONMENTS
from mrlm_envs.core import TextEnv
from mrlm_envs.spaces import Unicode

# Harmless everywhere; others can name files, data sets, sandboxes and endpoints, so the operator allows them.
ALWAYS_ALLOWED = frozenset({"split", "max_turns", "max_length", "system_prompt"})
ANY = "*"


class Refused(ValueError):
    """A request that can never succeed here; its message goes to the client."""


@dataclass(frozen=True)
class Offer:
    """One environment of a server.

    Attributes:
        id: The full id, `mrlm/Math-v0`.
        spec: Gymnasium's spec.
        env_class: The class to call directly, for a `TextEnv` without wrappers of its own; `gymnasium.make` copies
            the spec for every instance.
        spaces: Observation and action space, shared by all instances (a `Text` space takes 16 kB).
        preset: Keyword arguments the operator has set.
    """

    id: str
    spec: EnvSpec
    env_class: type[TextEnv] | None
    spaces: tuple[Text, Text]
    preset: Mapping[str, Any] = field(default_factory=dict)

    @property
    def action_charset(self) -> str:
        """The characters of a narrow action space; "" when every character is allowed."""
        action = self.spaces[1]
        return "" if isinstance(action, Unicode) else action.characters

    def make(self, kwargs: dict[str, Any]) -> gymnasium.Env[str, str]:
        """A fresh environment."""
        kwargs = {**self.preset, **kwargs}
        if self.env_class is None:
            return gymnasium.make(self.spec, disable_env_checker=True, **kwargs)
        env = self.env_class(**{**self.spec.kwargs, **kwargs})
        for name, space in zip(("observation_space", "action_space"), self.spaces):
            if getattr(env, name) == space:
                setattr(env, name, space)
        return env


class Catalog:
    """The environments of one server, by every name a client may use.

    Args:
        names: Short names (`math`), ids (`mrlm/Math-v0`) or third-party ids (`my_pkg:My/Env-v0`).
        allow_kwargs: Keyword arguments clients may set besides `ALWAYS_ALLOWED`; `"*"` allows every one.
        preset: Keyword arguments the operator sets, by a name of the environment.

    Raises:
        Refused: If a name is unknown, an environment cannot be made or its spaces are not text.
    """

    def __init__(
        self,
        names: Iterable[str],
        allow_kwargs: Iterable[str] = (),
        preset: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        preset = dict(preset or {})
        self.allowed = ALWAYS_ALLOWED | set(allow_kwargs)
        self.offers: dict[str, Offer] = {}
        for name in names:
            short = ENVIRONMENTS.get(name)
            make_id = short[0] if short else name
            offer = _offer(make_id, preset.pop(name, None) or preset.pop(make_id, None) or {})
            self.offers |= {alias: offer for alias in (name, make_id, offer.id)}
            self.offers |= {key: offer for key, (env_id, *_) in ENVIRONMENTS.items() if env_id == offer.id}
        if preset:
            raise Refused(f"arguments are preset for {min(preset)!r}, which is not served")
        if not self.offers:
            raise Refused(f"no environments to serve; name some of: {', '.join(ENVIRONMENTS)}")

    @property
    def ids(self) -> list[str]:
        """The full ids, in the order given."""
        return list(dict.fromkeys(offer.id for offer in self.offers.values()))

    def find(self, env_id: str) -> Offer | None:
        """The environment of that name, if it is offered."""
        return self.offers.get(env_id)

    def kwargs(self, offer: Offer, data: bytes) -> dict[str, Any]:
        """Keyword arguments from JSON.

        Raises:
            Refused: If they are not a JSON object or name one that is not allowed.
        """
        kwargs = json_object(data, "kwargs")
        if ANY not in self.allowed and (extra := kwargs.keys() - self.allowed):
            name = min(extra)
            raise Refused(f"{offer.id}: kwarg {name!r} is not allowed here; the server needs --allow-kwargs {name}")
        return kwargs


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object from bytes; empty bytes are `{}`.

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


def _offer(make_id: str, preset: Mapping[str, Any]) -> Offer:
    try:
        env = gymnasium.make(make_id, disable_env_checker=True, **preset)
    except Exception as error:  # an environment's own constructor
        raise Refused(f"environment {make_id!r}: {error}; built in are: {', '.join(ENVIRONMENTS)}") from error
    observation, action, made = env.observation_space, env.action_space, env.spec
    env.close()
    for what, space in (("observation", observation), ("action", action)):
        if not isinstance(space, Text):
            raise Refused(f"environment {make_id!r}: its {what} space is {space}, not text")
    assert made is not None and isinstance(observation, Text) and isinstance(action, Text)
    spec = gymnasium.registry[made.id]
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    is_plain = spec.max_episode_steps is None and not spec.additional_wrappers and isinstance(observation, Unicode)
    env_class = creator if is_plain and isinstance(creator, type) and issubclass(creator, TextEnv) else None
    return Offer(spec.id, spec, env_class, (observation, action), preset)
