"""The pages that are made from the code: environments, settings. `conf.py` calls `write` for every build.

python docs/generate.py docs/reference
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser
import gymnasium

import mrlm_envs
from mrlm_envs.core import TextEnv

SEED = 11  # of the example episodes
PLAYABLE = [name for name in mrlm_envs.ENVIRONMENTS if name != "llm"]
OTHERS = {
    "openenv": ("mrlm/OpenEnv-v0", "mrlm_envs.integrations.openenv", "OpenEnv"),
    "remote": ("mrlm/Remote-v0", "mrlm_envs.serving.remote", "RemoteEnv"),
}
TRAINING_KEYS = {
    "algorithm": "`sft`, `grpo`, `ppo` or `dpo`; the name of the one section there is says it, too.",
    "num_epochs": "passes over finite task sources; an epoch of endless ones is one batch.",
    "batch_size": "episodes (SFT, DPO: rows) of one optimizer step, over all processes.",
    "early_stopping_patience": "evaluations without improvement after which training ends.",
    "stop_at_success": "share of evaluation episodes solved at which training ends.",
}
_PROGRAM = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write(folder: Path) -> None:
    """Write every generated page into `folder`, only where it changes (Sphinx rebuilds what is newer)."""
    pages = {f"environments/{name}.md": environment(name) for name in [*mrlm_envs.ENVIRONMENTS, *OTHERS]}
    pages["configuration.md"] = configuration()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def environment(name: str) -> str:
    """The page of an environment: its module's docstring, all arguments, the kinds of tasks, an example episode."""
    env_id, module_name, class_name = (mrlm_envs.ENVIRONMENTS | OTHERS)[name]
    module = importlib.import_module(module_name)
    title = env_id.removeprefix("mrlm/").removesuffix("-v0")
    about = inspect.cleandoc(module.__doc__ or "").removeprefix(f"{title}: ")
    lines = [f"# {title}", "", about[:1].upper() + about[1:], "", "## Arguments", ""]
    lines += ["| argument | default | meaning |", "| --- | --- | --- |"]
    lines += [
        f"| `{key}` | {default} | {meaning} |" for key, default, meaning in arguments(getattr(module, class_name))
    ]
    if kinds := getattr(module, "KINDS", None) or getattr(module, "FAMILIES", None):
        lines += ["", "## Kinds of tasks", "", ", ".join(f"`{kind}`" for kind in kinds) + "."]
    if name in PLAYABLE:
        lines += ["", "## An example episode", "", *episode(env_id)]
    return "\n".join(lines) + "\n"


def arguments(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of every keyword argument, those of `TextEnv` included."""
    seen = set()
    owners = (cls, TextEnv) if issubclass(cls, TextEnv) else (cls,)
    meanings: dict[str, str | None] = {}
    for owner in reversed(owners):
        text = f"{inspect.getdoc(owner)}\n\n{inspect.getdoc(owner.__init__) or ''}"
        meanings |= {entry.arg_name: entry.description for entry in docstring_parser.parse(text).params}
    for owner in owners:
        for parameter in list(inspect.signature(owner.__init__).parameters.values())[1:]:
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name in seen:
                continue
            seen.add(parameter.name)
            required = parameter.default is inspect.Parameter.empty
            meaning = " ".join((meanings.get(parameter.name) or "").split()).replace("|", "\\|")
            default = "(required)" if required else f"`{parameter.default!r}`".replace("|", "\\|")
            yield parameter.name, default, meaning


def episode(env_id: str) -> Iterator[str]:
    """The expert's episode of one seed, as Markdown."""
    with gymnasium.make(env_id) as env:
        observation, info = env.reset(seed=SEED)
        yield f"`env.reset(seed={SEED})`; the reference agent (`expert()`) plays."
        if info["system"]:
            yield from ("", "**system**", *_quoted(info["system"]))
        done = False
        while not done:
            yield from ("", f"**{info['role']}**", *_quoted(observation))
            action = env.unwrapped.expert()
            yield from ("", "**assistant**", *_quoted(action))
            observation, reward, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            yield from ("", f"reward {reward:g}" + (f", `stop_reason` {info['stop_reason']!r}" if done else ""))


def _quoted(text: str) -> list[str]:
    fence = "~" * max(3, 1 + max((len(run) for run in re.findall("~+", text)), default=0))
    return ["", f"{fence}text", text, fence]


def configuration() -> str:
    """Every section of a configuration and every key of ours, from the classes that hold them."""
    from mrlm_train.dpo import DPOConfig
    from mrlm_train.experiment import config, sections
    from mrlm_train.grpo import GRPOConfig
    from mrlm_train.ppo import PPOConfig
    from mrlm_train.sft import SFTConfig
    from mrlm_train.trainer import DatasetArguments, RolloutArguments

    lines = ["# Configuration", "", *inspect.cleandoc(config.__doc__ or "").partition("\n")[2].strip().splitlines()]
    lines += ["", "At the top level: " + ", ".join(f"`{key}`" for key in config.TOP_LEVEL) + "."]
    titles: dict[str, tuple[type, ...]] = {
        "`model`": (sections.ModelSection,),
        "`envs`, `eval_envs`": (sections.EnvironmentKeys,),
        "`distributed`": (sections.DistributedSection,),
        "`rollout`, and every trainer's own section": (RolloutArguments,),
        "`sft`": (DatasetArguments, SFTConfig),
        "`grpo`": (GRPOConfig,),
        "`ppo`": (PPOConfig,),
        "`dpo`": (DatasetArguments, DPOConfig),
    }
    for title, owners in titles.items():
        lines += ["", f"## {title}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        found: dict[str, tuple[Any, str]] = {}
        for owner in owners:
            for entry in docstring_parser.parse(inspect.getdoc(owner) or "").params:
                if entry.arg_name not in found:
                    default = getattr(owner, entry.arg_name, inspect.Parameter.empty)
                    meaning = " ".join((entry.description or "").split()).replace("|", "\\|")
                    found[entry.arg_name] = (default, meaning)
        for key, (default, meaning) in found.items():
            shown = "" if callable(default) else f"`{default!r}`"
            lines.append(f"| `{key}` | {shown} | {meaning} |")
    lines += ["", "## `training`", "", "All of `transformers.TrainingArguments`, and:", ""]
    lines += [f"- `{key}`: {TRAINING_KEYS[key]}" for key in config.TRAINING_KEYS]
    lines += [
        "",
        "The prototype's names are understood: "
        + ", ".join(f"`{a}` is `{b}`" for a, b in config.ALIASES.items())
        + ".",
    ]
    lines += [
        "",
        "The algorithm's section also takes every field of TRL's own class (`trl.SFTConfig`, `trl.GRPOConfig`,",
    ]
    lines += ["`trl.DPOConfig`); PPO's takes those of `trl.GRPOConfig`."]
    return "\n".join(lines) + "\n"


def markdown_to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook: what is Markdown in a docstring (fences, tables, indented code), as reStructuredText has it."""
    del app, name, obj, options
    text = "\n".join(lines)
    text = re.sub("````+ (.*?) ````+", r"``\1``", text)
    if what == "module":
        text = re.sub(r"\n\n((?:    .*\n|\n)+)", lambda match: f"\n\n::\n\n{match[1]}\n", text)
    text = _PROGRAM.sub(lambda match: f".. code-block:: {match[1] or 'text'}\n\n" + _indented(match[2]) + "\n", text)
    text = re.sub(r"((?:^\|.*\n?)+)", lambda match: "::\n\n" + _indented(match[1]) + "\n", text, flags=re.MULTILINE)
    lines[:] = text.split("\n")


ELSEWHERE = {  # files outside docs/ that the site shows as pages of its own
    "../SECURITY.md": "security.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../benchmarks/README.md": "benchmarks.md",
    "../examples/README.md": "examples.md",
}


def links(app: Any, name: str, source: list[str]) -> None:
    """Sphinx's hook: links that hold in the repository, as they hold on the site."""
    del app, name
    for link, page in ELSEWHERE.items():
        source[0] = source[0].replace(f"]({link}", f"]({page}")


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.rstrip("\n").split("\n"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
