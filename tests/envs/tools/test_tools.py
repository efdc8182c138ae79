"""The tools themselves, the registry that holds them, and the servers it can be joined by."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrlm_envs.tools import Tool, ToolError, ToolRegistry, Toolset, tool
from mrlm_envs.tools.calculator import calculate
from mrlm_envs.tools.filesystem import MAX_FILES, MAX_TOTAL, VirtualFiles
from mrlm_envs.tools.knowledge import Knowledge
from tests.support.fresh import in_fresh_process

# The registry


def test_a_typed_function_becomes_a_schema_of_its_signature_and_docstring():
    @tool
    def order(
        dish: str, count: int = 1, size: Literal["small", "large"] = "small", notes: list[str] | None = None
    ) -> str:
        """Orders a dish.

        Args:
            dish: What to eat,
                exactly as on the menu.
            count: How many.
            size: Of the plate.
            notes: For the kitchen.

        Returns:
            A confirmation.
        """
        return f"{count} {dish}"

    registry = ToolRegistry([order])
    assert len(registry) == 1 and "order" in registry and registry["order"].name == "order"
    (schema,) = registry.schemas()
    assert schema["function"]["name"] == "order" and schema["function"]["description"] == "Orders a dish."
    parameters = schema["function"]["parameters"]
    assert parameters["properties"]["dish"] == {"type": "string", "description": "What to eat, exactly as on the menu."}
    assert parameters["properties"]["count"] == {"type": "integer", "description": "How many.", "default": 1}
    assert parameters["properties"]["size"] == {
        "type": "string",
        "enum": ["small", "large"],
        "description": "Of the plate.",
        "default": "small",
    }
    assert parameters["required"] == ["dish"]
    assert json.loads(json.dumps(schema)) == schema
    assert order("soup") == "1 soup"
    assert registry.call("order", {"dish": "soup", "count": 2}).text == "2 soup"


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("ad", {}, "there is no tool 'ad'; the tools are: add"),
        ("add", {"a": 1}, "'b' is a required property. Usage: add(a: integer, b: integer)"),
        ("add", {"a": "1", "b": 2}, "argument 'a': '1' is not of type 'integer'"),
        ("add", {"a": True, "b": 2}, "argument 'a': True is not of type 'integer'"),
        ("add", {"a": 1, "b": 2, "c": 3}, "'c' was unexpected"),
    ],
)
def test_a_call_that_does_not_fit_is_told_how_to_call(name, arguments, says):
    def add(a: int, b: int) -> int:
        return a + b

    registry = ToolRegistry([add])
    outcome = registry.call(name, arguments)
    assert says in outcome.text and outcome.valid is False
    assert registry.call("add", {"a": 1, "b": 2}).text == "3"


def test_what_a_tool_raises_is_read_by_the_agent_and_never_ends_the_episode():
    def broken(kind: str) -> str:
        raise {"tool": ToolError, "key": KeyError}[kind]("no such thing")

    registry = ToolRegistry([broken])
    assert registry.call("broken", {"kind": "tool"}).text == "error: no such thing"
    assert registry.call("broken", {"kind": "key"}).text == "error: KeyError: 'no such thing'"


def test_a_result_cannot_smuggle_special_tokens_or_flood_the_context():
    registry = ToolRegistry([Tool(lambda: "<|im_end|>\x1b[2J\ud800" + "x" * 100_000, "f", "", {"type": "object"})])
    text = registry.call("f", {}).text
    assert "<|" not in text and "\x1b" not in text and len(text) < 4200
    assert text.encode()


def test_tools_that_cannot_work_are_refused_when_they_are_made():
    def untyped(a) -> str:
        return a

    def odd(a: threading.Lock) -> str:
        return str(a)

    def several(*a: int) -> str:
        return str(a)

    with pytest.raises(TypeError, match="untyped: argument 'a' has no type hint"):
        ToolRegistry([untyped])
    with pytest.raises(TypeError, match=r"odd: no JSON schema: .*lock"):
        tool(odd)
    with pytest.raises(TypeError, match="several: argument 'a' must be one that can be given by name"):
        tool(several)
    with pytest.raises(ValueError, match="two tools are named 'calculate'"):
        ToolRegistry([calculate, calculate])


def test_a_tool_that_exits_does_not_end_our_process():
    def parse(text: str) -> str:
        raise SystemExit(2)  # as argparse does

    assert ToolRegistry([parse]).call("parse", {"text": "--help"}).text == "error: SystemExit: 2"


def test_an_async_function_is_no_tool():
    async def fetch(n: int) -> str:
        return "x"

    with pytest.raises(TypeError, match="tool fetch: an async function is never awaited; give a plain one"):
        ToolRegistry([fetch])


def test_a_toolset_shares_a_state_that_each_episode_begins_anew():
    class Counter(Toolset):
        def __init__(self) -> None:
            self.count = 0

        @tool
        def step(self, by: int = 1) -> int:
            """Counts."""
            self.count += by
            return self.count

        def reset(self, seed: int) -> None:
            self.count = seed

    registry = ToolRegistry([Counter()])
    assert [registry.call("step", {}).text, registry.call("step", {"by": 4}).text] == ["1", "5"]
    registry.reset(7)
    assert registry.call("step", {}).text == "8"


# The calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("sqrt(16)", "4"),
        ("5% of 200", "10"),
        ("(5 + 5)% of 200", "20"),
        ("200 * 10%", "20"),
        ("1,000+1", "1001"),
        ("1,234,567.5 * 2", "2469135"),
        ("(1,000 + 2) * max(3, 4)", "4008"),
        ("gcd(12,180)", "12"),
        ("2^10", "1024"),
        ("2^-3", "0.125"),
        ("-2^2", "-4"),
        ("17 % 5", "2"),
        ("17 % -5", "-3"),
        ("17% - 5", "-4.83"),
        ("10^18 % 7", "1"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "0.333333333333"),
        ("2/4", "0.5"),
        ("7 // 2", "3"),
        ("5! / 3!", "20"),
        ("3 × 4 ÷ 2 − 1", "5"),
        ("$1,000 * 2", "2000"),
        ("2^0.5", "1.41421356237"),
        ("sqrt(2)^2", "2"),
        ("round(2.5)", "3"),
        ("round(2.345, 2)", "2.35"),
        ("sin(pi/2)", "1"),
        ("999999999999 * 999999999999", "999999999998000000000001"),
        ("1.000123^360", "1.04527214464"),
        ("0^0", "1"),
    ],
)
def test_the_calculator_reads_arithmetic_as_people_write_it(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "9^9^9^9",
        "9**9**9**9",
        "((10^300)^300)^300",
        "2^(10^10)",
        "1.5^100000",
        "0.5^100000",
        "10^-5000",
        "factorial(100000)",
        "99999999!",
        "5!!!!!!!!",
        "comb(10^9, 10^8)",
        "1 << 10^9",
        "1 << 100000",
        "'a' * 10**9",
        "[0] * 10**9",
        "'%1000000000d' % 1",
        "10**4000 * 10**4000",
        "lcm(10^1000 + 1, 10^1000 + 3)",
        "exp(10^6)",
        "1e999",
        "1e400 * 1.5",
        "-" * 400 + "1",
        "(" * 400 + "1",
        "1" * 501,
        "1/0",
        "0^-1",
        "5 % 0",
        "(-8)^0.5",
        "sqrt(-1)",
        "log(0)",
        "round(1, 10^9)",
        "__import__('os').system('true')",
        "().__class__.__bases__",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "f'{1}'",
        "x = 3",
        "3; 4",
        "x",
        "True",
        "1j",
        "",
        "\ud800",
        "\x00",
        "tan",
        "abs(1, 2)",
        "abs(x=1)",
    ],
)
def test_every_bomb_and_everything_that_is_no_arithmetic_is_refused_at_once(expression):
    started = time.process_time()
    try:
        value = calculate(expression)
    except ToolError as error:
        assert " at 0x" not in str(error) and "\n" not in str(error)
    else:
        assert expression.startswith("---") and value == "1"
    assert time.process_time() - started < 0.25


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("0123456789+-*/%^()., !eEof$sqrt\x00'[]{}_"), max_size=60))
def test_the_calculator_gives_a_number_or_refuses_whatever_it_is_asked(expression):
    try:
        value = calculate(expression)
    except ToolError:
        return
    assert math.isfinite(float(value))


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_whole_numbers_are_exact(a, b, c):
    assert calculate(f"({a}) * ({b}) - {c}") == str(a * b - c)
    assert calculate(f"({a} * {b}) // {c}") == str((a * b) // c)
    assert calculate(f"({a * c}) / {c}") == str(a)


def test_a_result_that_json_cannot_write_is_an_error_that_the_agent_reads():
    @tool
    def distances() -> dict:
        """Distances by pair."""
        return {("a", "b"): 3}

    @tool
    def ring() -> list:
        """A list that holds itself."""
        items = []
        items.append(items)
        return items

    registry = ToolRegistry([distances, ring])
    for name in registry.names:
        outcome = registry.call(name, {})
        assert outcome.valid and outcome.text.startswith("error: "), outcome


@pytest.mark.parametrize("number", [10**400, float("nan"), float("inf")])
def test_a_number_that_the_schema_cannot_be_checked_with_is_refused(number):
    schema = {"type": "object", "properties": {"n": {"type": "number", "multipleOf": 0.5}}}
    registry = ToolRegistry([Tool(lambda n: "called", "halves", "Halves.", schema)])
    outcome = registry.call("halves", {"n": number})
    assert not outcome.valid and outcome.text.startswith("error: halves: "), outcome


# Knowledge


def test_two_titles_that_differ_in_case_alone_are_two_pages():
    knowledge = Knowledge([("Apple", "A fruit."), ("APPLE", "A firm.")])
    assert [knowledge.read_page(title) for title in ("Apple", "APPLE")] == ["A fruit.", "A firm."]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(st.sampled_from('"*^():-+{}ANDORNOTNEAR title,'), max_size=60)))
def test_no_query_can_break_the_search(query):
    outcome = ToolRegistry([Knowledge.of(None)]).call("search", {"query": query})
    assert "OperationalError" not in outcome.text and "syntax" not in outcome.text


def test_a_search_for_a_name_finds_its_page_and_a_page_is_read_by_its_title():
    from mrlm_envs.tools.corpus import pages

    knowledge = Knowledge.of(None)
    for title, text in pages()[::41]:
        assert any(line.startswith(f"{title}: ") for line in knowledge.search(title).splitlines()), title
        assert knowledge.read_page(title.upper()) == text
    with pytest.raises(ToolError, match="no page 'Atlantis'"):
        knowledge.read_page("Atlantis")
    with pytest.raises(ToolError, match="no words"):
        knowledge.search('"" -- *')


def test_one_index_serves_many_threads():
    knowledge = Knowledge.of(None)
    wanted = knowledge.search("mountain river")
    results = []
    threads = [
        threading.Thread(target=lambda: results.extend(knowledge.search("mountain river") for _ in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == [wanted] * 160


def test_pages_of_your_own_are_searched_and_a_bad_row_is_named(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text('{"title": "Fjord", "text": "A long inlet."}\n{"title": "Moor", "text": "Open \\"land\\"."}\n')
    assert Knowledge.of(str(path)).search("inlet") == "Fjord: A long inlet."
    assert Knowledge.of(str(path)) is Knowledge.of(str(path))
    with pytest.raises(ValueError, match="corpus given as a list, row 2: field 'text' is missing"):
        Knowledge.of([{"title": "a", "text": "b"}, {"title": "c"}])
    path.write_text('{"title": "Fjord", "text": "A long inlet."}\n{"title": "Fjord", "text": "Another."}\n')
    with pytest.raises(ValueError, match=r"^corpus pages\.jsonl, row 2: .*'Fjord'; give each page a title of its own$"):
        Knowledge.of(str(path))
    with pytest.raises(FileNotFoundError, match=r"corpus nowhere\.jsonl: no such file"):
        Knowledge.of("nowhere.jsonl")


# The virtual file system


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "", ".", "..", "~/x", "a\\b", "C:x", "a\x00b", "a\nb", "a/"],
)
def test_a_path_that_is_not_plain_and_relative_is_refused_by_every_tool(path):
    registry = ToolRegistry([VirtualFiles({"a.txt": "x"})])
    calls = [
        ("read_file", {"path": path}),
        ("write_file", {"path": path, "content": ""}),
        ("replace_in_file", {"path": path, "old": "x", "new": "y"}),
        ("move_file", {"source": path, "destination": "b"}),
        ("move_file", {"source": "a.txt", "destination": path}),
        ("delete_file", {"path": path}),
    ]
    for name, arguments in calls:
        assert registry.call(name, arguments).text.startswith("error: path "), (name, path)
    assert registry.call("read_file", {"path": "a.txt"}).text == "x"


def test_the_quota_holds_however_the_files_grow():
    files = VirtualFiles({"a": "x" * 1000})
    with pytest.raises(ToolError, match="characters in all files"):
        files.write_file("b", "x" * MAX_TOTAL)
    with pytest.raises(ToolError, match="characters in all files"):
        files.replace_in_file("a", "x", "y" * 300, everywhere=True)
    for i in range(MAX_FILES - 1):
        files.write_file(f"f{i}", "")
    with pytest.raises(ToolError, match="no more than 64 files"):
        files.write_file("one_more", "")
    assert sum(map(len, files.files.values())) == 1000


def test_files_are_edited_as_told_and_begin_again_with_each_episode():
    files = VirtualFiles({"notes/a.txt": "one two two"})
    assert files.list_files() == "notes/a.txt (11)"
    files.replace_in_file("notes/a.txt", "one", "1")
    with pytest.raises(ToolError, match="occurs 2 times"):
        files.replace_in_file("notes/a.txt", "two", "2")
    files.replace_in_file("notes/a.txt", "two", "2", everywhere=True)
    files.move_file("notes/a.txt", "b.txt")
    assert files.files == {"b.txt": "1 2 2"}
    for refused, says in [
        (lambda: files.write_file("b.txt/c", ""), "both a file and a folder"),
        (lambda: files.move_file("b.txt", "b.txt"), "exists already"),
        (lambda: files.read_file("notes/a.txt"), "there is no file"),
        (lambda: files.replace_in_file("b.txt", "", "x"), "does not occur"),
    ]:
        with pytest.raises(ToolError, match=says):
            refused()
    files.delete_file("b.txt")
    assert files.files == {}
    files.reset(0)
    assert files.files == {"notes/a.txt": "one two two"}


# The interpreter


@pytest.fixture
def python():
    pytest.importorskip("fcntl")
    from mrlm_envs.sandbox import SandboxUnavailable
    from mrlm_envs.tools.python_tool import PythonTool

    try:
        made = PythonTool(timeout_s=1.0)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    registry = ToolRegistry([made])
    registry.reset(0)
    yield lambda code: registry.call("python", {"code": code}).text
    registry.close()


def test_the_interpreter_remembers_and_shows_what_is_printed_and_the_last_value(python):
    assert python("x = [1, 2]\nprint('hello')\nlen(x)") == "hello\n2"
    assert python("x.append(3)\nsum(x)") == "6"
    assert python("y = 1") == "done; nothing was printed"
    assert "ZeroDivisionError" in python("1 / 0")
    assert python("x") == "[1, 2, 3]"
    assert python("object()") == "<object object at 0x…>"


def test_a_time_out_or_a_crash_of_the_interpreter_is_said_and_the_next_call_begins_afresh(python):
    python("x = 1")
    assert "time limit" in python("while True: pass")
    assert "NameError" in python("x")
    assert "ended the process" in python("import os\nos._exit(3)")
    assert python("1 + 1") == "2"


def test_after_sys_exit_the_interpreter_says_that_it_keeps_its_variables(python):
    python("x = 5")
    assert "exit code 0; the interpreter keeps its variables" in python("exit()")
    assert python("x") == "5"


def test_the_interpreter_reaches_nothing_of_ours(python):
    for code in ("open('/etc/passwd').read()", "import socket\nsocket.socket()", "import os\nos.listdir('/')"):
        assert python(code).startswith("error: "), code


# MCP servers

SERVER = '''
import os, sys
from mcp.server.mcpserver import MCPServer

server = MCPServer("weather")

@server.tool()
def forecast(city: str, days: int = 1) -> str:
    """The weather forecast."""
    if city == "Atlantis":
        os._exit(1)
    if city == "Nowhere":
        raise ValueError("no such city")
    return f"{city}: sunny for {days} days"

@server.tool(name="list.cities")
def cities() -> str:
    """All cities."""
    return "Oslo, Bergen"

server.run("streamable-http", port=int(sys.argv[1])) if len(sys.argv) > 1 else server.run()
'''


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("mcp")
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return str(path)


def test_the_tools_of_a_real_mcp_server_over_stdio_join_the_registry(server):
    from mrlm_envs.core import EnvFault
    from mrlm_envs.tools.mcp_server import McpTools

    weather = McpTools({"command": sys.executable, "args": [server]}, timeout_s=20.0)
    try:
        registry = ToolRegistry([weather])
        assert registry.names == ["forecast", "list_cities"]
        assert registry.schemas()[0]["function"]["parameters"]["required"] == ["city"]
        assert registry.call("forecast", {"city": "Oslo", "days": 3}).text == "Oslo: sunny for 3 days"
        assert registry.call("list_cities", {}).text == "Oslo, Bergen"
        assert registry.call("forecast", {"city": 3}).valid is False
        assert registry.call("forecast", {"city": "Nowhere"}).text.startswith("error: ")
        with pytest.raises(EnvFault, match="is gone"):
            registry.call("forecast", {"city": "Atlantis"})
        assert registry.call("forecast", {"city": "Oslo"}).text == "Oslo: sunny for 1 days"
    finally:
        weather.shut()


def test_the_tools_of_a_real_mcp_server_over_http_serve_an_environment(server):
    import socket

    from mrlm_envs.tools.env import ToolUseEnv
    from mrlm_envs.tools.mcp_server import connect

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(os.devnull, "w") as nothing:
        process = subprocess.Popen([sys.executable, server, str(port)], stdout=nothing, stderr=nothing)
    settings_ = {"url": f"http://127.0.0.1:{port}/mcp"}
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        rows = [{"question": "How is the weather in Oslo?", "answer": "sunny"}]
        env = ToolUseEnv(tasks=rows, tools=["calculator", {"mcp": settings_}], timeout_s=20.0)
        assert env.metadata["deterministic"] is False and ToolUseEnv.metadata["deterministic"] is True
        _, info = env.reset(seed=0)
        assert [entry["function"]["name"] for entry in info["tools"]] == ["calculator", "forecast", "list_cities"]
        observation, *_, info = env.step('{"name": "forecast", "parameters": {"city": "Oslo"}}')
        assert (observation, info["role"]) == ("Oslo: sunny for 1 days", "tool")
        process.kill()
        process.wait()
        observation, reward, terminated, truncated, info = env.step('{"name": "list_cities", "parameters": {}}')
        assert (reward, terminated, truncated, info["valid"]) == (0.0, False, True, False)
    finally:
        process.kill()
        process.wait()
        connect(settings_, 20.0).shut()


def test_a_forked_process_has_a_connection_of_its_own_to_an_mcp_server(server):
    in_fresh_process(
        """
        import os, sys
        from mrlm_envs.tools.mcp_server import connect

        tools = connect({"command": sys.executable, "args": [sys.argv[1]]}, 10.0)
        assert tools.call("forecast", city="Oslo") == "Oslo: sunny for 1 days"
        child = os.fork()
        if child == 0:
            print(said := tools.call("forecast", city="Bergen"), flush=True)
            os._exit(said != "Bergen: sunny for 1 days")
        assert os.waitpid(child, 0)[1] == 0
        assert tools.call("forecast", city="Oslo") == "Oslo: sunny for 1 days"
        """,
        server,
    )


def test_malformed_settings_and_a_server_that_does_not_start_are_said_in_one_line():
    pytest.importorskip("mcp")
    from mrlm_envs.tools.mcp_server import McpTools

    with pytest.raises(ValueError, match="give either url, or command"):
        McpTools({"command": "x", "url": "y"})
    with pytest.raises(ValueError, match=r"no-such-program.*no connection") as error:
        McpTools({"command": "no-such-program"})
    assert "\n" not in str(error.value)
