"""Where problems come from: the split of generated tasks, and finite sources (files, lists, the Hugging Face Hub).

Generated tasks are endless; `in_split` sorts them by a hash of their content, so a test task is never met in
training. A finite source is a path (`.jsonl`, `.json`, `.yaml`, `.parquet`), a list of rows, `"hf:NAME[:CONFIG]"`, or
`{"train": source, "test": source}`. A path or a list is used whole, whatever the split; sets from the Hub bring
their own splits.
"""

import difflib
import importlib
import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

SPLITS = ("train", "test", "all")
TEST_SHARE = 5  # one generated task in five is a test task

Row = Mapping[str, Any]
Source = str | os.PathLike[str] | Sequence[Row] | Mapping[str, Any]


class HasTaskId(Protocol):
    """What a parsed row must carry."""

    @property
    def task_id(self) -> str: ...


T = TypeVar("T", bound=HasTaskId)


def in_split(task_id: str, split: str) -> bool:
    """Whether a generated task belongs to `split`, decided by the CRC-32 of its id up to a `#`.

    So tasks whose ids differ only behind a `#` (two questions about one equation) are always in the same split.

    Args:
        task_id: The canonical content of the task.
        split: "train", "test" or "all".
    """
    if split == "all":
        return True
    is_test = zlib.crc32(task_id.partition("#")[0].encode("utf-8", "surrogatepass")) % TEST_SHARE == 0
    return is_test == (split == "test")


def imported(name: str, where: str) -> Any:
    """The object at `"module:attribute"`.

    Args:
        name: As a user wrote it.
        where: The argument it was given to, for the error.

    Raises:
        ValueError: If the module or the attribute does not exist.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} {name!r} cannot be imported: {error}") from None


def check_range(
    kinds: Sequence[str], difficulty: Sequence[int], known: Collection[str], highest: int
) -> tuple[int, int]:
    """The difficulty as a tuple, once both arguments are known to be in range.

    Args:
        kinds: Names of generators, at least one.
        difficulty: `(lowest, highest)`, whole numbers.
        known: The names there are.
        highest: The highest difficulty there is; the lowest is 1.

    Raises:
        ValueError: No kinds, an unknown kind (the nearest is named), or a difficulty out of range.
    """
    if isinstance(kinds, str) or not kinds:
        raise ValueError(f"kinds must be a list of at least one of {', '.join(known)}; got {kinds!r}")
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"unknown kind {kind!r}; {nearest(str(kind), known)}")
    # `type` rather than `isinstance`: True is an int too.
    if isinstance(difficulty, Sequence) and [type(bound) for bound in difficulty] == [int, int]:
        low, high = difficulty
        if 1 <= low <= high <= highest:
            return low, high
    raise ValueError(
        f"difficulty must be (low, high) in whole numbers, 1 <= low <= high <= {highest}; got {difficulty!r}"
    )


def check_choice(name: str, value: object, known: Collection[object]) -> None:
    """Checks an argument of which the values are named.

    Raises:
        ValueError: It has another value.
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")


def check_counts(**counts: object) -> None:
    """Checks arguments that are whole numbers from 1 on.

    Raises:
        ValueError: One is not.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_amounts(**amounts: object) -> None:
    """Checks arguments that are finite numbers from 0 on, such as a reward or a cost.

    Raises:
        ValueError: One is not.
    """
    for name, value in amounts.items():
        if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def field(row: Row, name: str, where: str, kind: type = object) -> Any:
    """A field that a row must have.

    Args:
        row: The fields.
        name: The one asked for.
        where: Source and row, for the error.
        kind: What it must be an instance of.

    Raises:
        ValueError: It is missing, or something else.
    """
    value = row.get(name)
    if value is None:
        raise ValueError(f"{where}: field {name!r} is missing (found: {', '.join(map(str, row)) or 'nothing'})")
    if not isinstance(value, kind):
        wanted = "text" if kind is str else f"a {kind.__name__}"
        raise ValueError(f"{where}: field {name!r} must be {wanted}, got {type(value).__name__} {value!r:.40}")
    return value


def text_field(row: Row, name: str, where: str) -> str:
    """A field that a row must have, as text without blanks around it.

    Raises:
        ValueError: It is missing, no text, or empty.
    """
    text = field(row, name, where, str).strip()
    if not text:
        raise ValueError(f"{where}: field {name!r} is empty")
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"


class Tasks(Generic[T]):
    """A finite set of tasks in a fixed random order.

    `at(seed)` is `rows[permutation[seed % n]]`, so seeds 0 to n-1 are one full pass.

    Args:
        source: A path, a list of rows, `"hf:NAME[:CONFIG]"`, or a mapping from split to one of those.
        split: "train", "test" or "all".
        parse: Makes a task from `(row, row_number, source_name)`; row numbers count from 1. It raises `ValueError`
            that names source, row and field when the row does not fit.
        what: The argument that the source was given to, for errors.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If the source is empty, has no such split, or a row does not fit.
    """

    def __init__(self, source: Source, split: str, parse: Callable[[Row, int, str], T], what: str = "tasks") -> None:
        self.rows: tuple[T, ...] = _parsed(source, split, parse, what)

    @classmethod
    def of(cls, rows: Iterable[T]) -> "Tasks[T]":
        """Tasks that have been read already, in the same order as those of a source."""
        tasks = cls.__new__(cls)
        tasks.rows = tuple(rows)
        return tasks

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _order(self) -> list[int]:
        return np.random.default_rng(0).permutation(len(self.rows)).tolist()

    @cached_property
    def _by_id(self) -> dict[str, T]:
        return {row.task_id: row for row in reversed(self.rows)}

    def at(self, seed: int) -> T:
        """The task of an episode seed."""
        return self.rows[self._order[seed % len(self.rows)]]

    def named(self, task_id: str) -> T:
        """The task with this id.

        Raises:
            ValueError: If no row has the id.
        """
        try:
            return self._by_id[task_id]
        except (KeyError, TypeError):  # a list, say, has no hash
            raise ValueError(f"task_id {task_id!r} is not in this source of {len(self.rows)} tasks") from None


def _parsed(
    source: Source, split: str, parse: Callable[[Row, int, str], T], what: str, given: str = "given as a list"
) -> tuple[T, ...]:
    if isinstance(source, Mapping):  # a row's id may come from its place, and lists of two splits have the same places
        names = _names(source, split, what)
        return tuple(t for name in names for t in _parsed(source[name], name, parse, what, f"given as {name}"))
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str):
        if source.startswith("hf:"):
            return _from_hub(source, split, parse, what)
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{what} {source}: no such file")
        stat = path.stat()
        return _from_file(path, stat.st_mtime_ns, stat.st_size, parse, what)
    if not isinstance(source, Sequence):
        raise ValueError(f"{what}: expected a path, a list of rows or a mapping of splits, got {type(source).__name__}")
    return _each(source, given, parse, what)


def _names(sets: Mapping[Any, Any], split: str, where: str) -> list[str]:
    """The names of the sets of a split."""
    if split != "all" and split not in sets:
        raise ValueError(f"{where}: no split {split!r} (found: {', '.join(map(str, sets))})")
    return list(sets) if split == "all" else [split]


def _each(rows: Sequence[Any], name: str, parse: Callable[[Row, int, str], T], what: str) -> tuple[T, ...]:
    if len(rows) == 0:
        raise ValueError(f"{what} {name}: no rows")
    tasks = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"{what} {name}, row {number}: expected an object, got {type(row).__name__}")
        tasks.append(parse(row, number, name))
    return tuple(tasks)


@lru_cache(maxsize=32)  # the members of a vector or a pool share one parsed copy
def _from_file(path: Path, mtime_ns: int, size: int, parse: Callable[[Row, int, str], T], what: str) -> tuple[T, ...]:
    return _each(read_rows(path, what), path.name, parse, what)


def read_rows(path: Path, what: str = "tasks") -> list[Any]:
    """The rows of a `.jsonl`, `.json`, `.yaml` or `.parquet` file.

    Raises:
        ValueError: If the file cannot be read, a `.json` or `.yaml` file is not a list, or it has another extension.
    """
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet as parquet
        except ModuleNotFoundError:
            raise ValueError(f"{what} {path.name}: Parquet needs pyarrow; pip install pyarrow") from None
        return parquet.read_table(path).to_pylist()
    if path.suffix in (".json", ".yaml", ".yml"):
        rows = _decode(path.read_text("utf-8"), f"{what} {path.name}") if path.suffix == ".json" else read_yaml(path)
        if not isinstance(rows, list):
            raise ValueError(f"{what} {path.name}: expected a list of rows, got {type(rows).__name__}")
        return rows
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            return [_decode(line, f"{what} {path.name}, row {n}") for n, line in enumerate(lines, 1) if line.strip()]
    raise ValueError(f"{what} {path.name}: ending {path.suffix!r} is not one of .jsonl, .json, .yaml, .parquet")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: If it is not YAML.
    """
    import yaml

    try:
        # libyaml's loader is 30 times faster, where PyYAML was built with it.
        return yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"tasks {path.name}: not YAML ({' '.join(str(error).split())})") from None


@cache
def packaged(module: str, name: str) -> Any:
    """The content of a YAML file that lies beside a module of this package, read once.

    Args:
        module: The module's `__file__`.
        name: The file.
    """
    return read_yaml(Path(module).with_name(name))


def _decode(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None


@lru_cache(maxsize=32)
def _from_hub(source: str, split: str, parse: Callable[[Row, int, str], T], what: str) -> tuple[T, ...]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(f"{what} {source}: needs the datasets library; pip install datasets") from None
    name, _, config = source.removeprefix("hf:").partition(":")
    if not config:
        configs = datasets.get_dataset_config_names(name)
        config = next((c for c in ("default", "main") if c in configs), configs[0])
    sets = datasets.load_dataset(name, config)
    names = _names(sets, split, f"{what} {source}")
    return tuple(task for n in names for task in _each(sets[n].to_list(), f"{source}/{n}", parse, what))
