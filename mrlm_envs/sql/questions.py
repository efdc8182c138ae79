"""Questions with their gold queries. `kinds.yaml` holds the kinds: each a sentence and a query over any schema.

A kind draws tables, columns and values and fills its sentence and query with them. Values come from a database, so
that they occur; a question is drawn again when its gold query gives the same result on every database, or none on the
one that is shown.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mrlm_envs.sql.execute import Rows, trusted_rows
from mrlm_envs.sql.schemas import POOL, SCHEMAS, Column, Table, databases, ddl

_MAX_DRAWS = 200


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    Attributes:
        level: Difficulty, 1 to 3.
        text: The question; `{…}` are the draw's names.
        sql: The gold query, with the same names.
        draw: Chooses tables, columns and values.
        evidence: A hint that comes with the question, as BIRD's do.
    """

    level: int
    text: str
    sql: str
    draw: Callable[["Draw"], dict[str, Any]]
    evidence: str = ""


class Draw:
    """What a kind may draw: tables, columns of a fitting kind, values that occur."""

    def __init__(self, rng: np.random.Generator, schema: str, database: bytes) -> None:
        self.rng, self.tables = rng, SCHEMAS[schema]
        self._by_name = {table.name: table for table in self.tables}
        self._database = database

    def pick(self, options: Sequence[Any]) -> Any:
        """One of several; `LookupError` when there are none, which draws the question anew."""
        if not options:
            raise LookupError("no such column")
        return options[int(self.rng.integers(len(options)))]

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return int(self.rng.integers(low, high + 1))

    def table(self) -> Table:
        """Any table."""
        return self.pick(self.tables)

    def link(self) -> tuple[Table, Column, Table]:
        """A table, its foreign key and the table that it points to."""
        child = self.pick([table for table in self.tables if table.of_kind("reference")])
        key = child.of_kind("reference")[0]
        return child, key, self._by_name[key.table]

    def value(self, table: Table, column: Column) -> Any:
        """A value of a column, none that is missing."""
        rows = trusted_rows(
            self._database,
            f"SELECT DISTINCT {column.name} FROM {table.name} WHERE {column.name} IS NOT NULL ORDER BY 1",
        )
        return self.pick(rows)[0]


def _names(table: Table, **columns: Column) -> dict[str, Any]:
    """What sentences and queries call a table, the column that names its rows, and further columns."""
    return {"t": table.name, "label": table.label.name} | {name: column.name for name, column in columns.items()}


def _category(draw: Draw) -> dict[str, Any]:
    table = draw.table()
    column = draw.pick(table.of_kind("category"))
    return _names(table, c=column) | {"v": draw.value(table, column)}


def _number(draw: Draw) -> dict[str, Any]:
    table = draw.table()
    column = draw.pick(table.of_kind("integer", "real"))
    return _names(table, n=column) | {"k": draw.value(table, column)}


def _both(draw: Draw) -> dict[str, Any]:
    table = draw.table()
    category, number = draw.pick(table.of_kind("category")), draw.pick(table.of_kind("integer", "real"))
    values = {"v": draw.value(table, category), "k": draw.value(table, number)}
    return _names(table, c=category, n=number) | values


def _aggregate(draw: Draw) -> dict[str, Any]:
    word, function = draw.pick([("average", "AVG"), ("total", "SUM"), ("highest", "MAX"), ("lowest", "MIN")])
    return _both(draw) | {"word": word, "f": function}


def _missing(draw: Draw) -> dict[str, Any]:
    table = draw.table()
    return _names(table, n=draw.pick(table.of_kind("integer", "real", nullable=True)))


def _top(draw: Draw) -> dict[str, Any]:
    word, order = draw.pick([("highest", "DESC"), ("lowest", "ASC")])
    return _number(draw) | {"count": draw.number(2, 5), "word": word, "order": order}


def _having(draw: Draw) -> dict[str, Any]:
    return _category(draw) | {"count": draw.number(2, 9)}


def _linked(draw: Draw, of: str = "") -> dict[str, Any]:
    """A table that refers to another; with `of`, also a column of these kinds in the referred table and its value."""
    child, key, parent = draw.link()
    names = _names(child, fk=key) | {"p": parent.name, "p_label": parent.label.name}
    if of:
        column = draw.pick(parent.of_kind(*of.split()))
        value = draw.value(parent, column)
        names |= {"c": column.name, "v": f"'{value}'" if isinstance(value, str) else value}
    return names


def _linked_number(draw: Draw) -> dict[str, Any]:
    child, key, parent = draw.link()
    number = draw.pick(child.of_kind("integer", "real"))
    return _names(child, fk=key, n=number) | {"p": parent.name, "count": draw.number(1, 3)}


def _kinds() -> dict[str, Kind]:
    draws = {
        "category": _category,
        "number": _number,
        "both": _both,
        "aggregate": _aggregate,
        "missing": _missing,
        "top": _top,
        "having": _having,
        "linked": _linked,
        "linked_value": functools.partial(_linked, of="category integer"),
        "linked_number": _linked_number,
    }
    rows = yaml.safe_load(Path(__file__).with_name("kinds.yaml").read_text("utf-8"))
    return {name: Kind(**row | {"draw": draws[row["draw"]]}) for name, row in rows.items()}


KINDS = _kinds()


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
            names = kind.draw(Draw(rng, schema, images[shown]))
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
