"""`mrlm export`: a folder that brings an environment to another project, from the templates in `templates/`.

`openenv` is a Space that serves it by OpenEnv's protocol, with what `openenv validate` wants; `verifiers` is a Python
package that `vf-eval` and prime-rl take.
"""

import json
import os
import re
from pathlib import Path
from string import Template
from typing import Any, Literal

from mrlm_envs.integrations.episode import make

Kind = Literal["openenv", "verifiers"]
TEMPLATES = Path(__file__).with_name("templates")


def run(kind: Kind, env_id: str, folder: str | os.PathLike[str], **kwargs: Any) -> None:
    """Write the folder.

    Args:
        kind: Whose folder.
        env_id: What `gymnasium.make` takes.
        folder: Made if it is not there; files of the same names are replaced.
        **kwargs: Arguments of the environment, JSON values.

    Raises:
        ValueError: There is no such environment, or it does not fit.
    """
    env = make(env_id, **kwargs)
    env.reset(seed=0)
    expert = getattr(env.unwrapped, "expert", lambda: None)()  # the action of OpenEnv's probe
    env.close()
    short = re.sub(r"-v\d+$", "", re.split("[:/]", env_id)[-1]).lower()
    words = {
        "name": f"mrlm-{short}",
        "package": re.sub(r"\W", "_", f"mrlm_{short}"),
        "env_id": env_id,
        "kwargs": json.dumps(kwargs),
        "action": json.dumps(expert or "hello"),
    }
    root = TEMPLATES / kind
    for source in sorted(root.rglob("*.txt")):
        path = Path(folder) / Template(str(source.relative_to(root)).removesuffix(".txt")).substitute(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(source.read_text("utf-8")).substitute(words), "utf-8")
