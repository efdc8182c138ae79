"""Our environments in SkyRL-gym. Written for skyrl-gym 0.4.

    skyrl_gym.register("mrlm", "mrlm_envs.integrations.skyrl:TextEnvironment")
    datasets.Dataset.from_list(list(rows("mrlm/ToolUse-v0", n=1000))).to_parquet("train.parquet")

Tools are listed in the system prompt and called in the text of a reply. SkyRL cannot mask an episode in which the
environment failed: it has reward 0 and `metadata["valid"]` is False. Importing this module imports skyrl_gym.
"""

# pyright: reportMissingImports=false
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mrlm_envs.integrations.episode import Episode, openings, require, with_tools

require("skyrl-gym")
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput  # noqa: E402

Messages = list[dict[str, str]]


def rows(env_id: str, n: int, **kwargs: Any) -> Iterator[dict[str, Any]]:
    """The rows of a data set: row i is the episode with seed i.

    Args:
        env_id: What `gymnasium.make` takes.
        n: How many.
        **kwargs: Arguments of the environment.
    """
    for seed, messages, info in openings(env_id, range(n), **kwargs):
        prompt = with_tools(messages, info)
        yield {"prompt": prompt, "env_class": "mrlm", "env_id": env_id, "kwargs": json.dumps(kwargs), "seed": seed}


class TextEnvironment(BaseTextEnv):
    """An episode of a row.

    Args:
        env_config: Not read.
        extras: The columns of the row.
    """

    def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        row = dict(extras or {})
        self.seed = int(row["seed"])
        self.episode = Episode(row["env_id"], **json.loads(row["kwargs"]))

    def init(self, prompt: Messages) -> tuple[Messages, dict[str, Any]]:
        """Start the episode that the prompt shows."""
        return prompt, self.episode.reset(self.seed)[1]

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Take one turn."""
        observation, reward, _, _, info = self.episode.step(action)
        heard = [] if self.episode.is_over else [{"role": info.get("role", "user"), "content": observation}]
        return BaseTextEnvStepOutput(observations=heard, reward=reward, done=self.episode.is_over, metadata=info)

    def close(self) -> None:
        """Close the environment."""
        self.episode.close()
