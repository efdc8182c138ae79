"""The `rules` judge: deterministic, without a model, and indifferent to length, noise and claims about itself.

It checks quotations, order and polarity. A statement counts when it opens with the line `Stance: pro` (or `con`) of its
own side and concedes nothing. One of its sentences makes a *point* when it cites a piece of the speaker's own evidence
(`[P1]`), quotes that claim word for word, adds at least four words of its own, is prose, and was not said before. At
most two pieces of evidence count per statement. Without a point, a statement scores nothing at all, and it takes
nothing from the other side either.

| criterion | share | what it is |
| --- | --- | --- |
| relevance | 0.15 | the share of words in sentences on the topic |
| evidence | 0.35 | pieces of evidence argued, as a share of the number there was room for |
| rebuttal | 0.25 | of the other side's points that this side's evidence can answer, the share that was answered |
| consistency | 0.15 | rounds that added something new, reduced by wrong sums, own goals, denials and concessions |
| clarity | 0.10 | the share of words in well-formed, new sentences, reduced beyond 150 words per statement |

Evidence that the other side answered counts half; false evidence costs as much as it would have earned (in a verifiable
debate, computation has decided that for every claim: `Evidence.holds`).
Each of these costs a quarter of the evidence score: an invented citation; a citation of evidence for the other side
that it had not brought up; a quoted claim with a word of denial (not, wrong, if …; see `rules.yaml`) around it, in its
own sentence or the ones beside it, which is struck too, even if it was argued before; and a statement that concedes or
asks for the other side's victory.

An answer to a point cites evidence that refutes it: as the evidence bank says, or (where the bank says nothing, as in
verifiable debates) because it gives another result for the same sum. Both sides speak at once, so only points of
earlier rounds can be answered. Where the other side made no answerable point, the rebuttal score of a side is its
evidence score.

What it cannot read is meaning. It does not see arguments without evidence, paraphrase, irony, scorn, or a denial in
words or languages that it does not know (`UNREADABLE` in the tests has twelve of those, which it takes at their word),
and it takes "I do not deny that …" for a denial. Nor does it know whether a claim for or against a motion is true. So
train on verifiable debates, and use a language model as the judge (`mrlm_envs.debate.judges`) where meaning should
count.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from mrlm_envs.debate.equations import contradicts, false_equations
from mrlm_envs.debate.scoring import Round, Verdict
from mrlm_envs.debate.topics import SIDES, Evidence, Topic, other
from mrlm_envs.tasks import packaged

MAX_STATEMENT = 4_000  # characters of a statement that are read
MAX_WORDS = 150  # words of a statement that cost no clarity
POINTS = 2  # pieces of evidence that count in one statement

_MAX_SENTENCES = 60
_FINE = 0.25  # taken off the evidence score for each fault
_OWN_WORDS = 4  # words of a point that are neither the claim's nor its source's
_SAID_BEFORE = 0.9  # share of a sentence's words found in an earlier one that makes it a repetition
_STANCE = re.compile(r"^[ \t]*stance:[ \t]*(pro|con)\b.*$", re.IGNORECASE | re.MULTILINE)
_SPLIT = re.compile(r"(?<=[.!?])\s+|\n+")
_CITED = re.compile(r"\[\s*([A-Za-z]{1,8}\d{1,4})\s*\]")
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[-+*/=]")


_FILE = packaged(__file__, "rules.yaml")
_SMALL = frozenset(_FILE["small"].split())  # words that a list of keywords lacks
_DENIAL = frozenset(_FILE["denial"].split())
_CONCESSIONS = {  # what a side says when it gives up: matched on lower-case words with one space between them
    side: re.compile("|".join(_FILE["concessions"]).replace("OTHER", other(side)).replace("POSITION", position))
    for side, position in (("pro", "against"), ("con", "for"))
}


@dataclass(frozen=True, slots=True)
class _Sentence:
    """One sentence, read against all evidence of a debate.

    Attributes:
        text: As it stands.
        cited: The ids cited in it, in order.
        words: Its words in lower case, without citations and signs.
        quoted: The cited evidence whose claim it quotes word for word.
        around: Its words outside those claims.
    """

    text: str
    cited: tuple[str, ...]
    words: tuple[str, ...]
    quoted: frozenset[str]
    around: tuple[str, ...]

    @property
    def is_prose(self) -> bool:
        """Long enough, short enough, and with the small words that a list of keywords lacks."""
        letters = [word for word in self.words if not word.isdigit()]
        small = sum(word in _SMALL for word in letters)
        return len(letters) >= 5 and len(self.words) <= 80 and 0.2 * len(letters) <= small <= 0.8 * len(letters)

    @property
    def denies(self) -> bool:
        """Whether it has a word of denial outside its quotations."""
        return any(word in _DENIAL or word.endswith("n't") for word in self.around)


@dataclass(slots=True)
class _Record:
    """What one side has done so far."""

    side: str
    bank: dict[str, Evidence]
    argued: dict[str, int] = field(default_factory=dict)  # evidence id → round in which it was first argued
    mentioned: dict[str, int] = field(default_factory=dict)  # the same for evidence at least cited
    answered: set[str] = field(default_factory=set)  # the other side's evidence that this side answered
    unsound: set[str] = field(default_factory=set)
    struck: set[str] = field(default_factory=set)
    said: list[_Sentence] = field(default_factory=list)
    faults: dict[str, None] = field(default_factory=dict)  # a fine each, once for each evidence id or round
    contradictions: int = 0  # wrong sums, own goals, denials, concessions
    fresh: int = 0  # rounds with something new
    relevance: float = 0.0
    clarity: float = 0.0
    notes: list[str] = field(default_factory=list)

    def fault(self, name: str, note: str, *, contradiction: bool = True) -> None:
        """Fine the side, once for each name."""
        if name not in self.faults:
            self.faults[name] = None
            self.contradictions += contradiction
            self.notes.append(note)


def rules(topic: Topic, rounds: Sequence[Round]) -> Verdict:
    """Judge a debate; see the module docstring.

    Args:
        topic: The motion and both evidence banks.
        rounds: What each side said in each round.

    Returns:
        The verdict, with a note for each thing that was not counted or was held against a side.
    """
    records = {side: _Record(side, {item.id: item for item in topic.case(side).evidence}) for side in SIDES}
    motion = _sentence(topic.motion, {})
    for number, spoken in enumerate(rounds):
        for side in SIDES:
            _hear(records[side], records[other(side)], spoken.get(side, ""), number, motion)
    scores = {side: _score(records[side], records[other(side)], len(rounds)) for side in SIDES}
    return Verdict(scores, {side: tuple(records[side].notes) for side in SIDES})


def cited_ids(text: str) -> list[str]:
    """The evidence ids cited in a statement, in order, each once."""
    return list(dict.fromkeys(name.upper() for name in _CITED.findall(text[:MAX_STATEMENT])))


def answers(mine: Evidence, theirs: Evidence) -> bool:
    """Whether a piece of evidence refutes another: by the bank, or by a right sum against a different one."""
    if theirs.id in mine.refutes:
        return True
    return contradicts(mine.claim, theirs.claim) and mine.holds


@lru_cache(maxsize=2048)  # the claims of a bank are read again for every statement
def _tokens(text: str) -> tuple[str, ...]:
    return tuple(token.lower() for token in _TOKEN.findall(_CITED.sub(" ", text).replace("\u2019", "'")))


def _sentence(text: str, evidence: Mapping[str, Evidence]) -> _Sentence:
    cited, tokens = tuple(cited_ids(text)), _tokens(text)
    around, quoted = f" {' '.join(tokens)} ", set()
    for name in cited:
        claim = f" {' '.join(_tokens(evidence[name].claim))} " if name in evidence else "\n"
        if claim in around:
            quoted.add(name)
            around = around.replace(claim, " ; ")
    words = tuple(token for token in tokens if token[0].isalnum())
    return _Sentence(text, cited, words, frozenset(quoted), tuple(around.split()))


def _unbroken(statement: str, bank: Iterable[Evidence]) -> str:
    """The statement, in which no quoted claim ends a sentence before its end ("in the U.S. cars …")."""
    for item in bank:
        if len(parts := _SPLIT.split(item.claim)) > 1:
            claim = re.compile(r"\s+".join(map(re.escape, parts)), re.IGNORECASE)
            statement = claim.sub(lambda found: re.sub(r"[.!?]*\s+", " ", found[0]), statement)
    return statement


def _is_repeated(sentence: _Sentence, said: Iterable[_Sentence]) -> bool:
    """Whether an earlier sentence has nearly all its words, and it brings no new number."""
    known = set(sentence.words)
    enough = _SAID_BEFORE * max(1, len(known))
    return any(
        len(known.intersection(before.words)) >= enough
        and not any(word.isdigit() for word in known.difference(before.words))
        for before in said
    )


def _hear(record: _Record, against: _Record, statement: str, number: int, motion: _Sentence) -> None:
    """Read one statement of a side into its record."""
    where = f"round {number + 1}"
    evidence = {**record.bank, **against.bank}
    statement = statement[:MAX_STATEMENT].lstrip()
    stances = {name.lower() for name in _STANCE.findall(statement)} if _STANCE.match(statement) else set()
    parts = _SPLIT.split(_unbroken(_STANCE.sub("", statement), evidence.values()))[:_MAX_SENTENCES]
    sentences = [read for part in parts if (read := _sentence(part, evidence)).words or read.cited]
    for sentence in sentences:
        _check_citations(record, against, sentence, number, where)
    for before, sentence, after in zip([None, *sentences], sentences, [*sentences[1:], None]):
        if any(near is not None and near.denies for near in (before, sentence, after)):
            for name in sorted(sentence.quoted & record.bank.keys()):
                record.struck.add(name)
                record.fault(name, f"{where}: {name} is quoted beside a word of denial")
    conceded = any(_CONCESSIONS[record.side].search(" ".join(sentence.around)) for sentence in sentences)
    if conceded:
        record.fault(where, f"{where}: the statement concedes")
    elif sentences and stances != {record.side}:
        record.notes.append(f"{where}: the statement does not open with 'Stance: {record.side}' alone")
    else:
        _count(record, against, sentences, number, motion)


def _check_citations(record: _Record, against: _Record, sentence: _Sentence, number: int, where: str) -> None:
    for name in sentence.cited:
        if name in record.bank:
            record.mentioned.setdefault(name, number)
        elif name not in against.bank:
            record.fault(name, f"{where}: {name} does not exist", contradiction=False)
        elif against.mentioned.get(name, number) >= number:
            record.fault(name, f"{where}: {name} speaks for the other side, which had not brought it up")


def _count(record: _Record, against: _Record, sentences: list[_Sentence], number: int, motion: _Sentence) -> None:
    """Count the points of a statement that stands for its side."""
    where = f"round {number + 1}"
    claims = [item.claim for bank in (record.bank, against.bank) for item in bank.values()]
    on_topic = {word for claim in claims for word in _tokens(claim)}.union(motion.words) - _SMALL
    known_sums = {left for claim in claims for left in false_equations(claim)}
    total = good = fitting = counted = 0
    is_fresh = False
    for sentence in sentences:
        total += len(sentence.words)
        is_new = not _is_repeated(sentence, [*record.said, motion])
        record.said.append(sentence)
        if not is_new and sentence.cited:
            record.notes.append(f"{where}: a sentence on {sentence.cited[0]} was said before")
        if not sentence.is_prose or not is_new:
            continue
        good += len(sentence.words)
        if on_topic.intersection(sentence.words):
            fitting += len(sentence.words)
        argued = [name for name in sentence.cited if name in record.bank and _argues(sentence, record.bank[name])]
        for name in argued:
            if name in record.struck:
                continue
            if name not in record.argued and counted == POINTS:
                record.notes.append(f"{where}: {name} came after {POINTS} other pieces of evidence and did not count")
                continue
            counted += name not in record.argued
            is_fresh |= name not in record.argued
            record.argued.setdefault(name, number)
            if not record.bank[name].holds and name not in record.unsound:
                record.unsound.add(name)
                record.notes.append(f"{where}: {name} is false")
            for refuted in sentence.cited:
                was_argued = against.argued.get(refuted, number) < number
                if was_argued and refuted not in record.answered and answers(record.bank[name], against.bank[refuted]):
                    record.answered.add(refuted)
                    is_fresh = True
        if not argued and any(name in record.bank for name in sentence.cited):
            record.notes.append(f"{where}: {sentence.cited[0]} is cited without its claim, word for word, or own words")
        for left in sorted(set(false_equations(sentence.text)) - known_sums):
            record.contradictions += 1
            record.notes.append(f"{where}: the sum {left} is wrong")
    if is_fresh:
        record.fresh += 1
        record.relevance += fitting / total
        record.clarity += good / total * min(1.0, MAX_WORDS / total)


def _argues(sentence: _Sentence, item: Evidence) -> bool:
    """Whether a sentence quotes the evidence and says something of its own."""
    own = [word for word in sentence.around if word[0].isalnum() and word not in _tokens(item.source)]
    return item.id in sentence.quoted and len(own) >= _OWN_WORDS


def _score(record: _Record, against: _Record, rounds: int) -> dict[str, float]:
    room = min(len(record.bank), rounds + 1)
    standing = record.argued.keys() - record.struck
    worth = sum(0.5 if name in against.answered else 1.0 for name in standing - record.unsound)
    evidence = (worth - len(standing & record.unsound)) / room - _FINE * len(record.faults)
    evidence = min(1.0, max(0.0, evidence))
    open_points = {
        name
        for name, when in against.argued.items()
        if when < rounds - 1 and any(answers(item, against.bank[name]) for item in record.bank.values())
    }
    rebuttal = len(record.answered & open_points) / len(open_points) if open_points else evidence
    return {
        "relevance": record.relevance / rounds if rounds else 0.0,
        "evidence": evidence,
        "rebuttal": rebuttal,
        "consistency": record.fresh / rounds / (1 + len(record.unsound) + record.contradictions) if rounds else 0.0,
        "clarity": record.clarity / rounds if rounds else 0.0,
    }
