"""The generated databases: schemas from `schemas.yaml`, rows drawn with skewed references and missing values."""

import contextlib
import functools
import sqlite3
from dataclasses import dataclass

import numpy as np

from mrlm_envs.tasks import packaged

POOL = 6  # databases of each schema; a query is right when it is right on all of them
_NULL_SHARE = 0.15
_CHILDLESS = 0.2  # share of rows that no foreign key points to

_FILE = packaged(__file__, "schemas.yaml")


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: In SQL.
        kind: "text", "category", "integer", "real" or "date"; "reference" for a foreign key.
        values: The values of a category.
        low: Least number.
        high: Greatest number.
        table: What a foreign key points to.
        nullable: Whether values may be missing.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    table: str = ""
    nullable: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Table:
    """A table; its first column names a row."""

    name: str
    columns: tuple[Column, ...]

    def __str__(self) -> str:
        return self.name

    def of_kind(self, *kinds: str, nullable: bool | None = None) -> list[Column]:
        """Columns of these kinds, all or only those that may or may not be NULL."""
        return [c for c in self.columns if c.kind in kinds and nullable in (None, c.nullable)]

    @property
    def label(self) -> Column:
        """The column that names a row."""
        return self.columns[0]


def _column(text: str) -> Column:
    name, kind, *rest = text.split()
    nullable = "?" in rest
    if kind == "->":
        return Column(name, "reference", table=rest[0], nullable=nullable)
    if ".." in kind:
        low, high = kind.split("..", 1)
        return Column(name, "real" if "." in low else "integer", low=float(low), high=float(high), nullable=nullable)
    if "|" in kind:
        return Column(name, "category", tuple(kind.split("|")), nullable=nullable)
    return Column(name, "date" if kind == "date" else "text", (kind,), nullable=nullable)


SCHEMAS: dict[str, tuple[Table, ...]] = {
    schema: tuple(Table(name, tuple(map(_column, columns))) for name, columns in tables.items())
    for schema, tables in _FILE["schemas"].items()
}
_TYPES = {"integer": "INTEGER", "real": "REAL", "reference": "INTEGER"}


def ddl(schema: str) -> str:
    """The `CREATE TABLE` statements of a schema."""
    statements = []
    for table in SCHEMAS[schema]:
        lines = ["id INTEGER PRIMARY KEY"]
        for column in table.columns:
            line = f"{column.name} {_TYPES.get(column.kind, 'TEXT')}{'' if column.nullable else ' NOT NULL'}"
            lines.append(line + (f" REFERENCES {column.table}(id)" if column.table else ""))
        statements.append(f"CREATE TABLE {table.name} (\n  " + ",\n  ".join(lines) + "\n);")
    return "\n".join(statements)


@functools.cache
def databases(schema: str) -> tuple[bytes, ...]:
    """The standing databases of a schema, as SQLite images; the same in every process."""
    return tuple(_database(schema, np.random.default_rng([number, *schema.encode()])) for number in range(POOL))


def _database(schema: str, rng: np.random.Generator) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("PRAGMA page_size = 1024;" + ddl(schema))
        sizes: dict[str, int] = {}
        for table, (low, high) in zip(SCHEMAS[schema], ((6, 14), (18, 40), (30, 70)), strict=True):
            count = sizes[table.name] = int(rng.integers(low, high))
            drawn = [_values(column, count, sizes, rng) for column in table.columns]
            marks = ", ".join("?" * (len(drawn) + 1))
            connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", zip(range(1, count + 1), *drawn))
        connection.commit()
        return connection.serialize()


def _values(column: Column, count: int, sizes: dict[str, int], rng: np.random.Generator) -> list[object]:
    """One table's values of a column, with a skew and, where allowed, missing ones."""
    drawn: list[object]
    if column.kind == "reference":
        targets = rng.permutation(sizes[column.table])[: max(1, int(sizes[column.table] * (1 - _CHILDLESS)))] + 1
        drawn = [int(t) for t in rng.choice(targets, size=count, p=_skew(len(targets)))]
    elif column.kind == "category":
        drawn = [str(v) for v in rng.choice(rng.permutation(column.values), size=count, p=_skew(len(column.values)))]
    elif column.kind == "integer":  # few distinct values, so that ties and equal bounds occur
        span = int(column.high - column.low)
        steps = rng.integers(0, min(span, 24) + 1, size=count)
        drawn = [int(column.low + step * span // min(span, 24)) for step in steps]
    elif column.kind == "real":
        drawn = [round(float(v), 1) for v in rng.uniform(column.low, column.high, size=count)]
    elif column.kind == "date":
        drawn = [f"202{y}-{m:02}-{d:02}" for y, m, d in zip(*(rng.integers(a, b, count) for a, b in _DATE))]
    else:
        first, last = (words.split() for words in _FILE["words"][column.values[0]])
        drawn = [f"{rng.choice(first)} {rng.choice(last)}" for _ in range(count)]
    if column.nullable:
        drawn = [None if missing else value for value, missing in zip(drawn, rng.random(count) < _NULL_SHARE)]
    return drawn


_DATE = ((1, 5), (1, 13), (1, 29))  # bounds of year, month and day


def _skew(count: int) -> np.ndarray:
    """Probabilities that fall off like 1/rank."""
    weights = 1 / np.arange(1, count + 1)
    return weights / weights.sum()
