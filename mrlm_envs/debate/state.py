"""The state of one debate: its topic, what was said in each round, and the script of the built-in debater."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mrlm_envs.core import clean
from mrlm_envs.debate.equations import contradicts
from mrlm_envs.debate.rules import MAX_STATEMENT, POINTS, cited_ids
from mrlm_envs.debate.topics import SIDES, Evidence, Topic, other
from mrlm_envs.tasks import packaged

SYSTEM_PROMPT: str = packaged(__file__, "prompts.yaml")["system"]
NOTHING = "(Nothing was said.)"


@dataclass(slots=True)
class State:
    """One debate so far.

    Attributes:
        topic: What is debated.
        length: Its number of rounds.
        rounds: What was said, each statement truncated to `MAX_STATEMENT` characters.
    """

    topic: Topic
    length: int
    rounds: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether both sides have spoken in all rounds."""
        return len(self.rounds) == self.length

    def add(self, statements: Mapping[str, str]) -> None:
        """Record both sides' statements of one round."""
        self.rounds.append({side: clean(statements[side][:MAX_STATEMENT]) for side in SIDES})

    def briefing(self, side: str) -> str:
        """The observation of a side at reset: the motion, its task and its own evidence."""
        case = self.topic.case(side)
        kind = "Motion" if case.position.endswith("the motion") else "Question"
        lines = [
            f"{kind}: {self.topic.motion}",
            f"You argue {case.position}; open each statement with the line 'Stance: {side}'.",
            f"There are {self.length} rounds; in each, both sides speak at once.",
            "Your evidence:",
        ]
        for item in case.evidence:
            answers = f" Answers {', '.join(f'[{refuted}]' for refuted in item.refutes)}." if item.refutes else ""
            lines.append(f"[{item.id}] {item.claim} ({item.source}).{answers}")
        return "\n".join(lines)

    def newest(self, side: str) -> str:
        """The observation of a side after a round: the other side's statement."""
        return self.rounds[-1][other(side)] or NOTHING


def script(state: State, side: str, rng: np.random.Generator, care: float = 1.0) -> str:
    """An honest statement for the next round: answers to what was said, then evidence not used so far.

    Args:
        state: The debate so far.
        side: Who speaks.
        rng: Draws the order and the wording.
        care: The probability of taking each opportunity (an answer, a second piece of evidence).
    """
    mine = state.topic.case(side).evidence
    theirs = {item.id: item for item in state.topic.case(other(side)).evidence}
    used = cited_ids(" ".join(spoken[side] for spoken in state.rounds))
    left = state.length - len(state.rounds) - 1  # keep something to say for each later round
    most = POINTS if state.length <= len(mine) else 1
    sentences: list[str] = []
    fresh = [mine[i] for i in rng.permutation(len(mine)) if mine[i].id not in used]
    for name in (name for spoken in state.rounds for name in cited_ids(spoken[other(side)])):
        target = theirs.get(name)
        if target is None or name in used or len(sentences) == most or rng.random() >= care:
            continue
        answers = (item for item in mine if target.id in item.refutes or contradicts(item.claim, target.claim))
        if (item := next(answers, None)) is not None:
            used.append(name)
            fresh = [kept for kept in fresh if kept.id != item.id]
            sentences.append(_say("rebuttals", rng, item, target))
    for item in fresh[: max(1, len(fresh) - left)]:
        if len(sentences) == most or (sentences and rng.random() >= care):
            break
        sentences.append(_say("openers", rng, item))
    said = " ".join(sentences) or "I stand by what I have said, and I ask the judge to weigh it."
    return f"Stance: {side}\n{said}"


def _say(kind: str, rng: np.random.Generator, item: Evidence, target: Evidence | None = None) -> str:
    is_acronym = item.claim[1:2].isupper()
    claim = item.claim if is_acronym else item.claim[0].lower() + item.claim[1:]
    templates = packaged(__file__, "prompts.yaml")[kind]
    text = templates[int(rng.integers(len(templates)))]
    return text.format(id=f"[{item.id}]", claim=claim, theirs="" if target is None else f"[{target.id}]")
