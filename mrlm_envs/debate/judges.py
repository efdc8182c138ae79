"""Judges by name, and the judge that asks a language model.

A judge is a function `(topic, rounds) -> Verdict`. `mrlm/Debate-v0` takes `judge="rules"` (`mrlm_envs.debate.rules`),
`judge={"llm": {"base_url": …, "model": …}}`, or a function of your own, by name (`"module:function"`) or as it is:

    def shortest_wins(topic, rounds):
        words = {side: sum(len(spoken[side].split()) for spoken in rounds) for side in ("pro", "con")}
        scores = {side: {name: float(words[side] == min(words.values())) for name in WEIGHTS} for side in words}
        return Verdict(scores)

    gymnasium.make("mrlm_envs:mrlm/Debate-v0", judge=shortest_wins)

Raise `mrlm_envs.EnvFault` when a judge cannot decide: the episode then ends as truncated and nobody loses.
"""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from mrlm_envs.background import run
from mrlm_envs.debate.rules import MAX_STATEMENT, rules
from mrlm_envs.debate.scoring import WEIGHTS, Judge, Round, Verdict
from mrlm_envs.debate.topics import SIDES, Topic, other
from mrlm_envs.llm.client import ChatClient, Unanswered, closed_object, quoted, shared_client
from mrlm_envs.tasks import imported, packaged

_SPEAKER = closed_object(**{name: {"type": "number", "minimum": 0, "maximum": 10} for name in WEIGHTS})
_SCHEMA = closed_object(reason={"type": "string"}, A=_SPEAKER, B=_SPEAKER)


class LLMJudge:
    """Asks a language model twice, each side once as speaker A, and averages, so that its position bias cancels.

    Verdicts are cached by topic and statements, so the same debate is paid for once.

    Args:
        client: The endpoint.
        cache_size: Verdicts cached in this process.

    Raises:
        ChatError: (from a call) when the endpoint fails, or gives no verdict even on a silent debate.
    """

    def __init__(self, client: ChatClient, cache_size: int = 10_000) -> None:
        self.client = client
        self._remembered = functools.lru_cache(cache_size)(self._decide)

    def __call__(self, topic: Topic, rounds: Sequence[Round]) -> Verdict:
        return self._remembered(topic, tuple((spoken["pro"], spoken["con"]) for spoken in rounds))

    def _decide(self, topic: Topic, said: tuple[tuple[str, str], ...]) -> Verdict:
        rounds = [{"pro": pro, "con": con} for pro, con in said]
        try:
            return self._score(topic, rounds)
        except Unanswered as problem:
            # A side's words may have caused this, and if words could make a debate invalid, a losing side would use
            # them. So each side is judged against silence; if just one of them cannot be judged, it has lost.
            guilty = [side for side in SIDES if not self._can_judge(topic, [{side: spoken[side]} for spoken in rounds])]
            if len(guilty) != 1:
                raise
            scores = {side: dict.fromkeys(WEIGHTS, float(side not in guilty)) for side in SIDES}
            return Verdict(scores, dict.fromkeys(SIDES, (f"{guilty[0]} could not be judged: {problem}",)))

    def _can_judge(self, topic: Topic, rounds: Sequence[Round]) -> bool:
        try:
            self._score(topic, rounds)
        except Unanswered:
            return False
        return True

    def _score(self, topic: Topic, rounds: Sequence[Round]) -> Verdict:
        scores = {side: dict.fromkeys(WEIGHTS, 0.0) for side in SIDES}
        reasons = []
        for first, answer in zip(SIDES, run(self._ask_both([_question(topic, rounds, first) for first in SIDES]))):
            for letter, side in (("A", first), ("B", other(first))):
                for name in WEIGHTS:
                    scores[side][name] += answer[letter][name] / 10 / len(SIDES)
            reasons.append(f"judge, with {first} as A: {answer['reason'][:500]}")
        return Verdict(scores, dict.fromkeys(SIDES, tuple(reasons)))

    async def _ask_both(self, questions: Sequence[str]) -> list[dict[str, Any]]:
        system = {"role": "system", "content": packaged(__file__, "prompts.yaml")["judge"]}
        talks = [[system, {"role": "user", "content": question}] for question in questions]
        return await asyncio.gather(*(self.client.chat_json(talk, _SCHEMA) for talk in talks))


def _question(topic: Topic, rounds: Sequence[Round], first: str) -> str:
    """The debate, quoted as JSON so that no statement can pose as another, with `first` as speaker A."""
    sides = {"A": first, "B": other(first)}
    evidence = {
        letter: [f"[{item.id}] {item.claim} ({item.source})" for item in topic.case(side).evidence]
        for letter, side in sides.items()
    }
    transcript = [
        {"round": number, "speaker": letter, "says": spoken.get(side, "")[:MAX_STATEMENT]}
        for number, spoken in enumerate(rounds, start=1)
        for letter, side in sides.items()
    ]
    debate = {
        "motion": topic.motion,
        "positions": {letter: topic.case(side).position for letter, side in sides.items()},
        "evidence": evidence,
        "transcript": transcript,
    }
    return quoted(debate)


_llm_judge = functools.lru_cache(maxsize=64)(LLMJudge)  # equal configurations share a client, and so their verdicts


def make_judge(judge: str | Mapping[str, Any] | Judge) -> Judge:
    """The judge that a keyword argument names.

    Args:
        judge: "rules", `{"llm": {…}}` with `ChatClient`'s arguments, "module:function", or a function (local only).

    Raises:
        ValueError: On anything else.
    """
    if judge == "rules":
        return rules
    if isinstance(judge, str) and ":" in judge:
        judge = imported(judge, "judge")
    if isinstance(judge, Mapping) and set(judge) == {"llm"}:
        return _llm_judge(shared_client(judge["llm"]))
    if callable(judge):
        return judge
    raise ValueError(f"judge must be 'rules', {{'llm': {{…}}}}, 'module:function' or a function, got {judge!r}")
