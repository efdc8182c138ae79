"""What a client may not make a server do, whatever the operator has allowed."""

import inspect
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import mrlm_envs
from mrlm_envs.serving.catalog import Catalog
from mrlm_envs.serving.settings import Refused, Settings
from tests.support.serving import Raw, code, running

ENVIRONMENTS = sorted(mrlm_envs.ENVIRONMENTS)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that leaves a file when it is imported, and the file's path."""
    sprung = tmp_path / "sprung"
    (tmp_path / "trap_for_servers.py").write_text(f"open({str(sprung)!r}, 'w').close()\ndef trigger(*_, **__): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield sprung
    sys.modules.pop("trap_for_servers", None)


def parameters(name: str) -> set[str]:
    """Every keyword argument of an environment and its bases."""
    entry: Any = gymnasium.registry[mrlm_envs.ENVIRONMENTS[name][0]].entry_point
    module, _, attribute = entry.partition(":")
    env_class = getattr(__import__(module, fromlist=[attribute]), attribute)
    names = {
        parameter.name
        for base in env_class.__mro__
        if "__init__" in vars(base)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    return names - {"self"}


def attacks(sprung: Path) -> list[Any]:
    """Values that start a process, import a module, or send a secret somewhere, in the shapes that arguments have."""
    command = {"command": "touch", "args": [str(sprung)]}
    endpoint = {"base_url": "http://127.0.0.1:9", "model": "m", "api_key_env": "PATH"}
    values = ["trap_for_servers:trigger", {"mcp": command}, command, {"llm": endpoint}, endpoint]
    return [*values, *([value] for value in values), *({"train": value, "test": value} for value in values)]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_argument_of_a_client_starts_a_process_or_imports_code(name: str, trap: Path):
    try:
        with running(name, allow_kwargs="*") as server:
            raw = Raw(server.address)
            for parameter in sorted(parameters(name)):
                for value in attacks(trap):
                    result = raw.reset(os.urandom(16), env_id=name, kwargs=json.dumps({parameter: value}).encode())
                    assert not trap.exists(), f"{name}({parameter}={value!r})"
                    if parameter != "system_prompt" and "trap_for_servers:trigger" in (value, [value]):
                        assert code(result), f"{name}({parameter}={value!r})"
            raw.close()
    except Exception as error:
        if "built in are" not in str(error):
            raise
        pytest.skip(f"{name} cannot be made without arguments: {error}")
    assert "trap_for_servers" not in sys.modules


def kwargs(**given: Any) -> dict[str, Any]:
    catalog = Catalog(Settings("math", allow_kwargs="*"))
    return catalog.find("math").kwargs(json.dumps(given).encode())


@pytest.mark.parametrize(
    "given",
    [
        {"tools": ["calculator", {"mcp": {"command": "sh"}}]},
        {"tools": ["os:system"]},
        {"judge": "my.module:function"},
        {"judge": {"llm": {"base_url": "http://x", "model": "m", "api_key_env": "SECRET"}}},
        {"sandbox": "unsafe"},
    ],
)
def test_dangerous_values_are_refused_by_name_even_when_everything_is_allowed(given: dict[str, Any]):
    with pytest.raises(Refused, match="only the operator"):
        kwargs(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"tools": ["calculator", "python"]},
        {"system_prompt": "note:this"},
        {"tasks": "hf:openai/gsm8k"},
        {"tasks": [{"question": "ratio a:b", "command": "ls", "answer": "a:b"}]},
        {"judge": {"llm": {"base_url": "http://x", "model": "m"}}},
        {"kinds": ["addition"], "difficulty": [1, 2]},
    ],
)
def test_harmless_values_pass(given: dict[str, Any]):
    assert kwargs(**given) == given
