"""Endless chains of steps: take a number, change it several times, and say what comes out, or what went in."""

from mrlm_envs.math.generators import SIZE, Draw, Problem, solved
from mrlm_envs.tasks import packaged

INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}
STORIES: list[dict[str, str]] = packaged(__file__, "multi_step.yaml")
BARE = STORIES[-1]


def multi_step(draw: Draw, difficulty: int) -> Problem:
    """A chain of 2 (difficulty 1) to 7 steps (10), asked backwards half of the time from difficulty 3.

    Sums and products take turns, since two sums in a row could be swapped and be the same task under another id.
    """
    size = min(max(SIZE[difficulty], 12), 200)
    start = value = draw.between(2, size)
    chain: list[tuple[str, int, int]] = []
    scaling = draw.below(2) == 1
    for _ in range(2 + difficulty // 2):
        if scaling:
            divisors = [k for k in range(2, 10) if value % k == 0 and value > k]
            divide = divisors and (value > 500 or draw.below(2))
            sign, k = ("/", draw.choice(divisors)) if divide else ("*", draw.between(2, 3 + difficulty // 2))
            value = value // k if divide else value * k
        else:
            k = draw.between(2, size)
            sign = "-" if value > k + 1 and draw.below(2) else "+"
            value = value - k if sign == "-" else value + k
        chain.append((sign, k, value))
        scaling = not scaling
    key = "".join([f"{sign}{k}" for sign, k, _ in chain])
    befores = [start, *(after for *_, after in chain[:-1])]
    if difficulty > 2 and draw.below(2):
        told = " ".join([BARE[sign].format(k) for sign, k, _ in chain])
        question = f"Think of a number. {told} The result is {value}. What was the number?"
        undone = [f"{after} {INVERSE[sign]} {k} = {before}" for (sign, k, after), before in zip(chain, befores)]
        return solved("multi_step", f"?{key}={value}", question, start, *reversed(undone))
    story = draw.choice(STORIES)
    told = " ".join([story[sign].format(k) for sign, k, _ in chain])
    question = f"{story['start'].format(start)} {told} {story['ask']}"
    steps = [f"{before} {sign} {k} = {after}" for (sign, k, after), before in zip(chain, befores)]
    return solved("multi_step", f"{start}{key}", question, value, *steps)
