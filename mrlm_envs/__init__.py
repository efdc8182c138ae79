"""Text-space Gymnasium environments for reinforcement learning of language models.

Importing this package registers `mrlm/*-v0`; `gymnasium.make("mrlm_envs:mrlm/Math-v0")` does both at once.
"""

import gymnasium

from mrlm_envs.core import EnvFault, Opening, Options, Reply, TextEnv
from mrlm_envs.spaces import Unicode

__all__ = ["ENVIRONMENTS", "EnvFault", "Opening", "Options", "Reply", "TextEnv", "Unicode"]

# Short name -> (id, module of the environment class, name of the class).
ENVIRONMENTS: dict[str, tuple[str, str, str]] = {
    "math": ("mrlm/Math-v0", "mrlm_envs.math.env", "MathEnv"),
    "code": ("mrlm/Code-v0", "mrlm_envs.code.env", "CodeEnv"),
    "tools": ("mrlm/ToolUse-v0", "mrlm_envs.tools.env", "ToolUseEnv"),
    "debate": ("mrlm/Debate-v0", "mrlm_envs.debate.env", "DebateEnv"),
    "sokoban": ("mrlm/Sokoban-v0", "mrlm_envs.games.sokoban", "SokobanEnv"),
    "tetris": ("mrlm/Tetris-v0", "mrlm_envs.games.tetris", "TetrisEnv"),
    "blocksworld": ("mrlm/Blocksworld-v0", "mrlm_envs.games.blocksworld", "BlocksworldEnv"),
    "sql": ("mrlm/SQL-v0", "mrlm_envs.sql.env", "SQLEnv"),
    "webshop": ("mrlm/WebShop-v0", "mrlm_envs.shop.env", "WebShopEnv"),
    "llm": ("mrlm/LLM-v0", "mrlm_envs.llm.env", "LLMEnv"),
}

_entry_points: dict[str, tuple[str, str | None]] = {
    _id: (f"{_module}:{_class}", f"{_module}:make_vec") for _id, _module, _class in ENVIRONMENTS.values()
}
_entry_points["mrlm/OpenEnv-v0"] = "mrlm_envs.integrations.openenv:OpenEnv", None
_entry_points["mrlm/Remote-v0"] = "mrlm_envs.serving.remote:RemoteEnv", "mrlm_envs.serving.remote:RemoteVectorEnv"
for _id, (_single, _vector) in _entry_points.items():
    if _id not in gymnasium.registry:
        # TextEnv checks types itself; Gymnasium's passive checker would double the cost of a step.
        gymnasium.register(_id, entry_point=_single, vector_entry_point=_vector, disable_env_checker=True)
