"""Call formats: what a reply says is read, whatever else stands in it, and nothing in it can break the reader."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrlm_envs.tools import FORMATS, Call, Malformed, parse, render

WRITTEN = [name for name in FORMATS if name != "auto"]
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,20}", fullmatch=True).filter(
    lambda name: name not in {"true", "false", "null"} and not __import__("keyword").iskeyword(name)
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(["</think>", "<think>", "</tool_call>", "```\n```", "\nObservation:", "'\"\\", "\nAction: f", "]"]),
)
SCALARS = st.one_of(TEXTS, st.integers(-(10**9), 10**9), st.booleans(), st.none(), st.floats(allow_nan=False, width=32))
VALUES = st.recursive(
    SCALARS.filter(lambda value: value not in (float("inf"), -float("inf"))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=4)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(CALLS, st.sampled_from(WRITTEN))
def test_what_is_written_is_read_back_in_its_own_format_and_in_auto(calls, call_format):
    text = render(calls, call_format)
    assert parse(text, call_format) == calls
    assert parse(f"<think>let me see</think>\n{text}", "auto") == calls


PIECES = st.sampled_from(
    (
        *("<tool_call>", "</tool_call>", '{"name": "f", "arguments": {', "}", "[f(a=", ")]", "Action: f\n", '"', "\\"),
        *("Action Input: {", '{"name":', "```", "\n", "</think>", "<think>", "[" * 300, "-" * 300, "1+" * 300),
        *("\ud800", "\x00"),
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=20)), max_size=30).map("".join), st.sampled_from(FORMATS))
def test_no_text_makes_the_reader_raise(text, call_format):
    assert all(isinstance(entry, Call | Malformed) for entry in parse(text, call_format))


@pytest.mark.parametrize("call_format", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 6000,
        '<tool_call>{"name": "f", "arguments": ' + "[" * 60_000,
        '{"name":' * 8000,
        '{"name": 1}' * 6000,
        "[f(a=" + "(" * 60_000,
        "[f(a=" + "-" * 60_000 + "1)]",
        "[f(a=" + "1+" * 30_000 + "1)]",
        "[f(a=1)]\n" * 7000,
        "[f(a=x[0])" * 6000 + "]",
        "Action: f\n" * 6000,
        "Action:" + " " * 60_000 + "f\nAction Input: {",
        "```\n" * 16_000,
        "\n" * 65_000 + "<tool_call>",
        "[f(a=1" + "0" * 60_000 + ")]",
        '<tool_call>{"name": "f", "arguments": {"a": 1' + "0" * 60_000 + "}}</tool_call>",
    ],
    ids=lambda text: text[:24].strip(),
)
def test_the_longest_hostile_reply_is_read_in_no_time(text, call_format):
    started = time.process_time()
    entries = parse(text, call_format)
    assert time.process_time() - started < 1.0
    assert len(entries) <= 64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('<tool_call>{"name": "f", "arguments": {a: 1}}</tool_call>', "malformed JSON"),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', "</tool_call>"),
        ('<tool_call>{"arguments": {}}</tool_call>', '"name"'),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "JSON object, got list"),
        ('<tool_call>["f"]</tool_call>', '"name"'),
        ('```json\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n```', "code fence"),
        ('```json\n{"name": "f", "parameters": {}}\n```', "code fence"),
        ("```\n[f(a=1)]\n```", "code fence"),
        ('{"name": "f", "parameters": {"a": 1', "malformed JSON"),
        ("[f(1)]", "by name"),
        ("[f(a=g())]", "literal"),
        ("[f(a=__import__('os').system('true'))]", "literal"),
        ("[f(a={1, 2})]", "set is not a JSON value"),
        ("[f(a=1), 2]", "must be a call"),
        ("[f(a=1", "closing ]"),
        ("Action: f", "Action Input"),
        ("Action: f\nAction Input: a=1", "malformed JSON"),
    ],
)
def test_a_call_that_cannot_be_read_is_named_with_what_is_wrong(text, says):
    entries = parse(text)
    assert len(entries) == 1 and isinstance(entries[0], Malformed), entries
    assert says in entries[0].problem
    assert "0x" not in entries[0].problem  # an address of ours, another one in every process


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("The answer is 4.", []),
        ("<answer>4</answer>", []),
        ('{"name": "Oslo"}', []),
        ("[1, 2, 3]", []),
        ('<think><tool_call>{"name": "f", "arguments": {}}</tool_call></think>4', []),
        ('<think>hm</think><tool_call>{"name": "f", "arguments": {}}</tool_call>', [Call("f", {})]),
        ('I look.\n<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>', [Call("f", {"a": 1})]),
        ('{"type": "function", "name": "f", "parameters": {"a": 1}}', [Call("f", {"a": 1})]),
        ("[f(a=true, b=null)]", [Call("f", {"a": True, "b": None})]),
        ('[python(code="""\nx = [1]\nx[0]\n""")]', [Call("python", {"code": "\nx = [1]\nx[0]\n"})]),
        ("So:\n[f(a=1)]\nThen I will see x[0].", [Call("f", {"a": 1})]),
        (
            'Thought: hm\nAction: f\nAction Input: {"a": 1}\nObservation: 3\nAction: g\nAction Input: {}',
            [Call("f", {"a": 1})],
        ),
    ],
)
def test_a_call_is_found_and_an_answer_is_no_call(text, calls):
    assert parse(text) == calls


def test_a_lone_surrogate_in_an_argument_arrives_as_text_that_encodes():
    (call,) = parse('<tool_call>{"name": "f", "arguments": {"a": "\\ud800x"}}</tool_call>')
    assert isinstance(call, Call)
    assert json.dumps(call.arguments, ensure_ascii=False).encode()


def test_a_name_that_python_cannot_write_is_refused_before_it_confuses_a_reader():
    with pytest.raises(ValueError, match="'get-it' cannot be written as a pythonic call"):
        render([Call("get-it", {})], "pythonic")
