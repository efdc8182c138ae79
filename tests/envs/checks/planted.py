"""A sound environment, as a `TextEnv` and as a plain Gymnasium one, and the same with one fault planted in each."""

import os
import random
import re
import sys
import threading
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np

from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_envs.spaces import Unicode


def boxed(action: str) -> str | None:
    found = re.findall(r"\\boxed\{(-?\d+)\}", action)
    return found[-1] if found else None


class Sum(TextEnv):
    """Add two numbers; two attempts."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}

    def __init__(self, max_turns: int = 2, **kwargs: Any) -> None:
        super().__init__(max_turns=max_turns, **kwargs)

    def draw(self) -> tuple[int, int]:
        return int(self.rng.integers(10, 1_000)), int(self.rng.integers(10, 1_000))

    def begin(self, options: Options) -> Opening:
        a, b = self.draw()
        self.answer = a + b
        return Opening(f"What is {a} + {b}?", task_id=f"{min(a, b)}+{max(a, b)}")

    def pays(self, action: str) -> float:
        return float(boxed(action) == str(self.answer))

    def respond(self, action: str) -> Reply:
        reward = self.pays(action)
        return Reply("right" if reward == 1 else "wrong", {"sum": reward}, done=reward > 0, success=reward == 1)

    def expert(self) -> str:
        return f"\\boxed{{{self.answer}}}"


class LeaksInInfo(Sum):
    def begin(self, options):
        opening = super().begin(options)
        opening.info = {"debug": {"expected": [self.answer]}}
        return opening


class LeaksInTheTaskId(Sum):
    def begin(self, options):
        opening = super().begin(options)
        opening.task_id += f"-{self.answer}"
        return opening


class LeaksInTheObservation(Sum):
    def begin(self, options):
        opening = super().begin(options)
        opening.text += f" (The answer is {self.answer}.)"
        return opening


class LeaksInATool(Sum):
    def begin(self, options):
        opening = super().begin(options)
        parameters = {"type": "object", "properties": {"x": {"type": "integer", "default": self.answer}}}
        opening.tools = [{"type": "function", "function": {"name": "answer", "parameters": parameters}}]
        return opening


class LeaksInFeedback(Sum):
    def respond(self, action):
        reply = super().respond(action)
        return reply if reply.done else Reply(f"wrong, it was {self.answer}", {"sum": 0.0})


class LeaksInTheRendering(Sum):
    def render(self):
        return f"{super().render()}\nsolution: {self.answer}"


class PaysForLength(Sum):
    def pays(self, action):
        return max(super().pays(action), min(1.0, len(action) / 1_000))


class PaysForAnyBox(Sum):
    def pays(self, action):
        return float(boxed(action) is not None)


class PaysLengthOnly(Sum):
    def pays(self, action):
        return min(1.0, len(action) / 200)


class DrawsFromTheGlobalGenerator(Sum):
    def draw(self):
        return random.randint(10, 999), random.randint(10, 999)


class SeedsTheGlobalGenerator(Sum):
    def reset(self, *, seed=None, options=None):
        random.seed(seed)
        return super().reset(seed=seed, options=options)

    def draw(self):
        return random.randint(10, 999), random.randint(10, 999)


class DrawsFromNumpysGenerator(Sum):
    def draw(self):
        return np.random.randint(10, 999), np.random.randint(10, 999)  # noqa: NPY002


class IgnoresTheSeed(Sum):
    def draw(self):
        rng = np.random.default_rng()
        return int(rng.integers(10, 1_000)), int(rng.integers(10, 1_000))


class AlwaysSeedsAlike(Sum):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=0, options=options)


class DrawsOnFromTheLastEpisode(Sum):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.own = np.random.default_rng(0)

    def draw(self):
        return int(self.own.integers(10, 1_000)), int(self.own.integers(10, 1_000))


class DependsOnTheHashSeed(Sum):
    def begin(self, options):
        opening = super().begin(options)
        opening.text += " Hints: " + ", ".join({"carry", "columns", "estimate", "check", "units"})
        return opening


class SharesTheAnswer(Sum):
    current: ClassVar[dict[str, int]] = {}

    def begin(self, options):
        opening = super().begin(options)
        self.current["answer"] = self.answer
        return opening

    def pays(self, action):
        return float(boxed(action) == str(self.current["answer"]))


class SharesTheQuestion(Sum):
    asked = ""

    def begin(self, options):
        opening = super().begin(options)
        SharesTheQuestion.asked = opening.text
        return opening

    def respond(self, action):
        reply = super().respond(action)
        reply.text += f" ({self.asked})"
        return reply


class CountsOnTheClass(Sum):
    played = 0

    def begin(self, options):
        CountsOnTheClass.played += 1
        return super().begin(options)

    def respond(self, action):
        reply = super().respond(action)
        reply.text += f" (episode {CountsOnTheClass.played})"
        return reply


class HoldsALock(Sum):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.lock = threading.Lock()


class HoldsAFunction(Sum):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.score = lambda action: boxed(action)


class WantsItsOwnThread(Sum):
    def respond(self, action):
        assert threading.current_thread() is threading.main_thread(), "signals work in the main thread only"
        return super().respond(action)


class SharesAScratchpad(Sum):
    scratch: ClassVar[list[str]] = []

    def respond(self, action):
        self.scratch[:] = [action]
        time.sleep(1e-3)
        return super().respond(self.scratch[0])


class HasFewTestTasks(Sum):
    def draw(self):
        if self.split == "test":
            return 10, int(self.rng.integers(10, 60))
        return super().draw()


class MixesTheSplits(Sum):
    def _draw(self, options):
        return self.begin(options)


class NamesTasksBySeed(Sum):
    def begin(self, options):
        opening = super().begin(options)
        opening.task_id = f"{opening.task_id}/{self.episode_seed}/{self.split}"
        return opening

    def draw(self):
        return int(self.rng.integers(10, 40)), int(self.rng.integers(10, 40))


class RaisesOnNumerals(Sum):
    def respond(self, action):
        if len(action) > 60_000:
            raise MemoryError("too long")
        return super().respond(action)


class RaisesOnEverything(Sum):
    def respond(self, action):
        return Reply(str(float(action)))


class RaisesAtReset(Sum):
    def begin(self, options):
        raise KeyError("tasks")


class Dies(Sum):
    def respond(self, action):
        if "9^{9^{9" in action:
            os._exit(3)
        return super().respond(action)


class HasAWeakExpert(Sum):
    def expert(self):
        return f"\\boxed{{{self.answer + 1}}}"


class HasAnExpertThatStops(Sum):
    def expert(self):
        return None if self.turn else "Let me think."


class GivesAwayOneKind(Sum):
    def begin(self, options):
        opening = super().begin(options)
        self.is_free = self.answer % 12 == 0
        opening.info = {"kind": "free" if self.is_free else "sum"}
        return opening

    def pays(self, action):
        return 1.0 if self.is_free else super().pays(action)


class IsSlow(Sum):
    def respond(self, action):
        time.sleep(0.03)
        return super().respond(action)


class PlainSum(gymnasium.Env[str, str]):
    """The same without our base: no info but what is planted, stock rendering, a split by parity."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"]}

    def __init__(self, split: str = "train", render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = Unicode(1_000), gymnasium.spaces.Text(1_000)
        self.split, self.render_mode = split, render_mode

    def numbers(self) -> tuple[int, int]:
        a, b = (int(n) for n in self.np_random.integers(10, 1_000, size=2))
        return 2 * a + (self.split == "test"), b

    def info(self) -> dict[str, Any]:
        return {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.a, self.b = self.numbers()
        self.text = f"What is {self.a} + {self.b}?"
        return self.text, self.info()

    def pays(self, action: str) -> float:
        return float(str(self.a + self.b) in action)  # a careless grader: the echo of a leaked answer is paid

    def step(self, action):
        return "the end", self.pays(action), True, False, {}

    def render(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.text


class PlainLeakInInfo(PlainSum):
    def info(self):
        return {"hint": f"think of {self.a + self.b}"}


class PlainLeakInAnArray(PlainSum):
    def info(self):
        return {"target": np.array([self.a + self.b])}


class PlainLeakInTheTaskId(PlainSum):
    def info(self):
        return {"task_id": f"sum/{self.a}+{self.b}={self.a + self.b}"}


class PlainLeakAmongManyWords(PlainSum):
    def reset(self, *, seed=None, options=None):
        text, info = super().reset(seed=seed)
        return f"{'Read with care. ' * 20} {self.a + self.b} {'Think first. ' * 20} {text}", info


class PlainLeakInTheObservation(PlainSum):
    def reset(self, *, seed=None, options=None):
        text, info = super().reset(seed=seed)
        return f"{text} [gold: {self.a + self.b}]", info


class PlainLeakInTheRendering(PlainSum):
    def render(self):
        return f"{self.text} {self.a + self.b}"


class PlainPayForLength(PlainSum):
    def pays(self, action):
        return min(1.0, len(action) / 100)


class PlainPayForAnyBox(PlainSum):
    def pays(self, action):
        return float(boxed(action) is not None)


class PlainGlobalGenerator(PlainSum):
    def numbers(self):
        return random.randint(10, 9_999), random.randint(10, 9_999)


class PlainSeedIgnored(PlainSum):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None)


MODULE_GENERATOR = random.Random(7)


class PlainModuleGenerator(PlainSum):
    def numbers(self):
        return MODULE_GENERATOR.randint(100, 999), MODULE_GENERATOR.randint(100, 999)


class PlainSharedState(PlainSum):
    answer: int = 0

    def reset(self, *, seed=None, options=None):
        found = super().reset(seed=seed)
        PlainSharedState.answer = self.a + self.b
        return found

    def pays(self, action):
        return float(str(PlainSharedState.answer) in action)


class PlainTakesAnything(gymnasium.Env[str, str]):  # sound: a `split` means nothing to it
    def __init__(self, **kwargs: Any) -> None:
        self.env = PlainSum()
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed)

    def step(self, action):
        return self.env.step(action)


class PlainFewTasks(PlainSum):
    def numbers(self):
        return 100 + int(self.np_random.integers(0, 12)), 1_000


class PlainOverlap(PlainSum):
    def numbers(self):
        return tuple(int(n) for n in self.np_random.integers(10, 60, size=2))


class PlainRaisesOnSurrogates(PlainSum):
    def pays(self, action):
        if "\ud800" in action:
            raise ValueError(f"odd text: {action}")
        return super().pays(action)


class PlainRaisesOnLongTexts(PlainSum):
    def pays(self, action):
        if len(action) > 1_000_000:
            raise ValueError("too long")
        return super().pays(action)


class PlainRaisesWhenMade(PlainSum):
    def __init__(self, **kwargs):
        raise ValueError("the file of tasks is damaged")


class PlainSpeaksInNumbers(PlainSum):
    def reset(self, *, seed=None, options=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        return 7, super().reset(seed=seed)[1]


class PlainEndsItsProcess(PlainSum):
    def step(self, action):
        raise SystemExit(3)


class Hangs(PlainSum):
    def pays(self, action):
        while action == "73915":
            time.sleep(0.1)
        return super().pays(action)


class HangsWithTheLock(PlainSum):
    def pays(self, action):
        if action == "73915":
            re.match(r"(a+)+$", "a" * 60 + "b")  # seconds become years, and no other thread runs
        return super().pays(action)


class HangsOnSomethingUnlisted(PlainSum):
    def pays(self, action):
        while action == "#### yes":  # a guess of the floor, no text of the faults
            time.sleep(0.1)
        return super().pays(action)


class PlainUnpicklable(PlainSum):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.log = sys.stderr


class PlainNotThreadSafe(PlainSum):
    def step(self, action):
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # raises outside the main thread
        return super().step(action)


class PlainWeakExpert(PlainSum):
    def expert(self):
        return str(self.a - self.b)


class PlainGoodExpert(PlainSum):
    def expert(self):
        return str(self.a + self.b)


# The check that finds each; None for the sound ones.
FOUND_BY: dict[str | None, tuple[type[gymnasium.Env[str, str]], ...]] = {
    None: (Sum, PlainSum, PlainGoodExpert, PlainTakesAnything),
    "oracle": (HasAWeakExpert, HasAnExpertThatStops, PlainWeakExpert),
    "floor": (PaysForLength, PaysForAnyBox, PaysLengthOnly, PlainPayForLength, PlainPayForAnyBox),
    "leakage": (
        *(LeaksInInfo, LeaksInTheObservation, LeaksInATool, LeaksInFeedback, LeaksInTheRendering),
        *(PlainLeakInInfo, PlainLeakInTheObservation, PlainLeakInTheRendering),
        *(PlainLeakInAnArray, PlainLeakAmongManyWords, LeaksInTheTaskId, PlainLeakInTheTaskId),
    ),
    "determinism": (
        *(DrawsFromTheGlobalGenerator, SeedsTheGlobalGenerator, DrawsFromNumpysGenerator, IgnoresTheSeed),
        *(AlwaysSeedsAlike, DrawsOnFromTheLastEpisode, PlainGlobalGenerator, PlainSeedIgnored, PlainModuleGenerator),
    ),
    "replay": (DependsOnTheHashSeed,),
    "interleaving": (SharesTheAnswer, SharesTheQuestion, CountsOnTheClass, PlainSharedState),
    "threads": (WantsItsOwnThread, SharesAScratchpad, PlainNotThreadSafe),
    "pickling": (HoldsALock, HoldsAFunction, PlainUnpicklable),
    "splits": (HasFewTestTasks, MixesTheSplits, NamesTasksBySeed, PlainFewTasks, PlainOverlap),
    "difficulty": (GivesAwayOneKind,),
    "speed": (IsSlow,),
    "faults": (
        *(RaisesOnNumerals, RaisesOnEverything, RaisesAtReset, Dies),
        *(
            PlainRaisesOnSurrogates,
            PlainRaisesOnLongTexts,
            PlainRaisesWhenMade,
            PlainSpeaksInNumbers,
            PlainEndsItsProcess,
        ),
    ),
}
PLANTED = {planted: name for name, listed in FOUND_BY.items() for planted in listed}
for _planted in PLANTED:
    if f"planted/{_planted.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"planted/{_planted.__name__}-v0", entry_point=_planted, disable_env_checker=True)
