"""Sokoban: push every box onto a target, in rooms that can always be solved.

| | |
| --- | --- |
| id | `mrlm/Sokoban-v0` |
| observation | the room, and the actions left; after a turn also what was executed and what was refused and why |
| action | `<answer>Up</answer>`, or several of Up, Down, Left, Right (or U, D, L, R), with the separator between them |
| reward | 1.0 for the solved room, else 0.0; with `reward="grl"` -0.1 an action, +1 for a box pushed onto a target, \
-1 off it, +10 for the solved room, -0.1 for a reply that cannot be read |
| terminated | solved, or after `max_turns` replies or `max_actions` actions |
| task id | the room as it is at the start |
| expert | always: an optimal solution |

Rooms are made by reverse play (`mrlm_envs.games.rooms`): the opening is drawn from the farther half of the states
that `search_depth` steps solve, or fewer steps if the budget of actions and turns is smaller. `state_key()` is the
room as it stands. `cost_to_go()` is exact; it is None when reverse play stops at 50,000 states before it meets the
present one. An episode goes on when its room can no longer be solved, and its last observation says so.

Parameters: `preset`, "simple_sokoban" (6×6, one box, search depth 100; the default) or "large_sokoban" (8×8, one box,
depth 30); `dim`, `boxes` and `search_depth` override it. `symbols`: seven characters for wall, floor, target, box on
target, box, player and player on target. `reward`, `max_actions_per_turn` (5), `max_actions` (10), `format_penalty`,
`separator` and `compact` are those of `mrlm_envs.actions.Actions`; `max_turns` (6), `split`, `max_length`,
`system_prompt` and `render_mode` those of every environment. The presets, symbols, budgets and the "grl" reward are
GRL's (lmgame-org); its rooms may need more actions than an episode has, these never do.

Version history: v0, first release.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from mrlm_envs.actions import Actions, Outcome, board, from_preset
from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_envs.games.rooms import Room, State, draw_room
from mrlm_envs.tasks import check_counts
from mrlm_envs.vector import TextVectorEnv

PRESETS: dict[str, dict[str, Any]] = {
    "simple_sokoban": {"dim": (6, 6), "boxes": 1, "search_depth": 100},
    "large_sokoban": {"dim": (8, 8), "boxes": 1, "search_depth": 30},
}
MOVES = {name: move for move in ("Up", "Down", "Left", "Right") for name in (move.lower(), move[0].lower())}
_MEANINGS = ("wall", "floor", "target", "box on target", "box", "you", "you on target")
_MAX_DRAWS = 1_000  # rooms dug until one fits


class SokobanEnv(TextEnv):
    """Push every box onto a target.

    Args:
        preset: Where `dim`, `boxes` and `search_depth` come from when they are not given; one of `PRESETS`.
        dim: Rows and columns, the outer walls included; an integer for a square room.
        boxes: How many boxes, and targets.
        search_depth: Most steps of reverse play, so of an optimal solution.
        symbols: Seven different characters: wall, floor, target, box on target, box, player, player on target.
        reward: "success" or "grl".
        compact: Observations are the bare room without its border, and the expert writes bare letters.
        max_turns: Replies an episode.
        max_actions_per_turn: Actions a reply.
        max_actions: Actions an episode.
        format_penalty: Added for a reply that cannot be read; see `Actions`.
        separator: Between actions; "" makes every character an action.
        **kwargs: `split`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ValueError: On an unknown preset or reward, or a size out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}

    def __init__(
        self,
        preset: str = "simple_sokoban",
        dim: int | Sequence[int] | None = None,
        boxes: int | None = None,
        search_depth: int | None = None,
        symbols: str = "#_O√XPS",
        reward: str = "success",
        compact: bool = False,
        max_turns: int = 6,
        max_actions_per_turn: int = 5,
        max_actions: int = 10,
        format_penalty: float | None = None,
        separator: str = "||",
        **kwargs: Any,
    ) -> None:
        super().__init__(max_turns=max_turns, **kwargs)
        settings = from_preset(PRESETS, preset, dim=dim, boxes=boxes, search_depth=search_depth)
        self.height, self.width = board(settings["dim"], 4, 4)
        self.boxes, self.symbols = settings["boxes"], symbols
        check_counts(boxes=self.boxes, search_depth=settings["search_depth"])
        if len(set(symbols)) != len(symbols) or len(symbols) != len(_MEANINGS):
            raise ValueError(f"symbols must be {len(_MEANINGS)} different characters, got {symbols!r}")
        self.actions = Actions(
            reward=reward,
            max_actions_per_turn=max_actions_per_turn,
            max_actions=max_actions,
            format_penalty=format_penalty,
            separator=separator,
            compact=compact,
            keys={"w": "Up", "s": "Down", "a": "Left", "d": "Right"},
        )
        self.max_steps = min(settings["search_depth"], max_actions, max_turns * max_actions_per_turn)
        if kwargs.get("system_prompt") is None:
            legend = ", ".join(f"{symbol} {meaning}" for symbol, meaning in zip(symbols, _MEANINGS))
            self.system_prompt = (
                "Solve the Sokoban puzzle: push every box onto a target. You push a box by moving against it; you "
                f"cannot pull it, nor push it into a wall or another box. Symbols: {legend}. "
                f"Actions: Up, Down, Left, Right. {self.actions.rules(max_turns, ['Right', 'Right', 'Up'])}"
            )
        self.room: Room
        self.state: State
        self._distances: dict[State, int]

    def begin(self, options: Options) -> Opening:
        for _ in range(_MAX_DRAWS):
            drawn = draw_room(self.rng, self.height, self.width, self.boxes, self.max_steps)
            if drawn is not None:
                break
        else:
            raise ValueError(
                f"no room of {self.height}×{self.width} with {self.boxes} boxes that {self.max_steps} steps solve; "
                "raise dim or max_actions, or lower boxes"
            )
        self.room, self.state, self._distances = drawn
        self._is_complete = False  # reverse play has found every state that can be solved
        self.actions.reset()
        room = self.room.draw(self.state, "W_O√XPS")  # no "#", behind which a task id does not count for the split
        return Opening(self.actions.opening(self.view()), task_id=room)

    def respond(self, action: str) -> Reply:
        reply = self.actions.play(action, self.read, self.act, self.view)
        is_over = reply.done or self.is_last_turn
        if is_over and not reply.success and not self.actions.compact and self.cost_to_go() == math.inf:
            reply.text += "\nThe room could no longer be solved: a box was stuck."
        return reply

    def read(self, text: str) -> str | None:
        """The move that a text names."""
        return MOVES.get(text.lower())

    def act(self, move: str) -> Outcome:
        """Execute a move."""
        state = self.room.after(self.state, move)
        if state is None:
            return Outcome({"step": -0.1}, refused="the way is blocked")
        gained = (state[1] & self.room.targets).bit_count() - (self.state[1] & self.room.targets).bit_count()
        self.state = state
        is_solved = state[1] == self.room.targets
        return Outcome(
            {"step": -0.1, "box": float(gained), "solved": 10.0 * is_solved}, done=is_solved, success=is_solved
        )

    def view(self) -> str:
        """The room as it stands; the compact view leaves out the border, which is all wall."""
        drawn = self.room.draw(self.state, self.symbols)
        return "\n".join(row[1:-1] for row in drawn.split("\n")[1:-1]) if self.actions.compact else drawn

    def expert(self) -> str | None:
        """The next moves of an optimal solution, as many as fit in a reply; None when there is none."""
        left = self.cost_to_go()
        if left is None or left == math.inf:
            return None
        moves, state = [], self.state
        while state[1] != self.room.targets and len(moves) < self.actions.max_actions_per_turn:
            after = {move: self.room.after(state, move) for move in self.room.moves}
            reached = [(move, state) for move, state in after.items() if state is not None]
            move, state = min(reached, key=lambda step: self._distances.get(step[1], math.inf))
            moves.append(move)
        return self.actions.write([move[0] for move in moves] if self.actions.compact else moves)

    def state_key(self) -> str:
        """The room as it stands."""
        return self.view()

    def cost_to_go(self) -> float | None:
        """Moves to the nearest solution; None when it lies beyond the bound of reverse play."""
        if self.state not in self._distances and not self._is_complete:
            found, self._is_complete = self.room.distances()
            if self._is_complete or self.state in found:
                self._distances = found
        distance = self._distances.get(self.state)
        return distance if distance is not None else math.inf if self._is_complete else None


make_vec = functools.partial(TextVectorEnv, SokobanEnv)
