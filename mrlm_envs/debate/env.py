"""Debate: argue one side of a motion against an opponent, before a judge.

| | |
| --- | --- |
| id | `mrlm/Debate-v0` |
| observation | the motion, the side and its evidence; then the opponent's newest statement; at the end the result |
| action | a statement: its stance, then prose that cites evidence as `[P1]`; truncated to 4,000 characters |
| reward | at the end, this side's share of both sides' scores: 1.0 against silence, 0.5 for a draw, 0.0 for silence |
| `rewards` | relevance, evidence, rebuttal, consistency, clarity: the judge's criteria, which sum to the reward |
| terminated | after `rounds` statements; `success` is a higher score than the opponent's |
| truncated | a language model that is judge or opponent failed (`stop_reason="env_fault"`, `valid` False) |
| task id | the topic's id, or the content of a generated question |
| expert | "honest": quotes its evidence and answers the opponent; on the false side of a question it loses |

Both sides speak at once in each round and then hear each other, so neither has the last word. At the end, `info` has
`winner` ("pro", "con" or None), `scores` (each side's scores by criterion, before weighting), `notes` (what was held
against each side) and, in a verifiable debate, `truth` (the side that was right).

| parameter | default | meaning |
| --- | --- | --- |
| `topic` | None | the id of one topic; all of them by default |
| `side` | "random" | "pro", "con" or "random" |
| `rounds` | 3 | statements of each side |
| `opponent` | "scripted" | or `{"llm": {"base_url": …, "model": …}}`; locally also a function |
| `tasks` | None | topics of your own with evidence: a file, rows, or one source for each split |
| `judge` | "rules" | or `{"llm": {…}}`, "module:function"; locally also a function (`mrlm_envs.debate.judges`) |
| `format` | None | "open" or "verifiable"; by default "open" with a `topic` or `tasks`, and else "verifiable" |
| `split` | "train" | "train", "test" or "all" |
| `max_length` | 4000 | characters of a statement; longer ones are truncated |
| `system_prompt` | None | replaces the built-in system prompt |
| `render_mode` | None | "ansi" makes `render()` return the conversation so far |

The reset option `task_id` picks a topic of `tasks`. The formats:

- "verifiable", the default, and the one to train on: a generated question with a true and a false answer; each side
  defends one. Every claim of both sides is checked by computation, and the `rules` judge counts a false one against its
  side, whatever is said around it; a language model as judge sees only the claims. With the same script on both
  sides, the true side wins all of 500 debates of two or three rounds before the `rules` judge
  (`tests/envs/debate/test_debate_rules.py`); with one round it wins 93 %, and the rest are draws.
- "open", the default with `topic` or `tasks`: motions, 44 of them in the package, split into train and test by their
  ids. The `rules` judge checks that evidence is quoted, affirmed and answered; it cannot read whether an argument makes
  sense, so a policy trained on it learns to quote, not to convince.

Before the `rules` judge a statement opens with the line `Stance: pro` (or `con`) and quotes its evidence word for word.

The two-agent game itself, for self-play, is `mrlm_envs.debate.parallel_env()` and `env()` (PettingZoo).

Version history: v0, first release.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_envs.debate.judges import make_judge
from mrlm_envs.debate.rules import MAX_STATEMENT
from mrlm_envs.debate.scoring import Judge, Verdict
from mrlm_envs.debate.state import NOTHING, SYSTEM_PROMPT, State, script
from mrlm_envs.debate.topics import SIDES, Topics, other
from mrlm_envs.llm.client import ChatClient, Unanswered, sayable, shared_client
from mrlm_envs.tasks import Source
from mrlm_envs.vector import TextVectorEnv

Opponent = Callable[[State, str, np.random.Generator], str]
"""Makes a side's next statement from the debate so far."""

OPPONENT_CARE = 0.5  # the scripted opponent takes this share of its opportunities; the expert takes all


class DebateEnv(TextEnv):
    """Argue one side; see the module docstring.

    Args:
        topic: The id of one topic; all by default.
        side: "pro", "con" or "random".
        rounds: Statements of each side.
        opponent: "scripted", `{"llm": {…}}`, or a function (local only).
        tasks: A finite source of topics.
        judge: "rules", `{"llm": {…}}`, "module:function", or a function (local only).
        format: "open" or "verifiable"; None is "open" with a `topic` or `tasks`, and else "verifiable".
        **kwargs: `split`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ValueError: On an unknown topic, side, opponent, judge or format, or a row that does not fit.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "honest", "deterministic": True}
    system_prompt = SYSTEM_PROMPT

    def __init__(
        self,
        topic: str | None = None,
        side: str = "random",
        rounds: int = 3,
        opponent: str | Mapping[str, Any] | Opponent = "scripted",
        tasks: Source | None = None,
        judge: str | Mapping[str, Any] | Judge = "rules",
        format: str | None = None,
        **kwargs: Any,
    ) -> None:
        if "max_turns" in kwargs:
            raise TypeError("DebateEnv: a debate has rounds=, not max_turns=")
        super().__init__(max_turns=rounds, **{"max_length": MAX_STATEMENT, **kwargs})
        if side not in (*SIDES, "random"):
            raise ValueError(f"side must be 'pro', 'con' or 'random', got {side!r}")
        self._side = side
        self.topics = Topics(topic, tasks, format, self.split)
        self.num_tasks = self.topics.num_tasks
        self.judge = make_judge(judge)
        self.opponent = make_opponent(opponent)
        if opponent != "scripted" or judge != "rules":
            # A judge or an opponent from outside: this instance cannot promise what the class promises.
            vars(self)["metadata"] = {**self.metadata, "deterministic": False}
        self.side: str
        self.debate: State
        self.replies: dict[str, Reply] = {}  # to the newest statements, for both sides

    def begin(self, options: Options) -> Opening:
        topic = self.topics.draw(self.rng, self.episode_seed, options)
        self.side = SIDES[int(self.rng.integers(2))] if self._side == "random" else self._side
        self.debate = State(topic, self.max_turns)
        return Opening(self.debate.briefing(self.side), topic.task_id, info={"side": self.side})

    def respond(self, action: str) -> Reply:
        answer = self.opponent(self.debate, other(self.side), self.rng)
        self.debate.add({self.side: action, other(self.side): answer})
        if self.debate.is_over:
            verdict = self.judge(self.debate.topic, self.debate.rounds)
            self.replies = {side: _outcome(self.debate, verdict, side) for side in SIDES}
        else:
            self.replies = {side: Reply(self.debate.newest(side)) for side in SIDES}
        return self.replies[self.side]

    def expert(self) -> str:
        """An honest statement for the current round."""
        # A generator of its own: asking the expert must not change the episode.
        return script(self.debate, self.side, np.random.default_rng([self.episode_seed, self.turn]))


def _outcome(debate: State, verdict: Verdict, side: str) -> Reply:
    """The end of a debate for one side: the other's last statement, the decision in words, the reward and `info`."""
    word, reason = "is lost", "failure"
    if verdict.winner in (None, side):
        word, reason = ("is a draw", "draw") if verdict.winner is None else ("is yours", "success")
    notes = "".join(f"\n- {note}" for note in verdict.notes[side])
    result = f"The debate {word}, {verdict.total(side):.2f} to {verdict.total(other(side)):.2f}.{notes}"
    info: dict[str, Any] = {
        "stop_reason": reason,
        "winner": verdict.winner,
        "scores": {name: dict(verdict.scores[name]) for name in SIDES},
        "notes": {name: list(verdict.notes[name]) for name in SIDES},
    }
    if debate.topic.truth is not None:
        info["truth"] = debate.topic.truth
    text = f"{debate.newest(side)}\n\n{result}"
    return Reply(text, verdict.rewards(side), done=True, success=verdict.winner == side, info=info)


def make_opponent(opponent: str | Mapping[str, Any] | Opponent) -> Opponent:
    """The opponent that a keyword argument names.

    Raises:
        ValueError: On anything but "scripted", `{"llm": {…}}` or a function.
    """
    if opponent == "scripted":
        return functools.partial(script, care=OPPONENT_CARE)
    if isinstance(opponent, Mapping) and set(opponent) == {"llm"}:
        return functools.partial(_model_statement, shared_client(opponent["llm"]))
    if callable(opponent):
        return opponent
    raise ValueError(f"opponent must be 'scripted', {{'llm': {{…}}}} or a function, got {opponent!r}")


def _model_statement(client: ChatClient, debate: State, side: str, rng: np.random.Generator) -> str:
    heard = [spoken[other(side)] for spoken in debate.rounds]
    try:
        return _ask_opponent(client, debate, side, heard)
    except Unanswered:  # perhaps because of the agent's words, which must not make its debate invalid
        return _ask_opponent(client, debate, side, [""] * len(heard))


def _ask_opponent(client: ChatClient, debate: State, side: str, heard: list[str]) -> str:
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": debate.briefing(side)}]
    for spoken, theirs in zip(debate.rounds, heard):
        messages.append({"role": "assistant", "content": sayable(spoken[side] or NOTHING)})
        messages.append({"role": "user", "content": sayable(theirs or NOTHING)})  # some endpoints refuse ""
    return client.ask(messages).text


make_vec = functools.partial(TextVectorEnv, DebateEnv)
