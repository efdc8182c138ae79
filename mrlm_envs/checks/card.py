"""The card: all checks of one environment, and the card as text, JSON and HTML."""

import html
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import mrlm_envs
from mrlm_envs.checks import child
from mrlm_envs.checks.playing import Crash, follow
from mrlm_envs.checks.reproducibility import determinism, interleaving, pickling, replay, threads
from mrlm_envs.checks.rewards import difficulty, floor, leakage, oracle
from mrlm_envs.checks.robustness import faults, speed, splits
from mrlm_envs.checks.subject import OPENENV, Check, Fail, Limits, Skip, Subject, Unknown

# In the order of the card.
NAMES = (
    *("oracle", "floor", "leakage", "determinism", "replay", "interleaving"),
    *("threads", "pickling", "splits", "difficulty", "speed", "faults"),
)
# In the order in which they are made, each with the checks that it reads.
CHECKS = {
    faults: (),
    leakage: (),
    floor: ("leakage",),
    oracle: ("leakage", "floor"),
    difficulty: ("leakage", "floor", "oracle"),
    determinism: (),
    replay: ("determinism",),
    interleaving: ("determinism",),
    threads: ("determinism", "interleaving"),
    pickling: ("determinism", "interleaving"),
    splits: ("determinism",),
    speed: (),
}
REPLAYING = (replay, interleaving, threads)  # compare with the episodes that determinism has recorded
_SHOWN = 200  # characters of an action on a card
_PAGE = """\
<!doctype html><meta charset=utf-8><title>{title}</title>
<style>body{{font:15px sans-serif}} td{{padding:4px 12px}} .fail{{background:#fdd}} .skip{{color:#777}}</style>
<h1>{title}</h1><table>{rows}</table>
"""


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
        return json.dumps({"schema": 1, **asdict(self)}, default=str)

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
        rows = (f"<tr class={b}><td>{a}</td><td>{b}</td><td>{html.escape(c)}</td></tr>\n" for a, b, c in self.rows())
        return _PAGE.format(title=html.escape(f"{self.env} {self.kwargs or ''}"), rows="".join(rows))


def card(
    env_id: str,
    kwargs: dict[str, Any] | None = None,
    limits: Limits | None = None,
    only: Collection[str] = NAMES,
) -> Card:
    """Make the checks of an environment, in a process of its own where that can make it.

    A crash, or a step that hangs, is reported under `faults`; checks that it kept from being made are skipped.

    Args:
        env_id: What `gymnasium.make` takes, a short name (math), `module:function` of an environment or a PettingZoo
            game, or `openenv:ADDRESS`.
        kwargs: Arguments of the environment.
        limits: Thresholds.
        only: Names of the checks to make; those that they need are made too.

    Raises:
        ValueError: If there is no such environment.
    """
    env_id, kwargs, limits = mrlm_envs.ENVIRONMENTS.get(env_id, (env_id,))[0], kwargs or {}, limits or Limits()
    needs = (name for check, needed in CHECKS.items() if check.__name__ in only for name in needed)
    wanted = sorted({*only, *needs})
    try:
        told, lost = child.run(env_id, kwargs, asdict(limits), only=wanted)
    except TypeError:  # its arguments are not JSON
        told, lost = [], None
    checks = [Check(**line) for line in told[1:]]
    if not told and not lost:  # known to this process alone, or to none
        try:
            checks = list(_judged(Subject(env_id, kwargs, limits), wanted))
        except Exception as error:
            asked = kwargs or env_id.startswith(OPENENV)
            if isinstance(error, Unknown) or (asked and isinstance(error, ValueError | TypeError)):
                raise  # an unknown id, an argument that does not fit, an address where nobody answers
            lost = f"it cannot be made: {type(error).__name__}: {error}", None, None
    if lost:
        checks.append(Check("faults", "fail", *lost))
    found = {check.name: check for check in checks}
    crashed = "could not be made: the environment crashed (see faults)"
    missing = {name: Check(name, "skip", crashed if name in wanted else "not asked for") for name in NAMES}
    return Card(env_id, kwargs, [found.get(name) or missing[name] for name in NAMES])


def tell(job: dict[str, Any]) -> Iterator[Any]:
    """What a process of `child` tells of its job; nothing if the environment cannot be made."""
    try:
        subject = Subject(job["env"], job["kwargs"], Limits(**job["limits"]))
    except Exception:  # the other process makes it too, and says why not
        return
    yield "made"
    yield from map(asdict, _judged(subject, job["only"]))
    for seed, actions in job["episodes"]:
        try:
            yield subject.play(follow(actions), seed).trace
        except Crash as crash:
            yield [[str(crash)]]


def _judged(subject: Subject, wanted: Collection[str]) -> Iterator[Check]:
    """The lines of a card as they are made, `faults` again at the end if a later check met a crash."""
    crash: Crash | None = None
    for check in CHECKS:
        if (name := check.__name__) not in wanted:
            continue
        subject.start()
        try:
            if check in REPLAYING and subject.status("determinism") != "pass":
                raise Skip("not judged: episodes do not replay (see determinism)")
            subject.found[name] = Check(name, "pass", check(subject))
        except (Fail, Skip) as verdict:
            subject.found[name] = Check(name, verdict.status, *verdict.args)
        except Exception as error:  # an environment may raise anything, anywhere
            crash = crash or (error if isinstance(error, Crash) else Crash(f"{name}: {type(error).__name__}: {error}"))
            if check is faults:
                break  # its own expert is an error, or a reset: nothing else can be played
            continue
        yield subject.found[name]
    if crash and subject.status("faults") != "fail":
        yield Check("faults", "fail", str(crash), crash.seed, crash.action)
