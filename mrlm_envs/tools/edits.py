"""Generated tasks on files: what has to be done can only be known by reading them, and the end state is checked."""

import hashlib
from collections.abc import Callable

import numpy as np

from mrlm_envs.tools.calls import Call
from mrlm_envs.tools.task import Task


def _words(text: str) -> list[str]:
    return text.split()


_DONE = "When everything is done, answer <answer>done</answer>."
_KEYS = _words(
    "timeout retries workers port depth width height limit batch cache delay interval budget margin offset volume "
    "threshold window quota burst"
)
_PLACES = _words("archive billing catalog delivery events frontend gateway history imports journal kitchen library")
_NAMES = _words("alder birch cedar dahlia elder fennel garlic hazel iris juniper kale laurel mint nettle olive poppy")
_VERBS = _words("load parse merge check write trace count scan fetch split")
_NOUNS = _words("record signal table buffer ticket region packet margin report ledger")

Drawn = tuple[str, dict[str, str], dict[str, str], list[tuple[Call, ...]]]
"""Question, files before, files after, reference turns."""


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _some(rng: np.random.Generator, words: list[str], count: int) -> list[str]:
    return [words[i] for i in rng.permutation(len(words))[:count]]


def _read(path: str) -> Call:
    return Call("read_file", {"path": path})


def _setting(rng: np.random.Generator, level: int) -> Drawn:
    """Change one value in the one file of several that is meant by its content."""
    places = _some(rng, _PLACES, 2 + level)
    owners = _some(rng, _NAMES, len(places))
    key = _KEYS[_between(rng, 0, len(_KEYS) - 1)]
    before = {}
    for place, owner in zip(places, owners):
        keys = [key, *_some(rng, [name for name in _KEYS if name != key], 3 + level)]
        lines = [f"{name} = {_between(rng, 10, 9999)}" for name in sorted(keys)]
        before[f"config/{place}.ini"] = "\n".join([f"# owner: {owner}", *lines]) + "\n"
    chosen = _between(rng, 0, len(places) - 1)
    path = f"config/{places[chosen]}.ini"
    old = next(line for line in before[path].splitlines() if line.startswith(f"{key} = "))
    new = f"{key} = {_between(rng, 10_000, 99_999)}"
    question = (
        f"In the file under config/ that belongs to {owners[chosen]}, set {new} and leave all else as it is. {_DONE}"
    )
    edit = Call("replace_in_file", {"path": path, "old": f"{old}\n", "new": f"{new}\n"})
    turns = [(Call("list_files", {}),), tuple(map(_read, sorted(before))), (edit,)]
    return question, before, before | {path: before[path].replace(f"{old}\n", f"{new}\n")}, turns


def _cleaning(rng: np.random.Generator, level: int) -> Drawn:
    """Delete or move the files whose first line says so."""
    names = _some(rng, _NAMES, 3 + level)
    finished = set(_some(rng, names, _between(rng, 1, len(names) - 2)))
    before = {}
    for name in names:
        status = "done" if name in finished else "open"
        before[f"inbox/{name}.txt"] = f"status: {status}\nticket {_between(rng, 1000, 99_999)} of {name}\n"
    paths = sorted(before)
    affected = [path for path in paths if "status: done" in before[path]]
    look = [(Call("list_files", {}),), tuple(map(_read, paths))]
    if _between(rng, 0, 1):
        question = f"Delete every file under inbox/ whose status is done. {_DONE}"
        after = {path: text for path, text in before.items() if path not in affected}
        return question, before, after, [*look, tuple(Call("delete_file", {"path": path}) for path in affected)]
    question = f"Move every file under inbox/ whose status is done to archive/, under the same name. {_DONE}"
    goals = {path: path.replace("inbox/", "archive/") for path in affected}
    after = {goals.get(path, path): text for path, text in before.items()}
    moves = tuple(Call("move_file", {"source": path, "destination": goal}) for path, goal in goals.items())
    return question, before, after, [*look, moves]


def _renaming(rng: np.random.Generator, level: int) -> Drawn:
    """Rename a function wherever it is called."""
    verbs, nouns = _some(rng, _VERBS, 4), _some(rng, _NOUNS, 4)
    functions = [f"{verb}_{noun}" for verb, noun in zip(verbs, nouns)]
    old, new = functions[0], f"{verbs[1]}_{nouns[0]}"
    modules = _some(rng, _PLACES, 2 + level)
    using = set(_some(rng, modules, _between(rng, 1, len(modules) - 1)))
    before = {}
    for module in modules:
        called = [functions[_between(rng, 1, 3)] for _ in range(2)]
        if module in using:
            called[_between(rng, 0, 1)] = old
            called += [old] * _between(rng, 0, 1)
        lines = [f"{name} = {function}({_between(rng, 1, 999)})" for name, function in zip("abc", called)]
        before[f"src/{module}.py"] = "\n".join(lines) + "\n"
    question = f"Rename the function {old} to {new} in every file that uses it. {_DONE}"
    after = {path: text.replace(old, new) for path, text in before.items()}
    edits = tuple(
        Call("replace_in_file", {"path": path, "old": old, "new": new, "everywhere": True})
        for path in sorted(before)
        if old in before[path]
    )
    return question, before, after, [(Call("list_files", {}),), tuple(map(_read, sorted(before))), edits]


def _merging(rng: np.random.Generator, level: int) -> Drawn:
    """Merge lists into one sorted file."""
    places = _some(rng, _PLACES, 2 + level // 3)
    words = _some(rng, [f"{a}-{b}" for a in _NAMES for b in _NOUNS], 2 * level + 4)
    before = {}
    for i, place in enumerate(places):
        before[f"lists/{place}.txt"] = "\n".join(words[i :: len(places)]) + "\n"
    question = (
        "Write the lines of all files under lists/ into the file merged.txt, in alphabetical order, one a line, and "
        f"leave the lists as they are. {_DONE}"
    )
    merged = "\n".join(sorted(words)) + "\n"
    write = Call("write_file", {"path": "merged.txt", "content": merged})
    turns = [(Call("list_files", {}),), tuple(map(_read, sorted(before))), (write,)]
    return question, before, before | {"merged.txt": merged}, turns


_EDITS: tuple[Callable[[np.random.Generator, int], Drawn], ...] = (_setting, _cleaning, _renaming, _merging)


def files_task(rng: np.random.Generator, level: int) -> Task:
    """An edit of a handful of files; a higher level has more of them."""
    question, before, after, turns = _EDITS[_between(rng, 0, len(_EDITS) - 1)](rng, level)
    content = f"{question} {sorted(before.items())}"
    return Task(f"files/{_digest(content)}", question, None, tuple(turns), before, after)


def _digest(content: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
