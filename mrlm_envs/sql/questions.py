"""Questions with their gold queries. `kinds.yaml` holds the kinds: each a sentence and a query over any schema.

A kind draws tables, columns and values and fills its sentence and query with them. Values come from a database, so
that they occur; a question is drawn again when its gold query gives the same result on every database, or none on the
one that is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrlm_envs import draws
from mrlm_envs.sql.execute import Rows, trusted_rows
from mrlm_envs.sql.schemas import POOL, SCHEMAS, Column, Table, databases, ddl
from mrlm_envs.tasks import packaged

_MAX_DRAWS = 200


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    Attributes:
        level: Difficulty, 1 to 3.
        text: The question; `{…}` are the draw's names.
        sql: The gold query, with the same names.
        draw: The name of the block that chooses tables, columns and values.
        evidence: A hint that comes with the question, as BIRD's do.
    """

    level: int
    text: str
    sql: str
    draw: str
    evidence: str = ""


_FILE = packaged(__file__, "kinds.yaml")
KINDS: dict[str, Kind] = {name: Kind(**fields) for name, fields in _FILE["kinds"].items()}


class Draw(draws.Draw):
    """What the blocks of `kinds.yaml` may call: tables, columns of a fitting kind, values that occur."""

    def __init__(self, rng: np.random.Generator, schema: str, database: bytes) -> None:
        super().__init__(rng)
        self._tables = {table.name: table for table in SCHEMAS[schema]}
        self._database = database

    def table(self) -> Table:
        """Any table."""
        return self.row(*self._tables.values())

    def column(self, table: Table, *kinds: str, nullable: bool | None = None) -> Column:
        """A column of these kinds; `LookupError` when there is none, which draws the question anew."""
        if not (columns := table.of_kind(*kinds, nullable=nullable)):
            raise LookupError(f"{table} has no such column")
        return self.row(*columns)

    def link(self) -> tuple[Table, Column, Table]:
        """A table, its foreign key and the table that it points to."""
        child = self.row(*(table for table in self._tables.values() if table.of_kind("reference")))
        key = child.of_kind("reference")[0]
        return child, key, self._tables[key.table]

    def value(self, table: Table, column: Column) -> Any:
        """A value of a column, none that is missing."""
        values = f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL ORDER BY 1"
        return self.row(*trusted_rows(self._database, values))[0]


@dataclass(frozen=True)
class Question:
    """A question with all that judges an answer to it.

    Attributes:
        task_id: Equal for equal questions.
        text: The question.
        evidence: A hint, may be empty.
        sql: The gold query.
        schema: The statements that made the database.
        databases: Images (or the path of a file) on which an answer has to be right.
        expected: The gold result on each.
        shown: Which database previews come from.
        ordered: Whether the order of rows counts.
        drawn_as: `kind` and `difficulty` of a generated question, for `info`; empty for a dataset's.
    """

    task_id: str
    text: str
    evidence: str
    sql: str
    schema: str
    databases: tuple[bytes | str, ...]
    expected: tuple[Rows, ...]
    shown: int
    ordered: bool
    drawn_as: dict[str, Any] = field(default_factory=dict)


def generate(rng: np.random.Generator, kinds: Sequence[str], schemas: Sequence[str]) -> Question:
    """Draw a question.

    Args:
        rng: Source of all randomness.
        kinds: Names in `KINDS` to choose from.
        schemas: Names in `SCHEMAS` to choose from.
    """
    for _ in range(_MAX_DRAWS):
        name, schema = str(rng.choice(list(kinds))), str(rng.choice(list(schemas)))
        kind = KINDS[name]
        images, shown = databases(schema), int(rng.integers(POOL))
        try:
            names = Draw(rng, schema, images[shown])(_FILE["draws"][kind.draw], {})
        except LookupError:
            continue
        sql = kind.sql.format(**names)
        expected = tuple(trusted_rows(image, sql) for image in images)
        if not expected[shown] or all(rows == expected[0] for rows in expected):
            continue
        text = kind.text.format(**names)
        return Question(
            task_id=f"{schema}/{text}",  # never the gold query: a task id is in every `info`
            text=text,
            evidence=kind.evidence.format(**names),
            sql=sql,
            schema=ddl(schema),
            databases=images,
            expected=expected,
            shown=shown,
            ordered=kind is KINDS["top"],
            drawn_as={"kind": name, "difficulty": kind.level},
        )
    raise ValueError(f"no question of {', '.join(kinds)} fits the schemas {', '.join(schemas)}; allow more of either")
