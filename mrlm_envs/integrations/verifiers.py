"""Our environments as verifiers' tasksets, for `vf-eval` and prime-rl. Written for verifiers 0.4.

    class MathTaskset(EnvTaskset):
        env_id = "mrlm/Math-v0"

    __all__ = ["MathTaskset", "TextEnvironment"]            # of a package `math_env`: vf-eval math-env

`mrlm export verifiers math DIR` writes that package. The environment is the user of the conversation, so single and
multi-turn environments are played alike; tools are listed in the system prompt and called in the text of a reply. The
trace has the return as `reward`, `success` as a metric, and `info["turn_rewards"]`. An episode in which the environment
failed is an error of the episode, which verifiers retries or leaves out. Importing this module imports verifiers.
"""

# pyright: reportMissingImports=false
import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from mrlm_envs.core import EnvFault
from mrlm_envs.integrations.episode import Episode, openings, require, with_tools

require("verifiers")
import verifiers.v1 as vf  # noqa: E402


class Config(vf.TasksetConfig):
    """The flags `--env.taskset.*`.

    Attributes:
        split: Which tasks.
        num_tasks: Task i is the episode with seed i.
    """

    split: Literal["train", "test"] = "train"
    num_tasks: int = 1000


class Data(vf.TaskData):
    """A task on the wire: its prompt and the episode seed."""

    seed: int


class Task(vf.Task[Data, vf.State, vf.TaskConfig]):
    """An episode of a text environment, which rewards it."""


class EnvTaskset(vf.Taskset[Task, Config]):
    """The episodes of an environment; a subclass names it.

    Attributes:
        env_id: What `gymnasium.make` takes.
        kwargs: Arguments of the environment.
    """

    env_id: ClassVar[str]
    kwargs: ClassVar[dict[str, Any]] = {}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the environment with the split."""
        return {"split": self.config.split, **self.kwargs}

    def load(self) -> Iterator[Task]:
        """One task for each seed."""
        for seed, messages, info in openings(self.env_id, range(self.config.num_tasks), **self.arguments):
            *system, user = with_tools(messages, info)
            told = system[0]["content"] if system else None
            data = Data(name=f"{self.env_id}#{seed}", prompt=user["content"], system_prompt=told, seed=seed)
            yield Task(data, self.config.task)


class EnvironmentConfig(vf.EnvConfig):
    """The agent: by default a plain chat, which runs no code and so needs no container."""

    player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime={"type": "subprocess"})


class TextEnvironment(vf.Env[EnvironmentConfig]):
    """Plays an episode with the environment in the user's role."""

    async def run(self, task: Task, agents: vf.Agents) -> None:
        """One episode.

        Raises:
            EnvFault: The environment failed; verifiers records it as an error of the episode.
        """
        episode = await asyncio.to_thread(Episode, self.taskset.env_id, **self.taskset.arguments)
        await asyncio.to_thread(episode.reset, task.data.seed)
        try:
            async with agents.player.interaction(task) as interaction:
                turn = await interaction.turn()
                while not turn.terminated:
                    observation, *_ = await asyncio.to_thread(episode.step, turn.last_reply)
                    if episode.is_over:
                        break
                    turn = await interaction.turn(observation)
        finally:
            episode.close()
        if episode.reward is None:
            raise EnvFault(f"{self.taskset.env_id}, seed {task.data.seed}: the environment failed")
        interaction.trace.record_reward("reward", episode.reward)
        interaction.trace.record_metric("success", float(bool(episode.success)))
        interaction.trace.info["turn_rewards"] = episode.rewards
