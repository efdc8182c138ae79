"""A judge's verdict: scores of both sides by criterion, and the reward that each side gets for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mrlm_envs.debate.topics import Topic, other

WEIGHTS: dict[str, float] = {
    "relevance": 0.15,
    "evidence": 0.35,
    "rebuttal": 0.25,
    "consistency": 0.15,
    "clarity": 0.10,
}
"""The criteria and their shares of the score; they sum to 1."""

Round = Mapping[str, str]
"""What was said in one round: `{"pro": statement, "con": statement}`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's decision.

    Attributes:
        scores: For each side, a score in [0, 1] for each of `WEIGHTS`.
        notes: For each side, what was held against it or could not be counted, in short sentences.
    """

    scores: Mapping[str, Mapping[str, float]]
    notes: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"pro": (), "con": ()})

    def total(self, side: str) -> float:
        """The weighted score of a side, in [0, 1]."""
        return sum(weight * self.scores[side][name] for name, weight in WEIGHTS.items())

    @property
    def winner(self) -> str | None:
        """The side with the higher total, None when they are equal."""
        margin = self.total("pro") - self.total("con")
        return None if abs(margin) < 1e-9 else "pro" if margin > 0 else "con"

    def rewards(self, side: str) -> dict[str, float]:
        """The named parts of a side's reward, which sum to its share of both totals.

        A reward lies in [0, 1], the rewards of both sides sum to 1, and a draw is 0.5. A side without an argument gets
        nothing, except against another side without one: that is a draw.
        """
        both = self.total(side) + self.total(other(side))
        if both == 0:
            return {name: weight / 2 for name, weight in WEIGHTS.items()}
        return {name: weight * self.scores[side][name] / both for name, weight in WEIGHTS.items()}


Judge = Callable[[Topic, Sequence[Round]], Verdict]
"""A judge gets the topic with its evidence and what was said, and decides who argued better."""
