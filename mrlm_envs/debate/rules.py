"""The `rules` judge: deterministic, without a model, and unmoved by length, noise or claims about itself.

It reads sentences. A sentence makes a *point* when it cites a piece of the speaker's own evidence (`[P1]`), restates
what that evidence says, ties it to the debate in words of its own, is prose, and neither repeats what the speaker or
the motion has said nor copies the other side. At most two pieces of evidence count a statement. Without a point, a
statement scores nothing at all, and it takes nothing from the other side either.

| criterion | share | what it is |
| --- | --- | --- |
| relevance | 0.15 | the share of words in sentences on the topic, times the share of a question's numbers used |
| evidence | 0.35 | pieces of evidence argued, of as many as there was room for |
| rebuttal | 0.25 | the share of the other side's points that were answered, of those that own evidence answers |
| consistency | 0.15 | rounds that added something new, lessened by wrong sums and by citing against oneself |
| clarity | 0.10 | the share of words in well-formed, new sentences, lessened beyond 150 words a statement |

Evidence that the other side answered counts half; evidence that miscalculates takes off as much as it would have given;
an invented citation, or one of evidence for the other side that it had not brought up, costs a quarter of the score.

An answer to a point cites evidence that refutes it: as the evidence bank says, or (where the bank says nothing, as in
verifiable debates) because it gives another result for the same sum. Both sides speak at once, so only points of
earlier rounds can be answered. A side that made no answerable point gives its opponent the evidence score as rebuttal.

What it cannot see: arguments without evidence, irony, and whether a claim of the bank is true. It was made to be hard
to game, not to be wise; `mrlm_envs.debate.judges` has the language model judge.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from mrlm_envs.debate.equations import contradicts, false_equations
from mrlm_envs.debate.topics import SIDES, Evidence, Topic, other
from mrlm_envs.debate.verdict import Round, Verdict

MAX_STATEMENT = 4_000  # characters of a statement that are read
MAX_WORDS = 150  # words of a statement that cost no clarity
POINTS = 2  # pieces of evidence that count in one statement

_MAX_SENTENCES = 60
_FINE = 0.25  # off the evidence score for each invented citation or own goal
_RESTATED = 0.5  # share of a claim's content words that a point must repeat
_OWN_WORDS = 4  # words of a point that are neither the claim's nor its source's
_SAID_BEFORE = 0.9  # share of a sentence's words found in an earlier one that makes it a repetition
_SPLIT = re.compile(r"(?<=[.!?])\s+|\n+")
_CITED = re.compile(r"\[\s*([A-Za-z]{1,8}\d{1,4})\s*\]")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_SMALL_WORDS = """
a about after again against all also although an and any are as at be because been before being but by can could do
does even every few for from had has have hence here how i if in into is it its itself just may me mine more most much
must my neither no nobody nor not nothing of on once only or other our out over own shall she should since so some
still such than that the their theirs them then there therefore these they this those though through thus to too under
until up us was we were what when where which while who whom whose why will with within without would yet you your
"""
_FUNCTION_WORDS = frozenset(_SMALL_WORDS.split())


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    cited: tuple[str, ...]
    words: tuple[str, ...]
    known: frozenset[str]  # words as a set
    content: frozenset[str]  # stems of content words

    @property
    def is_prose(self) -> bool:
        """Long enough, short enough, and with the small words that a list of keywords lacks."""
        letters = [word for word in self.words if not word.isdigit()]
        small = sum(word in _FUNCTION_WORDS for word in letters)
        return len(letters) >= 5 and len(self.words) <= 80 and 0.2 * len(letters) <= small <= 0.8 * len(letters)


@dataclass(slots=True)
class _Record:
    """What one side has done so far."""

    bank: dict[str, Evidence]
    argued: dict[str, int] = field(default_factory=dict)  # evidence id → round in which it was first argued
    mentioned: dict[str, int] = field(default_factory=dict)  # the same for evidence at least cited
    answered: set[str] = field(default_factory=set)  # the other side's evidence that this side answered
    unsound: set[str] = field(default_factory=set)
    invented: set[str] = field(default_factory=set)
    own_goals: set[str] = field(default_factory=set)
    said: list[_Sentence] = field(default_factory=list)
    numbers: set[str] = field(default_factory=set)
    fresh: int = 0  # rounds with something new
    wrong_sums: int = 0
    relevance: list[float] = field(default_factory=list)
    clarity: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rules(topic: Topic, rounds: Sequence[Round]) -> Verdict:
    """Judge a debate; see the module docstring.

    Args:
        topic: The motion and both evidence banks.
        rounds: What each side said in each round.

    Returns:
        The verdict, with a note for each thing that was not counted or was held against a side.
    """
    records = {side: _Record({item.id: item for item in topic.case(side).evidence}) for side in SIDES}
    motion = _sentence(topic.motion)
    for number, spoken in enumerate(rounds):
        read = {side: _read(spoken.get(side, "")) for side in SIDES}
        for side in SIDES:
            _hear(records[side], records[other(side)], read[side], number, motion)
        for side in SIDES:  # after both have been heard: what is said at the same time is no repetition
            records[side].said += read[side]
    scores = {side: _score(records[side], records[other(side)], len(rounds), motion) for side in SIDES}
    return Verdict(scores, {side: tuple(records[side].notes) for side in SIDES})


def cited_ids(text: str) -> list[str]:
    """The evidence ids cited in a statement, in order, each once."""
    return list(dict.fromkeys(name.upper() for name in _CITED.findall(text[:MAX_STATEMENT])))


def answers(mine: Evidence, theirs: Evidence) -> bool:
    """Whether a piece of evidence refutes another: by the bank, or by a right sum against a different one."""
    if theirs.id in mine.refutes:
        return True
    return contradicts(mine.claim, theirs.claim) and not false_equations(mine.claim)


@lru_cache(maxsize=2048)  # the claims of a bank are read again for every statement
def _sentence(text: str) -> _Sentence:
    cited = tuple(name.upper() for name in _CITED.findall(text))
    words = tuple(word.lower() for word in _WORD.findall(_CITED.sub(" ", text)))
    content = frozenset(_stem(word) for word in words if word not in _FUNCTION_WORDS)
    return _Sentence(text, cited, words, frozenset(words), content)


def _stem(word: str) -> str:
    return word if word.isdigit() else word[:6]


def _read(statement: str) -> list[_Sentence]:
    parts = _SPLIT.split(statement[:MAX_STATEMENT])
    return [sentence for part in parts[:_MAX_SENTENCES] if (sentence := _sentence(part)).words or sentence.cited]


def _is_repeated(sentence: _Sentence, said: Iterable[_Sentence]) -> bool:
    """Whether an earlier sentence has nearly all its words, and it brings no new number."""
    enough = _SAID_BEFORE * max(1, len(sentence.known))
    return any(
        len(sentence.known & before.known) >= enough
        and not any(word.isdigit() for word in sentence.known - before.known)
        for before in said
    )


def _is_copied(sentence: _Sentence, said: Iterable[_Sentence]) -> bool:
    """Whether it is the other side's sentence: its words, its citations and about its length.

    The latter two, so that a side cannot spoil points to come by saying a heap of likely words first.
    """
    most = len(sentence.known) / _SAID_BEFORE
    alike = (before for before in said if set(before.cited) == set(sentence.cited) and len(before.known) <= most)
    return _is_repeated(sentence, alike)


def _hear(record: _Record, against: _Record, statement: list[_Sentence], number: int, motion: _Sentence) -> None:
    """Read one statement of a side into its record."""
    on_topic = frozenset().union(
        motion.content, *(_sentence(item.claim).content for r in (record, against) for item in r.bank.values())
    )
    total = good = fitting = counted = 0
    is_fresh = False
    said = [*record.said, motion]
    where = f"round {number + 1}"
    for sentence in statement:
        total += len(sentence.words)
        _check_citations(record, against, sentence, number, where)
        argued = [name for name in sentence.cited if name in record.bank and _argues(sentence, record.bank[name])]
        is_new = not _is_repeated(sentence, said) and not _is_copied(sentence, against.said)
        said.append(sentence)
        if not is_new and sentence.cited:
            record.notes.append(f"{where}: a sentence on {sentence.cited[0]} was said before")
        if not sentence.is_prose or not is_new:
            continue
        good += len(sentence.words)
        if sentence.content & on_topic:
            fitting += len(sentence.words)
        for name in argued:
            if name not in record.argued and counted == POINTS:
                record.notes.append(f"{where}: {name} came after {POINTS} other pieces of evidence and did not count")
                continue
            counted += name not in record.argued
            is_fresh |= name not in record.argued
            record.argued.setdefault(name, number)
            record.numbers |= {word for word in sentence.words if word.isdigit()}
            if false_equations(record.bank[name].claim) and name not in record.unsound:
                record.unsound.add(name)
                record.notes.append(f"{where}: {name} does not add up")
            for refuted in sentence.cited:
                was_argued = against.argued.get(refuted, number) < number
                if was_argued and refuted not in record.answered and answers(record.bank[name], against.bank[refuted]):
                    record.answered.add(refuted)
                    is_fresh = True
        if not argued and any(name in record.bank for name in sentence.cited):
            record.notes.append(
                f"{where}: {sentence.cited[0]} is cited without saying what it shows and why it matters"
            )
        quoted = {left for item in against.bank.values() for left in false_equations(item.claim)}
        own = {left for item in record.bank.values() for left in false_equations(item.claim)}
        wrong = set(false_equations(sentence.text)) - quoted - own
        record.wrong_sums += len(wrong)
        record.notes += [f"{where}: the sum {left} is wrong" for left in sorted(wrong)]
    has_point = counted > 0 or is_fresh
    record.fresh += is_fresh
    record.relevance.append(fitting / total if has_point else 0.0)
    record.clarity.append(good / total * min(1.0, MAX_WORDS / total) if has_point else 0.0)


def _check_citations(record: _Record, against: _Record, sentence: _Sentence, number: int, where: str) -> None:
    for name in sentence.cited:
        if name in record.bank:
            record.mentioned.setdefault(name, number)
        elif name not in against.bank:
            if name not in record.invented:
                record.notes.append(f"{where}: {name} does not exist")
            record.invented.add(name)
        elif against.mentioned.get(name, number) >= number and name not in record.own_goals:
            record.own_goals.add(name)
            record.notes.append(f"{where}: {name} speaks for the other side, which had not brought it up")


def _argues(sentence: _Sentence, item: Evidence) -> bool:
    """Whether a sentence says what the evidence says, and something of its own."""
    claim, source = _sentence(item.claim), _sentence(item.source)
    restated = len(claim.content & sentence.content) >= _RESTATED * len(claim.content)
    own = [word for word in sentence.words if word not in claim.known and word not in source.known]
    return restated and len(own) >= _OWN_WORDS


def _score(record: _Record, against: _Record, rounds: int, motion: _Sentence) -> dict[str, float]:
    room = min(len(record.bank), rounds + 1)
    worth = sum(0.5 if name in against.answered else 1.0 for name in record.argued if name not in record.unsound)
    faults = len(record.invented) + len(record.own_goals)
    evidence = min(1.0, max(0.0, (worth - len(record.unsound)) / room - _FINE * faults))
    open_points = {
        name
        for name, when in against.argued.items()
        if when < rounds - 1 and any(answers(item, against.bank[name]) for item in record.bank.values())
    }
    rebuttal = len(record.answered & open_points) / len(open_points) if open_points else evidence
    wrong = len(record.unsound) + record.wrong_sums + len(record.own_goals)
    asked = {word for word in motion.words if word.isdigit()}
    covered = len(asked & record.numbers) / len(asked) if asked else 1.0
    return {
        "relevance": sum(record.relevance) / rounds * covered if rounds else 0.0,
        "evidence": evidence,
        "rebuttal": rebuttal,
        "consistency": record.fresh / rounds / (1 + wrong) if rounds else 0.0,
        "clarity": sum(record.clarity) / rounds if rounds else 0.0,
    }
