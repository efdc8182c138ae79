"""Tetris, simplified as in GRL: fill one row of a small board with pieces that do not turn.

| | |
| --- | --- |
| id | `mrlm/Tetris-v0` |
| observation | the board, and the actions left; after a turn also what was executed and what was refused and why |
| action | `<answer>Left</answer>`, or several of Left, Right, Down (or L, R, D), with the separator between them |
| reward | 1.0 for the first `lines` lines cleared, else 0.0; with `reward="grl"` -0.1 an action, +10 a line, \
-0.1 for a reply that cannot be read |
| terminated | solved, the stack has reached the top row, or after `max_turns` replies or `max_actions` actions |
| task id | the board and the sequence of pieces |
| expert | always: a shortest solution |

One piece falls at a time, a row for each Down (with `gravity` also after each Left and Right), and stays where it
cannot fall further. The seed draws at most as many pieces, with their columns, as the board is wide: those that the
shortest solution needs, so no two ids differ in pieces that never come; then the sequence begins again. Tasks that the
search cannot solve within the budget of actions and turns are redrawn. The search is breadth first over positions and
gives up at 50,000: `cost_to_go()` is exact below that and None above, and a board such as 20×10 is refused at reset. It
knows the pieces to come, which the agent does not see. `state_key()` is the board with the falling piece, its place in
the sequence and the lines cleared.

Parameters: `preset`, "tetris_4x5" (4 rows, 5 columns, dots; the default), "tetris_type_1_dim_4" (4×4, dots),
"tetris_type_2_dim_4" (4×4, upright and flat dominoes) or "tetris_type_2_dim_3" (3×3, dominoes); `dim` (rows and
columns) and `pieces` (names of `stacking.SHAPES`) override it. `lines` (1) to clear; `gravity` (off); `symbols`: three
characters for empty, filled and the falling piece. `reward`, `max_actions_per_turn` (5), `max_actions` (40),
`format_penalty`, `separator` and `compact` are those of `mrlm_envs.actions.Actions`; `max_turns` (11), `split`,
`max_length`, `system_prompt` and `render_mode` those of every environment. The other presets, symbols, budgets and the
"grl" reward are GRL's (lmgame-org), whose sequence of pieces does not repeat. GRL's boards hold fewer than 100 tasks a
split, and a constant reply wins about a quarter of them; hence the wider default.

Version history: v0, first release.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from mrlm_envs.actions import Actions, Outcome, board, from_preset
from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_envs.games.stacking import ACTIONS, SHAPES, Game, Position, solve
from mrlm_envs.tasks import check_counts
from mrlm_envs.vector import TextVectorEnv

PRESETS: dict[str, dict[str, Any]] = {
    "tetris_4x5": {"dim": (4, 5), "pieces": ("dot",)},
    "tetris_type_1_dim_4": {"dim": (4, 4), "pieces": ("dot",)},
    "tetris_type_2_dim_4": {"dim": (4, 4), "pieces": ("upright", "flat")},
    "tetris_type_2_dim_3": {"dim": (3, 3), "pieces": ("upright", "flat")},
}
MOVES = {name: move for move in ACTIONS for name in (move.lower(), move[0].lower())}
_MAX_DRAWS = 1_000  # sequences drawn until one can be solved
_MAX_GIVEN_UP = 200  # of them, on which the search gives up: at most half a second each


class TetrisEnv(TextEnv):
    """Fill a row of the board.

    Args:
        preset: Where `dim` and `pieces` come from when they are not given; one of `PRESETS`.
        dim: Rows and columns of the board; an integer for a square one.
        pieces: Names of shapes: "dot", "upright", "flat", "square".
        lines: Lines to clear.
        gravity: The piece also falls by one row after each move to the left or the right.
        symbols: Three different characters: empty, filled, falling piece.
        reward: "success" or "grl".
        compact: Observations are the bare board and the expert writes bare letters.
        max_turns: Replies an episode.
        max_actions_per_turn: Actions a reply.
        max_actions: Actions an episode.
        format_penalty: Added for a reply that cannot be read; see `Actions`.
        separator: Between actions; "" makes every character an action.
        **kwargs: `split`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ValueError: On an unknown preset, piece or reward, or a size out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}

    def __init__(
        self,
        preset: str = "tetris_4x5",
        dim: int | Sequence[int] | None = None,
        pieces: Sequence[str] | None = None,
        lines: int = 1,
        gravity: bool = False,
        symbols: str = "_#X",
        reward: str = "success",
        compact: bool = False,
        max_turns: int = 11,
        max_actions_per_turn: int = 5,
        max_actions: int = 40,
        format_penalty: float | None = None,
        separator: str = "||",
        **kwargs: Any,
    ) -> None:
        super().__init__(max_turns=max_turns, **kwargs)
        settings = from_preset(PRESETS, preset, dim=dim, pieces=pieces)
        self.height, self.width = board(settings["dim"], 3, 2)
        self.pieces, self.lines, self.gravity, self.symbols = tuple(settings["pieces"]), lines, gravity, symbols
        if not self.pieces or not set(self.pieces) <= set(SHAPES):
            raise ValueError(f"pieces must be among {', '.join(SHAPES)}, got {list(self.pieces)}")
        check_counts(lines=lines)
        if len(set(symbols)) != 3 or len(symbols) != 3:
            raise ValueError(f"symbols must be 3 different characters, got {symbols!r}")
        self.actions = Actions(
            reward=reward,
            max_actions_per_turn=max_actions_per_turn,
            max_actions=max_actions,
            format_penalty=format_penalty,
            separator=separator,
            compact=compact,
            keys={"a": "Left", "d": "Right", "s": "Down"},
        )
        self.max_steps = min(max_actions, max_turns * max_actions_per_turn)
        if kwargs.get("system_prompt") is None:
            falls = " The piece also falls by one row after each Left and Right." if gravity else ""
            self.system_prompt = (
                f"Play a simplified Tetris on a board of {self.height} rows and {self.width} columns. Pieces fall one "
                f"at a time from the top and do not turn; a piece stays where it cannot fall further.{falls} Fill "
                f"{'a row' if lines == 1 else f'{lines} rows'} before the stack reaches the top row. Symbols: "
                f"{symbols[0]} empty, {symbols[1]} filled, {symbols[2]} the falling piece. "
                f"Actions: Left, Right, Down. {self.actions.rules(max_turns, ['Left', 'Down', 'Down'])}"
            )
        self.game: Game
        self.position: Position

    def begin(self, options: Options) -> Opening:
        given_up = 0
        for _ in range(_MAX_DRAWS):
            shapes = [self.pieces[i] for i in self.rng.integers(len(self.pieces), size=self.width).tolist()]
            columns = [
                int(self.rng.integers(self.width - max(right for _, right in SHAPES[shape]))) for shape in shapes
            ]
            self.game = Game(self.width, self.height, tuple(zip(shapes, columns)), self.lines, self.gravity)
            self.position = self.game.start()
            plan, is_complete = solve(self.game, self.position)
            if plan is not None and len(plan) <= self.max_steps:
                self._keep_what_comes(plan)
                break
            given_up += plan is None and not is_complete
            if given_up == _MAX_GIVEN_UP:
                raise ValueError(f"dim {self.height}×{self.width} is too large for the search; choose a smaller one")
        else:
            raise ValueError(
                f"no sequence of {', '.join(self.pieces)} that {self.max_steps} actions solve on a board of "
                f"{self.height}×{self.width}; raise dim or max_actions, or choose other pieces"
            )
        self.is_lost = False
        self.actions.reset()
        sequence = " ".join(f"{shape}{column}" for shape, column in self.game.pieces)
        rules = f"{self.lines}{' gravity' if self.gravity else ''}"
        return Opening(self.actions.opening(self.view()), task_id=f"{self.height}×{self.width} {rules}: {sequence}")

    def _keep_what_comes(self, plan: Sequence[str]) -> None:
        """Cut the sequence of pieces behind the last one that a solution needs."""
        position, last = self.position, 0
        for move in plan:
            last = max(last, position.number)
            position, _ = self.game.after(position, move)
        self.game = dataclasses.replace(self.game, pieces=self.game.pieces[: last + 1])
        self.position = self.game.start()

    def respond(self, action: str) -> Reply:
        return self.actions.play(action, self.read, self.act, self.view)

    def read(self, text: str) -> str | None:
        """The move that a text names."""
        return MOVES.get(text.lower())

    def act(self, move: str) -> Outcome:
        """Execute a move."""
        before = self.position
        self.position, self.is_lost = self.game.after(before, move)
        cleared = self.position.lines - before.lines
        is_solved = self.position.lines >= self.lines
        return Outcome(
            {"step": -0.1, "lines": 10.0 * cleared},
            refused="the way is blocked" if self.position == before else "",
            done=is_solved or self.is_lost,
            success=is_solved,
        )

    def view(self) -> str:
        """The board with the falling piece."""
        filled, piece, *_ = self.position
        if self.is_over():
            piece = 0
        rows = [[self.game.cell(row, column) for column in range(self.width)] for row in range(self.height)]
        return "\n".join("".join(self.symbols[1 if filled & c else 2 if piece & c else 0] for c in row) for row in rows)

    def is_over(self) -> bool:
        """Whether no piece falls any more."""
        return self.is_lost or self.position.lines >= self.lines

    def expert(self) -> str | None:
        """The next actions of a shortest solution, as many as fit in a reply; None when there is none."""
        plan = () if self.is_over() else solve(self.game, self.position)[0]
        if not plan:
            return None
        moves = plan[: self.actions.max_actions_per_turn]
        return self.actions.write([move[0] for move in moves] if self.actions.compact else moves)

    def state_key(self) -> str:
        """The board with the falling piece, which piece of the sequence it is, and the lines cleared."""
        return f"{self.view()} {self.position.number} {self.position.lines}"

    def cost_to_go(self) -> float | None:
        """Actions of a shortest solution; None when the search gives up."""
        if self.is_over():
            return math.inf if self.is_lost else 0
        plan, is_complete = solve(self.game, self.position)
        return len(plan) if plan is not None else math.inf if is_complete else None


make_vec = functools.partial(TextVectorEnv, TetrisEnv)
