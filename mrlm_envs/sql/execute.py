"""Running a query of the agent's: in the sandbox, read-only, with a deadline and limits.

The query reaches a process of `mrlm_envs.sandbox` that holds the database and nothing else: the gold query and its
result never enter it. There an SQLite authorizer admits reading alone: no ATTACH, PRAGMA, writing, schema tables,
extensions, and no functions that draw random numbers.
"""

import contextlib
import functools
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrlm_envs.core import EnvFault
from mrlm_envs.sandbox import Limits, Sandbox
from mrlm_envs.sandbox.sandbox import Backend

MAX_ROWS = 10_000  # of a result; a query that gives more is wrong
_MAX_IMAGE = 3_000_000  # bytes of a database that is handed into the sandbox; a larger one is opened where it lies

Rows = list[tuple[Any, ...]]

_PROGRAM = """
import sqlite3

ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE}
REFUSED = {"load_extension", "random", "randomblob", "fts3_tokenizer", "zeroblob", "sqlite_compileoption_get",
           "sqlite_version", "sqlite_source_id", "changes", "total_changes", "last_insert_rowid"}

def authorize(action, first, second, database, trigger):
    if action in ALLOWED:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ and not first.lower().startswith(("sqlite_", "pragma_")):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and second.lower() not in REFUSED:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY

def query(database, sql, most):
    if isinstance(database, bytes):
        connection = sqlite3.connect(":memory:")
        connection.deserialize(database)
    else:
        connection = sqlite3.connect(database, uri=True)
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.set_authorizer(authorize)
    cursor = connection.execute(sql)
    if cursor.description is None:
        raise ValueError("the query returns no table")
    return [column[0] for column in cursor.description], cursor.fetchmany(most + 1)
"""


@dataclass(frozen=True)
class Table:
    """The result of a query, or why there is none.

    Attributes:
        rows: At most `MAX_ROWS` of them.
        columns: Their names.
        error: One line, empty when the query ran. It may repeat the agent's words.
    """

    rows: Rows
    columns: tuple[str, ...] = ()
    error: str = ""


def run(databases: Sequence[bytes | str], sql: str, timeout_s: float, memory_mb: int, backend: Backend) -> list[Table]:
    """The result of a query on each database, up to the first on which it fails.

    Args:
        databases: SQLite images, or the read-only URIs of files.
        sql: One statement.
        timeout_s: Seconds for each database.
        memory_mb: Memory of the process.
        backend: Of the sandbox.

    Raises:
        SandboxFault: The sandbox itself is broken.
    """
    if any(isinstance(database, str) for database in databases):
        backend = "unsafe"  # the sandbox reads no files; a read-only connection with the authorizer stands alone
    limits = Limits(timeout_s=timeout_s, memory_mb=memory_mb, total_s=timeout_s * (len(databases) + 1))
    calls = [("query", [database, sql, MAX_ROWS]) for database in databases]
    result = Sandbox.shared(backend).run(_PROGRAM, calls, limits=limits)
    if result.failure is not None:
        return [Table([], error=result.failure.message)]
    tables = []
    for answer in result.answers:
        if answer.failure is not None:
            return [*tables, Table([], error=" ".join(answer.failure.message.split())[:300])]
        columns, rows = answer.value
        error = f"the result has more than {MAX_ROWS:,} rows" if len(rows) > MAX_ROWS else ""
        tables.append(Table(rows, tuple(columns), error))
    return tables


def trusted_rows(database: bytes, sql: str) -> Rows:
    """The result of a query of ours on one of our images, in this process."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(database)
        return connection.execute(sql).fetchall()


@functools.lru_cache(maxsize=4096)
def expected_rows(path: str, sql: str, timeout_s: float, memory_mb: int, backend: Backend) -> Rows:
    """The result of a data set's gold query on its database.

    Raises:
        EnvFault: The query fails; raised, so that the cache keeps no failure.
        SandboxFault: The sandbox itself is broken.
    """
    table = run([image(path)], sql, timeout_s, memory_mb, backend)[0]
    if table.error:
        raise EnvFault(table.error)
    return table.rows


@functools.lru_cache(maxsize=16)
def image(path: str) -> bytes | str:
    """A database file as bytes where it is small enough to enter the sandbox, else its read-only URI.

    Raises:
        FileNotFoundError: No such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"database {path}: no such file")
    if Path(path).stat().st_size > _MAX_IMAGE:
        return _uri(path)
    content = Path(path).read_bytes()
    return content[:18] + b"\x01\x01" + content[20:]  # not in WAL mode, which a database in memory cannot have


@functools.lru_cache(maxsize=64)
def schema_of(path: str) -> str:
    """The statements that made a database file."""
    listed = "SELECT sql FROM sqlite_master WHERE type = 'table' AND sql IS NOT NULL ORDER BY rowid"
    with contextlib.closing(sqlite3.connect(_uri(path), uri=True)) as connection:
        return "\n".join(f"{statement};" for (statement,) in connection.execute(listed))


def _uri(path: str) -> str:
    return f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1"


def same(answer: Rows, gold: Rows, ordered: bool) -> bool:
    """Whether two results agree: as sets of rows, as BIRD compares them, or as lists where the gold query orders.

    NULL equals NULL; 1 equals 1.0; decimals agree to nine significant digits, from 10**9 on to the unit; text is never
    a number.
    """
    left, right = ([tuple(map(_value, row)) for row in rows] for rows in (answer, gold))
    return left == right if ordered else set(left) == set(right)


def _value(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        rounded = float(f"{value:.9g}" if abs(value) < 1e9 else round(value))  # above, rounding misses its integer
        return int(rounded) if rounded.is_integer() else rounded
    return "NaN" if isinstance(value, float) and math.isnan(value) else value
