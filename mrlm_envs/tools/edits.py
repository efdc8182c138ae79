"""Generated tasks on files: what has to be done can only be known by reading them, and the end state is checked."""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from mrlm_envs.draws import Draw
from mrlm_envs.tasks import packaged
from mrlm_envs.tools.calls import Call
from mrlm_envs.tools.task import Task

_TEXTS: dict[str, str] = packaged(__file__, "edits.yaml")
_KEYS, _PLACES, _NAMES, _VERBS, _NOUNS = (
    _TEXTS[kind].split() for kind in ("keys", "places", "names", "verbs", "nouns")
)

Drawn = tuple[str, dict[str, str], dict[str, str], list[tuple[Call, ...]]]
"""Question, files before, files after, reference turns."""


def _look(files: Iterable[str]) -> list[tuple[Call, ...]]:
    """The turns in which the reference lists the files and reads them all."""
    return [(Call("list_files", {}),), tuple(Call("read_file", {"path": path}) for path in sorted(files))]


def _setting(draw: Draw, level: int) -> Drawn:
    """Change one value in the one file of several that is meant by its content."""
    places = draw.some(_PLACES, 2 + level)
    owners = draw.some(_NAMES, len(places))
    key = draw.row(*_KEYS)
    before = {}
    for place, owner in zip(places, owners):
        keys = [key, *draw.some([name for name in _KEYS if name != key], 3 + level)]
        lines = [f"{name} = {draw.whole(10, 9999)}" for name in sorted(keys)]
        before[f"config/{place}.ini"] = "\n".join([f"# owner: {owner}", *lines]) + "\n"
    chosen = draw.whole(0, len(places) - 1)
    path = f"config/{places[chosen]}.ini"
    old = next(line for line in before[path].splitlines() if line.startswith(f"{key} = "))
    new = f"{key} = {draw.whole(10_000, 99_999)}"
    question = _TEXTS["setting"].format(owner=owners[chosen], new=new)
    edit = Call("replace_in_file", {"path": path, "old": f"{old}\n", "new": f"{new}\n"})
    after = before | {path: before[path].replace(f"{old}\n", f"{new}\n")}
    return question, before, after, [*_look(before), (edit,)]


def _cleaning(draw: Draw, level: int) -> Drawn:
    """Delete or move the files whose first line says so."""
    names = draw.some(_NAMES, 3 + level)
    finished = set(draw.some(names, draw.whole(1, len(names) - 2)))
    before = {}
    for name in names:
        status = "done" if name in finished else "open"
        before[f"inbox/{name}.txt"] = f"status: {status}\nticket {draw.whole(1000, 99_999)} of {name}\n"
    affected = [path for path in sorted(before) if "status: done" in before[path]]
    if draw.whole(0, 1):
        after = {path: text for path, text in before.items() if path not in affected}
        deletions = tuple(Call("delete_file", {"path": path}) for path in affected)
        return _TEXTS["deletion"], before, after, [*_look(before), deletions]
    goals = {path: path.replace("inbox/", "archive/") for path in affected}
    after = {goals.get(path, path): text for path, text in before.items()}
    moves = tuple(Call("move_file", {"source": path, "destination": goal}) for path, goal in goals.items())
    return _TEXTS["move"], before, after, [*_look(before), moves]


def _renaming(draw: Draw, level: int) -> Drawn:
    """Rename a function wherever it is called."""
    verbs, nouns = draw.some(_VERBS, 4), draw.some(_NOUNS, 4)
    functions = [f"{verb}_{noun}" for verb, noun in zip(verbs, nouns)]
    old, new = functions[0], f"{verbs[1]}_{nouns[0]}"
    modules = draw.some(_PLACES, 2 + level)
    using = set(draw.some(modules, draw.whole(1, len(modules) - 1)))
    before = {}
    for module in modules:
        called = [functions[draw.whole(1, 3)] for _ in range(2)]
        if module in using:
            called[draw.whole(0, 1)] = old
            called += [old] * draw.whole(0, 1)
        lines = [f"{name} = {function}({draw.whole(1, 999)})" for name, function in zip("abc", called)]
        before[f"src/{module}.py"] = "\n".join(lines) + "\n"
    question = _TEXTS["renaming"].format(old=old, new=new)
    after = {path: text.replace(old, new) for path, text in before.items()}
    edits = tuple(
        Call("replace_in_file", {"path": path, "old": old, "new": new, "everywhere": True})
        for path in sorted(before)
        if old in before[path]
    )
    return question, before, after, [*_look(before), edits]


def _merging(draw: Draw, level: int) -> Drawn:
    """Merge lists into one sorted file."""
    places = draw.some(_PLACES, 2 + level // 3)
    words = draw.some([f"{a}-{b}" for a in _NAMES for b in _NOUNS], 2 * level + 4)
    before = {}
    for i, place in enumerate(places):
        before[f"lists/{place}.txt"] = "\n".join(words[i :: len(places)]) + "\n"
    merged = "\n".join(sorted(words)) + "\n"
    write = Call("write_file", {"path": "merged.txt", "content": merged})
    return _TEXTS["merging"], before, before | {"merged.txt": merged}, [*_look(before), (write,)]


_EDITS: tuple[Callable[[Draw, int], Drawn], ...] = (_setting, _cleaning, _renaming, _merging)


def files_task(rng: np.random.Generator, level: int) -> Task:
    """An edit of a handful of files; a higher level has more of them."""
    draw = Draw(rng)
    text, before, after, turns = draw.row(*_EDITS)(draw, level)
    question = f"{text} {_TEXTS['done']}"
    digest = hashlib.blake2b(f"{question} {sorted(before.items())}".encode(), digest_size=12).hexdigest()
    return Task(f"files/{digest}", question, None, tuple(turns), before, after)
