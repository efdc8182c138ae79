"""The quality card as graders of OpenEnv's validation (RFC 008). Written against OpenEnv 0.10.0.

Each class is one check id of OpenEnv's severity policy and one line of our card, made of the running server from
outside. They are registered under the entry point `openenv.validation.graders`. The command line of 0.10.0 does not
load that entry point (OpenEnv#778 plans to), and its runner starts graders of the levels static and runtime only, so
they are run from Python: `registry.load_entry_points()`, then `run_validation` or a grader's own `run(subject)`.

An oracle is never served, so `semantic.oracle_max` has no grader here.
"""

import time
from typing import Any, ClassVar

from openenv.validation.report import CheckResult  # pyright: ignore[reportMissingImports]
from openenv.validation.types import CheckStatus, Level  # pyright: ignore[reportMissingImports]

from mrlm_envs.checks import card


class CardGrader:
    """A line of the card as OpenEnv's `Grader`.

    Attributes:
        check_id: OpenEnv's name of the check.
        level: Of its policy.
        line: Our name.
    """

    check_id: ClassVar[str]
    level: ClassVar[Any] = Level.SEMANTIC
    line: ClassVar[str]
    requires_capabilities: ClassVar[frozenset[str]] = frozenset()
    requires_provider: ClassVar[frozenset[Any]] = frozenset()
    depends_on: ClassVar[tuple[str, ...]] = ("runtime.startup",)

    def applies_to(self, manifest: Any) -> bool:
        """Every server of text: what the card cannot judge it skips."""
        return True

    def run(self, subject: Any) -> Any:
        """Make the check of the running server."""
        started = time.monotonic()
        found = card(f"openenv:{subject.running.base_url}", only=(self.line,))
        check = next(check for check in found.checks if check.name == self.line)
        return CheckResult(
            check_id=self.check_id,
            status=CheckStatus(check.status),
            measured={"seed": check.seed, "action": check.action and check.action[:1_000]},
            evidence=[check.evidence],
            remediation=f"see the check {self.line!r} of mrlm check" if check.status == "fail" else None,
            duration_s=time.monotonic() - started,
        )


class SeedControl(CardGrader):
    """The seed decides the task, and nothing else does."""

    check_id, level, line = "runtime.seed_control", Level.RUNTIME, "determinism"


class EpisodeDeterminism(CardGrader):
    """The same seed and actions, the same bytes."""

    check_id, level, line = "runtime.episode_determinism", Level.RUNTIME, "determinism"


class EpisodeIsolation(CardGrader):
    """Two sessions stepped in turns do not disturb each other."""

    check_id, level, line = "runtime.episode_isolation", Level.RUNTIME, "interleaving"


class Replayability(CardGrader):
    """Recorded actions replay in later sessions."""

    check_id, line = "semantic.replayability", "replay"


class VerifierDeterminism(CardGrader):
    """The same actions earn the same rewards."""

    check_id, line = "semantic.verifier_determinism", "determinism"


class FloorGap(CardGrader):
    """What does not solve tasks stays at the floor."""

    check_id, line = "semantic.floor_gap", "floor"


class NoSolutionLeakage(CardGrader):
    """What a server shows earns nothing when it is copied."""

    check_id, line = "semantic.no_solution_leakage", "leakage"
