"""The card: all checks of one environment, and the card as text, JSON and HTML."""

import html
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import mrlm_envs
from mrlm_envs.checks.playing import Crash
from mrlm_envs.checks.reproducibility import determinism, interleaving, pickling, replay, threads
from mrlm_envs.checks.rewards import difficulty, floor, leakage, oracle
from mrlm_envs.checks.robustness import faults, speed, splits
from mrlm_envs.checks.subject import Check, Fail, Limits, Skip, Subject, Unknown

# In the order of the card.
NAMES = (
    *("oracle", "floor", "leakage", "determinism", "replay", "interleaving"),
    *("threads", "pickling", "splits", "difficulty", "speed", "faults"),
)
# In the order in which they are made: a check may read those before it.
ORDER = (
    *(faults, leakage, floor, oracle, difficulty),
    *(determinism, replay, interleaving, threads, pickling, splits, speed),
)
NEEDS: dict[str, tuple[str, ...]] = {
    **{"floor": ("leakage",), "oracle": ("leakage", "floor"), "difficulty": ("leakage", "floor", "oracle")},
    **dict.fromkeys(("replay", "interleaving", "splits"), ("determinism",)),
    **dict.fromkeys(("threads", "pickling"), ("determinism", "interleaving")),
}
REPLAYING = ("replay", "interleaving", "threads")  # compare with the episodes that determinism has recorded
_SHOWN = 200  # characters of an action on a card
_STYLE = "body{font:15px sans-serif} td{padding:4px 12px} .fail{background:#fdd} .skip{color:#777}"


@dataclass
class Card:
    """The checks of one environment."""

    env: str
    kwargs: dict[str, Any]
    checks: list[Check]

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check.name for check in self.checks if check.status == "fail"]

    def json(self) -> str:
        """The card as JSON, schema 1."""
        checks = [asdict(check) for check in self.checks]
        return json.dumps({"schema": 1, "env": self.env, "kwargs": self.kwargs, "checks": checks}, default=str)

    def rows(self) -> list[list[str]]:
        """Name, status and evidence of each check, the evidence with the seed and the action that show it."""
        rows = []
        for check in self.checks:
            evidence = check.evidence if check.seed is None else f"{check.evidence} (seed {check.seed})"
            if check.status == "fail" and check.action is not None:
                evidence += f", action {check.action[:_SHOWN]!r}"
            printable = " ".join(evidence.split()).encode("utf-8", "backslashreplace").decode()  # lone surrogates
            rows.append([check.name, check.status, printable])
        return rows

    def text(self) -> str:
        """The card as a table for the terminal."""
        return "\n".join([f"{self.env} {self.kwargs or ''}", *(f"  {a:13} {b:5} {c}" for a, b, c in self.rows())])

    def html(self) -> str:
        """The card as a page."""
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        rows = "".join(f"<tr class={row[1]}>{line}</tr>\n" for row, line in zip(self.rows(), cells))
        title = html.escape(f"{self.env} {self.kwargs or ''}")
        head = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        return f"{head}<h1>{title}</h1><table>{rows}</table>\n"


def card(
    env_id: str,
    kwargs: dict[str, Any] | None = None,
    limits: Limits | None = None,
    only: Collection[str] = NAMES,
) -> Card:
    """Make the checks of an environment.

    A crash is reported under `faults`; checks that it kept from being made are skipped.

    Args:
        env_id: What `gymnasium.make` takes, a short name (math), `module:function` of an environment or a PettingZoo
            game, or `openenv:ADDRESS`.
        kwargs: Arguments of the environment.
        limits: Thresholds.
        only: Names of the checks to make; those that they need are made too.

    Raises:
        ValueError: If there is no such environment.
    """
    env_id, kwargs = mrlm_envs.ENVIRONMENTS.get(env_id, (env_id,))[0], kwargs or {}
    wanted = set(only).union(*(NEEDS.get(name, ()) for name in only))
    crash: Crash | None = None
    found: dict[str, Check] = {}
    try:
        subject = Subject(env_id, kwargs, limits or Limits(), found)
        for check in (check for check in ORDER if check.__name__ in wanted):
            name = check.__name__
            try:
                if name in REPLAYING and not subject.passed("determinism"):
                    raise Skip("not judged: episodes do not replay (see determinism)")
                subject.start()
                found[name] = Check(name, "pass", check(subject))
            except (Fail, Skip) as verdict:
                found[name] = Check(name, verdict.status, *verdict.args)
            except Exception as error:  # an environment may raise anything, anywhere
                crash = crash or _as_crash(error, name)
                if name == "faults":
                    break  # it hangs, or ends its process: nothing else is safe to try
    except Exception as error:
        if isinstance(error, Unknown) or (kwargs and isinstance(error, ValueError | TypeError)):
            raise  # an unknown id, an argument that does not fit
        crash = _as_crash(error, "it cannot be made")
    if crash is not None and ("faults" not in found or found["faults"].status == "pass"):
        found["faults"] = Check("faults", "fail", str(crash), crash.seed, crash.action)
    missing = "could not be made: the environment crashed (see faults)" if crash else "not asked for"
    return Card(env_id, kwargs, [found.get(name) or Check(name, "skip", missing) for name in NAMES])


def _as_crash(error: Exception, where: str) -> Crash:
    return error if isinstance(error, Crash) else Crash(f"{where}: {type(error).__name__}: {error}", None)
