"""Rows of coding datasets, recognised by their fields.

| rows | fields |
| --- | --- |
| functions | `prompt`, `entry_point`, `tests: [{args, kwargs?, expected, public?}]`, `compare?`, `reference?` |
| programs | `prompt`, `tests: [{stdin, stdout, public?}]`, `reference?` |
| HumanEval | `task_id`, `prompt`, `entry_point`, `canonical_solution`, `test` |
| MBPP | `text` or `prompt`, `code`, `test_list`, and `test_setup_code` or `test_imports`, `challenge_test_list` |
| demo rows | `description`, `function_name`, `test_cases: [{input, output}]` as Python literals |
"""

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from mrlm_envs.code.compare import COMPARISONS, Compare, show
from mrlm_envs.code.judge import Problem, Test
from mrlm_envs.sandbox.values import ValueRefused, decode, encode
from mrlm_envs.tasks import Row, field


def problem(row: Row, number: int, source: str) -> Problem:
    """Reads a row.

    Args:
        row: Its fields; others are ignored.
        number: The row's number, from 1.
        source: Where it comes from, as errors and ids shall name it.

    Raises:
        ValueError: The row fits no format, or a field is malformed; file, row and field are named.
    """
    where = f"tasks {source}, row {number}"
    named = [row[name] for name in ("task_id", "id") if row.get(name) is not None]
    task_id = str(named[0]) if named else f"{source}/{number}"
    if "test" in row and "canonical_solution" in row:
        return _human_eval(row, task_id, where)
    if "test_list" in row:
        return _mbpp(row, task_id, where)
    if "test_cases" in row:
        return _demo(row, task_id, where)
    tests = field(row, "tests", where)
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise ValueError(f"{where}: field 'tests' must be a list of at least one test")
    named = list(_named(tests, where))
    return (_script if "stdin" in tests[0] else _function)(row, named, task_id, where)


def _named(tests: Sequence[Row], where: str) -> Iterator[tuple[str, Row]]:
    """Each test with its place, for errors."""
    for i, test in enumerate(tests, start=1):
        if not isinstance(test, Mapping):
            raise ValueError(f"{where}: test {i} is a {type(test).__name__}, not an object")
        yield f"{where}: test {i}", test


def _ordered(tests: list[Test]) -> tuple[Test, ...]:
    return tuple(sorted(tests, key=lambda test: not test.public))


def _function(row: Row, tests: Sequence[tuple[str, Row]], task_id: str, where: str) -> Problem:
    name = _name(field(row, "entry_point", where, str), "entry_point", where)
    compare = row.get("compare", "strict")
    if compare not in COMPARISONS:
        raise ValueError(f"{where}: field 'compare' is {compare!r}, not one of {', '.join(COMPARISONS)}")
    parsed: list[Test] = []
    for at, test in tests:
        args, kwargs = field(test, "args", at), test.get("kwargs") or {}
        if "expected" not in test:
            raise ValueError(f"{at}: field 'expected' is missing (found: {', '.join(map(str, test))})")
        if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
            raise ValueError(f"{at}: 'args' must be a list and 'kwargs' an object")
        parsed.append(_checked(Test(tuple(args), dict(kwargs), test["expected"], public=bool(test.get("public"))), at))
    prompt = function_prompt(field(row, "prompt", where, str), name, parsed)
    return Problem(task_id, prompt, _ordered(parsed), name, cast(Compare, compare), str(row.get("reference") or ""))


def function_prompt(text: str, name: str, tests: Sequence[Test]) -> str:
    """The prompt: the text, the function's name where the text lacks it, and the public tests."""
    lines = [text.strip()]
    if name not in text:
        lines.append(f"Write a function named `{name}`.")
    public = [f"{call_text(name, test)} == {show(test.expected)}" for test in tests if test.public]
    if public:
        lines.append("Examples:\n" + "\n".join(public))
    return "\n\n".join(lines)


def call_text(name: str, test: Test) -> str:
    """A function test as the call it makes."""
    parts = [show(value) for value in test.args] + [f"{key}={show(value)}" for key, value in test.kwargs.items()]
    return f"{name}({', '.join(parts)})"


def _checked(test: Test, at: str) -> Test:
    """The test with its values as they come back from a sandbox: of base types."""

    def refuse(value: object) -> int:
        raise ValueRefused(f"{show(value)} is a {type(value).__name__}, which no program can take or return")

    try:
        args, kwargs, expected = decode(encode([test.args, test.kwargs, test.expected], refuse))
    except ValueRefused as error:
        raise ValueError(f"{at}: {error}") from None
    return replace(test, args=args, kwargs=kwargs, expected=expected)


def _name(name: str, field: str, where: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"{where}: field {field!r} is {name!r}, not a function's name")
    return name


def _script(row: Row, tests: Sequence[tuple[str, Row]], task_id: str, where: str) -> Problem:
    parsed: list[Test] = []
    for at, test in tests:
        stdin, stdout = field(test, "stdin", at, str), field(test, "stdout", at, str)
        parsed.append(Test(stdin=stdin, expected=stdout, public=bool(test.get("public"))))
    lines = [field(row, "prompt", where, str).strip()]
    lines += [f"Example input:\n{t.stdin}\nExample output:\n{t.expected}" for t in parsed if t.public]
    return Problem(task_id, "\n\n".join(lines), _ordered(parsed), reference=str(row.get("reference") or ""))


def _human_eval(row: Row, task_id: str, where: str) -> Problem:
    name = _name(field(row, "entry_point", where, str), "entry_point", where)
    prompt = field(row, "prompt", where, str)
    reference = prompt + field(row, "canonical_solution", where, str)
    try:
        ast.parse(reference)
    except (SyntaxError, ValueError):
        raise ValueError(f"{where}: field 'prompt' with 'canonical_solution' is not Python") from None
    text = f"Complete this function; answer with all of it in one Python block.\n\n```python\n{prompt.strip()}\n```"
    # Tests use the prompt's helpers, and HumanEval/33's even compares with the function itself: with the reference.
    setup = f"{reference}\n\n{field(row, 'test', where, str)}\n"
    tests, hosts = (Test(code="check(candidate)"),), {"candidate": name}
    return Problem(task_id, text, tests, name, reference=reference, prelude=prompt, setup=setup, hosts=hosts)


def _mbpp(row: Row, task_id: str, where: str) -> Problem:
    text = field(row, "text" if "text" in row else "prompt", where, str).strip()
    asserts = [*field(row, "test_list", where, list), *(row.get("challenge_test_list") or [])]
    if not asserts:
        raise ValueError(f"{where}: field 'test_list' is empty")
    setup = "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or ""])
    reference = field(row, "code", where, str)
    try:
        names, imports = _needed(reference, setup, asserts)
    except SyntaxError as error:
        raise ValueError(f"{where}: a test is not Python ({error.msg})") from None
    if not names:
        raise ValueError(f"{where}: the asserts of 'test_list' call no function of the solution")
    prompt = f"{text}\n\nThe code should pass tests such as:\n{asserts[0]}"
    if row.get("test_setup_code"):
        prompt += f"\n\nThe tests are preceded by:\n{row['test_setup_code'].strip()}"
    tests = tuple(Test(code=code, public=i == 0) for i, code in enumerate(asserts))
    task_id = f"mbpp/{task_id}" if task_id.isdigit() else task_id
    setup, hosts = "\n".join([*imports, setup]), {name: name for name in names}
    return Problem(task_id, prompt, tests, names[0], reference=reference, setup=setup, hosts=hosts)


def _needed(reference: str, setup: str, asserts: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the tests take from the solution, with which they would share a namespace.

    Returns:
        The names that the solution must define (those that the asserts use come first), and the imports of the
        reference that the tests rely on.
    """
    try:
        top = ast.parse(reference).body
    except SyntaxError:  # a reference that is not Python defines nothing; its row is still a problem
        top = []
    defined = {node.name for node in top if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = [n for node in top if isinstance(node, ast.Assign) for n in ast.walk(node) if isinstance(n, ast.Name)]
    defined |= {n.id for n in assigned if isinstance(n.ctx, ast.Store)}
    imported = {name: ast.unparse(node) for node in top for name in _imported(node)}
    trees = [ast.parse(code) for code in (*asserts, setup)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in nodes if isinstance(n, ast.arg)} | {name for node in nodes for name in _imported(node)}
    own |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    used = dict.fromkeys(n.id for n in nodes if isinstance(n, ast.Name) and n.id not in own)
    names = [name for name in used if name in defined or not (hasattr(builtins, name) or name in imported)]
    return names, list(dict.fromkeys(imported[name] for name in used if name in imported and name not in names))


def _imported(node: ast.AST) -> list[str]:
    """The names that an import statement binds."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return []
    return [(alias.asname or alias.name).split(".")[0] for alias in node.names]


def _demo(row: Row, task_id: str, where: str) -> Problem:
    name = _name(field(row, "function_name", where, str), "function_name", where)
    cases = field(row, "test_cases", where, list)
    tests: list[Test] = []
    for at, case in _named(cases, where):
        given = _literal(field(case, "input", at), at, "input")
        expected = _literal(field(case, "output", at), at, "output")
        args = given if isinstance(given, tuple) else (given,)
        tests.append(_checked(Test(args, expected=expected, public=not tests and len(cases) > 1), at))
    if not tests:
        raise ValueError(f"{where}: field 'test_cases' is empty")
    prompt = function_prompt(field(row, "description", where, str), name, tests)
    return Problem(task_id, prompt, _ordered(tests), name)


def _literal(value: Any, at: str, field: str) -> Any:
    """A Python literal written as text; a tuple is several arguments."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise ValueError(f"{at}: field {field!r} is {value!r}, not a Python literal") from None
