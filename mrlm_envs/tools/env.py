"""ToolUse: a task that needs tools, and a conversation with them.

| | |
| --- | --- |
| id | `mrlm/ToolUse-v0` |
| observation | the task at reset; then what the tools said (`info["role"]` is "tool"), or what was wrong with a call |
| action | any text; the calls in it are made (formats: `mrlm_envs.tools.calls`), without one it is the final answer |
| reward | 1.0 for the right answer or the right files at the end, else 0.0; less `extra_call_cost` for calls too many |
| terminated | answered, right or wrong, or after `max_turns` replies |
| task id | the content of a generated task; the row's id in a dataset |
| expert | always: the reference calls, then the answer |

`info["tools"]` at reset has the OpenAI schemas, which a chat template takes. The answer is read as
`mrlm_envs.answers.extract` does, first of all from `<answer>…</answer>`; a reply with a call in it is not one. A call
that cannot be read, or does not fit its tool, is answered by an error that says how to call, and never raises;
`info["action_valid"]` is then False. With several calls in a reply their results come in order, numbered; a reply with
more than `max_calls_per_turn` makes none. `info["calls"]` counts the calls made.

| parameter | default | meaning |
| --- | --- | --- |
| `kinds` | None | generators to draw from, see below; by default all whose tools are there |
| `difficulty` | (1, 3) | lowest and highest difficulty of generated tasks, within 1 to 5 |
| `tools` | None | what the agent may call; by default what the kinds need |
| `tasks` | None | tasks of your own instead of generated ones (`mrlm_envs.tools.tasks.task`) |
| `corpus` | None | pages of your own for "knowledge", with `tasks`: rows of `title` and `text` |
| `call_format` | "auto" | allow one format ("hermes", "llama", "pythonic", "react") instead of all |
| `max_calls_per_turn` | 4 | calls in one reply |
| `extra_call_cost` | 0.0 | taken off the reward for each call beyond the reference's number |
| `show_tools` | True | put the schemas into `info["tools"]` |
| `sandbox` | "auto" | how the Python tool is isolated (`mrlm_envs.sandbox`) |
| `timeout_s` | 5.0 | seconds for one call of the Python tool or of an MCP server |
| `max_turns` | 12 | replies, the final answer included |
| `split` | "train" | "train", "test" or "all" |
| `max_length` | 65536 | characters of an action; longer ones are truncated |
| `system_prompt` | None | replaces the built-in system prompt |
| `render_mode` | None | "ansi" makes `render()` return the conversation so far |

The reset option `task_id` picks a task of `tasks`. The kinds of generated tasks, made so that guessing and mental
arithmetic do not solve them:

- "calculator": arithmetic that is too long to do in one's head;
- "lookup": chains of up to five look-ups in a generated encyclopedia of some three thousand interlinked pages;
- "python": computations for a few lines of code, some in two steps that share variables;
- "files": edits of a virtual file system with a checkable end state;
- "mixed": two look-ups, a calculation and a file.

`tools` takes names of `mrlm_envs.tools.toolbox.BUILT_IN`, `"module:function"`, `{"mcp": {"command": …}}` and
`{"mcp": {"url": …}}`. `show_tools=False` and `system_prompt=""` make short prompts for small models that are trained on
the reference. Needs the `tools` extra; "python" needs Linux (`mrlm_envs.sandbox`).

An episode replays to the same bytes unless a program asks for the clock; with tools of your own it is not promised
(`metadata["deterministic"]` is then False).

Version history: v0, first release.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from gymnasium.utils import EzPickle

from mrlm_envs import answers
from mrlm_envs.core import EnvFault, Opening, Options, Reply, TextEnv
from mrlm_envs.sandbox.sandbox import Backend
from mrlm_envs.tasks import Source, check_amounts, check_choice, check_counts, check_range
from mrlm_envs.tools.calls import FORMATS, HOW, MAX_CALLS, Call, Entry, Malformed, parse, render
from mrlm_envs.tools.filesystem import VirtualFiles
from mrlm_envs.tools.registry import Outcome
from mrlm_envs.tools.task import Task
from mrlm_envs.tools.tasks import HIGHEST, KINDS, generate, task
from mrlm_envs.tools.toolbox import BUILT_IN, ToolLike, build, check_tools
from mrlm_envs.vector import TextVectorEnv

_MAX_DRAWS = 500  # until a generated task fits into max_turns


class ToolUseEnv(TextEnv, EzPickle):
    """Solve a task with tools; see the module docstring.

    Args:
        kinds: Names of generators to draw from; all whose tools are there by default.
        difficulty: Lowest and highest difficulty of generated tasks, within 1 to 5.
        tools: What the agent may call; what the kinds need by default.
        tasks: A finite source of tasks instead of the generators.
        corpus: Pages for the knowledge tool (with `tasks`): a path, or a list of rows of `title` and `text`.
        call_format: "auto", "hermes", "llama", "pythonic" or "react".
        max_calls_per_turn: Most calls in one reply.
        extra_call_cost: Taken off the reward for each call beyond the reference's number.
        show_tools: Put the schemas into `info["tools"]`.
        sandbox: How the Python tool is isolated.
        timeout_s: Seconds for one call of the Python tool or of an MCP server.
        max_turns: Most replies, the final answer included.
        **kwargs: `split`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ValueError: On a value out of range, an unknown name, a kind without its tools, or a row that does not fit.
        SandboxUnavailable: The Python tool is wanted, and no isolation works here.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}

    def __init__(
        self,
        kinds: Sequence[str] | None = None,
        difficulty: Sequence[int] = (1, 3),
        tools: Sequence[ToolLike] | None = None,
        tasks: Source | None = None,
        corpus: Source | None = None,
        call_format: str = "auto",
        max_calls_per_turn: int = 4,
        extra_call_cost: float = 0.0,
        show_tools: bool = True,
        sandbox: Backend = "auto",
        timeout_s: float = 5.0,
        max_turns: int = 12,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        EzPickle.__init__(self, **given, **kwargs)  # a copy starts its own processes
        check_choice("call_format", call_format, FORMATS)
        check_counts(max_calls_per_turn=max_calls_per_turn)
        if max_calls_per_turn >= MAX_CALLS:
            raise ValueError(f"max_calls_per_turn must be below {MAX_CALLS}, got {max_calls_per_turn}")
        check_amounts(extra_call_cost=extra_call_cost)
        self.system_prompt = SYSTEM_PROMPT.format(how=HOW[call_format])
        super().__init__(max_turns=max_turns, **kwargs)
        self.call_format, self.max_calls_per_turn = call_format, max_calls_per_turn
        self.extra_call_cost, self.show_tools = extra_call_cost, show_tools
        self.read_tasks(tasks, task)
        self.kinds, chosen = _choose(kinds, tools, tasks is not None, corpus is not None)
        rows = () if self.tasks is None else self.tasks.rows
        if "files" not in chosen and any(row.files_after not in (None, row.files) for row in rows):
            raise ValueError(f'tasks with files_after take the tool "files", got tools={list(chosen)!r}; add it')
        self.difficulty = check_range(self.kinds or tuple(KINDS), difficulty, KINDS, HIGHEST)
        self.files = VirtualFiles()
        self.registry = build(chosen, self.files, corpus, sandbox, timeout_s)
        if any(entry not in BUILT_IN for entry in chosen):
            self.metadata = {**self.metadata, "deterministic": False}  # pyright: ignore[reportAttributeAccessIssue]
        if call_format == "pythonic":
            for name in self.registry.names:
                render([Call(name, {})], "pythonic")  # raises for a name that no reply could call
        self.task: Task

    def begin(self, options: Options) -> Opening:
        self.task = self.picked(options) or self._generate()
        self.calls = 0
        self.files.fill(self.task.files)
        self.registry.reset(self.episode_seed)
        tools = self.registry.schemas() if self.show_tools else None
        return Opening(self.task.question, self.task.task_id, tools, self.task.drawn_as)

    def _generate(self) -> Task:
        for _ in range(_MAX_DRAWS):
            self.task = generate(self.rng, self.kinds, self.difficulty)
            if len(self._reference()) < self.max_turns:
                return self.task
        raise ValueError(f"max_turns={self.max_turns} is too few for tasks of {', '.join(self.kinds)}; raise it")

    def respond(self, action: str) -> Reply:
        entries = parse(action, self.call_format)
        try:
            reply = self._call(entries) if entries else self._finish(action)
        except EnvFault:  # it ends the episode
            self.registry.close()
            raise
        if reply.done or self.turn >= self.max_turns:
            self.registry.close()
        return reply

    def _call(self, entries: Sequence[Entry]) -> Reply:
        if len(entries) > self.max_calls_per_turn:
            text = f"error: {len(entries)} calls in one reply, and none was made; at most {self.max_calls_per_turn}"
            return Reply(text, role="tool", info={"action_valid": False, "calls": self.calls})
        outcomes = [self._outcome(entry) for entry in entries]
        texts = [outcome.text for outcome in outcomes]
        text = texts[0] if len(texts) == 1 else "\n".join(f"[{i}] {text}" for i, text in enumerate(texts, start=1))
        valid = all(outcome.valid for outcome in outcomes)
        return Reply(text, role="tool", info={"action_valid": valid, "calls": self.calls})

    def _outcome(self, entry: Entry) -> Outcome:
        if isinstance(entry, Malformed):
            text = f"error: {entry.problem}. To call a tool, write {HOW[self.call_format]}"
            return Outcome(text, valid=False)
        self.calls += 1
        return self.registry.call(entry.name, entry.arguments)

    def _finish(self, action: str) -> Reply:
        solved = self.task.solved(action, self.files.files)
        if not solved and answers.extract(action) is None:
            text = (
                f"I found neither a call nor an answer. To call a tool, write {HOW[self.call_format]}; "
                "to answer, write <answer>ANSWER</answer>. What stands inside <think> is not read."
            )
            return Reply(text, info={"action_valid": False, "calls": self.calls})
        rewards = {"solved": float(solved)}
        if self.extra_call_cost:
            needed = sum(map(len, self.task.turns))
            rewards["extra_calls"] = -self.extra_call_cost * max(0, self.calls - needed)
        return Reply("Correct." if solved else "That is not right.", rewards, True, solved, info={"calls": self.calls})

    def _reference(self) -> list[tuple[Call, ...]]:
        """The reference's calls by turn, no more in a turn than are allowed."""
        most = self.max_calls_per_turn
        return [turn[i : i + most] for turn in self.task.turns for i in range(0, len(turn), most)]

    def expert(self) -> str:
        """The reference calls of the current turn, or the answer after them."""
        reference = self._reference()
        if self.turn < len(reference):
            return render(reference[self.turn], self.call_format)
        return f"<answer>{self.task.answer or 'done'}</answer>"

    def close(self) -> None:
        """Release what the tools hold."""
        self.registry.close()


SYSTEM_PROMPT = (
    "Solve the task with the tools. Unless you were told another way, call a tool by writing {how}; you get its result "
    "and can go on. When you are done, write the final answer as <answer>ANSWER</answer>."
)


def _choose(
    kinds: Sequence[str] | None, tools: Sequence[ToolLike] | None, has_tasks: bool, has_corpus: bool
) -> tuple[tuple[str, ...], Sequence[ToolLike]]:
    """The kinds to draw from and the tools to offer.

    Raises:
        ValueError: A kind lacks a tool, or nothing is left to draw.
    """
    if tools is not None:
        check_tools(tools)
    if has_tasks:
        return (), BUILT_IN if tools is None else tools
    if has_corpus:
        raise ValueError("corpus goes with tasks of your own: the generated tasks ask about the package's pages")
    if kinds is not None:
        check_range(kinds, (1, 1), KINDS, HIGHEST)
    if tools is None:
        chosen = tuple(KINDS if kinds is None else kinds)
        return chosen, [name for name in BUILT_IN if any(name in KINDS[kind].needs for kind in chosen)]
    fitting = tuple(name for name, kind in KINDS.items() if all(need in tools for need in kind.needs))
    if kinds is None and not fitting:
        raise ValueError(f"no kind of generated task does with tools={list(tools)!r}; add built-in ones or give tasks")
    for kind in kinds or ():
        if kind not in fitting:
            raise ValueError(f"kind {kind!r} needs the tools {', '.join(KINDS[kind].needs)}; add them to tools")
    return tuple(kinds or fitting), tools


make_vec = functools.partial(TextVectorEnv, ToolUseEnv)
