"""Does the reward pay for the task, and for nothing else? oracle, floor, leakage, difficulty."""

import contextlib
import functools
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np

from mrlm_envs.checks.playing import SAID, WORDS, Played, Policy, expert, follow, say
from mrlm_envs.checks.subject import Fail, Skip, Subject

CONSTANTS = ("yes", "no", "true", "false", "A", "B", "C", "D", "0", "1", "2", "10")
FORMS = ("{0}", "\\boxed{{{0}}}", "<answer>{0}</answer>", "#### {0}")  # an answer as it is, and marked as one
COPYING = ("echo", "the observation in a box")
_NAMES = ("a prompt injection", "2,000 words", "a number", "a number in a box", "a number in answer tags")
# Policies that say nothing about the task: one lucky hit is no more likely for them than for noise.
BLIND: dict[str, Policy] = {
    "silence": say(""),
    "echo": lambda _, observation: observation,
    "the observation in a box": lambda _, observation: f"\\boxed{{{observation}}}",
    **dict(zip(_NAMES, map(say, SAID))),
}
_UNTOLD = ("seed", "turn", "role", "rewards")  # names of things, not hints
_TOKEN = re.compile(r"[^\s,;:!?\"'`<>()\[\]{}=]+")
_PARTS = (re.compile(r"\w+"), re.compile(r"-\w+"))  # of an id, such as 3-9/sum/-12
_MARKED = re.compile(r"\\boxed\{(.+)\}|<answer>(.+)</answer>|```\w*\n(.+?)\n?```", re.DOTALL)
_ENDS = 1_000  # tokens read from each end of a text
_TRIED = 200  # of what differs between seeds, the nearest to an end first
_LONG = 8  # characters of an answer that stands nowhere by chance
_ID = "info['task_id']"
Place = tuple[str, int | None]
"""Where a text stands: whole, or its token from the start or, negative, from the end."""


def leakage(subject: Subject) -> str:
    """Is the answer shown before the end: in an observation, in info, in tool schemas, in the rendered text?"""
    env = subject.make()
    with contextlib.suppress(TypeError, ValueError, gymnasium.error.Error):  # it may take no such mode
        env = subject.make(render_mode="ansi")
    if subject.expert:
        _find_solution(subject, env)
    for before in ([], ["abc"]):
        _find_copied(subject, env, before)
    late = "; its time was up before all was tried" if subject.is_late else ""
    return f"what stands in observations, info, tools and rendered text earns nothing when it is copied{late}"


def _find_copied(subject: Subject, env: gymnasium.Env[str, str], before: Sequence[str]) -> None:
    """Raise for a place whose content earns the reward when it is copied, and earns less in another episode."""
    maximum = subject.limits.maximum

    @functools.cache
    def parts(seed: int) -> dict[Place, str]:
        return _parts(env, subject.play(follow(before), seed, env))

    @functools.cache
    def pay(seed: int, text: str) -> tuple[float, str]:
        """What it earns in the form in which it earns most; nothing where there is no time to try."""
        if seed == 0 and subject.is_late:
            return 0.0, ""
        paid = []
        for action in (form.format(text) for form in FORMS):
            trace = subject.play(follow([*before, action]), seed, env).trace
            paid.append((trace[-1].reward if len(trace) == len(before) + 2 else 0.0, action))
        return max(paid)

    varied = [place for place, text in parts(0).items() if any(parts(seed).get(place) != text for seed in range(1, 8))]
    found = sorted(varied, key=lambda place: abs(place[1] or 0))[:_TRIED]
    for seed in subject.seeds(16):
        found = [place for place in found if pay(seed, parts(seed).get(place, ""))[0] >= maximum / 2]
    for place in sorted(found, key=str):
        texts = [parts(seed).get(place, "") for seed in range(5)]
        gain = statistics.fmean(pay(i, texts[i])[0] - pay(i, texts[i - 1])[0] for i in range(5))
        if gain > maximum / 4:
            after = " after a wrong action" if before else ""
            raise Fail(f"{place[0]}{after} shows the answer", 0, pay(0, texts[0])[1])


def _parts(env: gymnasium.Env[str, str], done: Played) -> dict[Place, str]:
    """Each text that an unfinished episode shows last, whole and by its first and last tokens."""
    if done.trace[-1].terminated or done.trace[-1].truncated:
        return {}
    parts: dict[Place, str] = {}
    for place, text in _shown(env, done).items():
        parts[place, None] = text.strip()
        tokens = [token.strip(".") for token in _TOKEN.findall(text)]
        if place == _ID:
            tokens = [part for pattern in _PARTS for part in pattern.findall(text)]
        for i in range(min(_ENDS, len(tokens))):
            parts[place, i], parts[place, -1 - i] = tokens[i], tokens[-1 - i]
    return parts


def _shown(env: gymnasium.Env[str, str], done: Played) -> dict[str, str]:
    """What the end of an episode shows, place to text: info (tools among it), the observation, the rendered rest."""
    observation = done.trace[-1].observation
    shown = dict(_leaves({key: value for key, value in done.ended.items() if key not in _UNTOLD}, "info"))
    shown["the observation"] = observation
    with contextlib.suppress(NotImplementedError):
        if isinstance(rendered := env.render(), str):
            shown["the rendered text"] = rendered.replace(observation, "")
    return shown


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield path, str(value)


def _find_solution(subject: Subject, env: gymnasium.Env[str, str]) -> None:
    """Raise for a place that holds the expert's answer in each of several episodes, and not that of another."""
    looks = []
    for seed in subject.seeds(8):
        done = subject.play(follow([]), seed, env)
        action = expert(env, "") or ""
        marked = _MARKED.search(action)
        answer = next(filter(None, marked.groups())) if marked else action
        looks.append((_shown(env, done), answer.strip()))
    for place in looks[0][0]:
        texts, answers = zip(*((shown.get(place, ""), answer) for shown, answer in looks))
        own = all(len(answer) >= _LONG and answer in text for text, answer in zip(texts, answers))
        if own and not any(answer in text for text, answer in zip(texts, answers[1:])):
            raise Fail(f"{place} shows the expert's answer", 0, answers[0])


def floor(subject: Subject) -> str:
    """The best policy that does not solve tasks, and what it earns."""
    limit, rows = subject.limits.floor, []
    for name, policy in {**BLIND, **_guesses(subject)}.items():
        if subject.status("leakage") == "fail" and name in COPYING:
            continue  # it would earn by the leak
        played = [subject.play(policy, seed) for seed in subject.seeds(2 * subject.limits.episodes, 1_000)]
        subject.lazy[name] = played
        by_task = {done.task_id: done.returned for done in played}
        mean = statistics.fmean(by_task.values())
        error = statistics.pstdev(by_task.values()) / math.sqrt(len(by_task))
        hits = sum(returned > limit for returned in by_task.values())
        # more than chance explains; and a guess may be the answer of a task or two
        is_paid = mean - 1.96 * error > limit and (hits >= 3 or name in BLIND)
        best = max(played, key=lambda done: done.returned)
        rows.append((is_paid, mean, name, best.seed, best.actions[-1]))
    is_paid, mean, name, seed, action = max(rows)
    evidence = (
        f"the best policy that does not solve tasks ({name}) earns {mean:.3f} in the mean; the limit is {limit:g}"
    )
    if subject.expert is None and hasattr(subject.env.unwrapped, "game"):
        raise Skip(f"{evidence}; the other agents are silent, so it says little")
    if is_paid:
        raise Fail(evidence, seed, action)
    return evidence


def _guesses(subject: Subject) -> dict[str, Policy]:
    """Random words, and the constant that earned most on a few tasks."""
    rng = np.random.default_rng(11)
    constants = {form.format(word) for word in CONSTANTS for form in FORMS}
    if subject.expert:
        constants |= {expert(subject.env, subject.env.reset(seed=seed)[0]) or "" for seed in range(500, 504)}
    means = {}
    for text in sorted(constants):
        if subject.is_late and means:
            break
        played = [subject.play(say(text), seed) for seed in range(600, 608)]
        means[text] = statistics.fmean({done.task_id: done.returned for done in played}.values())
    constant = max(means, key=lambda text: means[text])
    return {
        f"always {constant[:40]!r}": say(constant),
        "random words": lambda _, __: " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), size=8)),
    }


def oracle(subject: Subject) -> str:
    """The expert earns the maximum."""
    maximum = subject.limits.maximum
    if subject.expert is None:
        outside = "cannot be known from outside: an expert is never served"
        raise Skip(outside if subject.is_remote else "the environment has no expert")
    played = subject.solved = [subject.play(expert, seed) for seed in subject.seeds(subject.limits.episodes)]
    average, worst = mean(played), min(played, key=lambda done: (done.ended.get("success", True), done.returned))
    least = min(done.returned for done in played)
    evidence = f"the expert earns {average:.3f} in the mean of {len(played)} episodes, {least:.3f} at least"
    if subject.expert != "always":
        return f"{evidence}; it is declared {subject.expert}: it need not earn {maximum:g}"
    if least >= maximum - 1e-9 and worst.ended.get("success", True):
        return evidence
    if subject.status("floor") == "fail" and average < max(map(mean, subject.lazy.values())):
        raise Skip(f"{evidence}, but the reward pays others more (see floor): fix that first")
    raise Fail(f"{evidence}, not {maximum:g}", worst.seed, (worst.actions or [None])[-1])


def difficulty(subject: Subject) -> str:
    """How much the expert has to say, and whether a kind of task is given away."""
    facts = []
    if subject.solved:
        turns = statistics.fmean(len(done.actions) for done in subject.solved)
        characters = statistics.fmean(sum(map(len, done.actions)) for done in subject.solved)
        facts.append(f"the expert takes {turns:.1f} turns, {characters:.0f} characters")
    floors: list[tuple[float, str, str]] = []
    for who, played in subject.lazy.items():
        for kind in set(map(_kind, played)):
            among = [done for done in played if _kind(done) == kind]
            if 4 <= len(among) < len(played):
                floors.append((mean(among), kind, who))
    if floors:
        best, kind, who = max(floors)
        facts.append(f"of {len({row[1] for row in floors})} kinds {kind!r} is the cheapest: {who} earns {best:.3f}")
        if best > subject.limits.kind_floor and subject.status("floor") == "pass":
            raise Fail(f"{facts[-1]}, above {subject.limits.kind_floor:g}")
    if not facts:
        raise Skip("no expert and no kinds of tasks to compare")
    return "; ".join(facts)


def _kind(done: Played) -> str:
    """`info["kind"]`, or the word with which the task's id begins (`addition/17+25`)."""
    head = re.match(r"[A-Za-z_]+(?=[:/])", done.task_id)
    return str(done.begun.get("kind") or (head.group() if head else ""))


def mean(played: Sequence[Played]) -> float:
    """The mean return of episodes."""
    return statistics.fmean(done.returned for done in played)
