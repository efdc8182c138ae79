"""`make bench`: every row has its place in the page and a script that takes its arguments."""

import importlib
import re

import pytest

from tests.support.paths import ROOT

suite = pytest.importorskip("benchmarks.suite")


def test_every_row_has_its_place_in_the_page_and_a_script() -> None:
    page = suite.PAGE.read_text("utf-8")
    assert sorted(re.findall(r"<!-- bench: ([\w-]+) -->", page)) == sorted(suite.ROWS)
    for row in suite.ROWS.values():
        script, *arguments = row.command.split()
        text = (ROOT / "benchmarks" / script).read_text("utf-8")
        assert [flag for flag in arguments if flag.startswith("--") and f'"{flag}"' not in text] == []


@pytest.mark.parametrize("name", ["credit", "demo", "games", "selfplay", "serving", "tools", "train"])
def test_a_benchmark_finds_what_it_imports_of_ours(name: str) -> None:
    pytest.importorskip("torch")
    importlib.import_module(f"benchmarks.{name}")


def test_a_row_rewrites_its_own_table_and_nothing_else(tmp_path, monkeypatch) -> None:
    page = tmp_path / "README.md"
    page.write_text("above\n<!-- bench: one -->\nold\n<!-- end -->\nbetween\n<!-- bench: two -->\nkept\n<!-- end -->\n")
    monkeypatch.setattr(suite, "PAGE", page)
    suite.publish("one", "| new |\n")
    assert page.read_text() == (
        "above\n<!-- bench: one -->\n| new |\n<!-- end -->\nbetween\n<!-- bench: two -->\nkept\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match="three"):
        suite.publish("three", "")


def test_a_row_that_fails_leaves_the_page_and_is_named(tmp_path, monkeypatch, capsys) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- bench: broken -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(suite, "PAGE", page)
    monkeypatch.setattr(suite, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(suite, "ROWS", {"broken": suite.Row("no_such_script.py", 1)})
    monkeypatch.setattr("sys.argv", ["suite.py"])
    assert suite.main() == 1
    assert "failed: broken" in capsys.readouterr().out
    assert page.read_text() == "<!-- bench: broken -->\nold\n<!-- end -->\n"
