"""What README and docs show works: Python blocks run, page by page; YAML reads; commands and flags are there.

On a page the blocks run in order and share their names, as a reader would type them. A block that begins with
`# folder/file.py`, or stands below `<!-- file: NAME -->`, is a file that later blocks use. `<!-- not run: why -->`
above a block means that it is only compiled.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

pytest.importorskip("datasets")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("**/*.md"))]
PAGES = [page for page in PAGES if "node_modules" not in page.parts]  # what npm installs for the Node client
_BLOCK = re.compile(r"(?:^<!-- (.*?) -->\n)?^```(python|json|yaml|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"\A# ([\w/]+\.py)\n")
_FLAG = re.compile(r"(?<!\S)--[a-z][a-z-]*")


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str, str, int]]:
    """Note above the block, language, text, line."""
    text = page.read_text("utf-8")
    for match in _BLOCK.finditer(text):
        if match[2] in languages:
            yield match[1] or "", match[2], match[3], text[: match.start()].count("\n") + 1


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p, "python"))], ids=lambda p: p.name)
def test_the_python_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    names = {"__name__": "page"}
    try:
        for note, language, text, line in blocks(page, "python", "json", "yaml"):
            code = text.replace("/tmp/", f"{tmp_path}/")
            path = note.removeprefix("file: ") if note.startswith("file: ") else None
            if named := _FILE.match(code):
                path = named[1]
            if path is not None:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text(code, "utf-8")
            if language != "python":
                continue
            program = compile(code, f"{page.name}, line {line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if path is None and not note.startswith("not run") and "Qwen/" not in code:
                exec(program, names)
            elif path is not None:
                __import__(path.removesuffix(".py").replace("/", "."))
    finally:
        for module in set(sys.modules) - before:
            if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
                del sys.modules[module]


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p, "yaml"))], ids=lambda p: p.name)
def test_the_yaml_blocks_of_a_page_are_valid_configuration(page: Path) -> None:
    from mrlm_train.experiment import config

    for _, _, text, _ in blocks(page, "yaml"):
        raw = yaml.safe_load(text)
        for section in ("envs", "eval_envs"):
            config._environments(raw, section)
        if "model" in raw:
            config.check(raw)
        else:
            config._settings(raw, config.TOP_LEVEL, page.name)


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p, "json"))], ids=lambda p: p.name)
def test_the_json_blocks_of_a_page_are_json(page: Path) -> None:
    for _, _, text, _ in blocks(page, "json"):
        try:
            json.loads(text)
        except ValueError:
            for line in text.splitlines():
                json.loads(line)


def test_the_commands_of_the_pages_have_the_flags_that_they_are_shown_with() -> None:
    shown: dict[str, set[str]] = {}
    for page in PAGES:
        for _, _, text, _ in blocks(page, "sh"):
            for line in re.sub(r"\\\n", " ", text).splitlines():
                words = line.split("#")[0].split()
                if words[:1] == ["mrlm"] and len(words) > 1:
                    shown.setdefault(words[1], set()).update(_FLAG.findall(line))
    assert {"train", "eval"} <= shown.keys()
    for command, flags in shown.items():
        run = subprocess.run(
            [sys.executable, "-m", "mrlm_train.cli", command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.returncode == 0, f"mrlm {command}: {run.stderr}"
        assert {flag for flag in flags if flag not in run.stdout} == set(), f"mrlm {command}"


def test_every_relative_link_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md"]
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text("utf-8"))
        if not (page.parent / link).exists() and "reference/" not in link  # those pages are made by `make docs`
    ]
    assert broken == []


def test_the_generated_pages_show_every_argument_and_an_episode(tmp_path: Path) -> None:
    pytest.importorskip("docstring_parser")
    from docs import generate

    generate.write(tmp_path)
    math = (tmp_path / "environments" / "math.md").read_text("utf-8")
    assert "| `format_reward` | `0.0` | Paid once" in math
    assert "| `max_turns` | `1` |" in math
    assert "reward 1, `stop_reason` 'success'" in math
    for page in (tmp_path / "environments").glob("*.md"):
        assert re.findall(r"^\| `\w+` \| .* \|  \|$", page.read_text("utf-8"), re.MULTILINE) == [], page.name
    settings = (tmp_path / "configuration.md").read_text("utf-8")
    assert re.findall(r"^\| `\w+` \| .* \|  \|$", settings, re.MULTILINE) == []
    assert "| `num_generations` |" in settings
