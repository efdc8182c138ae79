"""Blocksworld: move blocks one at a time until they stand as in the goal.

| | |
| --- | --- |
| id | `mrlm/Blocksworld-v0` |
| observation | state, goal and actions left; after a turn also what was executed, and what was refused and why |
| action | `<answer>(move 2 to 0)</answer>`: block 2 onto the table (0) or a block; or several, separated |
| reward | 1.0 for the goal, else 0.0; with `reward="grl"` +10 for the move that reaches the goal, -1 for any other, \
-5 for one that cannot be read, and -0.1 for the reply it stands in |
| terminated | solved, or after `max_turns` replies or `max_actions` actions |
| task id | the state at the start and the goal |
| expert | always: a shortest plan |

Only a clear block (with nothing on top) can be moved, onto the table or onto another clear block. Start and goal are
random and differ; tasks that the planner (`mrlm_envs.games.planner`, exact) cannot solve within the budget of actions
and turns are redrawn. `state_key()` is the state; `cost_to_go()` is the length of a shortest plan, None when the
planner gives up after 2,000 states in which it had a choice. No position is lost. Resets are quick up to some 40
blocks; with 60 most tasks are beyond the planner, and drawing one that is not takes very long.

Parameters: `preset`, "blocksworld_4_text" (four blocks in sentences; the default), "blocksworld_text" (three blocks,
which make fewer than 100 test tasks), "blocksworld_1d" (a list: what each of three blocks stands on) or
"blocksworld_2d_sparse" (the stacks drawn side by side); `blocks` and `view` ("text", "1d",
"2d_sparse") override it. `reward`, `max_actions_per_turn` (5), `max_actions` (20), `format_penalty`, `separator` and
`compact` are those of `mrlm_envs.actions.Actions`; a move is also read as `2>0`, which is how the expert writes it when
`compact`. `max_turns` (11), `split`, `max_length`, `system_prompt` and `render_mode` are those of every environment.
The other presets, the views, budgets and the "grl" reward are GRL's (lmgame-org).

Version history: v0, first release.
"""

import functools
import re
from typing import Any, ClassVar

from mrlm_envs.actions import Actions, Outcome, from_preset
from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_envs.games.planner import Move, State, after, plan, refusal
from mrlm_envs.tasks import check_choice, check_counts
from mrlm_envs.vector import TextVectorEnv

PRESETS: dict[str, dict[str, Any]] = {
    "blocksworld_4_text": {"blocks": 4, "view": "text"},
    "blocksworld_text": {"blocks": 3, "view": "text"},
    "blocksworld_1d": {"blocks": 3, "view": "1d"},
    "blocksworld_2d_sparse": {"blocks": 3, "view": "2d_sparse"},
}
_MOVE = re.compile(r"\(?\s*(?:move\s+)?(\d{1,3})\s*(?:to\b|>)\s*(\d{1,3})\s*\)?", re.IGNORECASE)
_MAX_DRAWS = 1_000  # pairs of states drawn until one has a plan within the budget


class BlocksworldEnv(TextEnv):
    """Move blocks until they stand as in the goal.

    Args:
        preset: Where `blocks` and `view` come from when they are not given; one of `PRESETS`.
        blocks: How many blocks, at least 2.
        view: "text", "1d" or "2d_sparse".
        reward: "success" or "grl".
        compact: Observations are the bare state and goal, and the expert writes `2>0`.
        max_turns: Replies an episode.
        max_actions_per_turn: Actions a reply.
        max_actions: Actions an episode.
        format_penalty: Added for a reply that cannot be read; see `Actions`.
        separator: Between actions; not "", as a move is more than a character.
        **kwargs: `split`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ValueError: On an unknown preset, view or reward, or a number out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}

    def __init__(
        self,
        preset: str = "blocksworld_4_text",
        blocks: int | None = None,
        view: str | None = None,
        reward: str = "success",
        compact: bool = False,
        max_turns: int = 11,
        max_actions_per_turn: int = 5,
        max_actions: int = 20,
        format_penalty: float | None = None,
        separator: str = "||",
        **kwargs: Any,
    ) -> None:
        super().__init__(max_turns=max_turns, **kwargs)
        settings = from_preset(PRESETS, preset, blocks=blocks, view=view)
        self.blocks: int = settings["blocks"]
        check_counts(blocks=self.blocks)
        if not 2 <= self.blocks <= 999:
            raise ValueError(f"blocks must be from 2 to 999, got {self.blocks}")
        check_choice("view", settings["view"], _VIEWS)
        if not separator.strip():
            raise ValueError(f"separator must not be blank, as moves contain spaces, got {separator!r}")
        self.show = _VIEWS[settings["view"]]
        self.actions = Actions(
            reward=reward,
            max_actions_per_turn=max_actions_per_turn,
            max_actions=max_actions,
            format_penalty=format_penalty,
            separator=separator,
            compact=compact,
            malformed_reward=-5.0,
        )
        self.max_steps = min(max_actions, max_turns * max_actions_per_turn)
        if kwargs.get("system_prompt") is None:
            self.system_prompt = (
                f"Solve the Blocksworld puzzle: bring blocks 1 to {self.blocks} from the current state to the goal. "
                "You can only move a block that has no other block on top of it. An action is (move X to Y): X is the "
                "block, and Y is 0 for the table or the block it goes onto, which must have nothing on top either. "
                + self.actions.rules(max_turns, ["(move 2 to 0)", "(move 1 to 2)"])
            )
        self.state: State
        self.goal: State

    def begin(self, options: Options) -> Opening:
        for _ in range(_MAX_DRAWS):
            self.state, self.goal = self._draw_state(), self._draw_state()
            if self.state != self.goal and (moves := plan(self.state, self.goal)) and len(moves) <= self.max_steps:
                break
        else:
            raise ValueError(f"no {self.blocks} blocks that {self.max_steps} moves bring to a goal; raise max_actions")
        self.actions.reset()
        return Opening(self.actions.opening(self.view()), task_id=f"{list(self.state)} to {list(self.goal)}")

    def _draw_state(self) -> State:
        """Blocks in random order, each onto the table or onto the top of a random stack."""
        below, tops = [0] * self.blocks, [0]
        for block in (self.rng.permutation(self.blocks) + 1).tolist():
            stack = int(self.rng.integers(len(tops)))
            below[block - 1] = tops[stack]
            if stack:
                tops[stack] = block
            else:
                tops.append(block)
        return tuple(below)

    def respond(self, action: str) -> Reply:
        return self.actions.play(action, self.read, self.act, self.view)

    def read(self, text: str) -> Move | None:
        """The move that a text names."""
        found = _MOVE.fullmatch(text)
        return None if found is None else (int(found[1]), int(found[2]))

    def act(self, move: Move) -> Outcome:
        """Execute a move."""
        why = refusal(self.state, move)
        if why:
            return Outcome({"move": -1.0}, refused=why)
        self.state = after(self.state, move)
        is_solved = self.state == self.goal
        return Outcome({"goal": 10.0} if is_solved else {"move": -1.0}, done=is_solved, success=is_solved)

    def view(self) -> str:
        """The state and the goal."""
        if self.actions.compact:
            return f"{self.show(self.state)}\n{self.show(self.goal)}"
        gap = "\n" if self.show is _drawing else " "
        return f"Current state:{gap}{self.show(self.state)}\nGoal state:{gap}{self.show(self.goal)}"

    def expert(self) -> str | None:
        """The next moves of a shortest plan, as many as fit in a reply."""
        moves = (plan(self.state, self.goal) or ())[: self.actions.max_actions_per_turn]
        if not moves:
            return None
        form = "{}>{}" if self.actions.compact else "(move {} to {})"
        return self.actions.write([form.format(*move) for move in moves])

    def state_key(self) -> str:
        """What each block stands on."""
        return str(self.state)

    def cost_to_go(self) -> float | None:
        """Moves of a shortest plan, None when the planner gives up."""
        moves = plan(self.state, self.goal)
        return None if moves is None else len(moves)


def _sentences(state: State) -> str:
    return " ".join(
        f"Block {block} is on {f'top of block {below}' if below else 'the table'}."
        for block, below in enumerate(state, start=1)
    )


def _list(state: State) -> str:
    return f"[{', '.join(map(str, state))}]"


def _drawing(state: State) -> str:
    """The stacks side by side, each block in a box of its own."""
    above = {below: block for block, below in enumerate(state, start=1) if below}
    stacks = []
    for block, below in enumerate(state, start=1):
        if below == 0:
            stack = [block]
            while stack[-1] in above:
                stack.append(above[stack[-1]])
            stacks.append(stack)
    widths = [max(len(str(block)) for block in stack) + 2 for stack in stacks]
    lines = []
    for level in reversed(range(max(map(len, stacks)))):
        labels = [str(stack[level]) if level < len(stack) else "" for stack in stacks]
        for form in (lambda label: f" {'_' * len(label)} ", "|{}|".format, lambda label: f" {'¯' * len(label)} "):
            cells = [(form(label) if label else "").ljust(width) for label, width in zip(labels, widths)]
            lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)


_VIEWS = {"text": _sentences, "1d": _list, "2d_sparse": _drawing}
make_vec = functools.partial(TextVectorEnv, BlocksworldEnv)
