"""`TextVectorEnv`: many text episodes in one process, without per-environment wrappers.

`gymnasium.make_vec("mrlm_envs:mrlm/Math-v0", num_envs=64)` builds one through the registered `vector_entry_point`.
Member i behaves to the byte like the single environment with its seed. Autoreset is off by default: a language
model's rollout never wants a wasted generation. Reset finished members with `reset(options={"reset_mask": mask})`,
and step only the members whose policy has spoken with `step_some(indices, actions)`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mrlm_envs.core import TextEnv

Info = dict[str, Any]
Observations = tuple[str, ...]
StepResult = tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]


class TextVectorEnv(VectorEnv[Observations, Sequence[str], NDArray[Any]]):
    """`num_envs` members of one `TextEnv` class, stepped in a plain loop.

    Args:
        env_class: Called as `env_class(**kwargs)` for each member.
        num_envs: How many members, at least 1.
        autoreset_mode: A `gymnasium.vector.AutoresetMode` or its value: "Disabled" (default), "NextStep", "SameStep".
        max_episode_steps: Truncate a member's episode after that many steps, as `TimeLimit` does.
        **kwargs: The environment's own arguments.
    """

    def __init__(
        self,
        env_class: Callable[..., TextEnv],
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self.envs = [env_class(**kwargs) for _ in range(num_envs)]
        first = self.envs[0]
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        self.max_episode_steps = max_episode_steps
        self._steps = [0] * num_envs
        self._is_done = [True] * num_envs
        self._observations = [""] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, Info]:
        """Reset all members, or those of a mask.

        Args:
            seed: One episode seed a member, or an integer s that gives member i the seed s + i.
            options: `reset_mask`, a boolean array of shape `(num_envs,)`, picks members; the rest goes to each member.

        Returns:
            All newest observations, and the infos of the members that were reset.

        Raises:
            ValueError: If the number of seeds or the shape of the mask is wrong.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        if mask is None:
            indices = range(self.num_envs)
        elif np.shape(mask) != (self.num_envs,):
            raise ValueError(f"reset_mask must have shape ({self.num_envs},), got {np.shape(mask)}")
        else:
            indices = np.flatnonzero(mask).tolist()
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"seed must be one integer or {self.num_envs} of them, got {len(seeds)}")
        infos: list[Info] = [{}] * self.num_envs
        for i, info in self._reset_members(indices, [seeds[i] for i in indices], options):
            infos[i] = info
        return tuple(self._observations), stack_infos(infos)

    def _reset_members(
        self, indices: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None
    ) -> list[tuple[int, Info]]:
        for i in indices:
            self._is_done[i] = True  # stays so if the reset raises
        infos = []
        for i, (observation, info) in zip(indices, self._begin(indices, seeds, options)):
            self._observations[i], self._steps[i], self._is_done[i] = observation, 0, False
            infos.append((i, info))
        return infos

    def _begin(
        self, indices: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None
    ) -> Iterable[tuple[str, Info]]:
        """Reset the environments `indices`."""
        return (self.envs[i].reset(seed=seed, options=options) for i, seed in zip(indices, seeds))

    def _act(self, indices: Sequence[int], actions: Sequence[str]) -> Iterable[tuple[str, float, bool, bool, Info]]:
        """Step the environments `indices`."""
        return (self.envs[i].step(action) for i, action in zip(indices, actions))  # pyright: ignore[reportReturnType]

    def step(self, actions: Sequence[str]) -> StepResult:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step every member; see `step_some`."""
        if len(actions) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} actions, got {len(actions)}")
        return self.step_some(range(self.num_envs), actions)

    def step_some(self, indices: Sequence[int], actions: Sequence[str]) -> StepResult:
        """Step only the members `indices`.

        Args:
            indices: K distinct member indices.
            actions: K actions, in the order of `indices`.

        Returns:
            K observations, rewards `(K,)`, terminated `(K,)`, truncated `(K,)` and infos, in the order of `indices`.

        Raises:
            gymnasium.error.ResetNeeded: With autoreset off, if a member's episode has ended; no member is stepped.
            TypeError: If an action is not a `str`; no member is stepped.
            ValueError: If the lengths differ or an index appears twice.
        """
        if len(indices) != len(actions) or len(set(indices)) != len(indices):
            raise ValueError(f"need one action for each distinct index, got {len(indices)} and {len(actions)}")
        for i, action in zip(indices, actions):
            if not isinstance(action, str):
                raise TypeError(f"member {i}: an action is a str, got {type(action).__name__}")
        over = [i for i in indices if self._is_done[i]]
        if over and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(f"members {over} are not in an episode; reset them with options['reset_mask']")
        # NEXT_STEP: for those that are over, this step only starts the next episode.
        begun = self._reset_members(over, [None] * len(over), None)
        results = {i: (self._observations[i], 0.0, False, False, info) for i, info in begun}
        going = [(i, action) for i, action in zip(indices, actions) if i not in results]
        for i, result in zip([i for i, _ in going], self._act([i for i, _ in going], [action for _, action in going])):
            observation, reward, terminated, truncated, info = result
            self._steps[i] += 1
            truncated |= self._steps[i] == self.max_episode_steps and not terminated
            self._observations[i], self._is_done[i] = observation, terminated or truncated
            results[i] = observation, reward, terminated, truncated, info
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            ended = [i for i in indices if self._is_done[i]]
            for i, info in self._reset_members(ended, [None] * len(ended), None):
                last, reward, terminated, truncated, last_info = results[i]
                info |= {"final_obs": last, "final_info": last_info}
                results[i] = self._observations[i], reward, terminated, truncated, info
        observations, rewards, terminated, truncated, infos = (
            zip(*(results[i] for i in indices)) if results else [()] * 5
        )
        return (
            observations,
            np.array(rewards, dtype=np.float64),
            np.array(terminated, dtype=np.bool_),
            np.array(truncated, dtype=np.bool_),
            stack_infos(infos),
        )

    def render(self) -> tuple[Any, ...] | None:
        """Each member's rendering, or None without a render mode."""
        return None if self.render_mode is None else tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every member."""
        for env in self.envs:
            env.close()


def stack_infos(infos: Sequence[Info]) -> Info:
    """K infos as Gymnasium's dict of arrays.

    Every key comes with a boolean array `_key` of shape `(K,)`: who has it. Numbers and booleans make arrays of
    their type, dicts are stacked recursively, everything else makes an object array.
    """
    stacked: Info = {}
    for key in dict.fromkeys(key for info in infos for key in info):
        present = np.array([key in info for info in infos])
        kinds = {type(info[key]) for info in infos if key in info}
        if kinds == {dict}:
            stacked[key] = stack_infos([info.get(key, {}) for info in infos])
        else:
            kind = kinds.pop() if len(kinds) == 1 and kinds <= {int, float, bool} else object
            if kind is int and any(not -(2**63) <= info.get(key, 0) < 2**63 for info in infos):
                kind = object
            stacked[key] = np.full(len(infos), None if kind is object else 0, dtype=kind)
            for i in np.flatnonzero(present).tolist():
                stacked[key][i] = infos[i][key]
        stacked[f"_{key}"] = present
    return stacked
