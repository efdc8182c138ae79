"""`mrlm check`: the quality card of an environment, or the cards of all of ours."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import mrlm_envs
from mrlm_envs.checks import Limits, card

PAGE = """\
# Quality cards

What `mrlm check` says of each environment with its default arguments; `make docs` makes this page.
[sound.md](sound.md) explains the checks.
"""


def run(environment: str, kwargs: dict[str, Any], limits: Limits, form: str) -> int:
    """Print the card of an environment as text, JSON or HTML.

    Returns:
        The exit status: 1 if a check failed.
    """
    with contextlib.redirect_stdout(sys.stderr):  # an environment may print
        found = card(environment, kwargs, limits)
    print({"text": found.text, "json": found.json, "html": found.html}[form]())
    return int(bool(found.failed))


def write_page(path: Path, limits: Limits) -> int:
    """Write the cards of all of our environments that need no arguments, as Markdown.

    Returns:
        The exit status: 1 if a check failed.
    """
    ids = [env_id for env_id, *_ in mrlm_envs.ENVIRONMENTS.values() if env_id != "mrlm/LLM-v0"]
    cards = [card(env_id, {}, limits) for env_id in ids]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([PAGE, *(found.markdown() for found in cards)]), "utf-8")
    return int(any(found.failed for found in cards))
