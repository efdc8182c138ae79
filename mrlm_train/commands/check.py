"""`mrlm check`: the quality card of an environment."""

import contextlib
import sys
from typing import Any

from mrlm_envs.checks import Limits, card


def run(environment: str, kwargs: dict[str, Any], limits: Limits, form: str) -> int:
    """Print the card of an environment as text, JSON or HTML.

    Returns:
        The exit status: 1 if a check failed.
    """
    with contextlib.redirect_stdout(sys.stderr):  # an environment may print
        found = card(environment, kwargs, limits)
    print({"text": found.text, "json": found.json, "html": found.html}[form]())
    return int(bool(found.failed))
