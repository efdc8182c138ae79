"""Does the reward pay for the task, and for nothing else? oracle, floor, leakage, difficulty."""

import contextlib
import json
import math
import re
import statistics
from typing import Any

import gymnasium
import numpy as np

from mrlm_envs.checks.playing import SAID, WORDS, Played, Policy, Trace, expert, follow, play, say
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
_UNTOLD = ("task_id", "seed", "turn", "role", "rewards")  # names of things, not hints
_TOKEN = re.compile(r"[^\s,;:!?\"'`<>()\[\]{}=]+")
_MARKED = re.compile(r"\\boxed\{(.+)\}|<answer>(.+)</answer>|```\w*\n(.+?)\n?```", re.DOTALL)
_ENDS = 1_000  # tokens read from each end of a text
_TRIED = 200  # of what differs between seeds, the nearest to an end first
_LONG = 8  # characters of an answer that stands nowhere by chance


def leakage(subject: Subject) -> str:
    """Is the answer shown before the end: in an observation, in info, in tool schemas, in the rendered text?"""
    modes = (subject.env.unwrapped.metadata or {}).get("render_modes", ())
    try:
        env = subject.make(render_mode="ansi") if "ansi" in modes else subject.make()
    except TypeError:  # it names a mode that it does not take
        env = subject.make()
    if subject.expert:
        _find_solution(subject, env)
    _find_copied(subject, env)
    late = "; its time was up before all was tried" if subject.is_late else ""
    return f"what stands in observations, info, tools and rendered text earns nothing when it is copied{late}"


def _find_copied(subject: Subject, env: gymnasium.Env[str, str]) -> None:
    """Raise for a place whose content earns the reward when it is copied, and earns less in another episode."""
    maximum = subject.limits.maximum
    for before in ([], ["abc"]):
        shown, *others = (_parts(env, seed, before) for seed in range(8))
        varied = [part for part in shown if any(other.get(part) != shown[part] for other in others)]
        candidates = set(sorted(varied, key=lambda part: abs(part[1] or 0))[:_TRIED])
        for seed in subject.seeds(16):
            parts = _parts(env, seed, before)
            paid = set()
            for value in dict.fromkeys(text for place, text in parts.items() if place in candidates):  # each text once
                if seed == 0 and subject.is_late:
                    break  # no time to try more
                if _pay(env, seed, before, value)[0] >= maximum / 2:
                    paid.add(value)
            candidates = {place for place in candidates if parts.get(place) in paid}
        for place in sorted(candidates, key=str):
            texts = [_parts(env, seed, before).get(place, "") for seed in range(5)]
            own, others = (
                statistics.fmean(_pay(env, seed, before, texts[seed - shift])[0] for seed in range(5))
                for shift in (0, 1)
            )
            if own - others > maximum / 4:
                after = " after a wrong action" if before else ""
                raise Fail(f"{place[0]}{after} shows the answer", 0, _pay(env, 0, before, texts[0])[1])


def _pay(env: gymnasium.Env[str, str], seed: int, before: list[str], value: str) -> tuple[float, str]:
    """What a text earns that is said after some actions, and in which form it earns most."""
    paid = []
    for action in (form.format(value) for form in FORMS):
        trace = play(env, follow([*before, action]), seed).trace
        paid.append((trace[-1][1] if len(trace) == len(before) + 2 else 0.0, action))
    return max(paid)


def _parts(env: gymnasium.Env[str, str], seed: int, before: list[str]) -> dict[tuple[str, int | None], str]:
    """Each text shown after some actions, whole and by its first and last tokens."""
    trace = play(env, follow(before), seed).trace
    if len(trace) > 1 and (trace[-1][2] or trace[-1][3]):
        return {}
    parts: dict[tuple[str, int | None], str] = {}
    for place, text in _shown(env, trace).items():
        parts[place, None] = text.strip()
        tokens = [token.strip(".") for token in _TOKEN.findall(text)]
        for i in range(min(_ENDS, len(tokens))):
            parts[place, i], parts[place, -1 - i] = tokens[i], tokens[-1 - i]
    return parts


def _shown(env: gymnasium.Env[str, str], trace: Trace) -> dict[str, str]:
    """What the end of a trace shows, place to text: info (tools among it), the observation, the rendered rest."""
    shown: dict[str, str] = {}
    observation, info = trace[-1][0], json.loads(trace[-1][-1])

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}[{key!r}]")
        elif isinstance(value, list):
            for i, item in enumerate(value):
                walk(item, f"{path}[{i}]")
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            shown[path] = str(value)

    walk({key: value for key, value in info.items() if key not in _UNTOLD}, "info")
    shown["the observation"] = observation
    with contextlib.suppress(NotImplementedError):
        if isinstance(rendered := env.render(), str):
            shown["the rendered text"] = rendered.replace(observation, "")
    return shown


def _find_solution(subject: Subject, env: gymnasium.Env[str, str]) -> None:
    """Raise for a place that holds the expert's answer in each of several episodes, and not that of another."""
    looks = []
    for seed in subject.seeds(8):
        trace = play(env, follow([]), seed).trace
        action = expert(env, trace[0][0]) or ""
        marked = _MARKED.search(action)
        answer = next(filter(None, marked.groups())) if marked else action
        looks.append((_shown(env, trace), answer.strip()))
    for place in looks[0][0]:
        texts, answers = zip(*((shown.get(place, ""), answer) for shown, answer in looks))
        own = all(len(answer) >= _LONG and answer in text for text, answer in zip(texts, answers))
        if own and not any(answer in text for text, answer in zip(texts, answers[1:])):
            raise Fail(f"{place} shows the expert's answer", 0, answers[0])


def floor(subject: Subject) -> str:
    """The best policy that does not solve tasks, and what it earns."""
    leaked, limit = subject.line("leakage").status == "fail", subject.limits.floor
    rows = []
    for name, policy in {**BLIND, **_guesses(subject)}.items():
        if leaked and name in COPYING:
            continue  # it would earn by the leak
        played = [play(subject.env, policy, seed) for seed in subject.seeds(2 * subject.limits.episodes, 1_000)]
        subject.lazy[name] = played
        by_task = {done.task_id: done.returned for done in played}
        mean = statistics.fmean(by_task.values())
        error = statistics.pstdev(by_task.values()) / math.sqrt(len(by_task))
        hits = sum(returned > limit for returned in by_task.values())
        # more than chance explains; and a guess may be the answer of a task or two
        is_paid = mean - 1.96 * error > limit and (hits >= 3 or name in BLIND)
        best = max(played, key=lambda done: done.returned)
        rows.append((is_paid, mean, name, best.seed, best.last_action))
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
        played = [play(subject.env, say(text), seed) for seed in range(600, 608)]
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
    played = subject.solved = [play(subject.env, expert, seed) for seed in subject.seeds(subject.limits.episodes)]
    mean, worst = _mean(played), min(played, key=lambda done: done.returned)
    evidence = f"the expert earns {mean:.3f} in the mean of {len(played)} episodes, {worst.returned:.3f} at least"
    if subject.expert != "always":
        return f"{evidence}; it is declared {subject.expert}: it need not earn {maximum:g}"
    is_told = [json.loads(done.trace[-1][-1]).get("success", True) for done in played]
    if worst.returned >= maximum - 1e-9 and all(is_told):
        return evidence
    short = worst if all(is_told) else played[is_told.index(False)]
    if subject.line("floor").status == "fail" and mean < max(map(_mean, subject.lazy.values())):
        raise Skip(f"{evidence}, but the reward pays others more (see floor): fix that first")
    raise Fail(f"{evidence}, not {maximum:g}", short.seed, short.last_action)


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
                floors.append((_mean(among), kind, who))
    if floors:
        mean, kind, who = max(floors)
        facts.append(f"of {len({row[1] for row in floors})} kinds {kind!r} is the cheapest: {who} earns {mean:.3f}")
        if mean > subject.limits.kind_floor and subject.passed("floor"):
            raise Fail(f"{facts[-1]}, above {subject.limits.kind_floor:g}")
    if not facts:
        raise Skip("no expert and no kinds of tasks to compare")
    return "; ".join(facts)


def _kind(done: Played) -> str:
    """`info["kind"]`, or the word with which the task's id begins (`addition/17+25`)."""
    head = re.match(r"[A-Za-z_]+(?=[:/])", done.task_id)
    return str(json.loads(done.trace[0][1]).get("kind") or (head.group() if head else ""))


def _mean(played: list[Played]) -> float:
    return statistics.fmean(done.returned for done in played)
