"""SQL: gold queries earn everything, mutants and hostile queries nothing, and every query ends in time."""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest

sqlglot = pytest.importorskip("sqlglot")

from sqlglot import exp  # noqa: E402

from mrlm_envs.checker import check_text_env  # noqa: E402
from mrlm_envs.core import EnvFault  # noqa: E402
from mrlm_envs.sql import execute, schemas  # noqa: E402
from mrlm_envs.sql.env import SQLEnv, query_in  # noqa: E402
from mrlm_envs.sql.questions import KINDS  # noqa: E402
from tests.support.fresh import in_fresh_process  # noqa: E402

ALL = {"difficulty": (1, 3)}


def sql(text: str) -> str:
    return f"```sql\n{text}\n```"


def opened(seed: int = 0, **kwargs: Any) -> SQLEnv:
    env = SQLEnv(**{**ALL, **kwargs})
    env.reset(seed=seed)
    return env


def test_the_checker_finds_nothing() -> None:
    assert check_text_env(gymnasium.make("mrlm_envs:mrlm/SQL-v0", difficulty=(1, 3), max_turns=3)) == {}


@pytest.mark.parametrize("tasks", [90, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_gold_query_earns_everything(tasks: int) -> None:
    env = SQLEnv(**ALL)
    for seed in range(tasks):
        env.reset(seed=seed)
        _, reward, terminated, _, info = env.step(env.expert())
        assert (reward, terminated, info["success"]) == (1.0, True, True), env.question


def test_every_kind_is_drawn_and_there_are_twelve_or_more_over_eight_schemas() -> None:
    assert len(KINDS) >= 12 and len(schemas.SCHEMAS) >= 8
    for kind in KINDS:
        env = opened(kinds=[kind])
        assert env.step(env.expert())[1] == 1.0, kind


def mutants(query: str) -> list[str]:
    """Queries that differ from `query` in one place, as a hasty author would err."""
    tree = sqlglot.parse_one(query, dialect="sqlite")
    swaps: dict[type, list[type]] = {
        exp.GT: [exp.GTE, exp.LT], exp.GTE: [exp.GT], exp.LT: [exp.LTE], exp.EQ: [exp.NEQ], exp.And: [exp.Or],
        exp.Avg: [exp.Max, exp.Sum], exp.Sum: [exp.Avg], exp.Max: [exp.Min], exp.Min: [exp.Max],
    }  # fmt: skip
    made: list[str] = []
    for index, node in enumerate(tree.walk()):
        edits: list[Any] = [("swap", other) for other in swaps.get(type(node), [])]
        edits += [("literal", 1), ("literal", -1)] if isinstance(node, exp.Literal) and node.is_int else []
        edits += [("drop", name) for name in ("where", "having", "limit") if node.args.get(name) is not None]
        edits += [("desc", None)] if isinstance(node, exp.Ordered) else []
        edits += [("side", None)] if isinstance(node, exp.Join) else []
        edits += [("distinct", None)] if isinstance(node, exp.Count) and isinstance(node.this, exp.Distinct) else []
        for edit, what in edits:
            copy = tree.copy()
            target: Any = list(copy.walk())[index]
            if edit == "swap":
                new = what(**target.args)
                if target is copy:
                    copy = new
                else:
                    target.replace(new)
            elif edit == "literal":
                target.replace(exp.Literal.number(int(target.this) + what))
            elif edit == "drop":
                target.set(what, None)
            elif edit == "desc":
                target.set("desc", not target.args.get("desc"))
            elif edit == "side":
                target.set("side", None if target.side else "LEFT")
            else:
                target.set("this", target.this.expressions[0])
            made.append(copy.sql(dialect="sqlite"))
    return [text for text in dict.fromkeys(made) if text != tree.sql(dialect="sqlite")]


@pytest.mark.parametrize("tasks", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_a_mutant_that_differs_on_any_database_earns_nothing(tasks: int) -> None:
    env, tried, caught_elsewhere = SQLEnv(max_turns=1, **ALL), 0, 0
    for seed in range(tasks):
        env.reset(seed=seed)
        question = env.question
        for mutant in mutants(question.sql):
            images = [image for image in question.databases if isinstance(image, bytes)]
            results = [execute.trusted_rows(image, mutant) for image in images]
            agree = [
                execute.same(r, gold, question.ordered) for r, gold in zip(results, question.expected, strict=True)
            ]
            if all(agree):
                continue
            tried += 1
            caught_elsewhere += agree[question.shown]
            env.reset(seed=seed)
            assert env.step(sql(mutant))[1] == 0.0, (question.sql, mutant)
    assert tried > 2 * tasks
    assert caught_elsewhere > 0  # right on the shown database by chance, and caught by another


def test_a_query_that_prints_the_shown_result_earns_nothing() -> None:
    for seed in range(12):
        env = opened(seed, kinds=["count", "aggregate"], difficulty=(1, 2))
        value = env.question.expected[env.question.shown][0][0]
        assert env.step(sql(f"SELECT {json.dumps(value)}"))[1] == 0.0


HOSTILE = """
WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT MAX(n) FROM t
WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n FROM t
WITH RECURSIVE t(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM t) SELECT s FROM t
SELECT hex(printf('%.*c', 900000000, 'x'))
SELECT printf('%.*c', 2000000000, 'x')
SELECT replace(hex(printf('%.*c', 1000000, 'a')), '6', printf('%.*c', 10000, 'b'))
SELECT COUNT(*) FROM {t} a, {t} b, {t} c, {t} d, {t} e, {t} f, {t} g, {t} h, {t} i, {t} j, {t} k, {t} l
SELECT * FROM {t} a, {t} b, {t} c, {t} d, {t} e, {t} f
SELECT load_extension('/tmp/evil.so')
SELECT * FROM sqlite_master
SELECT sql FROM sqlite_schema
SELECT * FROM pragma_database_list
SELECT * FROM pragma_table_info('{t}')
PRAGMA writable_schema = 1
PRAGMA table_info({t})
ATTACH DATABASE '/tmp/stolen.db' AS stolen
ATTACH ':memory:' AS m
VACUUM INTO '/tmp/copy.db'
DELETE FROM {t}
DROP TABLE {t}
UPDATE {t} SET id = id + 1
INSERT INTO {t} SELECT * FROM {t}
CREATE TABLE mine AS SELECT 1
CREATE TEMP VIEW v AS SELECT 1
SELECT 1; DELETE FROM {t}
SELECT readfile('/etc/passwd')
SELECT writefile('/tmp/x', 'y')
SELECT random()
SELECT datetime(CURRENT_TIMESTAMP)
SELECT randomblob(100000000)
SELECT zeroblob(1000000000)
SELECT fts3_tokenizer('simple')
EXPLAIN SELECT 1
SELECT 'the result is right', 1.0
"""


def test_hostile_queries_earn_nothing_and_end_in_time() -> None:
    queries = HOSTILE.strip().splitlines()
    assert len(queries) >= 30
    env = opened(timeout_s=0.5, max_turns=len(queries) + 1)
    table = env.question.sql.split(" FROM ")[1].split()[0]
    for query in queries:
        started = time.monotonic()
        _, reward, _, truncated, info = env.step(sql(query.replace("{t}", table)))
        assert reward == 0.0 and not truncated and info.get("valid", True), query
        assert time.monotonic() - started < 60, query  # a hang guard
    assert env.step(env.expert())[1] == 1.0


STRANGE = [
    "",
    "no query",
    "```sql\n```",
    "\ud800",
    "SELECT " + "(" * 50_000,
    "x" * 2_000_000,
    "🙂",
    "```sql\n\x00\n```",
]


@pytest.mark.parametrize("action", STRANGE, ids=range(len(STRANGE)))
def test_any_text_is_an_action(action: str) -> None:
    env = opened(max_turns=2)
    observation, reward, *_ = env.step(action)
    assert reward == 0.0 and observation


def test_the_query_is_found_where_people_put_it() -> None:
    for reply in (
        "```sql\nSELECT 1;\n```",
        "<think>```sql\nSELECT 2\n```</think>\n```SQL\nSELECT 1\n```",
        "First ```python\nx\n```, then\n```sqlite\nSELECT 1\n```",
        "<answer>SELECT 1</answer>",
        "select 1 ;",
        "```\nSELECT 1",
    ):
        assert (query_in(reply) or "").lower() == "select 1", reply
    assert query_in("I would use SELECT.") is None


def test_a_large_whole_number_equals_itself_as_a_decimal() -> None:
    assert execute.same([(12_345_678_901.0,)], [(12_345_678_901,)], ordered=False)
    assert execute.same([(12_345_678_901.000002,)], [(12_345_678_901.0,)], ordered=True)
    assert not execute.same([(12_345_678_902.0,)], [(12_345_678_901,)], ordered=False)
    assert execute.same([(float("inf"), 1e300)], [(float("inf"), 1e300)], ordered=True)


def test_results_are_compared_as_sets_with_nulls_and_mixed_types() -> None:
    assert execute.same([(None, 1), ("a", 2.0)], [("a", 2), (None, 1.0)], ordered=False)
    assert execute.same([(1,), (1,)], [(1,)], ordered=False)
    assert not execute.same([(1,), (2,)], [(2,), (1,)], ordered=True)
    assert not execute.same([("1",)], [(1,)], ordered=False)
    assert not execute.same([(None,)], [(0,)], ordered=False)
    assert not execute.same([], [(None,)], ordered=False)
    assert execute.same([(0.1 + 0.2,)], [(0.3,)], ordered=False)
    assert execute.same([(float("nan"), b"\x00")], [(float("nan"), b"\x00")], ordered=False)


def test_feedback_tells_the_error_or_the_first_rows_and_never_the_gold_query() -> None:
    env = opened(kinds=["filter"], max_turns=5)
    text = env.step(sql("SELECT absent FROM nowhere"))[0]
    assert "no such table: nowhere" in text
    syntax = env.step(sql("SELECT a FROM\n  (b c d e"))
    assert "line 2" in syntax[0] and not syntax[4]["action_valid"]
    wrong = env.step(sql("SELECT 1 AS one, NULL AS two"))[0]
    assert "one | two\n1 | NULL\n(1 row)" in wrong
    assert env.question.sql not in text + syntax[0] + wrong
    quiet = opened(kinds=["filter"], max_turns=5, feedback="none")
    assert quiet.step(sql("SELECT absent FROM nowhere"))[0] == "The query failed."


def test_the_grl_reward_halves_each_turn_and_ends_at_a_reply_without_a_query() -> None:
    env = opened(reward="grl", max_turns=5)
    env.step(sql("SELECT 1"))
    assert env.step(env.expert())[1] == 0.5
    env.reset(seed=0)
    _, reward, terminated, *_ = env.step("no idea")
    assert (reward, terminated) == (-0.5, True)


@pytest.fixture
def bird(tmp_path: Path) -> tuple[list[dict[str, Any]], str]:
    """BIRD's layout: a folder a database, and rows that name it."""
    folder = tmp_path / "dev_databases" / "bank"
    folder.mkdir(parents=True)
    connection = sqlite3.connect(folder / "bank.sqlite")
    connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT, balance)")
    rows = [(1, "Ada", 10), (2, None, 2.5), (3, "Ben", None), (4, "Ada", "n/a")]
    connection.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    questions = [
        {
            "question_id": 7,
            "db_id": "bank",
            "question": "All owners?",
            "evidence": "",
            "SQL": "SELECT owner FROM account",
        },
        {"db_id": "bank", "question": "By balance?", "query": "SELECT id FROM account ORDER BY balance DESC;"},
    ]
    return questions, str(folder.parent)


def test_bird_and_spider_rows_are_judged_on_their_own_database(bird: tuple[list[dict[str, Any]], str]) -> None:
    rows, folder = bird
    env = SQLEnv(tasks=rows, databases=folder, max_turns=2)
    assert env.num_tasks == 2
    text, _ = env.reset(options={"task_id": "bank/7"})
    assert "CREATE TABLE account" in text and "All owners?" in text
    assert env.step(sql("SELECT DISTINCT owner FROM account"))[1] == 1.0  # BIRD compares sets
    env.reset(options={"task_id": "bank/2"})
    assert env.step(sql("SELECT id FROM account ORDER BY balance"))[1] == 0.0  # the gold query orders
    assert env.step(env.expert())[1] == 1.0


def test_a_large_file_is_read_where_it_lies_and_stays_as_it_is(
    bird: tuple[list[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, folder = bird
    path = Path(folder) / "bank" / "bank.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE filler AS SELECT zeroblob(4000000) AS z")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    env = SQLEnv(tasks=rows, databases=folder, max_turns=4)
    env.reset(options={"task_id": "bank/7"})
    assert isinstance(env.question.databases[0], str)
    for query in ("DELETE FROM account", f"ATTACH '{path}' AS again", "SELECT 1"):
        assert env.step(sql(query))[1] == 0.0
    assert env.step(env.expert())[1] == 1.0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"kinds": ["jion"]}, "did you mean 'join'"),
        ({"difficulty": (0, 9)}, "<= 3"),
        ({"schemas": []}, "schemas must be some of"),
        ({"tasks": [{"db_id": "x"}]}, "go together"),
        ({"tasks": [{"db_id": "x"}], "databases": "y"}, "field 'question' is missing"),
        ({"tasks": [{"question": "?", "db_id": "../x", "SQL": "s"}], "databases": "y"}, "not the name of a database"),
        ({"reward": "half"}, "one of success, grl"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"memory_mb": -5}, "memory_mb must be an integer of at least 1, got -5"),
        ({"preview_rows": -1}, "preview_rows must be a whole number of at least 0, got -1"),
        ({"preview_rows": "5"}, "preview_rows must be a whole number of at least 0, got '5'"),
    ],
)
def test_a_bad_argument_is_told_in_one_line(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        SQLEnv(**kwargs)
    assert "\n" not in str(caught.value)


def test_the_databases_are_the_same_in_every_process_and_hold_what_trips_people() -> None:
    for name in schemas.SCHEMAS:
        first = schemas.databases(name)
        schemas.databases.cache_clear()
        assert schemas.databases(name) == first
        for table in schemas.SCHEMAS[name]:
            for column in table.of_kind("integer", "real", nullable=True):
                query = f"SELECT COUNT(*) FROM {table.name} WHERE {column.name} IS NULL"
                assert any(execute.trusted_rows(image, query)[0][0] for image in first), (table.name, column.name)


def test_the_gold_query_is_in_no_info() -> None:
    env = SQLEnv(max_turns=2, **ALL)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        after = env.step(sql("SELECT 1"))[4]
        assert env.question.sql not in str(info) + str(after)


def test_a_preview_of_many_columns_is_short() -> None:
    text = opened(max_turns=2).step(sql("SELECT " + ", ".join(["'x'"] * 500)))[0]
    assert "(1 row, 460 more columns)" in text and len(text) < 600


@pytest.mark.parametrize("large", [False, True])
def test_a_file_in_wal_mode_in_an_oddly_named_folder_is_read(
    tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "50% a?b#c" / "w" / "w.sqlite"
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (day)")
    connection.execute("INSERT INTO t VALUES ('2001-05-05')")
    connection.commit()
    connection.close()
    monkeypatch.setattr(execute, "_MAX_IMAGE", 10 if large else 3_000_000)
    gold = "SELECT strftime('%Y', CURRENT_TIMESTAMP) > strftime('%Y', day) FROM t"  # as BIRD's read the clock
    env = SQLEnv(tasks=[{"question": "?", "db_id": "w", "SQL": gold}], databases=str(path.parent.parent))
    text, _ = env.reset(seed=0)
    assert "CREATE TABLE t (day);" in text
    assert env.step(env.expert())[1] == 1.0


def test_the_folder_of_databases_may_begin_with_a_tilde(
    bird: tuple[list[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, folder = bird
    monkeypatch.setenv("HOME", str(Path(folder).parent))
    env = SQLEnv(tasks=rows, databases=f"~/{Path(folder).name}")
    env.reset(seed=0)
    assert env.step(env.expert())[1] == 1.0


def test_a_database_that_is_missing_is_named(tmp_path: Path) -> None:
    env = SQLEnv(tasks=[{"question": "?", "db_id": "w", "SQL": "SELECT 1"}], databases=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"w\.sqlite: no such file"):
        env.reset(seed=0)


def test_a_gold_query_that_fails_once_is_run_again_at_the_next_reset(
    bird: tuple[list[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, folder = bird
    monkeypatch.setattr(execute, "_MAX_IMAGE", 10)  # the file is read where it lies
    env = SQLEnv(tasks=rows, databases=folder)
    env.reset(options={"task_id": "bank/7"})
    path = Path(folder) / "bank" / "bank.sqlite"
    path.rename(path.with_suffix(".away"))
    with pytest.raises(EnvFault, match="the gold query of task bank/2 fails"):
        env.reset(options={"task_id": "bank/2"})
    path.with_suffix(".away").rename(path)
    env.reset(options={"task_id": "bank/2"})
    assert env.step(env.expert())[1] == 1.0


def test_a_broken_sandbox_at_a_reset_is_a_fault_of_the_environment(bird: tuple[list[dict[str, Any]], str]) -> None:
    code = """
        import json, sys
        import pytest
        from mrlm_envs.core import EnvFault
        from mrlm_envs.sandbox import Sandbox
        from mrlm_envs.sql.env import SQLEnv
        from tests.envs.sandbox.test_sandbox_processes import kill_template

        env = SQLEnv(tasks=json.loads(sys.argv[1]), databases=sys.argv[2])
        env.reset(options={"task_id": "bank/7"})
        python, sys.executable = sys.executable, "/nonexistent/python"
        kill_template(Sandbox.shared("auto")._launcher)
        with pytest.raises(EnvFault, match="the sandbox is broken"):
            env.reset(options={"task_id": "bank/2"})
        sys.executable = python
        env.reset(options={"task_id": "bank/2"})
        assert env.step(env.expert())[1] == 1.0
    """
    in_fresh_process(code, json.dumps(bird[0]), bird[1])
