"""Hostile programs, and the verdict that each must get: those of the gauntlet, and the text file beside this one.

The task is `solve(xs)`: the sum of a list. `CHEATS` want the reward without solving it; their verdict is how they fail:
"wrong" for a wrong value, else the kind of the failure, where "load: …" means that the program did not load.
`ESCAPES` want out of the sandbox: each has `attack()`, which must raise `OSError` when it is called.
"""

import json
from pathlib import Path

import pytest

from tests.support.paths import ROOT

_HERE = Path(__file__).parent
_PLACES = {"PROJECT": str(_HERE.parents[1]), "INSTALLED": pytest.__file__}


def _placed(code: str) -> str:
    for word, place in _PLACES.items():
        code = code.replace(word, place)
    return code


def _programs(file: str) -> dict[str, str]:
    """Heading to program, of a file in which a line that begins with `####` is the heading of what follows."""
    sections = _placed((_HERE / file).read_text("utf-8")).split("\n#### ")[1:]
    return {heading: code for heading, code in (section.split("\n", 1) for section in sections)}


_CASES = map(json.loads, (ROOT / "benchmarks" / "gauntlet" / "code.jsonl").open(encoding="utf-8"))
CHEATS: dict[str, tuple[str, str]] = {
    case["name"]: (case["fails"], _placed(case["reply"])) for case in _CASES if case["kind"] == "cheat"
}
CHEATS["parser bomb"] = ("load: exception|load: crash", "x = " + "(" * 3000 + ")" * 3000)
CHEATS["10 MB of source"] = ("load: exception", "x = 1\n" * 1_700_000 + "raise ValueError('loaded')")

ESCAPES: dict[str, str] = _programs("escapes.txt")


def escape(code: str, outside: str, parent: int) -> str:
    """The source of an escape, aimed at a file and a process."""
    return code.replace("OUTSIDE", outside).replace("PARENT", str(parent))
