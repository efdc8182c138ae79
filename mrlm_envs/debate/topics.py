"""What is debated: motions with an evidence bank for each side, from the package, from a file, or generated.

A row of a topic file:

    {"id": "school-uniforms", "motion": "Public schools should require uniforms",
     "pro": [{"id": "P1", "claim": "…", "source": "…", "refutes": ["C2"]}, …],
     "con": [{"id": "C1", "claim": "…", "source": "…", "refutes": ["P1"]}, …]}

`id`s of evidence may be left out (P1, P2, …, C1, C2, …), and so may `refutes`; a plain string is a claim. `topic`,
`pro_points` and `con_points` are aliases of `motion`, `pro` and `con`. The package's own topics are in
`topics.json`; their claims are plausible common knowledge written for this project, not citations of real studies.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mrlm_envs.debate import verifiable
from mrlm_envs.tasks import Row, Source, Tasks, field, read_rows, text_field

SIDES = ("pro", "con")
_OTHER_NAMES = {"topic": "motion", "pro_points": "pro", "con_points": "con"}  # aliases of a row's fields
FORMATS = ("open", "verifiable")
_ID = re.compile(r"[A-Za-z]{1,8}\d{1,4}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of a side's evidence.

    Attributes:
        id: How it is cited, as in `[P1]`.
        claim: One sentence, without the full stop.
        source: Where it is from.
        refutes: Ids of the other side's evidence that it answers. Empty in verifiable debates, where the judge has to
            find contradictions in the claims themselves.
        holds: False for a claim of a verifiable debate that computation shows to be false. No side is ever shown it,
            nor is a language model as judge.
    """

    id: str
    claim: str
    source: str
    refutes: tuple[str, ...] = ()
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Case:
    """What one side defends, and with what."""

    position: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class Topic:
    """A motion (or a question with two answers), the cases of both sides, and for a question the side that is right."""

    task_id: str
    motion: str
    pro: Case
    con: Case
    truth: str | None = None

    def case(self, side: str) -> Case:
        """The case of "pro" or "con"."""
        return self.pro if side == "pro" else self.con


def other(side: str) -> str:
    """The opposing side."""
    return "con" if side == "pro" else "pro"


def topic_from_row(row: Row, number: int, source: str) -> Topic:
    """A topic from a row of a topic file.

    Raises:
        ValueError: names the source, the row and the field that is missing or does not fit.
    """
    where = f"topics {source}, row {number}"
    row = {**{name: row[given] for given, name in _OTHER_NAMES.items() if given in row}, **row}
    text_field(row, "id", where)
    motion = text_field(row, "motion", where).rstrip(".")
    banks = {side: _bank(field(row, side, where), side, where) for side in SIDES}
    names = [item.id for bank in banks.values() for item in bank]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: two pieces of evidence have the id {name}; give each its own")
    for side in SIDES:
        known = {item.id for item in banks[other(side)]}
        for item in banks[side]:
            if unknown := set(item.refutes) - known:
                raise ValueError(f"{where}: {item.id} refutes {min(unknown)}, which is not evidence of {other(side)}")
    positions = {"pro": "for the motion", "con": "against the motion"}
    cases = {side: Case(positions[side], banks[side]) for side in SIDES}
    return Topic(row["id"], motion, cases["pro"], cases["con"])


def _bank(items: Any, side: str, where: str) -> tuple[Evidence, ...]:
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise ValueError(f"{where}: field {side!r} must be a list of at least one piece of evidence, got {items!r:.60}")
    bank = []
    for n, item in enumerate(items, start=1):
        item = {"claim": item} if isinstance(item, str) else item
        if not isinstance(item, Mapping) or not isinstance(item.get("claim"), str) or not item["claim"].strip():
            raise ValueError(f"{where}: {side} evidence {n} must be an object with 'claim', got {item!r:.60}")
        name = item.get("id") or f"{side[0].upper()}{n}"
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise ValueError(f"{where}: evidence id {name!r} must be letters and a number, such as P1")
        refutes = item.get("refutes") or ()
        if isinstance(refutes, str) or not all(isinstance(refuted, str) for refuted in refutes):
            raise ValueError(f"{where}: 'refutes' of {name} must be a list of ids, got {refutes!r}")
        claim = item["claim"].strip().rstrip(".")
        source = str(item.get("source") or "no source")
        bank.append(Evidence(name.upper(), claim, source, tuple(refuted.upper() for refuted in refutes)))
    return tuple(bank)


@lru_cache(maxsize=1)
def builtin() -> dict[str, Topic]:
    """The topics of the package, by id."""
    rows = read_rows(Path(__file__).with_name("topics.json"))
    topics = (topic_from_row(row, n, "topics.json") for n, row in enumerate(rows, start=1))
    return {topic.task_id: topic for topic in topics}


class Topics:
    """The source of an environment's topics.

    Args:
        topic: The id of one topic; all by default.
        tasks: A finite source of topic rows instead of the package's own.
        format: "open" (motions) or "verifiable" (generated questions with one true and one false answer); None is
            "open" when `topic` or `tasks` is given, and else "verifiable".
        split: "train", "test" or "all".

    Attributes:
        num_tasks: The number of topics of a finite source; None for the package's topics and for generated questions,
            which the caller sorts into splits by their ids.

    Raises:
        ValueError: On an unknown topic or format, or a row that does not fit.
    """

    def __init__(self, topic: str | None, tasks: Source | None, format: str | None, split: str) -> None:
        is_chosen = topic is not None or tasks is not None
        self.format = format or ("open" if is_chosen else "verifiable")
        if self.format not in FORMATS:
            raise ValueError(f"format must be 'open' or 'verifiable', got {format!r}")
        if self.format == "verifiable" and is_chosen:
            raise ValueError("format='verifiable' generates its questions; topic and tasks go with format='open'")
        self._tasks = None if tasks is None else Tasks(tasks, split, topic_from_row)
        known = builtin() if self._tasks is None else {row.task_id: row for row in self._tasks.rows}
        if topic is not None and topic not in known:
            raise ValueError(f"topic {topic!r} is not known (known: {', '.join(known)})")
        self._choices = list(known.values()) if topic is None else [known[topic]]
        self.num_tasks = len(self._choices) if is_chosen else None

    def draw(self, rng: np.random.Generator, seed: int, options: Mapping[str, Any]) -> Topic:
        """The topic of an episode; `options["task_id"]` picks one of a finite source.

        Raises:
            ValueError: If `options["task_id"]` is not in the source, or the source is not finite.
        """
        if "task_id" in options:
            if self._tasks is None:
                raise ValueError("options['task_id'] picks a topic of tasks=; for one of the package pass topic=")
            return self._tasks.named(options["task_id"])
        if self.format == "verifiable":
            return _verifiable(rng)
        if self._tasks is not None and len(self._choices) > 1:
            return self._tasks.at(seed)
        return self._choices[int(rng.integers(len(self._choices)))]


def _verifiable(rng: np.random.Generator) -> Topic:
    question = verifiable.generate(rng)
    truth = SIDES[int(rng.integers(2))]
    cases = {}
    for side in SIDES:
        answer, steps = question.true if side == truth else question.false
        bank = []
        for n, i in enumerate(rng.permutation(len(steps)), start=1):  # the place of a slip must reveal nothing
            is_true = steps[i] in question.true[1]  # a step that the false case shares with the true one
            bank.append(Evidence(f"{side[0].upper()}{n}", *steps[i], holds=is_true))
        cases[side] = Case(f"that the answer is {answer}", tuple(bank))
    return Topic(question.task_id, question.text, cases["pro"], cases["con"], truth)
