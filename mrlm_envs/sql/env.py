"""SQL: a question about a database, answered by a query that is run, never by its text.

| | |
| --- | --- |
| id | `mrlm/SQL-v0` |
| observation | schema, question and a hint at reset; after a wrong query, its error or the first rows of its result |
| action | any text; the query is its last ```` ```sql ```` block, else the last fence, else `<answer>…</answer>` |
| reward | 1.0 when the query's result is the gold query's, else 0.0 |
| terminated | solved, or after `max_turns` queries |
| task id | schema and text of a generated question; database and row of a dataset |
| expert | always: the gold query |

Generated questions are about eight schemas of three tables, with foreign keys, skewed references and missing values;
fifteen kinds of gold queries go from a filter to joins, grouping, nesting and windows. Every query is run on six
databases of the schema and has to be right on all of them, so one that is right on the shown one by chance is caught.

Results are compared as BIRD does (Li et al., 2023, arXiv:2305.03111): as sets of rows, and as lists where the gold
query orders its result. NULL equals NULL, 1 equals 1.0. A query runs in `mrlm_envs.sandbox`, read-only: ATTACH, PRAGMA,
writing, schema tables, extensions and random numbers are refused. The clock is not, as BIRD's gold queries read it; the
result of a query that does is the one thing that may differ when an episode is replayed.

With `tasks`, questions come from BIRD's or Spider's own file (rows with `question`, `db_id`, and `SQL` or `query`;
`evidence` is optional) about the files `<databases>/<db_id>/<db_id>.sqlite`. Such a question has one database, so
a query can be right by chance, or print a result that a preview has shown. A file of more than 3 MB is read by a
process without the sandbox's isolation, read-only, by the same rules.

Parameters: `kinds` (names in `mrlm_envs.sql.questions.KINDS`), `difficulty=(lo, hi)` of 1 to 3, `schemas`, `tasks`,
`databases`, `reward` ("success", or "grl": half as much each turn, and -0.5 and the end for a reply without a query),
`feedback` ("preview", "error", "none"), `preview_rows`, `timeout_s` for each database, `memory_mb`, `sandbox`; and
those of every environment: `split`, `max_turns` (1), `max_length`, `system_prompt`, `render_mode`. Needs `mrlm[sql]`.

Version history: v0, first release.
"""

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mrlm_envs import answers
from mrlm_envs.core import EnvFault, Opening, Options, Reply, TextEnv
from mrlm_envs.sandbox import Sandbox, SandboxFault, SandboxUnavailable
from mrlm_envs.sandbox.sandbox import Backend
from mrlm_envs.sql import execute, parsing, schemas
from mrlm_envs.sql.questions import KINDS, Question, generate
from mrlm_envs.tasks import Row, Source, check_choice, check_counts, check_range, text_field
from mrlm_envs.vector import TextVectorEnv

_MAX_CELL = 60  # characters of a value in a preview
_MAX_COLUMNS = 40  # of a preview


class SQLEnv(TextEnv):
    """Answer a question by an SQL query.

    Args:
        kinds: Kinds of generated questions; all those of the difficulty by default.
        difficulty: Lowest and highest level of generated questions, within 1 to 3.
        schemas: Names of generated schemas; all of them by default.
        tasks: BIRD's or Spider's rows in place of generated questions.
        databases: The folder with the databases of `tasks`.
        reward: "success" or "grl".
        feedback: After a wrong query: "preview" shows the error or the first rows, "error" the error alone, "none"
            neither.
        preview_rows: Rows of a preview.
        timeout_s: Seconds for a query on each database.
        memory_mb: Memory of the process that runs it.
        sandbox: As in `mrlm/Code-v0`.
        **kwargs: `split`, `max_turns`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ModuleNotFoundError: The extra is not installed.
        ValueError: On a value out of range, or a row that does not fit.
        SandboxUnavailable: No isolation works here.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}
    system_prompt = "Answer the question with one SQLite query. Put it into a ```sql block."

    def __init__(
        self,
        kinds: Sequence[str] | None = None,
        difficulty: Sequence[int] = (1, 2),
        schemas: Sequence[str] | None = None,
        tasks: Source | None = None,
        databases: str | None = None,
        reward: str = "success",
        feedback: str = "preview",
        preview_rows: int = 5,
        timeout_s: float = 2.0,
        memory_mb: int = 256,
        sandbox: Backend = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("reward", reward, ("success", "grl"))
        check_choice("feedback", feedback, _FEEDBACK)
        if not 0 < timeout_s <= 600:
            raise ValueError(f"timeout_s must be above 0 and at most 600, got {timeout_s!r}")
        check_counts(memory_mb=memory_mb)
        if not isinstance(preview_rows, int) or preview_rows < 0:
            raise ValueError(f"preview_rows must be a whole number of at least 0, got {preview_rows!r}")
        if (tasks is None) != (databases is None):
            raise ValueError("tasks and databases go together: the rows, and the folder of their SQLite files")
        if importlib.util.find_spec("sqlglot") is None:
            raise ModuleNotFoundError('mrlm/SQL-v0 needs sqlglot; pip install "mrlm[sql]"', name="sqlglot")
        low, high = check_range(list(KINDS) if kinds is None else kinds, difficulty, KINDS, 3)
        self.kinds = tuple(kinds or (name for name, kind in KINDS.items() if low <= kind.level <= high))
        self.schemas = _SCHEMA_NAMES if schemas is None else tuple(schemas)
        if not self.schemas or not set(self.schemas) <= set(_SCHEMA_NAMES):
            raise ValueError(f"schemas must be some of {', '.join(_SCHEMA_NAMES)}, got {schemas!r}")
        self.reward, self.feedback, self.preview_rows = reward, feedback, preview_rows
        self.timeout_s, self.memory_mb = float(timeout_s), memory_mb
        self.backend: Backend = sandbox
        self.read_tasks(tasks, _parser(str(Path(databases or "").expanduser())))
        Sandbox.shared(sandbox).start()
        self.question: Question

    def begin(self, options: Options) -> Opening:
        row = self.picked(options)
        self.question = self._judged(row) if row else generate(self.rng, self.kinds, self.schemas)
        hint = f"\nHint: {self.question.evidence}" if self.question.evidence else ""
        text = f"Schema:\n{self.question.schema}\n\nQuestion: {self.question.text}{hint}"
        return Opening(text, self.question.task_id, info=self.question.drawn_as)

    def _judged(self, row: "_Task") -> Question:
        """A dataset's row with the result of its gold query."""
        try:
            gold = execute.expected_rows(row.path, row.sql, max(30.0, self.timeout_s), 2048, self.backend)
        except (EnvFault, SandboxFault, SandboxUnavailable) as fault:
            raise EnvFault(f"the gold query of task {row.task_id} fails: {fault}") from fault
        return Question(
            row.task_id, row.text, row.evidence, row.sql, execute.schema_of(row.path), (execute.image(row.path),),
            (gold,), 0, parsing.orders(row.sql),
        )  # fmt: skip

    def respond(self, action: str) -> Reply:
        query = query_in(action)
        if query is None:
            text = "I found no query. Put it into a ```sql block."
            rewards, done = ({"format": -0.5}, True) if self.reward == "grl" else ({}, False)
            return Reply(text, rewards, done=done, info={"action_valid": False})
        question = self.question
        try:
            tables = execute.run(question.databases, query, self.timeout_s, self.memory_mb, self.backend)
        except (SandboxFault, SandboxUnavailable) as fault:
            raise EnvFault(str(fault)) from fault
        wrong = next((table.error for table in tables if table.error), "")
        judged = zip(tables, question.expected)
        if not wrong and all(execute.same(table.rows, gold, question.ordered) for table, gold in judged):
            worth = 0.5 ** (self.turn - 1) if self.reward == "grl" else 1.0
            return Reply("The result is right.", {"result": worth}, done=True, success=True)
        if wrong:
            said = parsing.explain(query, wrong) if self.feedback != "none" else "The query failed."
            return Reply(said, info={"action_valid": not parsing.is_syntax(wrong)})
        text = "The query runs, but its result is not the right one."
        if self.feedback == "preview":
            text += "\n" + preview(tables[question.shown], self.preview_rows)
        return Reply(text)

    def expert(self) -> str:
        """The gold query."""
        return f"```sql\n{self.question.sql}\n```"


def query_in(reply: str) -> str | None:
    """The query in a reply, None when there is none."""
    reply = answers.after_thinking(reply)
    fences = _FENCE.findall(reply)
    tagged = [body for language, body in fences if language.lower() in ("sql", "sqlite")]
    if fences:
        found = (tagged or [body for _, body in fences])[-1]
    else:
        found = answers.tag(reply) or (reply if reply.lstrip()[:6].upper().startswith(("SELECT", "WITH")) else "")
    return found.strip().rstrip("; \n\t") or None


_FENCE = re.compile(r"```[ \t]*([A-Za-z]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_FEEDBACK = ("preview", "error", "none")
_SCHEMA_NAMES = tuple(schemas.SCHEMAS)


def preview(table: execute.Table, rows: int) -> str:
    """The first rows of a result, as lines."""
    shown = [table.columns, *table.rows[:rows]]
    lines = [" | ".join("NULL" if v is None else str(v)[:_MAX_CELL] for v in row[:_MAX_COLUMNS]) for row in shown]
    more = len(table.columns) - _MAX_COLUMNS
    note = f", {more} more column{'s' * (more != 1)}" if more > 0 else ""
    return "\n".join([*lines, f"({len(table.rows)} row{'s' * (len(table.rows) != 1)}{note})"])


class _Task:
    """A dataset's row, about a database in a folder."""

    def __init__(self, folder: str, row: Row, number: int, source: str) -> None:
        where = f"tasks {source}, row {number}"
        self.text, name = text_field(row, "question", where), text_field(row, "db_id", where)
        self.sql = text_field(row, "query" if "query" in row and "SQL" not in row else "SQL", where).rstrip(";")
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"{where}: db_id {name!r} is not the name of a database")
        self.task_id = f"{name}/{row.get('question_id', number)}"
        self.evidence, self.path = str(row.get("evidence") or ""), str(Path(folder) / name / f"{name}.sqlite")


@functools.cache  # `Tasks` shares what one parser has read
def _parser(folder: str) -> Callable[[Row, int, str], _Task]:
    return functools.partial(_Task, folder)


make_vec = functools.partial(TextVectorEnv, SQLEnv)
