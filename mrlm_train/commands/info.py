"""`mrlm info`: what is installed here, which environments and algorithms there are, and what works."""

import ast
import importlib.metadata
import importlib.util
import inspect
import os
import platform
from pathlib import Path
from typing import Any

import mrlm_envs
from mrlm_envs.tasks import nearest
from mrlm_train.experiment import ALGORITHMS
from mrlm_train.experiment.fields import source

LIBRARIES = ("gymnasium", "numpy", "math-verify", "torch", "transformers", "trl", "accelerate", "peft", "grpcio")
REMOTE = ("remote", ("mrlm/Remote-v0", "mrlm_envs.serving.remote", "RemoteEnv"))
EXTRAS = {"tools": "tools", "debate": "debate", "llm": "llm", "remote": "serve"}


def environments() -> list[dict[str, Any]]:
    """One row an environment: short name, id, its page (or what it lacks), arguments, kinds.

    An argument without a default is required; its value is `inspect.Parameter.empty`.
    """
    rows = []
    for short, (env_id, module, name) in [*mrlm_envs.ENVIRONMENTS.items(), REMOTE]:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            page = f'needs {error.name}: pip install "mrlm[{EXTRAS.get(short, short)}]"'
            rows.append({"name": short, "id": env_id, "page": page, "arguments": {}, "kinds": ()})
            continue
        parameters = list(inspect.signature(getattr(loaded, name).__init__).parameters.values())[1:]
        arguments = {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        page = inspect.getdoc(loaded) or ""
        kinds = tuple(getattr(loaded, "KINDS", None) or getattr(loaded, "FAMILIES", ()))
        rows.append({"name": short, "id": env_id, "page": page, "arguments": arguments, "kinds": kinds})
    return rows


def algorithms() -> dict[str, str]:
    """Name to the first line of the trainer's page, read from its source: importing it takes seconds."""
    pages = {name: ast.parse(source(module).read_text("utf-8")) for name, (module, *_) in ALGORITHMS.items()}
    return {name: (ast.get_docstring(page) or "").partition("\n")[0] for name, page in pages.items()}


def versions() -> dict[str, str]:
    """Library to installed version, "not installed" where it is missing."""
    found = {"mrlm": importlib.metadata.version("mrlm"), "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "not installed"
    return found


def devices() -> str:
    """The devices training would use, asked of the system: importing torch takes seconds."""
    if importlib.util.find_spec("torch") is None:
        return 'none: torch is not installed; pip install "mrlm[train]"'
    lines = [path.read_text().splitlines() for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    gpus = [line.partition(":")[2].strip() for gpu in lines for line in gpu if line.startswith("Model:")]
    return ", ".join(gpus) or f"CPU, {os.cpu_count()} cores"


def settings(row: dict[str, Any]) -> list[str]:
    """The lines about an environment's arguments and kinds."""
    required = inspect.Parameter.empty
    arguments = row["arguments"].items()
    lines = [f"{name} (required)" if value is required else f"{name}={value!r}" for name, value in arguments]
    return [*lines, f"kinds are {', '.join(row['kinds'])}"] if row["kinds"] else lines


def page(environment: str) -> str:
    """All about one environment: its page, the defaults of its arguments, its kinds.

    Args:
        environment: Short name or id.

    Raises:
        ValueError: If it is none of ours.
    """
    rows = environments()
    for row in rows:
        if environment in (row["name"], row["id"]):
            return "\n".join([row["page"], "", *settings(row)])
    raise ValueError(f"unknown environment {environment!r}; {nearest(environment, [row['name'] for row in rows])}")


def text() -> str:
    """The whole report."""
    lines = ["Environments"]
    for row in environments():
        lines.append(f"  {row['name']:10} {row['id']:20} {row['page'].partition(chr(10))[0]}")
        lines += [f"  {'':31} {line}" for line in settings(row)]
    lines += ["", "Algorithms", *(f"  {name:10} {about}" for name, about in algorithms().items())]
    lines += ["", "Devices", f"  {devices()}", "", "Libraries"]
    lines += [f"  {name:14} {version}" for name, version in versions().items()]
    return "\n".join(lines)
