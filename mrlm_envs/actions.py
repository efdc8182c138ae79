"""Replies that hold one or several actions: `<answer>Up || Left</answer>`.

An environment whose turn is a list of actions owns an `Actions` and lets it play each reply:

    def respond(self, action: str) -> Reply:
        return self.actions.play(action, self.read, self.act, self.view)

Actions are executed in order until the episode ends. The observation shows what was executed, what was refused and
why, the actions left, and the new state. Reading is strict: the actions stand in the last `<answer>…</answer>`, or the
whole reply (after any thinking) is nothing but actions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeVar

from mrlm_envs import answers
from mrlm_envs.core import Reply
from mrlm_envs.tasks import check_choice, check_counts

A = TypeVar("A")
REWARDS = ("success", "grl")
GRL_FORMAT_PENALTY = -0.1
_SHOWN = 40  # characters of an unreadable action that are repeated to the agent


@dataclass(slots=True)
class Outcome:
    """What one action did.

    Args:
        rewards: Named parts of the reward under `reward="grl"`.
        refused: Why the action had no effect, "" when it had one. A refused action still counts.
        done: The task has ended.
        success: The task has been solved.
    """

    rewards: dict[str, float] = field(default_factory=dict)
    refused: str = ""
    done: bool = False
    success: bool = False


@dataclass(kw_only=True, eq=False)
class Actions:
    """Reads replies of several actions, executes them, and keeps the budget of actions of an episode.

    Args:
        reward: "success" pays 1.0 for the solved task and nothing else; "grl" pays the parts of each `Outcome`.
        max_actions_per_turn: Further actions of a reply are refused.
        max_actions: Actions of an episode; when they are used up it ends with `stop_reason="max_actions"`.
        format_penalty: Added to the reward of a reply in which an action, or every action, cannot be read (0 or
            negative). None is 0 under "success" and -0.1 under "grl".
        separator: Stands between actions; "" makes every character an action.
        compact: Observations are the bare state, and `write` leaves out the `<answer>` tag: for small models.
        malformed_reward: Paid under "grl" for each action that cannot be read.
        keys: Letters that stand for actions when a person plays in the terminal.

    Raises:
        ValueError: On a value out of range.
    """

    reward: str
    max_actions_per_turn: int
    max_actions: int
    format_penalty: float | None
    separator: str
    compact: bool = False
    malformed_reward: float = 0.0
    keys: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("reward", self.reward, REWARDS)
        check_counts(max_actions_per_turn=self.max_actions_per_turn, max_actions=self.max_actions)
        self.is_grl = self.reward == "grl"
        if self.format_penalty is None:
            self.format_penalty = GRL_FORMAT_PENALTY if self.is_grl else 0.0
        if not self.format_penalty <= 0:
            raise ValueError(f"format_penalty must be 0 or negative, got {self.format_penalty!r}")
        self.left = self.max_actions

    def reset(self) -> None:
        """Start an episode: the whole budget is left."""
        self.left = self.max_actions

    def rules(self, max_turns: int, example: Sequence[str]) -> str:
        """The sentences of a system prompt that explain the format and the budget."""
        return (
            f"Answer with one or several actions, like {self.write(example)}. "
            f"You have {max_turns} replies of at most {self.max_actions_per_turn} actions each, "
            f"and {self.max_actions} actions in all."
        )

    def opening(self, view: str) -> str:
        """The first observation."""
        return view if self.compact else f"{view}\n{self._budget()}"

    def write(self, names: Sequence[str]) -> str:
        """A reply that holds these actions, by their first letters where every character is an action."""
        if self.separator == "":
            names = ["".join(name[0] for name in names)]
        if self.compact:
            return self.separator.join(names)
        return f"<answer>{f' {self.separator} '.join(names)}</answer>"

    def split(self, reply: str, read: Callable[[str], A | None]) -> list[str]:
        """The actions of a reply as text; none when the reply has no `<answer>` and is not made of actions alone."""
        text = answers.after_thinking(reply)
        tagged = answers.tag(text)
        body = text if tagged is None else tagged
        found = list(body) if self.separator == "" else body.split(self.separator)
        found = [part.strip() for part in found if part.strip()]
        if tagged is None and any(read(part) is None for part in found[: self.max_actions_per_turn]):
            return []
        return found

    def play(
        self,
        reply: str,
        read: Callable[[str], A | None],
        act: Callable[[A], Outcome],
        view: Callable[[], str],
    ) -> Reply:
        """Execute the actions of a reply.

        Args:
            reply: What the agent wrote.
            read: The action that a text names, None when it names none; such an action does not count.
            act: Executes an action.
            view: The state as the agent sees it, asked for after the last action.

        Returns:
            The environment's reply, `action_valid` false when an action, or every action, could not be read.
        """
        found = self.split(reply, read)
        executed, refused, rewards = [], [], dict[str, float]()
        outcome, is_valid = Outcome(), bool(found)
        for text in found[: self.max_actions_per_turn]:
            action = read(text)
            if action is None:
                is_valid = False
                refused.append(f"{text[:_SHOWN]} (not an action)")
                rewards["malformed"] = rewards.get("malformed", 0.0) + self.malformed_reward
                continue
            outcome = act(action)
            self.left -= 1
            if outcome.refused:
                refused.append(f"{text[:_SHOWN]} ({outcome.refused})")
            else:
                executed.append(text[:_SHOWN])
            for name, value in outcome.rewards.items():
                rewards[name] = rewards.get(name, 0.0) + value
            if outcome.done or not self.left:
                break
        else:
            if len(found) > self.max_actions_per_turn:
                refused.append(f"{len(found) - self.max_actions_per_turn} more (too many for one reply)")
        if not self.is_grl:
            rewards = {"solved": float(outcome.success)}
        if self.format_penalty:
            rewards["format"] = 0.0 if is_valid else self.format_penalty
        info: dict[str, Any] = {"action_valid": is_valid}
        if not self.left and not outcome.done:
            info["stop_reason"] = "max_actions"
        text = view() if self.compact else "\n".join([*self._report(executed, refused), view(), self._budget()])
        return Reply(text, rewards, done=outcome.done or not self.left, success=outcome.success, info=info)

    def _report(self, executed: Sequence[str], refused: Sequence[str]) -> list[str]:
        if not executed and not refused:
            return [f"No action found. Answer like {self.write(['ACTION', 'ACTION'])}."]
        lines = [f"Executed: {', '.join(executed)}"] if executed else []
        return [*lines, f"Refused: {', '.join(refused)}"] if refused else lines

    def _budget(self) -> str:
        return f"{self.left} action{'s' * (self.left != 1)} left."


def from_preset(presets: Mapping[str, Mapping[str, Any]], preset: str, **given: Any) -> dict[str, Any]:
    """The settings of a preset, with those of `given` that are not None in their place.

    Raises:
        ValueError: If there is no such preset.
    """
    check_choice("preset", preset, presets)
    return {**presets[preset], **{name: value for name, value in given.items() if value is not None}}


def board(dim: Any, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a board, of which `dim` names both, or one for a square.

    Raises:
        ValueError: They are no whole numbers, fewer than `rows` and `columns`, or above 32.
    """
    sides = (dim, dim) if isinstance(dim, Integral) else dim
    if isinstance(sides, Sequence) and [isinstance(side, Integral) for side in sides] == [True, True]:
        height, width = map(int, sides)
        if rows <= height <= 32 and columns <= width <= 32:
            return height, width
    raise ValueError(f"dim must be from {rows}×{columns} to 32×32, in whole numbers, got {dim!r}")
