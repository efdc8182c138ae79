"""Write `cards.md`: the quality card of each of our environments with its default arguments.

python docs/cards.py
"""

from pathlib import Path

import mrlm_envs
from mrlm_envs.checks import Card, card

PAGE = """\
# Quality cards

What `mrlm check` says of each environment with its default arguments; `make docs` makes this page.
[sound.md](sound.md) explains the checks. `mrlm/LLM-v0` has no default: it needs a scenario and a model.
"""


def section(found: Card) -> str:
    """A card in Markdown."""
    rows = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in found.rows())
    return "\n".join([f"## {found.env}", "", "| check | | evidence |", "| --- | --- | --- |", *rows, ""])


def main() -> None:
    """Make the cards, which takes minutes, and write the page."""
    ids = [env_id for env_id, *_ in mrlm_envs.ENVIRONMENTS.values() if env_id != "mrlm/LLM-v0"]
    text = "\n".join([PAGE, *(section(card(env_id)) for env_id in ids)])
    Path(__file__).with_name("cards.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
