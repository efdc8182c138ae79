"""What runs inside a sandbox: locks the process in, then executes the program and calls functions in it on request.

The program shares this process and may do anything to it, so nothing here is trusted once code has been loaded: the
driver can only answer requests, and the judge decides outside. Loaded by path; standard library only.

A frame is four bytes of length and a list, in JSON from the child and in `marshal` to it. The child starts with `ready`
or `fault`. The judge sends the seed and the recursion limit, then any of `check`, `load`, `call`, `run_test` and
`repl`, each of which is answered with `value` or `error`; meanwhile a trusted child may `ask` for a function of the
judge's side. An answer carries the random ticket of its request, so that bytes a program writes to the channel are
never one.
"""

import atexit
import builtins
import contextlib
import gc
import importlib
import marshal
import operator
import os
import random
import resource
import sys
import types
from collections.abc import Callable
from typing import Any

import isolation  # pyright: ignore[reportMissingImports]
import values  # pyright: ignore[reportMissingImports]

CHANNEL = 3
"""The file descriptor of the channel between a child and its judge."""

_TEXT_CAP = 4000
_ENDED = "the program ended the process"


def lock_in(ruleset: int, limits: dict[str, int], base_memory: int) -> None:
    """Applies the layers that a process passes on to its children: Landlock, limits, no privileges or capabilities.

    Args:
        ruleset: Landlock ruleset's file descriptor, or -1 for the resource limits only.
        limits: `memory` in bytes beyond `base_memory` (0 for none) and `file` in bytes.
        base_memory: Bytes of address space in use before any program runs.
    """
    if ruleset >= 0:
        isolation.prctl("no_new_privs", isolation.PR_SET_NO_NEW_PRIVS, 1)
        isolation.landlock_restrict(ruleset)
    # CORE is 1 because at 0 the kernel still starts a core handler. The owner reads its children's /proc, so they stay
    # dumpable; Landlock and seccomp keep them apart from each other.
    bounds = [("CORE", 1), ("FSIZE", limits["file"]), ("NOFILE", 64), ("MEMLOCK", 0), ("MSGQUEUE", 0)]
    if limits["memory"]:
        bounds.append(("AS", base_memory + limits["memory"]))
    for name, value in bounds:
        which = getattr(resource, "RLIMIT_" + name, None)
        if which is not None:
            _, hard = resource.getrlimit(which)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))
    if ruleset >= 0:
        isolation.drop_capabilities()


def serve(cpu_seconds: int, restrict: Callable[[], None]) -> None:
    """Applies the last layers and serves the judge on `CHANNEL`; never returns.

    Args:
        cpu_seconds: CPU time after which the kernel ends this process.
        restrict: Installs the seccomp filter, for good.
    """
    try:
        os.closerange(CHANNEL + 1, 1 << 16)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        restrict()
    except BaseException as error:
        _write(["fault", f"{type(error).__name__}: {error}"])
        os._exit(1)
    gc.enable()
    builtins.exit = builtins.quit = sys.exit  # what `site` would define
    _flush_on_exit()
    _send(_READY)
    seed, recursion = _read()
    random.seed(seed)
    sys.setrecursionlimit(recursion)
    driver = _Driver()
    while True:
        driver.handle(_read())


def _flush_on_exit() -> None:
    """Keeps output that was printed before `os._exit`."""
    leave = os._exit

    def _exit(status: int) -> None:
        _flush()
        leave(status)

    os._exit = _exit  # type: ignore[assignment]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()


def _read() -> Any:
    """The judge's next request. Its side is trusted, hence `marshal`: faster than JSON in a new process."""
    return marshal.loads(_read_exactly(int.from_bytes(_read_exactly(4), "big")))


def _read_exactly(
    size: int, read: Callable[[int, int], bytes] = os.read, leave: Callable[[int], Any] = os._exit
) -> bytes:
    chunks: list[bytes] = []
    while size:
        chunk = read(CHANNEL, min(size, 1 << 20))
        if not chunk:
            leave(0)
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _frame(message: Any) -> bytes:
    payload = values.dumps(message)
    return len(payload).to_bytes(4, "big") + payload


_READY = _frame(["ready"])


def _write(message: Any) -> None:
    _send(_frame(message))


def _send(data: bytes, write: Callable[[int, Any], int] = os.write) -> None:
    view = memoryview(data)
    while view:
        view = view[write(CHANNEL, view) :]


class _Driver:
    """Holds the program's module and answers the judge's requests about it."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.known: list[Any] = []
        self._enter("__main__", [])  # where a session's chunks run; no program meets the template's own module
        self.module.__file__ = "solution.py"

    def handle(self, request: Any) -> None:
        """Answers one request, whatever the program does meanwhile."""
        kind, ticket, *rest = request
        no_memory = _frame(["error", ticket, "MemoryError", "out of memory", "MemoryError: out of memory", 0])
        try:
            data = _frame(["value", ticket, *getattr(self, kind)(*rest)])
        except MemoryError:
            data = no_memory
        except BaseException as error:
            try:
                data = _frame(["error", ticket, *_describe(error)])
            except BaseException:
                data = no_memory
        _flush()
        _send(data)

    def check(self, code: str) -> tuple[Any, ...]:
        """Compiles a program without running any of it."""
        compile(code, "<solution>", "exec", dont_inherit=True)
        return (None,)

    def load(self, code: str, name: str, hosts: list[str], prelude: str) -> tuple[Any, ...]:
        """Executes the program as a module; as `__main__` it also ends as a script would."""
        self._enter(name, hosts)
        script = name == "__main__"
        if prelude:
            exec(compile(prelude, "<prelude>", "exec", dont_inherit=True), self.module.__dict__)
        try:
            exec(compile(code, "<solution>", "exec", dont_inherit=True), self.module.__dict__)
        except SystemExit as error:
            if not script or error.code not in (None, 0):
                raise
        if script:
            if "threading" in sys.modules:
                sys.modules["threading"]._shutdown()
            atexit._run_exitfuncs()
        return (None,)

    def call(self, function: str, args: list[Any], kwargs: list[Any]) -> tuple[Any, ...]:
        """Calls a function of the program by name."""
        positional = [values.decode(a, self._resolve) for a in args]
        named = {k: values.decode(v, self._resolve) for k, v in kwargs}
        target = _OPERATIONS.get(function) or self.module.__dict__.get(function)
        if target is None:
            raise NameError(f"name {function!r} is not defined")
        return (values.encode(target(*positional, **named), self._foreign),)

    def run_test(self, code: str, known: list[Any]) -> tuple[Any, ...]:
        """Executes a test in the namespace of a trusted program; `known` holds the answers it will need, in order."""
        self.known = known[::-1]
        exec(compile(code, "<test>", "exec", dont_inherit=True), self.module.__dict__)
        return (None,)

    def repl(self, code: str) -> tuple[Any, ...]:
        """Executes a chunk in the namespace of the chunks before it; a last expression is its value."""
        import ast  # costs more to preload than to import by the few that need it

        tree = ast.parse(code, "<solution>")
        *body, last = tree.body or [ast.Pass()]
        if not isinstance(last, ast.Expr):
            exec(compile(tree, "<solution>", "exec", dont_inherit=True), self.module.__dict__)
            return (None, "")
        exec(compile(ast.Module(body, []), "<solution>", "exec", dont_inherit=True), self.module.__dict__)
        value = eval(compile(ast.Expression(last.value), "<solution>", "eval"), self.module.__dict__)  # noqa: S307
        text = "" if value is None else repr(value)
        return (values.encode(value, self._foreign), text[:_TEXT_CAP] if type(text) is str else "")

    def _enter(self, name: str, hosted: list[str]) -> None:
        self.module = types.ModuleType(name)
        sys.modules[name] = self.module
        self.hosted, self.objects, self.known = bool(hosted), [], []
        if hosted:
            random.seed(0)  # a trusted process is used again, and must draw the same numbers each time
        for function in hosted:
            self.module.__dict__[function] = self._proxy(function)

    def _foreign(self, value: Any) -> Any:
        """What crosses for a value that is not of a base type: its parts, or its number among `objects`."""
        kind = type(value)
        name = values.type_name(kind)
        if name in _REBUILT and getattr(sys.modules.get(_REBUILT[name]), name, None) is kind:
            return [values.encode(part, self._foreign) for part in value.__reduce__()[1]]
        if kind in (type, type(len)) and getattr(builtins, value.__name__, None) is value:
            return [value.__name__]
        if self.hosted or len(self.objects) >= 10_000:
            return -1
        self.objects.append(value)
        return len(self.objects) - 1

    def _resolve(self, type_name: str, handle: Any) -> Any:
        if isinstance(handle, list):
            if type_name not in _REBUILT:
                return getattr(builtins, *handle)
            kind = getattr(importlib.import_module(_REBUILT[type_name]), type_name)
            return kind(*[values.decode(part) for part in handle])
        if self.hosted:
            return _Remote(type_name, handle, self._ask)
        if not 0 <= handle < len(self.objects):
            raise values.ValueRefused(f"an argument of type {type_name} cannot enter the sandbox")
        return self.objects[handle]

    def _proxy(self, name: str) -> Callable[..., Any]:
        """A function of the program under test, in the process of the tests."""

        def proxy(*args: Any, **kwargs: Any) -> Any:
            return self._ask(name, *args, **kwargs)

        proxy.__name__ = name
        return proxy

    def _ask(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Has the judge's side call a function, unless the answer is known already."""
        pairs = [[k, values.encode(v, self._foreign)] for k, v in kwargs.items()]
        asked = [function, [values.encode(a, self._foreign) for a in args], pairs]
        if self.known and repr(self.known[-1][0]) == repr(asked):
            kind, *rest = self.known.pop()[1]
        else:
            self.known.clear()
            _write(["ask", *asked])
            kind, *rest = _read()
        if kind == "value":
            return values.decode(rest[0], self._resolve)
        error = getattr(builtins, rest[0], None)
        if not isinstance(error, type) or not issubclass(error, Exception):
            error = RuntimeError
        if issubclass(error, StopIteration) and function != ".next":
            error = RuntimeError  # as PEP 479: `for x in map(candidate, …)` would end at it, all passed
        raise error(rest[1])


class _Remote(values.Opaque):
    """An object of the program under test, in the process of the tests.

    Its attributes and items are read where it lives, and what comes back is compared here. It is never compared itself.
    """

    __slots__ = ("_ask",)

    def __init__(self, type_name: str, ref: int, ask: Callable[..., Any]) -> None:
        for name, value in (("type_name", type_name), ("ref", ref), ("_ask", ask)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask(".getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask(".setattr", self, name, value)

    def __iter__(self) -> Any:
        return self._ask(".iter", self)

    def __next__(self) -> Any:
        return self._ask(".next", self)

    def __len__(self) -> int:
        return self._ask(".len", self)

    def __getitem__(self, key: Any) -> Any:
        return self._ask(".getitem", self, key)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    ".getattr": getattr, ".setattr": setattr, ".iter": iter, ".next": next, ".len": len,
    ".getitem": operator.getitem,
}  # fmt: skip
"""What a test may do with an object of the program; no function of a program has a name with a dot."""

_REBUILT = {
    "Decimal": "decimal", "Fraction": "fractions", "range": "builtins", "bytearray": "builtins",
    "date": "datetime", "datetime": "datetime", "timedelta": "datetime",
}  # fmt: skip
"""Types that cross between two sandboxes by their parts, and their modules; the judge outside takes them as opaque."""


def _describe(error: BaseException) -> tuple[str, str, str, int]:
    """Type, message, traceback within the program, and line of an exception."""
    name = type(error).__name__
    try:
        message = str(error)[:_TEXT_CAP]
    except BaseException:
        message = "(the message could not be made)"
    if isinstance(error, SystemExit):
        message = f"{_ENDED} with exit code {message or 0}"
    steps: list[str] = []
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<solution>":
            line = trace.tb_lineno
            steps.append(f"  line {line}, in {trace.tb_frame.f_code.co_name}")
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == "<solution>":
        line = error.lineno or 0
        source = (error.text or "").rstrip("\n")[:200]
        pointer = " " * max(0, min((error.offset or 1) - 1, 200)) + "^"
        steps = [f"  line {line}", f"    {source}", f"    {pointer}"]
        message = str(error.msg)[:_TEXT_CAP]
    if len(steps) > 8:
        steps = [*steps[:3], f"  … {len(steps) - 6} more", *steps[-3:]]
    return name, message, "\n".join([*steps, f"{name}: {message}" if message else name]), line
